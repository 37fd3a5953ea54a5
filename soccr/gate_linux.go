package soccr

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// The gate is a filter on the socket (SO_ATTACH_FILTER) that keeps everything out
// but what carries our mark, without an answer to anybody: nothing of the peer's
// may come in between while a socket is made to look like another. It acts before
// TCP sees a segment (tcp_filter), and asks for no privilege.
func (s *Socket) closeGate() error {
	const (
		loadMark = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret      = unix.BPF_RET | unix.BPF_K
		markAt   = 0xfffff000 + 20 // SKF_AD_OFF + SKF_AD_MARK
	)
	program := [...]unix.SockFilter{
		{Code: loadMark, K: markAt},
		{Code: ifEqual, Jf: 1, K: s.options.mark},
		{Code: ret, K: 0xffffffff},
		{Code: ret, K: 0},
	}
	err := attachFilter(s.fd, program[:])
	s.gated = err == nil
	return err
}

// leaveGate has the program's own filter take the gate's place, or opens it.
func (s *Socket) leaveGate() error {
	if s.gated && s.filtered() {
		s.gated = false // the kernel replaces one by the other
	}
	return errors.Join(s.openGate(), s.applyLast())
}

// openGate takes the filter away again.
func (s *Socket) openGate() error {
	if !s.gated {
		return nil
	}
	err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	s.gated = err != nil
	return err
}

func attachFilter(fd int, program []unix.SockFilter) error {
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog)
}
