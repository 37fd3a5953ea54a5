package soccr

import (
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// Movable looks for what would keep a socket from being saved, while its program
// uses it and without changing anything: it needs no capability. It returns nil, or
// the error that Pause or Save would have; of a listening socket, nil. What shows
// only in a paused socket it cannot know: urgent data behind the first byte.
func Movable(fd int) error {
	s := &Socket{fd: fd}
	if err := s.movable(); err != nil {
		return s.fail("look", err)
	}
	return nil
}

func (s *Socket) movable() error {
	protocol, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return because(notTCP(err), err)
	}
	listens, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case err != nil:
		return err
	case protocol != unix.IPPROTO_TCP && protocol != ipprotoMPTCP:
		return ErrNotTCP
	case listens != 0: // for Multipath TCP or without, see ListenerSnapshot
		return nil
	case protocol == ipprotoMPTCP:
		return ErrMultipath
	}
	info, err := tcpinfo.Get(s.fd)
	if err != nil {
		return err
	}
	state := State(info.State)
	if !state.row().movable {
		return &FieldError{Field: "State", Got: state, Err: ErrState}
	}
	if err := s.refuseULP(); err != nil {
		return err
	}
	if err := s.refuseAO(); err != nil {
		return err
	}
	return s.refuseUrgent(0)
}
