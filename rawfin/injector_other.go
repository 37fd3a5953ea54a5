//go:build !linux

package rawfin

import (
	"errors"
	"net/netip"
)

// An Injector delivers segments to local sockets, on Linux.
type Injector struct{}

// Open needs Linux: it returns [errors.ErrUnsupported].
func Open(...Option) (*Injector, error) { return nil, errors.ErrUnsupported }

// Inject needs Linux.
func (*Injector) Inject(Segment) error { return errors.ErrUnsupported }

// Deliver needs Linux.
func (*Injector) Deliver([]byte, netip.AddrPort) error { return errors.ErrUnsupported }

// Send needs Linux.
func (*Injector) Send(Segment) error { return errors.ErrUnsupported }

// InjectDatagram needs Linux.
func (*Injector) InjectDatagram(Datagram) error { return errors.ErrUnsupported }

// Close does nothing.
func (*Injector) Close() error { return nil }
