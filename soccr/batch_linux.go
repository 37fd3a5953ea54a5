package soccr

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
)

// inChunk is how many connections one worker takes at a time.
const inChunk = 32

// SaveAll reads the options of many sockets, which the flow of packets does not
// change, locks their flows in one transaction ([WithLock], [FlowsLocker],
// [FlowsPreparer]), pauses and saves them, and writes their snapshots to w while it
// works, in the order of fds and one behind the other, as WriteTo does; w gets one
// call at a time. Their programs must be stopped before. Memory does not grow with what is in the queues: a worker has at
// most one large snapshot, or 1 MiB of small ones.
//
// Connections that cannot be saved go on as before, and are not in w; so does each
// that is saved, if Resume is called before Disconnect. The descriptors stay the
// caller's, unless Close is called. An error means that nothing was saved: the lock
// or the writer has failed, and all go on as before.
//
// Options are those of Pause and Checkpoint, without WithDrain, and WithWorkers.
func SaveAll(w io.Writer, fds []int, options ...Option) (*Batch, error) {
	b := newBatch(options)
	b.members = make([]member, len(fds))
	sockets := make([]Socket, len(fds))
	for i, fd := range fds {
		m := &b.members[i]
		m.fd, m.socket = fd, &sockets[i]
	}
	b.each(func(m *member) {
		m.socket.options.noVerify = b.set.noVerify
		err := m.socket.readEarly(m.fd, b.set.noOptions)
		m.local, m.remote = m.socket.local, m.socket.remote
		if err != nil {
			m.err = &OpError{Op: "lock", Local: m.local, Err: because(notTCP(err), err)}
		} else if err := m.socket.claim(); err != nil { // whose flow may be locked with the same lock
			m.err = m.socket.fail("pause", err)
		}
		m.paused = m.err == nil // will be
	})
	flows := b.flows()
	err := b.set.prepareFlows(flows)
	if err == nil {
		err = b.set.lockFlows(flows)
	}
	if err != nil {
		b.disclaim()
		return nil, &OpError{Op: "lock", Err: errors.Join(err, b.set.unlockFlows(flows))}
	}
	for i := range b.members {
		b.members[i].paused = false
	}
	out := &orderedWriter{to: w}
	out.turned.L = &out.mu
	savers := sync.Pool{New: func() any { return &saver{out: out} }} // one for each worker
	err = b.chunks(len(fds), func(chunk, from, to int) error {
		s := savers.Get().(*saver)
		defer savers.Put(s)
		s.chunk = chunk
		defer out.finish(chunk)
		for i := from; i < to; i++ {
			if err := s.save(b, &b.members[i]); err != nil {
				return err
			}
		}
		return s.flush()
	})
	if err != nil {
		err = errors.Join(&OpError{Op: "save", Err: err}, b.set.unlockFlows(flows), b.Resume())
		b.disclaim()
		return nil, err
	}
	return b, nil
}

func newBatch(options []Option) *Batch {
	b := &Batch{options: slices.Clone(options)}
	b.set.apply(b.options)
	if b.set.workers < 1 {
		b.set.workers = runtime.GOMAXPROCS(0)
	}
	return b
}

// A saver is a worker's work on one chunk.
type saver struct {
	out   *orderedWriter
	chunk int
	snap  Snapshot
	small []byte // encoded snapshots that wait to be written
}

// save saves one connection; its own failure is not the error.
func (s *saver) save(b *Batch, m *member) error {
	if m.err == nil {
		m.save(&s.snap, b.options)
		if m.err != nil {
			b.goOn(m)
		}
	}
	if m.err != nil {
		return s.out.err()
	}
	const large, enough = 64 << 10, 1 << 20
	if len(s.snap.RecvQueue)+len(s.snap.SendQueue) > large {
		if err := s.flush(); err != nil {
			return err
		}
		_, err := s.snap.WriteTo(s.out) // it is our turn
		return err
	}
	var err error
	if s.small, err = s.snap.AppendBinary(s.small); err == nil && len(s.small) > enough {
		err = s.flush()
	}
	return err
}

// save pauses a connection and saves it.
func (m *member) save(snap *Snapshot, options []Option) {
	if m.err = m.socket.pause(m.fd, options); m.err != nil {
		return
	}
	m.paused = true
	for range attempts {
		if m.err = m.socket.SaveTo(snap); !errors.Is(m.err, ErrChanged) {
			break
		}
	}
	m.ours, m.socket.early = m.err == nil, nil // its memory
}

// goOn lets a connection that could not be saved go on.
func (b *Batch) goOn(m *member) {
	err := b.set.eachFlow([][2]netip.AddrPort{{m.local, m.remote}}, Locker.UnlockFlow)
	if m.paused {
		err = errors.Join(err, m.socket.Resume())
	}
	m.paused = false
	m.err = errors.Join(m.err, err)
	m.socket.disclaim()
}

// disclaim leaves all sockets to others.
func (b *Batch) disclaim() { b.each(func(m *member) { m.socket.disclaim() }) }

// flush writes what is encoded, when it is this chunk's turn.
func (s *saver) flush() error {
	if err := s.out.await(s.chunk); err != nil || len(s.small) == 0 {
		return err
	}
	_, err := s.out.Write(s.small)
	s.small = s.small[:0]
	return err
}

// An orderedWriter is written to by the workers in the order of their chunks.
type orderedWriter struct {
	to     io.Writer
	mu     sync.Mutex
	turned sync.Cond
	turn   int
	failed error
}

// await waits for a chunk's turn. Chunks are taken in order, so somebody is always
// at work on the one whose turn has come.
func (o *orderedWriter) await(chunk int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.turn != chunk && o.failed == nil {
		o.turned.Wait()
	}
	return o.failed
}

func (o *orderedWriter) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

// Write is for the chunk whose turn it is. After an error there are no more.
func (o *orderedWriter) Write(b []byte) (int, error) {
	n, err := o.to.Write(b)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.failed = err
		o.turned.Broadcast()
	}
	return n, err
}

func (o *orderedWriter) finish(chunk int) {
	_ = o.await(chunk)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn = max(o.turn, chunk+1)
	o.turned.Broadcast()
}

// chunks has the workers do n things, inChunk at a time. After an error no more are
// begun.
func (b *Batch) chunks(n int, do func(chunk, from, to int) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	b.work((n+inChunk-1)/inChunk, func() {
		for failed.Load() == nil {
			chunk := int(next.Add(1) - 1)
			from := chunk * inChunk
			if from >= n {
				return
			}
			if err := do(chunk, from, min(from+inChunk, n)); err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		}
	})
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// each does something with every member; what comes of it is the member's.
func (b *Batch) each(do func(*member)) {
	_ = b.chunks(len(b.members), func(_, from, to int) error {
		for i := from; i < to; i++ {
			do(&b.members[i])
		}
		return nil
	})
}

// work runs f in all workers, at most as many as there is work for, in the network
// namespace of the calling thread.
func (b *Batch) work(most int, f func()) {
	workers := min(b.set.workers, most)
	if workers < 2 {
		f()
		return
	}
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		f()
		return
	}
	defer here.Close()
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(func() {
			if ns := int(here.Fd()); netns.Current(ns) {
				f()
			} else {
				// Who may not enter it leaves the work to the others.
				_ = netns.Do(ns, func() error { f(); return nil })
			}
		})
	}
	f()
	wg.Wait()
}

// Disconnect takes the connections that were saved out of their sockets, silently,
// whoever else has descriptors of these. From then on they can only be restored.
func (b *Batch) Disconnect() {
	b.each(func(m *member) {
		if m.paused && !m.restored {
			m.err = errors.Join(m.err, m.socket.Disconnect())
			m.socket.Release()
			m.paused = false
		}
	})
}

// Close closes the descriptors of all connections that have not gone on: silently,
// as they are paused or disconnected. Those that could not be saved stay the
// caller's.
func (b *Batch) Close() error {
	b.each(func(m *member) {
		if m.ours {
			m.socket.Release()
			_ = unix.Close(m.fd) // whatever it says, it is closed
			m.fd, m.paused, m.ours = -1, false, false
		}
	})
	return nil
}

// Resume unlocks the flows of all connections that are paused, in one transaction,
// and lets them go on. An error means that they could not be unlocked, and all are
// still paused. A connection that cannot go on is still paused too, and its flow
// unlocked: see Err.
func (b *Batch) Resume() error {
	flows := b.flows()
	if err := b.set.unlockFlows(flows); err != nil {
		return &OpError{Op: "unlock", Err: err}
	}
	b.each(func(m *member) {
		if !m.paused {
			return
		}
		if m.err = m.socket.Resume(); m.err == nil {
			m.paused, m.ours = false, false
			if b.set.tap != nil {
				b.set.tap.Forget(m.local, m.remote)
			}
			m.socket.Release()
		}
	})
	return nil
}

// RestoreAll restores connections from what SaveAll has written, or from any
// snapshots one behind the other, while it reads them: it locks their flows, makes
// sockets in the network namespace of the calling thread, and restores them. They
// stay paused and locked until Resume.
//
// A connection that cannot be restored stays locked, so that the peer's packets
// draw no RST, and its snapshot can be restored again. An error means that what was
// read is damaged or the lock has failed; then nothing is restored.
//
// Until Resume, memory holds the snapshots and their queues. Options are those of
// Restore, and WithLock and WithWorkers.
func RestoreAll(r io.Reader, options ...Option) (*Batch, error) {
	b := newBatch(options)
	var in chunkReader
	in.from = r
	var mu sync.Mutex
	var failure error
	var chunks [][]member // as they were read
	b.work(b.set.workers, func() {
		for {
			mu.Lock()
			if failure != nil {
				mu.Unlock()
				return
			}
			encoded, err := in.next()
			at := len(chunks)
			chunks = append(chunks, nil)
			if err != nil {
				failure = err
			}
			mu.Unlock()
			members, err := b.restoreChunk(encoded)
			mu.Lock()
			chunks[at] = members
			if err != nil && (failure == nil || errors.Is(failure, io.EOF)) {
				failure = err
			}
			mu.Unlock()
		}
	})
	b.members = slices.Concat(chunks...)
	if !errors.Is(failure, io.EOF) || errors.Is(failure, ErrInvalidSnapshot) {
		return nil, errors.Join(&OpError{Op: "restore", Err: failure}, b.Close())
	}
	return b, nil
}

// restoreChunk restores a few snapshots, whose queues stay where they are.
func (b *Batch) restoreChunk(encoded [][]byte) ([]member, error) {
	members := make([]member, len(encoded))
	snaps := make([]Snapshot, len(encoded))
	sockets := make([]Socket, len(encoded))
	var fresh fresh
	flows := make([][2]netip.AddrPort, 0, len(encoded))
	var in summingReader
	for i, record := range encoded {
		m := &members[i]
		m.fd, m.restored = -1, true
		in = summingReader{data: record, shared: true}
		if err := connectionForm.readRecord(&in, &snaps[i]); err != nil {
			return nil, err
		}
		m.local, m.remote = snaps[i].Local, snaps[i].Remote
		if m.err = snaps[i].Validate(); m.err != nil {
			m.err = &OpError{Op: "restore", Local: m.local, Remote: m.remote, Err: m.err}
		} else if m.remote.IsValid() {
			flows = append(flows, [2]netip.AddrPort{m.local, m.remote})
		}
	}
	if err := b.set.lockFlows(flows); err != nil {
		return nil, err
	}
	for i := range members {
		m := &members[i]
		if m.err == nil {
			m.socket = &sockets[i]
			m.socket.fresh = &fresh
			m.restore(&snaps[i], b.options)
		}
	}
	return members, nil
}

// restore makes a member's socket, or leaves nothing behind.
func (m *member) restore(snap *Snapshot, options []Option) {
	fd, err := NewSocket(snap)
	if err != nil {
		m.err = err
		return
	}
	if err = m.socket.pauseNew(fd, options); err == nil {
		err = m.socket.Restore(snap)
	}
	if err != nil {
		m.err = errors.Join(err, unix.Close(fd)) // silent: it is paused or not connected
		return
	}
	m.fd, m.paused, m.ours = fd, true, true
}
