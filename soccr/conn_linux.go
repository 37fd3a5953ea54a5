package soccr

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Checkpoint takes the connection out of a program's own conn, usually a
// *net.TCPConn: it pauses and saves it, and closes conn without a word to the
// peer. No goroutine may use conn meanwhile; one that waits in Read or Write
// gets net.ErrClosed. Duplicates made by File, in this process or others, lose
// the connection too. Deadlines are not part of a snapshot.
//
// The flow has to be locked, with WithLock or otherwise, until the connection
// is restored: the peer's next packet would otherwise draw a RST. A flow that
// Checkpoint locked stays locked when it succeeds.
//
// On error conn goes on as before, and a flow that was locked is unlocked. The
// one exception has a snapshot beside the error: conn is closed, but a duplicate
// could not be disconnected and stays paused, or (ErrPaused) another process got hold
// of one at that moment and does as it likes with the connection, and the snapshot is
// not to be used.
func Checkpoint(c syscall.Conn, options ...Option) (*Snapshot, error) {
	closer, ok := c.(io.Closer)
	if !ok {
		return nil, &OpError{Op: "checkpoint", Err: fmt.Errorf("%w: a %T cannot be closed", ErrNotTCP, c)}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, &OpError{Op: "checkpoint", Err: err}
	}
	var taken *paused
	var failure error
	// Control gives the conn's own descriptor. File would duplicate it, and
	// switch it to blocking.
	if err := raw.Control(func(fd uintptr) { taken, failure = take(int(fd), newSettings(options)) }); err != nil {
		return nil, &OpError{Op: "checkpoint", Err: err}
	}
	if failure != nil {
		return nil, failure
	}
	// Close before the connection is gone: goroutines that wait for it are told
	// that conn is closed, and not what the kernel says of the remains.
	_ = closer.Close() // close(2) on a socket does not fail
	return taken.snapshot, taken.discard()
}

// paused is a connection that was saved, held by a descriptor of our own.
type paused struct {
	snapshot *Snapshot
	socket   *Socket
}

// discard takes the connection out of the socket, whoever else holds it.
func (p *paused) discard() error {
	err := p.socket.stillPaused() // the claim has ended when the conn was closed
	if err == nil {
		err = p.socket.disconnect()
	}
	_ = unix.Close(p.socket.fd) // whatever it says, it is closed
	p.socket.disclaimHere()
	if err != nil {
		return p.socket.fail("disconnect", err)
	}
	return nil
}

// attempts is how often a locked connection is saved before ErrChanged is final:
// packets that were past the lock when it closed may still arrive.
const attempts = 5

// take saves a connection and returns it paused, or leaves it as it was.
func take(fd int, set settings) (*paused, error) {
	s := &Socket{fd: fd}
	// Before anything else, as who has it may have locked the flow with the same lock,
	// and to close a duplicate would end the claim.
	if err := s.claim(); err != nil {
		return nil, s.fail("checkpoint", because(notTCP(err), err))
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.disclaim()
		return nil, &OpError{Op: "checkpoint", Err: err}
	}
	drain(own, set.drain)
	unlock, err := set.lockSocket(s, own)
	if err == nil {
		var p *paused
		if p, err = set.pauseAndSave(s, own, unlock); err == nil {
			return p, nil
		}
	}
	s.disclaim()
	return nil, errors.Join(err, unix.Close(own))
}

// drain waits until the send queue is empty, but not long.
func drain(fd int, limit time.Duration) {
	const often = 250 * time.Microsecond
	for start := time.Now(); time.Since(start) < limit; time.Sleep(often) {
		if queued, err := count(fd, unix.SIOCOUTQ); err != nil || queued == 0 {
			return // Pause says what is wrong
		}
	}
}

func (set settings) pauseAndSave(s *Socket, fd int, unlock func() error) (*paused, error) {
	err := s.pause(fd, []Option{WithRepairer(set.repairer)})
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	for range attempts {
		var snap *Snapshot
		if snap, err = s.Save(); err == nil {
			return &paused{snap, s}, nil
		}
		if !errors.Is(err, ErrChanged) {
			break
		}
	}
	return nil, errors.Join(err, unlock(), s.Resume())
}

// lockSocket locks the flow of a connected socket, if there is a lock, and
// returns how to unlock it. What can be read before is.
func (set settings) lockSocket(s *Socket, fd int) (unlock func() error, err error) {
	nothing := func() error { return nil }
	if set.lock == nil && set.tap == nil {
		return nothing, nil
	}
	if err := s.readEarly(fd, false); err != nil {
		return nil, &OpError{Op: "lock", Local: s.local, Err: because(notTCP(err), err)}
	}
	if !s.remote.IsValid() {
		return nothing, nil // pause or Save will say why
	}
	return set.lockFlow(s.local, s.remote)
}

func (set settings) lockFlow(local, remote netip.AddrPort) (unlock func() error, err error) {
	if set.tap != nil {
		if err := set.tap.Watch(local, remote); err != nil {
			return nil, err
		}
	}
	if set.lock == nil {
		return func() error { return nil }, nil
	}
	if err := set.lock.LockFlow(local, remote); err != nil {
		return nil, &OpError{Op: "lock", Local: local, Remote: remote, Err: err}
	}
	return func() error {
		if err := set.lock.UnlockFlow(local, remote); err != nil {
			return &OpError{Op: "unlock", Local: local, Remote: remote, Err: err}
		}
		return nil
	}, nil
}

// RestoreConn makes an ordinary *net.TCPConn of a snapshot, in the network
// namespace of the calling thread, and lets the connection go on. The conn has
// no deadlines. Connections in SYN_SENT, and sockets that never connected, are
// no conns: they are refused with ErrState, and restored with NewSocket.
//
// With WithLock, the flow is locked first and unlocked just before the
// connection goes on. On error it stays locked, so that the peer's packets draw
// no RST and RestoreConn can be tried again, here or elsewhere.
func RestoreConn(snap *Snapshot, options ...Option) (*net.TCPConn, error) {
	r, err := restorePaused(snap, options)
	if err != nil {
		return nil, err
	}
	return r.resume()
}

// A restoredConn is a restored connection that is still paused and locked.
type restoredConn struct {
	snap   *Snapshot
	socket *Socket
	file   *os.File // the socket's
	conn   net.Conn // with a descriptor of its own
	own    []chosen // options that net.FileConn has set, TCP_NODELAY first
	unlock func() error
}

// restorePaused makes a conn of a snapshot, up to where it could go on.
func restorePaused(snap *Snapshot, options []Option) (*restoredConn, error) {
	if err := snap.Validate(); err != nil {
		return nil, &OpError{Op: "restore", Local: snap.Local, Remote: snap.Remote, Err: err}
	}
	set := newSettings(options)
	if snap.State == StateSynSent && !set.closed || !snap.Remote.IsValid() {
		err := &FieldError{Field: "State", Got: snap.State, Err: ErrState}
		return nil, &OpError{Op: "restore", Local: snap.Local, Remote: snap.Remote, Err: err}
	}
	unlock, err := set.lockFlow(snap.Local, snap.Remote)
	if err != nil {
		return nil, err
	}
	// Blocking, or os.NewFile would have the runtime's poller watch it too, and every
	// event wake that. net.FileConn makes it non-blocking, whatever it was before.
	fd, err := newSocket(snap, 0)
	if err != nil {
		return nil, err
	}
	own := *snap
	own.Options.NonBlocking = true
	r := &restoredConn{snap: &own, file: os.NewFile(uintptr(fd), "tcp"), unlock: unlock}
	if err := r.restore(fd, options); err != nil {
		return nil, errors.Join(err, r.file.Close()) // silent while fd is paused
	}
	return r, nil
}

func (r *restoredConn) restore(fd int, options []Option) (err error) {
	r.socket = new(Socket)
	if err := r.socket.pauseNew(fd, options); err != nil {
		return err
	}
	if err := r.socket.Restore(r.snap, options...); err != nil {
		return err
	}
	if r.own, err = r.socket.overwritten(&r.snap.Options); err != nil {
		return r.socket.fail("make a conn", err)
	}
	if r.conn, err = net.FileConn(r.file); err != nil {
		return r.socket.fail("make a conn", err)
	}
	// All but TCP_NODELAY, which sends, as long as closing is still silent.
	for _, set := range r.own[1:] {
		if err := set.row.write(fd, &set.setting); err != nil {
			return r.socket.fail("set options", errors.Join(err, r.conn.Close()))
		}
	}
	return nil
}

// resume unlocks the connection and lets it go on.
func (r *restoredConn) resume() (*net.TCPConn, error) {
	if err := r.goOn(); err != nil {
		return nil, errors.Join(err, r.discard())
	}
	_ = r.file.Close() // whatever it says, it is closed, and the connection goes on
	return r.conn.(*net.TCPConn), nil
}

func (r *restoredConn) goOn() error {
	if err := r.unlock(); err != nil {
		return err
	}
	s := r.socket
	if err := s.Resume(); err != nil {
		return err
	}
	if s.options.tap != nil {
		s.options.tap.Forget(r.snap.Local, r.snap.Remote)
	}
	if s.options.effects != nil {
		*s.options.effects = s.effects
	}
	noDelay := &r.own[0]
	if err := noDelay.row.write(s.fd, &noDelay.setting); err != nil {
		s.lose(Loss{Setting: noDelay.setting, Err: err}) // there is no way back
	}
	return nil
}

// discard gives the connection up, silently as long as it is paused.
func (r *restoredConn) discard() error { return errors.Join(r.conn.Close(), r.file.Close()) }

// overwritten are the options that net.FileConn sets to values of its own.
func (s *Socket) overwritten(o *Options) ([]chosen, error) {
	noDelay, _ := o.Setting("TCP_NODELAY")
	own := []chosen{{row: row("TCP_NODELAY"), setting: noDelay}}
	for _, name := range [...]string{"TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "SO_KEEPALIVE"} {
		c := chosen{row: row(name)}
		if setting, ok := o.Setting(name); ok { // restored already
			c.setting = setting
		} else if _, err := c.row.read(s.fd, 0, &c.setting); err != nil { // the host's default
			return nil, err
		}
		own = append(own, c)
	}
	return own, nil
}
