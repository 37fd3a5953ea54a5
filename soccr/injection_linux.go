package soccr

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/rawfin"
)

// A way is one of those on which an injected segment can reach its socket.
type way struct {
	name string
	door
	// tracked: conntrack sees the segment, after it has taken the connection up.
	tracked bool
}

// ways are in the order in which they are tried: first those that leave the rest
// of the host as it is.
var ways = [...]way{
	{name: "raw socket"},
	// For a firewall that drops the mark, or everything, in OUTPUT.
	{name: "link layer of lo", door: door{link: true}},
	// For one that accepts only what is new or established.
	{name: "raw socket and conntrack", tracked: true},
	{name: "link layer of lo and conntrack", door: door{link: true}, tracked: true},
	// For one that drops the mark anywhere. A lock would drop what has none, but may
	// let another mark through.
	{name: "raw socket with another mark", door: door{remarked: true}},
	{name: "raw socket with another mark and conntrack", door: door{remarked: true}, tracked: true},
	{name: "raw socket without a mark", door: door{unmarked: true}},
}

// An injection delivers segments of the peer's to one socket.
type injection struct {
	socket  *Socket
	tracker Tracker // the lock, or nil if it is none
	marker  Marker  // likewise
	way     int     // of ways: what came before did not work
	// untrack takes tracker.TrackInjected back; trackErr is why conntrack was not
	// told of the connection.
	untrack  func() error
	trackErr error
}

// newInjection prepares for a half-closed connection. It may have nothing left to
// send but a FIN, which to a conntrack that has not seen the connection before is
// INVALID, as is the peer's. So conntrack is told of it here, even if no segment
// has to be injected.
func (s *Socket) newInjection(snap *Snapshot) *injection {
	i := &injection{socket: s}
	i.marker, _ = s.options.lock.(Marker)
	if tracker, ok := s.options.lock.(Tracker); ok {
		i.tracker = tracker
		i.trackErr = tracker.TrackFlow(snap.Local, snap.Remote)
		if tracker.TracksInjected() { // another connection has found out that it must be
			i.way = slices.IndexFunc(ways[:], func(w way) bool { return w.tracked })
		}
	}
	return i
}

// close ends an injection. When the restore has failed, conntrack overlooks
// injected segments again; else the next connection will want it to see them too.
func (i *injection) close(failed bool) error {
	if failed && i.untrack != nil {
		return i.untrack()
	}
	return nil
}

// closeInjectors gives the raw sockets up that one call of Restore or Resume has
// used: no Socket holds descriptors of its own from one call to the next.
func (s *Socket) closeInjectors() {
	for _, injector := range s.injectors {
		_ = injector.Close() // close(2) on a socket does not fail
	}
	s.injectors = nil
}

// deliver injects a segment on one way after the other, until the socket is in
// the state that it brings about.
func (i *injection) deliver(segment rawfin.Segment, want State) error {
	failure := &InjectionError{Segment: segment, Mark: i.socket.options.mark}
	for ; i.way < len(ways); i.way++ {
		w := ways[i.way]
		if w.unmarked && (i.socket.options.lock != nil || failure.Mark == 0) || w.remarked && i.marker == nil {
			continue
		}
		err := i.try(w, segment)
		if _, ok := errors.AsType[*rawfin.PermissionError](err); ok && w.door == (door{}) {
			return because(ErrNoPermission, err)
		}
		if err == nil {
			arrived, err := i.socket.await(want)
			if arrived || err != nil {
				return err
			}
		}
		failure.Attempts = append(failure.Attempts, Attempt{Way: w.name, Err: err})
	}
	if i.trackErr != nil {
		failure.Attempts = append(failure.Attempts, Attempt{Way: "conntrack entry", Err: i.trackErr})
	}
	failure.Drops, failure.Unexplained = i.explain(segment)
	return failure
}

func (i *injection) try(w way, segment rawfin.Segment) error {
	injector, err := i.socket.injector(w.door)
	if err == nil && w.remarked {
		err = i.marker.AllowMark(i.socket.otherMark())
	}
	if err == nil && (w.unmarked || w.remarked) {
		err = i.socket.openGate()
	}
	if err != nil {
		return err
	}
	if w.tracked {
		if err := i.track(); err != nil {
			return err
		}
		// Conntrack takes up a connection that it does not know by a plain
		// acknowledgement, but not by a FIN (tcp_new).
		opening := segment
		opening.Flags = rawfin.ACK
		if err := injector.Inject(opening); err != nil {
			return err
		}
	}
	return injector.Inject(segment)
}

// track has conntrack see what is injected, where there is a lock to prevent it.
func (i *injection) track() (err error) {
	if i.tracker != nil && i.untrack == nil {
		i.untrack, err = i.tracker.TrackInjected()
	}
	return err
}

// otherMark is a mark that shares no bit with the first one. Nothing that is known
// looks at this bit alone (see rawfin.DefaultMark).
func (s *Socket) otherMark() uint32 {
	const other = 0x2
	if s.options.mark&other != 0 {
		return rawfin.DefaultMark
	}
	return other
}

// errBound: the kernel finds no socket for a segment that comes in elsewhere, and
// would tell the peer so.
var errBound = errors.New("the socket is bound to a device")

// injector opens, once in a call, what injecting by a door takes.
func (s *Socket) injector(d door) (*rawfin.Injector, error) {
	if injector := s.injectors[d]; injector != nil {
		return injector, nil
	}
	options := []rawfin.Option{rawfin.WithMark(s.options.mark)}
	if d.unmarked {
		options = append(options, rawfin.WithMark(0))
	}
	if d.remarked {
		options = append(options, rawfin.WithMark(s.otherMark()))
	}
	if d.link {
		device, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
		if err != nil {
			return nil, fmt.Errorf("SO_BINDTOIFINDEX: %w", err)
		}
		if device != 0 {
			return nil, errBound
		}
		options = append(options, rawfin.WithLink())
	}
	injector, err := s.openInjector(options...)
	if err == nil {
		if s.injectors == nil {
			s.injectors = make(map[door]*rawfin.Injector, 1)
		}
		s.injectors[d] = injector
	}
	return injector, err
}

// openInjector opens one for the socket's family, in its network namespace.
func (s *Socket) openInjector(options ...rawfin.Option) (*rawfin.Injector, error) {
	ns, err := openNetNS(s.fd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	options = append(options, rawfin.WithFamily(s.local.Addr()))
	if !netns.Current(ns) {
		options = append(options, rawfin.WithNetNS(ns))
	}
	return rawfin.Open(options...)
}

// explain has the lock find out what drops the segment, on all ways again.
func (i *injection) explain(segment rawfin.Segment) ([]string, error) {
	explainer, ok := i.socket.options.lock.(Explainer)
	if !ok {
		return nil, errNoExplainer
	}
	drops, err := explainer.ExplainInjected(i.socket.options.mark, func() {
		for _, w := range ways {
			if !w.unmarked && !w.remarked { // only those with the mark are looked at
				_ = i.try(w, segment) // as before
			}
		}
	})
	if len(drops) == 0 && err == nil {
		err = errNoDrop
	}
	return drops, err
}

// await waits until an injected segment has brought the socket into a state. As
// a rule that is so when the segment has been sent, unless another CPU processes
// what arrives on the loopback device.
func (s *Socket) await(want State) (arrived bool, err error) {
	const patience = 200 * time.Millisecond
	for start := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		info, err := s.info()
		if err != nil || State(info.State) == want {
			return err == nil, err
		}
		if time.Since(start) > patience {
			return false, nil
		}
	}
}
