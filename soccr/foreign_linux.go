package soccr

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A socket that is not connected may be bound to an address that its host does not
// have, or not any more: IP_FREEBIND can be switched off after bind(2), and
// addresses can be taken away.

// isForeign reports whether a socket is, by trying with another one.
func isForeign(fd int, local netip.AddrPort, o *Options) (foreign bool, err error) {
	addr := local.Addr()
	if neverBound(local) || addr.Unmap().IsUnspecified() || addr.IsMulticast() {
		return false, nil
	}
	for _, name := range [...]string{"IP_FREEBIND", "IPV6_FREEBIND", "IP_TRANSPARENT", "IPV6_TRANSPARENT"} {
		if o.number(name) != 0 {
			return false, nil // it says so itself
		}
	}
	err = inNetNS(fd, func() error {
		family := unix.AF_INET6
		if addr.Is4() {
			family = unix.AF_INET
		}
		probe, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(probe)
		if device, ok := o.Setting("SO_BINDTODEVICE"); ok { // which may have a table of its own
			if err := unix.BindToDevice(probe, device.Text); err != nil {
				return err
			}
		}
		return bindTo(probe, netip.AddrPortFrom(addr, 0))
	})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return true, nil
	}
	return false, err
}

// bindForeign runs bind on a socket, to an address that this host need not have.
func bindForeign(fd int, foreign bool, bind func() error) error {
	if !foreign {
		return bind()
	}
	set := func(on int) error { // one flag for both
		err := sockopt.SetInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, on)
		if errors.Is(err, unix.ENOPROTOOPT) { // raw sockets of IPv6 have no options of IPv4's (rawv6_setsockopt)
			err = sockopt.SetInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, on)
		}
		return err
	}
	if err := set(1); err != nil {
		return err
	}
	return errors.Join(bind(), set(0))
}
