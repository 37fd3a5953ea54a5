package soccr

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A claim keeps a socket to one checkpointer: repair mode belongs to the socket, so
// that a second one would read the queue which the first has selected, or end repair
// mode under its hands.
//
// Processes are kept apart by a lock on the socket as a file (F_SETLK), which is the
// socket's whatever descriptor it is reached by, and goes with its process. It is the
// whole process's, so those in one are kept apart by the socket's cookie.
var claimed struct {
	sync.Mutex
	cookies map[uint64]struct{}
}

// claim makes the socket ours, if it is not, or fails with ErrPaused.
func (s *Socket) claim() error {
	if s.claimedAs != 0 || s.options.noVerify {
		return nil
	}
	cookie, err := s.cookie()
	if err != nil {
		return err
	}
	if !claimHere(cookie) {
		return fmt.Errorf("%w: this process has", ErrPaused)
	}
	if err := lockFile(s.fd); err != nil {
		disclaimHere(cookie)
		return err
	}
	s.claimedAs = cookie
	return nil
}

// disclaim leaves the socket to others.
func (s *Socket) disclaim() {
	if s.claimedAs != 0 {
		_ = setFileLock(s.fd, unix.F_UNLCK) // which fails with what is closed, and so unlocked
		s.disclaimHere()
	}
}

// disclaimHere leaves it to others in this process. The file stays locked until one of
// the process's descriptors of it is closed.
func (s *Socket) disclaimHere() {
	if s.claimedAs != 0 {
		disclaimHere(s.claimedAs)
		s.claimedAs = 0
	}
}

// stillPaused makes sure that nobody else has had the socket, or has it, since the
// claim ended, as it does when the process closes any descriptor of the socket.
func (s *Socket) stillPaused() error {
	if s.claimedAs == 0 {
		return nil
	}
	if err := lockFile(s.fd); err != nil {
		return err
	}
	repair, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if err == nil && repair == 0 {
		return fmt.Errorf("%w, and let it go on", ErrPaused)
	}
	var remote netip.AddrPort
	if err == nil {
		remote, err = remoteAddr(s.fd, s.local)
	}
	if err == nil && remote != s.remote {
		return fmt.Errorf("%w, and taken the connection", ErrPaused)
	}
	return err
}

func claimHere(cookie uint64) bool {
	claimed.Lock()
	defer claimed.Unlock()
	if _, ok := claimed.cookies[cookie]; ok {
		return false
	}
	if claimed.cookies == nil {
		claimed.cookies = make(map[uint64]struct{})
	}
	claimed.cookies[cookie] = struct{}{}
	return true
}

func disclaimHere(cookie uint64) {
	claimed.Lock()
	defer claimed.Unlock()
	delete(claimed.cookies, cookie)
}

// lockFile locks it, or tells who has.
func lockFile(fd int) error {
	err := setFileLock(fd, unix.F_WRLCK)
	switch {
	case errors.Is(err, unix.EAGAIN):
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK && lock.Pid > 0 {
			return fmt.Errorf("%w: process %d has", ErrPaused, lock.Pid)
		}
		return ErrPaused
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return nil // a security module or seccomp(2) knows no locks on sockets
	}
	return err
}

func setFileLock(fd int, kind int16) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: kind})
}
