package diag

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Destroy ends a socket from outside, whoever holds it: a connection's peer gets
// a RST, the program gets ECONNABORTED, and a listening socket listens no more.
// A socket in TIME_WAIT or SYN_RECV is simply gone. The file descriptors stay
// open. It needs CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY, else
// the error is [errors.ErrUnsupported].
//
// Only the very socket that was found earlier is destroyed: its cookie is
// compared, so that a newer one with the same addresses is safe. If it is gone,
// the error is [ErrNotFound]; so it is for a listening socket that shares its
// address (SO_REUSEPORT), as the kernel may look at another one of them.
func (c *Conn) Destroy(s Socket) error {
	if err := c.destroy(s); err != nil {
		return &OpError{Op: "destroy", Local: s.Local, Remote: s.Remote, Err: because(err)}
	}
	return nil
}

func (c *Conn) destroy(s Socket) error {
	if s.Cookie == anyCookie {
		return fmt.Errorf("%w: not the cookie of a socket", ErrInvalid)
	}
	_, err := c.execute(unix.SOCK_DESTROY, netlink.Acknowledge, request(s.Family, 0, 0, s.id()))
	if errors.Is(err, errors.ErrUnsupported) { // as EOPNOTSUPP is
		return fmt.Errorf("the kernel lacks CONFIG_INET_DIAG_DESTROY: %w", err)
	}
	return err
}
