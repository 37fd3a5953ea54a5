package main

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/soccr"
)

// A freshSocket is a new one, for a connection that was in another one.
type freshSocket struct {
	fd     int
	cookie uint64
	paused *soccr.Socket
}

// renewOne puts a saved connection, which is in no socket, into a new one, paused.
func (w *worker) renewOne(c *connection) (_ *freshSocket, err error) {
	f := &freshSocket{fd: -1}
	if err := w.inside(func() (err error) {
		f.fd, err = soccr.NewSocket(c.snap)
		return err
	}); err != nil {
		return nil, err
	}
	if f.cookie, err = unix.GetsockoptUint64(f.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
		err = w.journal.note(note{cookie: f.cookie, instead: c.Cookie, first: actRestore, then: actFinish})
	}
	if err == nil {
		f.paused, err = soccr.Pause(f.fd)
	}
	if err == nil {
		err = f.paused.Restore(c.snap, w.options()...)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(f.fd))
	}
	return f, nil
}

// callable makes sure that the processes which hold some connections can be given
// others, once for each: what fails later can be undone.
func (s *stoppedProgram) callable(all []*connection) error {
	for _, c := range all {
		for _, h := range c.Holders {
			if s.worker.callable[h.PID] {
				continue
			}
			if err := s.frozen.Callable(h.PID); err != nil {
				return fmt.Errorf("%w; without --new-socket it can be swapped", err)
			}
			s.worker.callable[h.PID] = true
		}
	}
	return nil
}

// A replacement is one socket of the program for another. Descriptors are ours.
type replacement struct {
	*socket
	old, fresh int
}

// renew gives the program the new sockets of those connections that have one: under
// every descriptor, and with every epoll instance. If that fails, connections are in
// their old sockets again.
func (s *swapper) renew(program *stoppedProgram, all []*connection) error {
	var list []replacement
	for _, c := range all {
		if c.fresh != nil {
			list = append(list, replacement{c.socket, c.fd, c.fresh.fd})
		}
	}
	failure := program.replace(list)
	for _, c := range all {
		if c.fresh == nil {
			continue
		}
		if failure != nil {
			failure = errors.Join(failure, s.backOut(c))
		} else if err := s.isNow(c); err != nil {
			failure = err
		}
	}
	return failure
}

// backOut puts a connection back into its old socket.
func (s *swapper) backOut(c *connection) error {
	c.apart = true
	if err := c.paused.Disconnect(); err != nil {
		return err
	}
	if err := c.paused.Pause(c.fd); err != nil {
		return err
	}
	return c.rebuild(s.worker)
}

// isNow remembers the new socket by what the old one was known by.
func (s *swapper) isNow(c *connection) error {
	s.swapped(c)
	var stat unix.Stat_t
	if err := unix.Fstat(c.fresh.fd, &stat); err != nil {
		return err
	}
	s.outside[uint32(stat.Ino)] = 0
	if acknowledged, ok := s.last[c.Cookie]; ok {
		delete(s.last, c.Cookie)
		s.last[c.fresh.cookie] = acknowledged
	}
	return nil
}

// replace replaces sockets of the stopped program: all of them, or none.
func (s *stoppedProgram) replace(list []replacement) error {
	changes, closing, err := s.registrations(list)
	defer func() {
		for _, fd := range closing {
			_ = unix.Close(fd)
		}
	}()
	if err != nil {
		return err
	}
	registered, err := proc.Register(changes)
	if err == nil {
		err = s.setDescriptors(list)
	}
	if err == nil {
		return nil
	}
	back := changes[:registered]
	for i := range back {
		back[i].Old, back[i].New = back[i].New, back[i].Old
	}
	_, undoing := proc.Register(back)
	return errors.Join(err, undoing)
}

// setDescriptors gives all processes their new sockets, or none.
func (s *stoppedProgram) setDescriptors(list []replacement) error {
	byProcess := map[int][2][]proc.Descriptor{} // the new ones and the old ones
	for _, r := range list {
		for _, h := range r.Holders {
			d := proc.Descriptor{Number: h.FD, FD: r.fresh, CloseOnExec: proc.CloseOnExec(h.PID, h.FD)}
			both := byProcess[h.PID]
			both[0] = append(both[0], d)
			d.FD = r.old
			both[1] = append(both[1], d)
			byProcess[h.PID] = both
		}
	}
	var undo []func() error
	for pid, both := range byProcess {
		done, err := s.set(pid, both[0])
		undo = append(undo, func() error {
			_, err := s.set(pid, both[1][:done])
			return err
		})
		if err != nil {
			for _, f := range undo {
				err = errors.Join(err, f())
			}
			return err
		}
	}
	return nil
}

// set gives a process descriptors, and notes that it is being made to make system calls.
func (s *stoppedProgram) set(pid int, descriptors []proc.Descriptor) (done int, err error) {
	if err := s.worker.journal.calling(pid); err != nil {
		return 0, err
	}
	done, err = s.frozen.SetDescriptors(s.worker.thief, pid, descriptors)
	return done, errors.Join(err, s.worker.journal.calling(0))
}

// registrations finds those of sockets that are to be replaced. The caller closes the
// descriptors that come with them.
func (s *stoppedProgram) registrations(list []replacement) (changes []proc.Change, closing []int, err error) {
	type file struct{ inode, device uint64 }
	watched := map[file]replacement{}
	var noted []registered
	for _, r := range list {
		var stat unix.Stat_t
		if err := unix.Fstat(r.old, &stat); err != nil {
			return nil, nil, err
		}
		watched[file{stat.Ino, stat.Dev}] = r
	}
	for _, pid := range s.pids {
		all, err := proc.Registrations(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has been killed
		}
		if err != nil {
			return nil, closing, err
		}
		epolls := map[int]int{} // ours, by theirs
		for _, registration := range all {
			r, ok := watched[file{registration.Inode, registration.Device}]
			if !ok {
				continue
			}
			epoll, ok := epolls[registration.Epoll]
			if !ok {
				if epoll, err = s.worker.thief.Duplicate(pid, registration.Epoll); err != nil {
					return nil, closing, err
				}
				epolls[registration.Epoll], closing = epoll, append(closing, epoll)
			}
			var fresh unix.Stat_t
			if err := unix.Fstat(r.fresh, &fresh); err != nil {
				return nil, closing, err
			}
			noted = append(noted, registered{pid, registration, [2]uint64{registration.Inode, fresh.Ino}})
			changes = append(changes, proc.Change{Registration: registration, Epoll: epoll, Old: r.old, New: r.fresh})
		}
	}
	return changes, closing, s.worker.journal.epoll(noted)
}
