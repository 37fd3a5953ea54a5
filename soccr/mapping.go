package soccr

import (
	"fmt"
	"net/netip"
	"slices"
)

// A Mapping says which addresses, ports and devices are others where a snapshot is
// restored. It gives new snapshots and changes none.
//
// What a mapping cannot do is tell the peer. A connection whose addresses or ports
// change on this side goes on only if something on the way translates them back
// (NAT), or if the peer is moved and mapped likewise; until then the peer's host
// answers what it gets with a RST. And what is translated before the connection is
// restored finds nobody: lock the new flow first. Conntrack of a translating host has to know the
// connection before it is unlocked. Signatures (MD5Keys) cover the addresses that
// are on the wire, so a translated connection cannot be signed. And what was learned
// of the path, and the segment size, are those of the old one: PathForget forgets
// the former.
//
// Not mapped are the addresses inside of IP options and of filters that the program
// has attached.
type Mapping struct {
	// Local and Remote are rules for the two ends of a connection, and Local for the
	// address of a listener. Of several that match an end, the first one counts.
	Local, Remote []AddrRule `json:",omitempty"`
	// Devices are the new names of devices, by the old ones: those of zones, and of
	// options that name a device, such as SO_BINDTODEVICE.
	Devices map[string]string `json:",omitempty"`
}

// An AddrRule maps addresses and ports. The zero value of From matches all
// addresses, and then To is zero too and changes none. FromPort 0 matches all
// ports, ToPort 0 changes none.
type AddrRule struct {
	// From and To have as many bits each: those behind the prefix stay, so that the
	// networks 10.1.0.0/16 and 10.2.0.0/16 map address by address. Rules for IPv4
	// are for IPv4-mapped addresses too, which stay mapped. Zones do not matter.
	From, To         netip.Prefix
	FromPort, ToPort uint16
}

// MapAddr is the rule for one address.
func MapAddr(from, to netip.Addr) AddrRule {
	return AddrRule{From: netip.PrefixFrom(from, from.BitLen()), To: netip.PrefixFrom(to, to.BitLen())}
}

// Validate reports what is wrong with a mapping, as an ErrInvalidMapping.
func (m *Mapping) Validate() error {
	for _, side := range [...]struct {
		name  string
		rules []AddrRule
	}{{"Local", m.Local}, {"Remote", m.Remote}} {
		for i, r := range side.rules {
			if !r.valid() {
				return &FieldError{
					Field: fmt.Sprintf("%s[%d]", side.name, i), Want: "prefixes of the same family and length, without host bits",
					Got: fmt.Sprintf("%v to %v", r.From, r.To), Err: ErrInvalidMapping,
				}
			}
		}
	}
	for from, to := range m.Devices {
		if !validDevice(from) || !validDevice(to) {
			return &FieldError{Field: "Devices", Want: "names of devices", Got: fmt.Sprintf("%q to %q", from, to), Err: ErrInvalidMapping}
		}
	}
	return nil
}

func (r *AddrRule) valid() bool {
	if r.From == (netip.Prefix{}) {
		return r.To == netip.Prefix{}
	}
	ok := func(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() }
	return ok(r.From) && ok(r.To) && r.From.Bits() == r.To.Bits() && r.From.Addr().Is4() == r.To.Addr().Is4()
}

// Apply gives the snapshot as it is to be restored. It fails with
// ErrInvalidMapping, and with ErrInvalidSnapshot where the result could not be
// restored.
func (m *Mapping) Apply(s *Snapshot) (*Snapshot, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	mapped := *s
	mapped.Local, mapped.Remote = m.Ends(s.Local, s.Remote)
	if err := m.rest(&mapped.Options, &mapped.MD5Keys); err != nil {
		return nil, err
	}
	return &mapped, mapped.Validate()
}

// ApplyListener gives the listener as it is to be restored, and its pending
// connections.
func (m *Mapping) ApplyListener(l *ListenerSnapshot) (*ListenerSnapshot, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	mapped := *l
	mapped.Local = m.end(m.Local, l.Local)
	if err := m.rest(&mapped.Options, &mapped.MD5Keys); err != nil {
		return nil, err
	}
	mapped.Pending = nil
	if slices.Contains(l.Pending, nil) {
		return nil, l.Validate()
	}
	for i, s := range l.Pending {
		p, err := m.Apply(s)
		if err != nil {
			return nil, fmt.Errorf("connection %d that is pending: %w", i, err)
		}
		mapped.Pending = append(mapped.Pending, p)
	}
	return &mapped, mapped.Validate()
}

// ApplyDatagram gives the socket as it is to be restored, with its groups and the
// datagrams that it has not read.
func (m *Mapping) ApplyDatagram(d *DatagramSnapshot) (*DatagramSnapshot, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	mapped := *d
	mapped.Local, mapped.Remote = m.Ends(d.Local, d.Remote)
	if err := m.rest(&mapped.Options, new([]MD5Key)); err != nil {
		return nil, err
	}
	mapped.Groups = slices.Clone(d.Groups)
	for i := range mapped.Groups {
		g := &mapped.Groups[i]
		if to, ok := m.Devices[g.Device]; ok {
			g.Device = to
		}
		g.Sources = slices.Clone(g.Sources)
		for j, source := range g.Sources {
			g.Sources[j] = m.end(m.Remote, netip.AddrPortFrom(source, 0)).Addr()
		}
	}
	mapped.RecvQueue = slices.Clone(d.RecvQueue)
	for i := range mapped.RecvQueue {
		q := &mapped.RecvQueue[i]
		q.From = m.end(m.Remote, q.From)
		q.To = m.end(m.Local, netip.AddrPortFrom(q.To, d.Local.Port())).Addr()
	}
	return &mapped, mapped.Validate()
}

// Ends gives the two ends of a connection as they are where it is restored, without
// looking at what they are ends of: for sockets that are in no snapshot. An end that
// is not there, the zero AddrPort, stays so. The mapping has to be valid.
func (m *Mapping) Ends(local, remote netip.AddrPort) (mappedLocal, mappedRemote netip.AddrPort) {
	return m.end(m.Local, local), m.end(m.Remote, remote)
}

// end maps an address and port, and its zone.
func (m *Mapping) end(rules []AddrRule, end netip.AddrPort) netip.AddrPort {
	for _, r := range rules {
		if r.matches(end) {
			addr, port := r.addr(end.Addr()), end.Port()
			if r.ToPort != 0 {
				port = r.ToPort
			}
			end = netip.AddrPortFrom(addr, port)
			break
		}
	}
	if to, ok := m.Devices[end.Addr().Zone()]; ok {
		end = netip.AddrPortFrom(end.Addr().WithZone(to), end.Port())
	}
	return end
}

func (r *AddrRule) matches(end netip.AddrPort) bool {
	return end.IsValid() && (r.FromPort == 0 || r.FromPort == end.Port()) &&
		(r.From == netip.Prefix{} || r.From.Contains(end.Addr().Unmap().WithZone("")))
}

// addr replaces the prefix of an address.
func (r *AddrRule) addr(a netip.Addr) netip.Addr {
	if (r.From == netip.Prefix{}) {
		return a
	}
	b, to := a.Unmap().AsSlice(), r.To.Addr().AsSlice()
	for i := range b {
		keep := byte(0xff >> min(8, max(0, r.To.Bits()-8*i)))
		b[i] = b[i]&keep | to[i]
	}
	mapped, _ := netip.AddrFromSlice(b)
	if a.Is4In6() {
		mapped = netip.AddrFrom16(mapped.As16())
	}
	return mapped.WithZone(a.Zone())
}

// rest maps what else names addresses and devices. It changes what it is given to
// copies of itself.
func (m *Mapping) rest(o *Options, keys *[]MD5Key) error {
	o.Settings = slices.Clone(o.Settings)
	for i := range o.Settings {
		s := &o.Settings[i]
		r := row(s.Name)
		if r == nil {
			continue // Validate will say so
		}
		switch r.kind {
		case bindKind, deviceKind, netDeviceKind:
			if to, ok := m.Devices[s.Text]; ok {
				s.Text = to
			}
		case addressKind:
			if addr, err := netip.ParseAddr(s.Text); err == nil {
				s.Text = m.end(m.Local, netip.AddrPortFrom(addr, 0)).Addr().String()
			}
		}
	}
	*keys = slices.Clone(*keys)
	for i := range *keys {
		if err := m.peers(&(*keys)[i].Peers); err != nil {
			return err
		}
	}
	return nil
}

// peers maps the peers of a key, which have to be within one rule's addresses.
func (m *Mapping) peers(p *netip.Prefix) error {
	for _, r := range m.Remote {
		if (r.From == netip.Prefix{}) || !r.From.Overlaps(*p) {
			continue
		}
		if p.Bits() < r.From.Bits() {
			return &FieldError{Field: "MD5Keys", Want: "peers within " + r.From.String(), Got: *p, Err: ErrInvalidMapping}
		}
		*p = netip.PrefixFrom(r.addr(p.Addr()), p.Bits())
		return nil
	}
	return nil
}
