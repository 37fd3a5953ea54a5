package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// An engine is the ends that are in one process, and what moves them. Its exported
// methods are called by the process that conducts the soak.
type engine struct {
	name   string
	board  *board
	sites  map[int]*site
	router *router
	out    string // the directory of the evidence

	mu        sync.Mutex
	ends      map[int]*end
	list      []*end // the same
	listeners map[int]*net.TCPListener
	stats     Stats
	failure   string
	failed    chan struct{}
}

// A site is a host as seen by this process.
type site struct {
	number int
	ns     int
	lock   *netlock.Lock
	tap    *soccr.Tap
}

// newEngine makes one that works on some hosts, given by their namespaces.
func newEngine(name string, b *board, out string, peers int, namespaces map[int]int) (*engine, error) {
	e := &engine{
		name: name, board: b, out: out, sites: map[int]*site{}, stats: newStats(),
		ends: map[int]*end{}, listeners: map[int]*net.TCPListener{}, failed: make(chan struct{}),
	}
	var err error
	if e.router, err = newRouter(peers); err != nil {
		return nil, err
	}
	for number, ns := range namespaces {
		s := &site{number: number, ns: ns}
		if s.lock, err = netlock.New(netlock.WithNetNS(ns)); err != nil {
			return nil, err
		}
		err := netns.Do(ns, func() (err error) {
			s.tap, err = soccr.OpenTap()
			return err
		})
		if err != nil {
			return nil, err
		}
		e.sites[number] = s
	}
	return e, nil
}

func (e *engine) close() error {
	var err error
	for _, s := range e.sites {
		err = errors.Join(err, s.lock.Close(), s.tap.Close())
	}
	return err
}

func (e *engine) add(x *end) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ends[x.Slot] = x
	e.list = append(e.list, x)
}

func (e *engine) remove(x *end) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.ends, x.Slot)
	for i := range e.list {
		if e.list[i] == x {
			e.list[i] = e.list[len(e.list)-1]
			e.list = e.list[:len(e.list)-1]
			return
		}
	}
}

func (e *engine) end(slot int) (*end, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.ends[slot]; x != nil {
		return x, nil
	}
	return nil, fmt.Errorf("%s has no end of slot %d", e.name, slot)
}

// claim waits until nobody else moves an end.
func (e *engine) claim(slot int) (*end, error) {
	x, err := e.end(slot)
	for err == nil && !x.claimed.CompareAndSwap(false, true) {
		time.Sleep(time.Millisecond)
	}
	return x, err
}

// claimSome claims up to n ends on a site that nobody else moves.
func (e *engine) claimSome(at *site, n int, random *rand.Rand) (claimed []*end) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for tries := 0; len(e.list) > 0 && len(claimed) < n && tries < 4*n; tries++ {
		if x := e.list[random.IntN(len(e.list))]; x.at == at && x.rested() && x.claimed.CompareAndSwap(false, true) {
			claimed = append(claimed, x)
		}
	}
	return claimed
}

// A ListenArgs says where a connection of a slot is to be accepted.
type ListenArgs struct {
	Slot, Site int
	Plan       plan
}

// Listen makes the listener of a slot's next connection.
func (e *engine) Listen(args ListenArgs, addr *netip.AddrPort) error {
	f := families[args.Plan.Family]
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	config.Control = args.Plan.Ends[0].prepare
	return netns.Do(e.sites[args.Site].ns, func() error {
		l, err := config.Listen(context.Background(), f.network, f.listenAddress(args.Slot))
		if err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.listeners[args.Slot] = l.(*net.TCPListener)
		*addr = netip.AddrPortFrom(f.address(args.Slot), l.Addr().(*net.TCPAddr).AddrPort().Port())
		return nil
	})
}

// An AcceptArgs is who begins.
type AcceptArgs struct {
	State state
	Site  int
}

// Accept takes the connection that has been made. Its program does not run yet.
func (e *engine) Accept(args AcceptArgs, _ *struct{}) error {
	e.mu.Lock()
	l := e.listeners[args.State.Slot]
	delete(e.listeners, args.State.Slot)
	e.mu.Unlock()
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	conn, err := l.AcceptTCP()
	if err != nil {
		return err
	}
	return e.begin(args, conn)
}

// begin has an end, claimed, of a fresh connection.
func (e *engine) begin(args AcceptArgs, conn *net.TCPConn) error {
	x := &end{state: args.State, engine: e, at: e.sites[args.Site], conn: conn}
	x.claimed.Store(true)
	x.Local, x.Remote = addrs(conn)
	e.add(x)
	return x.Plan.Ends[x.Side].adopt(conn)
}

func addrs(c *net.TCPConn) (local, remote netip.AddrPort) {
	return c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
}

// Start has the program of a claimed end begin.
func (e *engine) Start(slot int, _ *struct{}) error {
	x, err := e.end(slot)
	if err != nil {
		return err
	}
	x.start()
	x.claimed.Store(false)
	return nil
}

// Finish closes an end, when its connection is over and nothing is under way.
func (e *engine) Finish(slot int, _ *struct{}) error {
	x, err := e.claim(slot)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); !x.aground; time.Sleep(2 * time.Millisecond) {
		info, err := infoOf(x.conn)
		if err != nil {
			return err
		}
		if soccr.State(info.State) == soccr.StateClose {
			break
		}
		if time.Now().After(deadline) {
			return e.fail(x, fmt.Errorf("all is read, and still it is in %v", soccr.State(info.State)))
		}
	}
	x.stop()
	if !x.aground {
		_ = x.conn.Close()
	}
	x.conn = nil
	x.using.Unlock()
	e.remove(x)
	return e.unlock(x, nil)
}

// unlock unlocks an end's flow everywhere but on one site.
func (e *engine) unlock(x *end, but *site) error {
	var errs []error
	for _, s := range e.sites {
		if s != but {
			errs = append(errs, s.lock.UnlockFlow(x.Local, x.Remote))
		}
	}
	return errors.Join(errs...)
}

// A Luggage is an end on its way to another process.
type Luggage struct {
	State    state
	Site     int
	Snapshot []byte
	Over     bool // it stays: the connection is over, or has moved meanwhile
	Stopped  int64
}

// settled is how long after a move to another host the old one may still see
// packets that were under way to it.
const settled = 50 * time.Millisecond

// Give takes an end out of this process. Its flow stays locked by it.
func (e *engine) Give(slot int, luggage *Luggage) error {
	x, err := e.claim(slot)
	if err != nil {
		return err
	}
	defer x.claimed.Store(false)
	time.Sleep(time.Until(x.hostMoved.Add(settled)))
	if err := e.unlock(x, x.at); err != nil {
		return err
	}
	stopped := monotonic()
	x.stop()
	if e.board.over(slot) || !x.movable() {
		luggage.Over = true
		x.goOn()
		return nil
	}
	snap, err := soccr.Checkpoint(x.conn, soccr.WithLock(x.at.lock))
	if errors.Is(err, soccr.ErrChanged) {
		luggage.Over = true // it stays for this time
		x.goOn()
		return nil
	}
	if err != nil {
		x.goOn()
		return e.fail(x, err)
	}
	if snap.State == soccr.StateClose { // at the last moment, see movable
		luggage.Over = true
		x.keep(snap)
		err := x.strand(x.at)
		x.using.Unlock()
		return err
	}
	x.remember("%s gives it away in %v, %d received, %d to send", e.name, snap.State, len(snap.RecvQueue), len(snap.SendQueue))
	luggage.State, luggage.Site, luggage.Stopped = x.state, x.at.number, stopped
	x.conn = nil
	x.using.Unlock()
	e.remove(x)
	luggage.Snapshot, err = snap.MarshalBinary()
	return err
}

// A FlowArgs is a flow on a host.
type FlowArgs struct {
	Local, Remote netip.AddrPort
	Site          int
}

// Lock locks a flow that is about to come.
func (e *engine) Lock(f FlowArgs, _ *struct{}) error {
	return e.sites[f.Site].lock.LockFlow(f.Local, f.Remote)
}

// Unlock unlocks a flow that has gone.
func (e *engine) Unlock(f FlowArgs, _ *struct{}) error {
	return e.sites[f.Site].lock.UnlockFlow(f.Local, f.Remote)
}

// Take takes an end that another process has given.
func (e *engine) Take(luggage Luggage, _ *struct{}) error {
	x := &end{state: luggage.State, engine: e, at: e.sites[luggage.Site]}
	var snap soccr.Snapshot
	if err := snap.UnmarshalBinary(luggage.Snapshot); err != nil {
		return e.fail(x, err)
	}
	if err := x.restore(&snap, x.at, soccr.WithLock(x.at.lock)); err != nil {
		return e.fail(x, err)
	}
	x.remember("%s has taken it", e.name)
	e.add(x)
	x.start()
	e.moved(wayProcess, time.Duration(monotonic()-luggage.Stopped), x)
	return nil
}

// restore makes the conn of an end anew on a site.
func (x *end) restore(snap *soccr.Snapshot, to *site, options ...soccr.Option) error {
	return netns.Do(to.ns, func() (err error) {
		x.keep(snap)
		x.conn, err = soccr.RestoreConn(snap, options...)
		return err
	})
}

// keep keeps a snapshot for the evidence, if it is not too large.
func (x *end) keep(snap *soccr.Snapshot) {
	x.latest = snap
	const large = 256 << 10
	if len(snap.RecvQueue)+len(snap.SendQueue) > large {
		return
	}
	x.snapshots = append(x.snapshots[max(len(x.snapshots)-2, 0):], snap)
}

// A Shift is by how much the numbers of an end are to change.
type Shift struct {
	Slot       int
	Send, Recv uint32
}

// Park takes the connection of an end that has not begun, and keeps it.
func (e *engine) Park(slot int, seqs *[2]uint32) error {
	x, err := e.end(slot)
	if err != nil {
		return err
	}
	snap, err := soccr.Checkpoint(x.conn, soccr.WithLock(x.at.lock))
	if err != nil {
		return e.fail(x, err)
	}
	x.keep(snap)
	*seqs = [2]uint32{snap.SendSeq, snap.RecvSeq}
	return nil
}

// Unpark has the connection go on with other numbers.
func (e *engine) Unpark(shift Shift, _ *struct{}) error {
	x, err := e.end(shift.Slot)
	if err != nil {
		return err
	}
	snap := x.snapshots[len(x.snapshots)-1]
	snap.SendSeq += shift.Send
	snap.RecvSeq += shift.Recv
	snap.Window.SndWl1 += shift.Recv
	snap.Window.RcvWup += shift.Recv
	if snap.Timestamp.Enabled && !snap.Timestamp.Microseconds {
		snap.Timestamp.Value = -x.Plan.Clock[x.Side]
	}
	x.remember("%s shifts its numbers: %d to send, %d to receive", e.name, snap.SendSeq, snap.RecvSeq)
	if err := x.restore(snap, x.at, soccr.WithLock(x.at.lock)); err != nil {
		return e.fail(x, err)
	}
	return nil
}

// Report is what this process has done.
func (e *engine) Report(_ struct{}, stats *Stats) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	*stats = newStats()
	stats.add(&e.stats)
	return nil
}

// Wait returns what has gone wrong, once it has.
func (e *engine) Wait(_ struct{}, failure *string) error {
	<-e.failed
	e.mu.Lock()
	defer e.mu.Unlock()
	*failure = e.failure
	return nil
}

// Dismiss has Wait return, though nothing has gone wrong.
func (e *engine) Dismiss(_ struct{}, _ *struct{}) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failure == "" {
		close(e.failed)
	}
	return nil
}

func (e *engine) noteStall(x *end, waited time.Duration, read int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Bytes += read
	longest := e.stats.Stalls.Max
	e.stats.Stalls.note(waited, func() string {
		return fmt.Sprintf("%s, before byte %d, at %s", &x.state, x.Taken, time.Now().Format("15:04:05.000"))
	})
	if e.stats.Stalls.Max > longest && waited > 2*time.Second {
		fmt.Fprintf(os.Stderr, "%s: stalled for %v: %v, before byte %d; its last moves:\n\t%s\n", e.name, waited, &x.state, x.Taken,
			strings.Join(x.History[max(len(x.History)-12, 0):], "\n\t"))
	}
}

// moved counts a move of an end.
func (e *engine) moved(way string, frozen time.Duration, x *end) {
	if n := e.board.Moves.Add(1); n == e.board.MostWant.Load() {
		e.board.Stop.Store(1)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x.moved = time.Now()
	for i := range 2 {
		x.takenThen[i] = e.board.Slots[x.Slot][i].Taken.Load()
	}
	e.stats.Moves[way]++
	e.stats.Frozen.note(frozen, func() string { return way + ", " + x.state.String() })
}

func (e *engine) refused(reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Refused[reason]++
}

func stateOf(i *tcpinfo.Info) soccr.State { return soccr.State(i.State) }
