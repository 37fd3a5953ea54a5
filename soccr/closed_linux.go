package soccr

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// shutDown makes of a fresh socket one whose connection is over. On a socket that
// is not connected, shutdown(2) fails and yet does it (inet_shutdown).
func (s *Socket) shutDown() error {
	if s.over == nil {
		return nil
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_RDWR); !errors.Is(err, unix.ENOTCONN) {
		return err
	}
	return nil
}

// resetOver resets the peer of the connection that is over, if it shall.
func (s *Socket) resetOver() error {
	if s.over == nil || !s.options.reset {
		return nil
	}
	own := []Option{WithMark(s.options.mark), WithLock(s.options.lock), WithRepairer(s.options.repairer)}
	err := s.inNetNS(func() error { return ResetPeer(s.over, own...) })
	if err == nil {
		s.over = nil
	}
	return err
}

// ResetPeer ends a connection that is in no socket any more with a RST to its peer,
// in the network namespace of the calling thread. The flow must not be locked.
// States in which there is nobody to be told are ignored: SYN_SENT and CLOSE.
//
// Errors are those of Restore.
func ResetPeer(snap *Snapshot, options ...Option) error {
	if err := snap.Validate(); err != nil {
		return &OpError{Op: "reset", Local: snap.Local, Remote: snap.Remote, Err: err}
	}
	if !snap.State.row().connected {
		return nil
	}
	r := snap.toReset()
	fd, err := NewSocket(r)
	if err != nil {
		return err
	}
	// Once it is disconnected, closing is silent.
	plain := func(s *settings) { s.plain, s.closed = true, false }
	return errors.Join(resetPeer(fd, r, append(slices.Clone(options), plain)), unix.Close(fd))
}

func resetPeer(fd int, snap *Snapshot, options []Option) error {
	s := new(Socket)
	if err := s.pauseNew(fd, options); err != nil {
		return err
	}
	if err := s.Restore(snap, options...); err != nil {
		return err
	}
	if err := s.setRepair(unix.TCP_REPAIR_OFF_NO_WP); err != nil {
		return s.fail("reset", err)
	}
	return s.Disconnect() // tcp_disconnect: not silent without repair mode
}
