package soccr

import (
	"fmt"
	"net/netip"
)

// sockets is which options a snapshot's socket can have. At an address that is not
// of both families it speaks with one (inet6_bind sets IPV6_V6ONLY).
func (s *Snapshot) sockets() sockets {
	set := onTCP
	switch s.State {
	case StateListen:
		set |= whenListening
	case StateClose:
		set |= whenUnconnected
	default:
		set |= whenConnected
	}
	switch {
	case s.Local.Addr().Is4():
		set |= onIPv4
	case !set.has(whenConnected) && s.Local.Addr().IsUnspecified():
		set |= onDual
	case s.Mapped():
		set |= onMapped
	default:
		set |= onIPv6
	}
	return set
}

// wrongSetting says what is wrong with the first setting that is not one of an
// option that these sockets have, or not in its place; it is empty if all are
// right.
func wrongSetting(settings []Setting, on sockets) string {
	for i := range settings {
		s := &settings[i]
		o := row(s.Name)
		switch {
		case o == nil:
			return fmt.Sprintf("%q, which is no option that is kept", s.Name)
		case i > 0 && settings[i-1].Name >= s.Name:
			return fmt.Sprintf("%s behind %s", s.Name, settings[i-1].Name)
		case !o.on.has(on):
			return s.Name + ", which such a socket does not have"
		case !o.holds(s):
			return fmt.Sprintf("%s with %d %q and %d bytes", s.Name, s.Number, s.Text, len(s.Bytes))
		}
	}
	return ""
}

// holds reports whether the option can have this value.
func (o *option) holds(s *Setting) bool {
	number := o.min <= s.Number && s.Number <= o.max
	text, size := s.Text == "", int64(len(s.Bytes))
	switch o.kind {
	case probeKind:
		return false
	case bytesKind, filterKind:
		return s.Number == 0 && text && o.min <= size && size <= o.max && size%o.unit() == 0
	case bindKind, deviceKind, netDeviceKind:
		return s.Number == 0 && validDevice(s.Text) && size == 0
	case addressKind:
		addr, err := netip.ParseAddr(s.Text)
		return err == nil && addr.Is4() && s.Number == 0 && size == 0
	case pairKind:
		number = uint64(s.Number)>>32 <= uint64(o.max) && s.Number&maxUint32 <= o.max
	case ownerKind:
		text = s.Text == ownerProcess || s.Text == ownerGroup || s.Text == ownerThread
	}
	return number && text && size == 0
}

// unit is what the number of bytes is a multiple of.
func (o *option) unit() int64 {
	if o.kind == filterKind {
		return filterSize
	}
	return max(o.normal, 1)
}

// routes reports whether an option has packets go by way of others than the peer.
func (s *Setting) routes() bool {
	switch s.Name {
	case "IPV6_RTHDR":
		return true // even with no segments left, packets go to the one that it names (ipv6_push_rthdr4)
	case "IP_OPTIONS":
		const end, noOperation, looseRoute, strictRoute = 0, 1, 131, 137
		for b := s.Bytes; len(b) > 0 && b[0] != end; {
			switch {
			case b[0] == looseRoute || b[0] == strictRoute:
				return true
			case b[0] == noOperation:
				b = b[1:]
			case len(b) < 2 || b[1] < 2:
				return false // the kernel refuses it
			default:
				b = b[min(len(b), int(b[1])):]
			}
		}
	}
	return false
}

// validDevice is the kernel's own rule for names of devices (dev_valid_name).
func validDevice(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxName {
		return false
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == '/' || c == ':' || c >= 0x7f {
			return false
		}
	}
	return true
}

// filterSize is the size of an instruction of classic BPF.
const filterSize = 8

// The kinds of owners that get a socket's signals, as text of F_SETOWN.
const (
	ownerProcess = "process"
	ownerGroup   = "group"
	ownerThread  = "thread"
)
