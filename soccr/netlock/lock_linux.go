package netlock

import (
	"errors"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Lock keeps packets away from sockets: those of the flows added to it, or
// all of a network namespace. Its methods may be called concurrently.
type Lock struct {
	table   *table
	timeout time.Duration
	whole   bool

	mu      sync.Mutex
	closed  bool
	lost    error           // once set, the lock is off for good
	renewed time.Time       // when all leases started anew, or before
	flows   map[Flow]member // locked or prepared, as on the wire
	groups  []groupState
	calls   uint
	wire    []placed // memory of onWire

	listeners map[netip.AddrPort]bool // as on the wire

	marks []uint32 // that pass, beside the first one

	// trackers is how many want conntrack to see injected segments.
	trackers int

	untidy  chan struct{} // there may be something to sweep
	stop    chan struct{}
	stopped sync.WaitGroup
}

// New makes a lock with no flows in it: one nftables table of its own. It first
// removes the tables of locks whose owner is dead, where the kernel (before
// 5.12) has not done so itself.
//
// The lock lives until Close or the end of the process.
func New(options ...Option) (*Lock, error) {
	l, err := newLock(options, (*table).fillFlows)
	return l, opError("new", err)
}

// Namespace makes a lock that keeps all packets away from all sockets of a
// network namespace, for a container about to be moved; only the neighbor
// discovery that keeps its IPv6 addresses reachable goes on. Every flow counts
// as added to it: Add and Remove have no effect, only Close unlocks.
func Namespace(options ...Option) (*Lock, error) {
	l, err := newLock(options, (*table).fillNamespace)
	if err != nil {
		return nil, opError("namespace", err)
	}
	l.whole = true
	return l, nil
}

func newLock(options []Option, fill func(*table, *transaction) error) (*Lock, error) {
	c, err := newConfig(options)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t, err := makeTable(c, fill)
	if err != nil {
		return nil, err
	}
	l := &Lock{
		table:   t,
		timeout: c.timeout,
		renewed: now,
		flows:   map[Flow]member{},
		groups:  []groupState{{leased: true}},
		untidy:  make(chan struct{}, 1),
		stop:    make(chan struct{}),

		listeners: map[netip.AddrPort]bool{},
	}
	l.stopped.Go(l.keepRenewing)
	return l, nil
}

// Add locks flows, all or none of them: when it returns nil, no packet of theirs
// reaches a socket or leaves the host; when it returns an error, the lock is as
// it was. Flows that are locked already stay so.
//
// What one transaction cannot hold (more than 300,000 flows, or about 8,000 where
// the process has no CAP_NET_ADMIN in the first user namespace) is prepared in
// several, without effect on any packet, and put in force by a last one.
func (l *Lock) Add(flows ...Flow) error {
	return opError("add", l.with(slices.Values(flows), l.add))
}

func (l *Lock) add(wanted []placed) error {
	var groups []group // that are prepared
	if slices.ContainsFunc(l.groups, groupState.prepared) {
		groups = l.named(wanted)
		groups = slices.DeleteFunc(groups, func(g group) bool { return l.groups[g].leased })
	}
	wanted = l.enter(wanted)
	if len(wanted)+len(groups) == 0 {
		return nil
	}
	var err error
	single := wanted
	if len(wanted) > l.table.capacity {
		var g group
		if g, err = l.place(wanted); err == nil {
			single, groups = nil, append(groups, g)
		}
	}
	if err == nil {
		err = l.table.change(unix.NFT_MSG_NEWSETELEM, single, groups)
	}
	if err != nil {
		l.leave(wanted)
		return errors.Join(err, l.sweep())
	}
	for _, g := range groups {
		l.groups[g].leased = true
	}
	return nil
}

// Prepare tells the kernel which flows will be locked, without effect on any
// packet. Then one call of Add that names them all takes one small transaction,
// however many they are, and so does one of Remove: what is known before a program
// is stopped is best prepared before.
//
// Flows that are locked or prepared already stay so. What one call has prepared is
// forgotten when Add or Remove names only some of it; Add locks these all the same.
// On error nothing more is prepared than before.
func (l *Lock) Prepare(flows ...Flow) error {
	return opError("prepare", l.with(slices.Values(flows), l.prepare))
}

func (l *Lock) prepare(wanted []placed) error {
	if wanted = l.enter(wanted); len(wanted) == 0 {
		return nil
	}
	if _, err := l.place(wanted); err != nil {
		l.leave(wanted)
		return errors.Join(err, l.sweep())
	}
	return nil
}

// Remove unlocks flows; those that are not locked are left alone. When it fails,
// some flows may be unlocked and some not; Remove can be called again, and Close
// unlocks them all.
//
// If it returns [ErrLost], packets may have reached the sockets of any flow.
func (l *Lock) Remove(flows ...Flow) error {
	return opError("remove", l.with(slices.Values(flows), l.remove))
}

func (l *Lock) remove(wire []placed) error {
	groups := l.named(wire)
	groups = slices.DeleteFunc(groups, func(g group) bool {
		if l.groups[g].leased {
			return false
		}
		l.forget(g)
		return true
	})
	locked := slices.DeleteFunc(wire, func(f placed) bool { return f.in == nowhere || !l.groups[f.in].leased })
	n := 0
	for i, f := range locked {
		if !slices.Contains(groups, f.in) {
			locked[i], locked[n] = locked[n], f
			n++
		}
	}
	single, together := locked[:n], locked[n:]
	for len(single)+len(groups) > 0 {
		some := single[:min(len(single), l.table.capacity)]
		if err := l.table.change(unix.NFT_MSG_DELSETELEM, some, groups); err != nil {
			return err
		}
		for _, g := range groups {
			l.groups[g].leased = false
		}
		l.leave(together)
		l.leave(some)
		together, groups, single = nil, nil, single[len(some):]
	}
	return nil
}

// with does something to flows, unless every flow counts as locked.
func (l *Lock) with(flows iter.Seq[Flow], do func([]placed) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	wire, err := l.onWire(flows)
	if err != nil || l.whole {
		return err
	}
	return l.noteLoss(do(wire))
}

// onWire gives flows as packets show them, until it is called again.
func (l *Lock) onWire(flows iter.Seq[Flow]) ([]placed, error) {
	l.wire = l.wire[:0]
	for f := range flows {
		w, err := f.onWire()
		if err != nil {
			return nil, err
		}
		l.wire = append(l.wire, placed{Flow: w})
	}
	return l.wire, nil
}

// LockFlow is Add for one flow. With UnlockFlow it makes a Lock the Locker that
// package soccr asks for.
func (l *Lock) LockFlow(local, remote netip.AddrPort) error {
	return l.Add(Flow{Local: local, Remote: remote})
}

// UnlockFlow is Remove for one flow.
func (l *Lock) UnlockFlow(local, remote netip.AddrPort) error {
	return l.Remove(Flow{Local: local, Remote: remote})
}

// LockFlows is Add for pairs of the local and the remote end. With UnlockFlows it
// makes a Lock the FlowsLocker that package soccr asks for.
func (l *Lock) LockFlows(flows [][2]netip.AddrPort) error {
	return opError("add", l.with(pairs(flows), l.add))
}

// PrepareFlows is Prepare for such pairs. It makes a Lock the FlowsPreparer that
// package soccr can make use of.
func (l *Lock) PrepareFlows(flows [][2]netip.AddrPort) error {
	return opError("prepare", l.with(pairs(flows), l.prepare))
}

// UnlockFlows is Remove for such pairs.
func (l *Lock) UnlockFlows(flows [][2]netip.AddrPort) error {
	return opError("remove", l.with(pairs(flows), l.remove))
}

func pairs(ends [][2]netip.AddrPort) iter.Seq[Flow] {
	return func(yield func(Flow) bool) {
		for _, e := range ends {
			if !yield(Flow{Local: e[0], Remote: e[1]}) {
				return
			}
		}
	}
}

// Close unlocks everything and removes the table. Whatever it returns, the lock
// is gone, or will be within its timeout. It returns [ErrLost] if the lock had
// not held to the end, and nil if it is closed already.
func (l *Lock) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	lost := l.lostBy(time.Now())
	err := l.table.close()
	l.mu.Unlock()
	close(l.stop)
	l.stopped.Wait()
	if lost != nil {
		err = lost // and that the table may be gone is no news
	}
	return opError("close", err)
}

// SyscallConn gives access to the lock's netlink socket, to duplicate its descriptor.
// The table is that of the socket (Linux 5.12): where another process holds a
// duplicate, as it gets by SCM_RIGHTS, what is locked stays so when the owner is
// killed, until the duplicate is closed or the timeout is over. So somebody is left who
// can put things right before the peer's packets find out. Nothing else must be done
// with the socket.
func (l *Lock) SyscallConn() (syscall.RawConn, error) { return l.table.raw, nil }

// usable says why the lock is not. l.mu is held.
func (l *Lock) usable() error {
	if l.closed {
		return ErrClosed
	}
	return l.lostBy(time.Now())
}

// lostBy says whether the lock is lost, be it that nobody has noticed yet. It
// errs on the safe side: the kernel's timer started after l.renewed. l.mu is held.
func (l *Lock) lostBy(now time.Time) error {
	if l.lost == nil && now.Sub(l.renewed) >= l.timeout {
		l.lost = ErrLost
	}
	return l.lost
}

// noteLoss remembers if an operation has found the table or a lease gone.
func (l *Lock) noteLoss(err error) error {
	if errors.Is(err, ErrLost) {
		l.lost = ErrLost
	}
	return err
}

// keepRenewing starts the time of the leases anew until the lock is closed or lost,
// and sweeps.
func (l *Lock) keepRenewing() {
	tick := time.NewTicker(l.timeout / 3)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
			if !l.renew() {
				return
			}
		case <-l.untidy:
			l.tidy()
		}
	}
}

// renew reports whether it makes sense to go on. An attempt that fails, for want
// of memory, leaves the leases as they are; the next one is in time.
func (l *Lock) renew() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.closed || l.lostBy(now) != nil {
		return false
	}
	var leased []group
	for i, s := range l.groups {
		if s.leased {
			leased = append(leased, group(i))
		}
	}
	err := l.table.renew(leased)
	if err == nil {
		l.renewed = now
		err = l.sweep()
	}
	return !errors.Is(l.noteLoss(err), ErrLost)
}
