package soccr

import (
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
)

// openNetNS opens the network namespace that a socket belongs to (SIOCGSKNS,
// Linux 4.10). The caller closes it.
func openNetNS(fd int) (int, error) { return unix.IoctlRetInt(fd, unix.SIOCGSKNS) }

// inNetNS runs f on a thread in the socket's network namespace.
func (s *Socket) inNetNS(f func() error) error {
	ns, err := openNetNS(s.fd)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return netns.Do(ns, f)
}
