package netlock

import (
	"errors"
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
	lost    error          // once set, the lock is off for good
	renewed time.Time      // when all leases started anew, or before
	flows   map[Flow]group // as on the wire
	members []int          // how many flows each group has

	listeners map[netip.AddrPort]bool // as on the wire

	marks []uint32 // that pass, beside the first one

	// trackers is how many want conntrack to see injected segments.
	trackers int

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
		flows:   map[Flow]group{},
		members: []int{0},
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
	return opError("add", l.add(flows))
}

func (l *Lock) add(flows []Flow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	wanted, err := onWire(flows)
	if err != nil || l.whole {
		return err
	}
	wanted = slices.DeleteFunc(wanted, func(f placed) bool {
		if _, locked := l.flows[f.Flow]; locked {
			return true
		}
		l.flows[f.Flow] = 0 // a second time it is locked
		return false
	})
	if len(wanted) == 0 {
		return nil
	}
	if err := l.lock(wanted); err != nil {
		for _, f := range wanted {
			delete(l.flows, f.Flow)
		}
		return l.noteLoss(err)
	}
	return nil
}

// lock puts flows that are not locked into a group and into force.
func (l *Lock) lock(wanted []placed) error {
	g, err := l.groupFor(len(wanted))
	if err != nil {
		return err
	}
	if g != 0 {
		for i := range wanted {
			wanted[i].in = g
			l.flows[wanted[i].Flow] = g
		}
	}
	added := 0
	for some := range slices.Chunk(wanted, l.table.capacity) {
		if err = l.table.change(unix.NFT_MSG_NEWSETELEM, some); err != nil {
			break
		}
		added += len(some)
	}
	if err == nil && g != 0 {
		err = l.table.grant(g)
	}
	if err != nil {
		// What was added before the error is in a group without a lease and
		// locks nothing.
		_, undo := l.delete(wanted[:added])
		return errors.Join(err, undo)
	}
	l.members[g] += len(wanted)
	return nil
}

// groupFor gives the group to add n flows to: the first if one transaction can
// hold them, else one that is empty and has no lease.
func (l *Lock) groupFor(n int) (group, error) {
	if n <= l.table.capacity {
		return 0, nil
	}
	for i, members := range l.members {
		if members == 0 && i != 0 {
			return group(i), nil
		}
	}
	g := group(len(l.members))
	if err := l.table.newGroup(g); err != nil {
		return 0, err
	}
	l.members = append(l.members, 0)
	return g, nil
}

// Remove unlocks flows; those that are not locked are left alone. When it fails,
// some flows may be unlocked and some not; Remove can be called again, and Close
// unlocks them all.
//
// If it returns [ErrLost], packets may have reached the sockets of any flow.
func (l *Lock) Remove(flows ...Flow) error {
	return opError("remove", l.remove(flows))
}

func (l *Lock) remove(flows []Flow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	wire, err := onWire(flows)
	if err != nil || l.whole {
		return err
	}
	locked := wire[:0]
	for _, f := range wire {
		if g, ok := l.flows[f.Flow]; ok {
			delete(l.flows, f.Flow) // a second time it is not locked
			locked = append(locked, placed{f.Flow, g})
		}
	}
	deleted, err := l.delete(locked)
	for _, f := range locked[:deleted] {
		l.members[f.in]--
		if l.members[f.in] == 0 && f.in != 0 {
			err = errors.Join(err, l.table.revoke(f.in))
		}
	}
	for _, f := range locked[deleted:] {
		l.flows[f.Flow] = f.in
	}
	return l.noteLoss(err)
}

// delete takes flows out of their groups and returns how many it could.
func (l *Lock) delete(flows []placed) (int, error) {
	deleted := 0
	for some := range slices.Chunk(flows, l.table.capacity) {
		if err := l.table.change(unix.NFT_MSG_DELSETELEM, some); err != nil {
			return deleted, err
		}
		deleted += len(some)
	}
	return deleted, nil
}

// A placed flow is in a group, or about to be.
type placed struct {
	Flow
	in group
}

// onWire gives flows as packets show them, in the first group.
func onWire(flows []Flow) ([]placed, error) {
	wire := make([]placed, len(flows))
	for i, f := range flows {
		w, err := f.onWire()
		if err != nil {
			return nil, err
		}
		wire[i].Flow = w
	}
	return wire, nil
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
func (l *Lock) LockFlows(flows [][2]netip.AddrPort) error { return l.Add(pairs(flows)...) }

// UnlockFlows is Remove for such pairs.
func (l *Lock) UnlockFlows(flows [][2]netip.AddrPort) error { return l.Remove(pairs(flows)...) }

func pairs(ends [][2]netip.AddrPort) []Flow {
	flows := make([]Flow, len(ends))
	for i, e := range ends {
		flows[i] = Flow{Local: e[0], Remote: e[1]}
	}
	return flows
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

// keepRenewing starts the time of the leases anew until the lock is closed or lost.
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
	leased := []group{0}
	for i, members := range l.members {
		if members != 0 && i != 0 {
			leased = append(leased, group(i))
		}
	}
	err := l.table.renew(leased)
	if err == nil {
		l.renewed = now
	}
	return !errors.Is(l.noteLoss(err), ErrLost)
}
