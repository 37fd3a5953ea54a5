package netlock

import (
	"errors"
	"fmt"
	"net/netip"
)

// A Flow is one TCP connection, as the host of one of its sockets sees it.
//
// IPv4-mapped IPv6 addresses mean the IPv4 flow that is on the wire. Zones are
// ignored, because packets do not carry them: two connections between the same
// link-local addresses and ports on different devices are one flow here.
type Flow struct {
	Local, Remote netip.AddrPort
}

// String gives "local->remote".
func (f Flow) String() string { return fmt.Sprintf("%v->%v", f.Local, f.Remote) }

// ErrInvalidFlow means that no TCP connection can have these addresses and
// ports: one is missing or unspecified, a port is 0, or one address is IPv4
// and the other IPv6.
var ErrInvalidFlow = errors.New("not the addresses and ports of a TCP connection")

// onWire gives the flow as its packets show it.
func (f Flow) onWire() (Flow, error) {
	wire := Flow{Local: addrOnWire(f.Local), Remote: addrOnWire(f.Remote)}
	if !usable(wire.Local) || !usable(wire.Remote) || wire.Local.Addr().Is4() != wire.Remote.Addr().Is4() {
		return Flow{}, fmt.Errorf("%v: %w", f, ErrInvalidFlow)
	}
	return wire, nil
}

func addrOnWire(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func usable(a netip.AddrPort) bool {
	return a.IsValid() && !a.Addr().IsUnspecified() && a.Port() != 0
}
