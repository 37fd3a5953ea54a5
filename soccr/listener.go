package soccr

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// A ListenerSnapshot is all of a listening socket that the kernel lets one read
// and put into another. Like a [Snapshot] it is a plain value.
type ListenerSnapshot struct {
	// Local is the address and port. The address may be unspecified (0.0.0.0 or
	// ::); the zone of a link-local one is the name of its device.
	Local netip.AddrPort
	// Multipath: the socket listens for Multipath TCP, too; Go's do by default.
	Multipath bool
	// Backlog is how many connections may wait to be accepted (listen(2)).
	Backlog uint32
	// Options are the socket options, which accepted connections inherit; among its
	// Settings are IPV6_V6ONLY, SO_REUSEPORT, TCP_FASTOPEN and TCP_DEFER_ACCEPT.
	Options Options
	// MD5Keys are the keys of peers whose segments are signed (TCP-MD5); to read
	// them takes CAP_NET_ADMIN.
	MD5Keys []MD5Key `json:",omitempty"`

	// HalfOpen is how many handshakes were under way when the listener was saved,
	// which are not kept: clients that still wait for the first answer try again.
	HalfOpen uint32
	// Pending are the connections that waited to be accepted, in their order.
	Pending []*Snapshot
}

// WithSharedPort lets RestoreListener and StartListener listen beside others on the
// same address and port that would not let them, as it may have been before: members
// of a group (SO_REUSEPORT) can clear that option once they listen. All of them have
// to be of the same user.
func WithSharedPort() Option { return func(s *settings) { s.sharedPort = true } }

// MaxPending is the most connections that a ListenerSnapshot can hold.
const MaxPending = 65535

// Validate reports the first field that keeps the listener from being restored, as
// an ErrInvalidSnapshot inside a *FieldError, or nil. It validates the pending
// connections too.
func (l *ListenerSnapshot) Validate() error {
	switch false { // each case is what has to hold
	case validBound(l.Local) && l.Local.Port() != 0:
		return invalid("Local", l.Local, "a unicast address or none, with a port")
	case l.Backlog <= maxInt:
		return invalid("Backlog", l.Backlog, "at most 2147483647")
	case validMD5Keys(l.MD5Keys, l.Local.Addr()):
		return invalid("MD5Keys", len(l.MD5Keys), wantMD5Keys)
	case len(l.Pending) <= MaxPending && !slices.ContainsFunc(l.Pending, l.cannotHold):
		return invalid("Pending", len(l.Pending), "at most MaxPending connections to the listener's port")
	}
	if err := l.Options.validate(l.sockets()); err != nil {
		return err
	}
	// The other options are those of any socket that is bound.
	bound := Snapshot{State: StateClose, Local: l.Local, Options: l.Options}
	bound.Options.Settings = nil
	if err := bound.Validate(); err != nil {
		return err
	}
	for i, s := range l.Pending {
		if wrong, ok := errors.AsType[*FieldError](s.Validate()); ok {
			wrong.Field = fmt.Sprintf("Pending[%d].%s", i, wrong.Field)
			return wrong
		}
	}
	return nil
}

// cannotHold reports whether this is no connection to the listener's port.
func (l *ListenerSnapshot) cannotHold(s *Snapshot) bool {
	return s == nil || !s.Remote.IsValid() || s.Local.Port() != l.Local.Port()
}

// sockets is which options the listener can have.
func (l *ListenerSnapshot) sockets() sockets {
	return (&Snapshot{State: StateListen, Local: l.Local}).sockets()
}

// v6only: it takes no IPv4 connections, though it could by its address.
func (l *ListenerSnapshot) v6only() bool { return l.Options.number("IPV6_V6ONLY") != 0 }

// A listenerRecord is a listener as it is encoded: with the number of pending
// connections, each of which follows as a snapshot of its own.
type listenerRecord struct {
	ListenerSnapshot
	pending uint32
}

// listenerForm has tags of its own below 25, and those of the options.
var listenerForm = form[listenerRecord]{
	magic: "\x89SOCCL\r\n",
	fields: byTag([]codec[listenerRecord]{
		end(1, func(l *listenerRecord) *netip.AddrPort { return &l.Local }),
		boolean(2, func(l *listenerRecord) *bool { return &l.Multipath }),
		number(3, func(l *listenerRecord) *uint32 { return &l.Backlog }),
		number(4, func(l *listenerRecord) *uint32 { return &l.HalfOpen }),
		number(5, func(l *listenerRecord) *uint32 { return &l.pending }),
		md5KeyList(41, func(l *listenerRecord) *[]MD5Key { return &l.MD5Keys }),
	}, optionFields(func(l *listenerRecord) *Options { return &l.Options })),
}

func (l *ListenerSnapshot) record() (*listenerRecord, error) {
	if len(l.Pending) > MaxPending {
		return nil, &FieldError{Field: "Pending", Want: "at most MaxPending", Got: len(l.Pending), Err: ErrInvalidSnapshot}
	}
	for i, s := range l.Pending {
		if s == nil {
			return nil, &FieldError{Field: fmt.Sprintf("Pending[%d]", i), Want: "a connection", Err: ErrInvalidSnapshot}
		}
	}
	return &listenerRecord{*l, uint32(len(l.Pending))}, nil
}

// AppendBinary implements encoding.BinaryAppender, like that of [Snapshot]: the
// listener, and behind it its pending connections.
func (l *ListenerSnapshot) AppendBinary(b []byte) ([]byte, error) {
	record, err := l.record()
	if err != nil {
		return b, err
	}
	whole, err := listenerForm.append(b, record)
	for _, s := range l.Pending {
		if err != nil {
			break
		}
		whole, err = s.AppendBinary(whole)
	}
	if err != nil {
		return b, err
	}
	return whole, nil
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (l *ListenerSnapshot) MarshalBinary() ([]byte, error) { return l.AppendBinary(nil) }

// WriteTo implements io.WriterTo: it writes what MarshalBinary returns, without
// copying the queues.
func (l *ListenerSnapshot) WriteTo(w io.Writer) (int64, error) {
	record, err := l.record()
	if err != nil {
		return 0, err
	}
	written, err := listenerForm.write(w, record)
	for _, s := range l.Pending {
		if err != nil {
			break
		}
		var n int64
		n, err = s.WriteTo(w)
		written += n
	}
	return written, err
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler, like that of [Snapshot].
func (l *ListenerSnapshot) UnmarshalBinary(data []byte) error {
	var read ListenerSnapshot
	if err := unmarshal(data, &read); err != nil {
		return err
	}
	*l = read
	return nil
}

// ReadFrom reads one listener with its pending connections, and no further, like
// that of [Snapshot].
func (l *ListenerSnapshot) ReadFrom(r io.Reader) (int64, error) {
	var read listenerRecord
	count, err := listenerForm.read(r, &read)
	if err != nil {
		return count, err
	}
	if read.pending > MaxPending {
		return count, &FieldError{Field: "Pending", Want: "at most MaxPending", Got: read.pending, Err: ErrInvalidSnapshot}
	}
	for range read.pending {
		s := new(Snapshot)
		n, err := s.ReadFrom(r)
		count += n
		if err != nil {
			return count, endedEarly(err)
		}
		read.Pending = append(read.Pending, s)
	}
	*l = read.ListenerSnapshot
	return count, nil
}

// listensOn are the addresses whose SYNs the listener gets, with its port: two, if
// it listens on all of both families.
func (l *ListenerSnapshot) listensOn() []netip.AddrPort {
	addrs := []netip.AddrPort{l.Local}
	if l.Local.Addr().WithZone("") == netip.IPv6Unspecified() && !l.v6only() {
		addrs = append(addrs, netip.AddrPortFrom(netip.IPv4Unspecified(), l.Local.Port()))
	}
	return addrs
}

// A Listener is a restored listener: an ordinary one whose first connections are
// those that had waited to be accepted where it was saved.
type Listener struct {
	*net.TCPListener

	mu      sync.Mutex
	pending []*net.TCPConn
}

// Accept returns the next connection that was pending, or waits for a new one.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err // not a nil *net.TCPConn inside an interface
	}
	return c, nil
}

// AcceptTCP is Accept for who wants a *net.TCPConn.
func (l *Listener) AcceptTCP() (*net.TCPConn, error) {
	l.mu.Lock()
	if len(l.pending) > 0 {
		c := l.pending[0]
		l.pending = l.pending[1:]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	return l.TCPListener.AcceptTCP()
}

// Pending is how many connections are left of those that were pending.
func (l *Listener) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending)
}

// Close stops to listen, and resets the connections that nobody has accepted, as
// the kernel does when a listener is closed.
func (l *Listener) Close() error {
	err := l.TCPListener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.pending {
		err = errors.Join(err, c.SetLinger(0), c.Close())
	}
	l.pending = nil
	return err
}
