package soccr

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
)

// openNetNS opens the network namespace that a socket belongs to (SIOCGSKNS,
// Linux 4.10). The caller closes it.
func openNetNS(fd int) (int, error) { return unix.IoctlRetInt(fd, unix.SIOCGSKNS) }

// inNetNS runs f on a thread in the socket's network namespace.
func (s *Socket) inNetNS(f func() error) error { return inNetNS(s.fd, f) }

// inNetNS runs f in the network namespace of a socket: on the calling thread, if it
// is there already. Who lacks CAP_NET_ADMIN cannot know (SIOCGSKNS), nor go elsewhere.
func inNetNS(fd int, f func() error) error {
	ns, err := openNetNS(fd)
	if errors.Is(err, unix.EPERM) {
		return f()
	}
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if netns.Current(ns) {
		return f()
	}
	return netns.Do(ns, f)
}
