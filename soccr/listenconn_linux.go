package soccr

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckpointListener takes a program's own listener, usually a *net.TCPListener,
// and closes it. No goroutine may use it meanwhile; one that waits in Accept gets
// net.ErrClosed. Duplicates made by File stop to listen too.
//
// Connections that wait to be accepted are refused, kept, reset or dropped, as
// WithInFlight says. With a lock (WithLock) that is a [ListenLocker], new ones are
// kept away first, without an answer, so that their clients try again after a
// second, and those whose handshake is under way get the time to end it
// (WithPatience). The listener, and the flows of connections that are kept, stay
// locked when CheckpointListener succeeds. Without such a lock, what arrives at the
// last moment is reset by the kernel.
//
// On error the listener goes on as before and is unlocked. Connections that had
// been accepted by then are the Conns of an *InFlightError, in their order.
func CheckpointListener(c syscall.Conn, options ...Option) (*ListenerSnapshot, error) {
	closer, ok := c.(io.Closer)
	if !ok {
		return nil, &OpError{Op: "checkpoint listener", Err: fmt.Errorf("%w: a %T cannot be closed", ErrNotTCP, c)}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, &OpError{Op: "checkpoint listener", Err: err}
	}
	own := -1
	duplicate := func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }
	if failed := raw.Control(duplicate); failed != nil || err != nil {
		return nil, &OpError{Op: "checkpoint listener", Err: errors.Join(failed, err)}
	}
	defer unix.Close(own)
	t, err := takeListener(own, newSettings(options))
	if err != nil {
		return nil, failListener("checkpoint listener", own, err)
	}
	_ = closer.Close() // close(2) on a socket does not fail
	return t.snapshot, t.discard()
}

// A takenListener is a listener that was saved, held by a descriptor of our own.
type takenListener struct {
	fd       int
	snapshot *ListenerSnapshot
	pending  []*pendingConn
}

// discard ends the listener, whoever else holds it, and the connections taken out
// of its queue.
func (t *takenListener) discard() error {
	err := unix.Shutdown(t.fd, unix.SHUT_RD) // inet_shutdown: it stops to listen
	if err != nil {
		err = failListener("stop listening", t.fd, err)
	}
	for _, p := range t.pending {
		err = errors.Join(err, p.taken.discard())
	}
	return err
}

// takeListener saves a listener and what waits in its queue, or leaves it as it was.
func takeListener(fd int, set settings) (t *takenListener, err error) {
	// What is left in the queue in the end is reset or dropped then.
	snap, err := saveListener(fd, ResetInFlight)
	if err != nil {
		return nil, err
	}
	unlock, locked, err := set.lockListener(snap)
	if err != nil {
		return nil, err
	}
	t = &takenListener{fd: fd, snapshot: snap}
	if err = t.take(set, locked); err == nil {
		return t, nil
	}
	failed := unlock()
	if len(t.pending) > 0 {
		conns, lost := handBack(t.pending)
		err = &InFlightError{Count: len(t.pending), Conns: conns, Err: err}
		failed = errors.Join(failed, lost)
	}
	if failed != nil {
		err = errors.Join(err, failed)
	}
	return nil, err
}

func (t *takenListener) take(set settings, locked bool) (err error) {
	if locked {
		if t.snapshot.HalfOpen, err = settle(t.fd, t.snapshot, set.patience); err != nil {
			return err
		}
	}
	switch set.inFlight {
	case RefuseInFlight:
		queue, err := acceptQueue(t.fd)
		if err == nil && queue.waiting > 0 {
			err = &InFlightError{Count: queue.waiting}
		}
		return err
	case KeepInFlight:
		t.pending, err = takePending(t.fd, set)
		for _, p := range t.pending {
			if err == nil {
				t.snapshot.Pending = append(t.snapshot.Pending, p.taken.snapshot)
			}
		}
		return err
	case DropInFlight:
		return dropPending(t.fd, set)
	default:
		return nil
	}
}

// lockListener keeps new connections from a listener, if there is a lock that can.
func (set settings) lockListener(l *ListenerSnapshot) (unlock func() error, locked bool, err error) {
	lock, ok := set.lock.(ListenLocker)
	if !ok {
		return func() error { return nil }, false, nil
	}
	var done []netip.AddrPort
	unlock = func() error {
		var errs []error
		for _, addr := range slices.Backward(done) {
			if err := lock.UnlockListener(addr); err != nil {
				errs = append(errs, &OpError{Op: "unlock", Local: addr, Err: err})
			}
		}
		return errors.Join(errs...)
	}
	for _, addr := range l.listensOn() {
		if err := lock.LockListener(addr); err != nil {
			return nil, false, errors.Join(&OpError{Op: "lock", Local: addr, Err: err}, unlock())
		}
		done = append(done, addr)
	}
	return unlock, true, nil
}

// RestoreListener makes a listener of a snapshot, in the network namespace of the
// calling thread, whose Accept first returns the pending connections.
//
// With WithLock, the pending connections' flows are locked first, and so is the
// listener if the lock is a [ListenLocker]; all are unlocked when everything is
// there. On error they stay locked, nothing was sent to any peer, and
// RestoreListener can be tried again, here or elsewhere.
func RestoreListener(l *ListenerSnapshot, options ...Option) (*Listener, error) {
	if err := l.Validate(); err != nil {
		return nil, &OpError{Op: "restore listener", Local: l.Local, Err: err}
	}
	set := newSettings(options)
	unlock, _, err := set.lockListener(l)
	if err != nil {
		return nil, err
	}
	// First the listener, then the connections: in this order the kernel finds
	// nothing in the way.
	listener, err := listenAgain(l, options)
	if err != nil {
		return nil, err
	}
	pending := l.Pending
	if set.closed {
		pending, err = nil, set.forget(l.Pending, options)
	}
	var restored []*restoredConn
	for _, s := range pending {
		var r *restoredConn
		if r, err = restorePaused(s, options); err != nil {
			break
		}
		restored = append(restored, r)
	}
	if err == nil {
		err = unlock()
	}
	if err != nil {
		for _, r := range restored {
			err = errors.Join(err, r.discard())
		}
		return nil, errors.Join(err, listener.Close())
	}
	all := &Listener{TCPListener: listener}
	for _, r := range restored {
		c, failed := r.resume()
		if failed == nil {
			all.pending = append(all.pending, c)
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, errors.Join(err, all.Close())
	}
	return all, nil
}

// forget gives pending connections up that nobody shall find.
func (set settings) forget(pending []*Snapshot, options []Option) (err error) {
	for _, s := range pending {
		unlock, failed := set.lockFlow(s.Local, s.Remote)
		if failed == nil {
			failed = unlock()
		}
		if failed == nil && set.reset {
			failed = ResetPeer(s, options...)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// listenAgain makes a listener without its connections.
func listenAgain(l *ListenerSnapshot, options []Option) (*net.TCPListener, error) {
	fd, err := NewListenerSocket(l)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close()
	// The runtime's poller needs a non-blocking socket, whatever it was before.
	own := *l
	own.Options.NonBlocking = true
	if err := StartListener(fd, &own, options...); err != nil {
		return nil, err
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, &OpError{Op: "make a listener", Local: l.Local, Err: err}
	}
	return listener.(*net.TCPListener), nil
}
