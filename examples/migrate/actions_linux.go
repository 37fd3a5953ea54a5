package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/soccr"
)

// An action is what is to be done with a socket when the guard was killed.
type action byte

const (
	actNothing  action = iota
	actResume          // it is paused at most
	actRestore         // the connection is in the snapshot, and nothing was heard of the peer since
	actFinish          // some of the connection is only in the snapshot
	actClose           // it is to be left with what a closed connection leaves
	actEnd             // it is to be forgotten, silently
	actTakeAway        // it is new, and the program is not to have it
)

// actions: what each is called when it is done, whether the flow is locked meanwhile,
// and what it is.
var actions = map[action]struct {
	done   string
	locked bool
	do     func(*mending, *unfinished) error
}{
	actResume:   {"went on as they were", false, (*mending).resume},
	actRestore:  {"were restored", true, (*mending).restore},
	actFinish:   {"were restored", true, (*mending).restore},
	actClose:    {"were closed", true, (*mending).close},
	actEnd:      {"are in the image only", false, (*mending).end},
	actTakeAway: {"were taken away again", true, (*mending).takeAway},
}

// untouched notes that connections are only paused, until there is no way back.
func untouched(all []*connection, then action) []note {
	notes := make([]note, len(all))
	for i, c := range all {
		notes[i] = note{cookie: c.Cookie, first: actResume, then: then, set: overwrittenOf(c.fd)}
	}
	return notes
}

// isPaused reports whether a socket is in repair mode.
func isPaused(fd int) (bool, error) {
	mode, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	return mode != 0, os.NewSyscallError("getsockopt(TCP_REPAIR)", err)
}

// resume lets a connection go on that was never taken apart.
func (m *mending) resume(u *unfinished) error {
	paused, err := isPaused(u.fd)
	if err == nil && paused {
		var s *soccr.Socket
		if s, err = soccr.Pause(u.fd); err == nil {
			err = s.Resume()
		}
	}
	return errors.Join(err, u.set.restore(u.fd))
}

// restore puts a connection back, without what the program or the peer have done
// meanwhile being lost. It is still paused then.
func (m *mending) restore(u *unfinished) error {
	paused, err := isPaused(u.fd)
	if err != nil {
		return err
	}
	queue := soccr.NoQueue
	if paused {
		selected, err := unix.GetsockoptInt(u.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE)
		if err != nil {
			return os.NewSyscallError("getsockopt(TCP_REPAIR_QUEUE)", err)
		}
		queue = soccr.Queue(selected)
	}
	// The filter is that which keeps everything out while a socket is restored.
	err = unix.SetsockoptInt(u.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return os.NewSyscallError("setsockopt(SO_DETACH_FILTER)", err)
	}
	if u.paused, err = soccr.Pause(u.fd); err != nil {
		return err
	}
	if finish := u.act == actFinish; finish || !paused || queue != soccr.NoQueue {
		now, err := readPaused(u.paused)
		switch {
		case err != nil && finish:
			return err
		case err != nil: // it was not yet such that it can be read
			err = nil
		case now.State != soccr.StateClose && now.State != soccr.StateSynSent:
			u.snap, err = merged(u.snap, now, finish, queue)
		case finish && (now.State == soccr.StateSynSent || u.snap.State != soccr.StateSynSent):
			return nil // the peer has ended it, or it is on its way
		}
		if u.spoilt = err != nil; u.spoilt {
			return err
		}
	}
	if err := u.paused.Disconnect(); err != nil {
		return err
	}
	return u.rebuild(m.worker)
}

// abort resets a connection that cannot be saved: both ends are told.
func (m *mending) abort(u *unfinished) error {
	conn, err := diag.Dial(&diag.Config{NetNS: int(m.ns.Fd())})
	if err != nil {
		return err
	}
	s, err := conn.Lookup(u.flow.Local, u.flow.Remote)
	if err == nil {
		err = conn.Destroy(s)
	}
	return errors.Join(err, conn.Close())
}

// close leaves what a closed connection leaves.
func (m *mending) close(u *unfinished) error {
	paused, err := isPaused(u.fd)
	if err != nil || !paused { // that was the last step
		return err
	}
	s, err := soccr.Pause(u.fd)
	if err == nil {
		err = s.Disconnect()
	}
	if err == nil {
		err = s.Restore(u.snap, soccr.WithClosed())
	}
	if err == nil {
		err = s.Resume()
	}
	return err
}

// end forgets a connection, whose program is about to be killed.
func (m *mending) end(u *unfinished) error {
	s, err := soccr.Pause(u.fd)
	if err == nil {
		err = s.Disconnect()
	}
	return err
}

// takeAway makes sure that nothing comes of a socket of an image.
func (m *mending) takeAway(u *unfinished) error {
	switch {
	case u.datagram():
		return nil
	case u.state == soccr.StateListen:
		return os.NewSyscallError("shutdown", unix.Shutdown(u.fd, unix.SHUT_RDWR))
	}
	s, err := soccr.Pause(u.fd)
	if err == nil {
		err = s.Disconnect()
	}
	if err == nil {
		err = s.Resume()
	}
	return err
}
