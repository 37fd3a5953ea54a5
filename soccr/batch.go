package soccr

import (
	"iter"
	"net/netip"
)

// A Batch is many connections that move together, on all cores. SaveAll makes one
// of sockets, RestoreAll one of what SaveAll has written:
//
//	SaveAll → Disconnect → Close        RestoreAll → Resume
//
// Each connection is moved whole or not at all, whatever becomes of the others: one
// that could not be moved has an error of its own (Err), and the following steps
// leave it out. Methods must not be called concurrently.
type Batch struct {
	members []member
	set     settings
	options []Option
}

// A member is one connection of a batch.
type member struct {
	socket        *Socket
	local, remote netip.AddrPort
	fd            int
	paused        bool // and part of the batch's steps
	restored      bool
	ours          bool // to close: saved or restored, and not gone on
	err           error
}

// Len is how many connections there are, those that failed included.
func (b *Batch) Len() int { return len(b.members) }

// FD is a connection's descriptor: the one given to SaveAll, or the socket that
// RestoreAll has made, which is the caller's after Resume. It is −1 where there is
// none: a connection that could not be restored, or one that is closed.
func (b *Batch) FD(i int) int { return b.members[i].fd }

// Flow gives the two ends of a connection, as far as they are known.
func (b *Batch) Flow(i int) (local, remote netip.AddrPort) {
	return b.members[i].local, b.members[i].remote
}

// Err is why a connection could not be moved, or nil.
func (b *Batch) Err(i int) error { return b.members[i].err }

// Failed yields the connections that could not be moved, and why.
func (b *Batch) Failed() iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for i := range b.members {
			if err := b.members[i].err; err != nil && !yield(i, err) {
				return
			}
		}
	}
}

// flows are those of the members that are paused.
func (b *Batch) flows() [][2]netip.AddrPort {
	flows := make([][2]netip.AddrPort, 0, len(b.members))
	for i := range b.members {
		if m := &b.members[i]; m.paused && m.remote.IsValid() {
			flows = append(flows, [2]netip.AddrPort{m.local, m.remote})
		}
	}
	return flows
}

// prepareFlows tells the lock, if it cares, which flows it will be asked to lock.
func (set *settings) prepareFlows(flows [][2]netip.AddrPort) error {
	if careful, ok := set.lock.(FlowsPreparer); ok {
		return careful.PrepareFlows(flows)
	}
	return nil
}

// lockFlows locks flows, in one transaction if the lock can.
func (set *settings) lockFlows(flows [][2]netip.AddrPort) error {
	if set.tap != nil {
		for _, f := range flows {
			if err := set.tap.Watch(f[0], f[1]); err != nil {
				return err
			}
		}
	}
	if many, ok := set.lock.(FlowsLocker); ok {
		return many.LockFlows(flows)
	}
	return set.eachFlow(flows, Locker.LockFlow)
}

func (set *settings) unlockFlows(flows [][2]netip.AddrPort) error {
	if many, ok := set.lock.(FlowsLocker); ok {
		return many.UnlockFlows(flows)
	}
	return set.eachFlow(flows, Locker.UnlockFlow)
}

func (set *settings) eachFlow(flows [][2]netip.AddrPort, do func(l Locker, local, remote netip.AddrPort) error) error {
	if set.lock == nil {
		return nil
	}
	for _, f := range flows {
		if err := do(set.lock, f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

// WithWorkers has SaveAll, RestoreAll and the methods of their Batch do so many
// connections at a time; the default is as many as Go uses processors (GOMAXPROCS).
func WithWorkers(n int) Option { return func(s *settings) { s.workers = n } }

// A FlowsLocker is a Locker that locks many flows in one transaction, all or none,
// given as pairs of the local and the remote end. Both calls are idempotent.
type FlowsLocker interface {
	Locker
	LockFlows(flows [][2]netip.AddrPort) error
	UnlockFlows(flows [][2]netip.AddrPort) error
}

// A FlowsPreparer is a FlowsLocker that locks flows in less time if it has been told
// of them before. PrepareFlows has no effect on their packets, and nobody is obliged
// to lock them then; UnlockFlows is for those too that are only prepared.
type FlowsPreparer interface {
	FlowsLocker
	PrepareFlows(flows [][2]netip.AddrPort) error
}
