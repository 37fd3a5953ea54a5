package soccr

import (
	"net/netip"
	"slices"
)

// WithClosed has Restore, RestoreConn and RestoreListener bring connections back
// as closed, for a program that is to find its descriptors and listeners again but
// not its connections, as after a crash: reading gives the end, writing EPIPE, and
// poll POLLHUP. Such a socket needs nothing of the host, neither the addresses nor
// a route, and keeps no port from anybody; it has its options, except those that say
// where and how to connect, but neither its queues nor its names.
//
// The peer is not told. As long as the flow is not locked, whatever it sends is
// answered with a RST by the host that has the address.
//
// Sockets that were closed or had never connected come back as always.
func WithClosed() Option {
	return func(s *settings) { s.closed, s.reset = true, false }
}

// WithReset is WithClosed, and Resume resets the peer: see [ResetPeer]. That needs
// the address and a route.
func WithReset() Option {
	return func(s *settings) { s.closed, s.reset = true, true }
}

// closes reports whether a snapshot's connection is to come back as closed.
func (set settings) closes(s *Snapshot) bool { return set.closed && s.State != StateClose }

// remains is what is left of a connection's socket when it comes back as closed:
// one that never connected.
func (s *Snapshot) remains() *Snapshot {
	r := &Snapshot{State: StateClose, Local: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Options: s.Options}
	if s.Local.Addr().Is4() {
		r.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	r.Options.ReadShutdown, r.Options.Congestion = false, ""
	r.Options.Settings = slices.DeleteFunc(slices.Clone(s.Options.Settings), func(s Setting) bool {
		o := row(s.Name)
		return o.phase == beforeBind || !o.on.has(r.sockets())
	})
	return r
}

// toReset is an established connection without data from which a RST is what the
// peer expects next.
func (s *Snapshot) toReset() *Snapshot {
	r := *s
	r.State = StateEstablished
	r.RecvSeq, r.SendSeq = s.rcvNxt(), s.writeSeq()-uint32(s.Unsent)
	if s.UnsentFIN {
		r.SendSeq--
	}
	r.RecvQueue, r.SendQueue, r.Unsent, r.UnsentFIN = nil, nil, 0, false
	r.Options.ReadShutdown, r.Options.PeekOffset, r.Options.PeekOffsetOn = false, 0, false
	return &r
}
