package soccr

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

const repairWindowSize = 20 // struct tcp_repair_window

// Window reads the state of both windows (Linux 4.8).
func (s *Socket) Window() (Window, error) {
	w, err := s.window()
	if err != nil {
		return Window{}, s.fail("read window", err)
	}
	return w, nil
}

func (s *Socket) window() (Window, error) {
	w, err := s.repairWindow()
	if err != nil {
		return Window{}, err
	}
	info, err := s.info()
	if err != nil {
		return Window{}, err
	}
	memory, err := s.memory()
	if err != nil {
		return Window{}, err
	}
	w.RcvSsthresh, w.RecvMemory = info.Rcv_ssthresh, memory.recvAlloc
	w.Clamp, err = s.windowClamp()
	return w, err
}

func (s *Socket) windowClamp() (uint32, error) {
	clamp, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
	return uint32(clamp), err
}

// repairWindow reads TCP_REPAIR_WINDOW alone.
func (s *Socket) repairWindow() (Window, error) {
	var b [repairWindowSize]byte
	if _, err := sockopt.Get(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:]); err != nil {
		return Window{}, s.notPaused(err)
	}
	return Window{
		SndWl1:    binary.NativeEndian.Uint32(b[0:]),
		SndWnd:    binary.NativeEndian.Uint32(b[4:]),
		MaxWindow: binary.NativeEndian.Uint32(b[8:]),
		RcvWnd:    binary.NativeEndian.Uint32(b[12:]),
		RcvWup:    binary.NativeEndian.Uint32(b[16:]),
	}, nil
}

// SetWindow sets both windows of a connected socket, after its queues were
// filled: the five numbers of TCP_REPAIR_WINDOW, and then RcvSsthresh and Clamp
// where they are not 0. The kernel answers EINVAL where MaxWindow is less than
// SndWnd, SndWl1 lies beyond our window, or RcvWup after what was received.
func (s *Socket) SetWindow(w Window) error {
	if err := s.setRepairWindow(w); err != nil {
		return s.fail("set window", err)
	}
	if err := s.setWindowBounds(w); err != nil {
		return s.fail("set window", err)
	}
	return nil
}

func (s *Socket) setRepairWindow(w Window) error {
	b := make([]byte, 0, repairWindowSize)
	for _, v := range [...]uint32{w.SndWl1, w.SndWnd, w.MaxWindow, w.RcvWnd, w.RcvWup} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return s.notPaused(sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b))
}

// setWindowBounds sets rcv_ssthresh and the clamp. Only lowering the clamp
// lowers rcv_ssthresh with it (tcp_set_window_clamp), so it is set first to the
// one value, then to the other. Without this, a window restored in front of a
// large buffer would grow at once to all of it, and be taken back when small
// segments fill the memory.
func (s *Socket) setWindowBounds(w Window) error {
	for _, v := range [...]uint32{w.RcvSsthresh, w.Clamp} {
		if v == 0 {
			continue // 0 is for unconnected sockets
		}
		if err := sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, int(v)); err != nil {
			return err
		}
	}
	return nil
}

// notPaused explains the EPERM of the calls that need repair mode, if it is off.
func (s *Socket) notPaused(err error) error {
	if errors.Is(err, unix.EPERM) {
		if repair, failed := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); failed == nil && repair == 0 {
			return because(ErrNotPaused, err)
		}
	}
	return err
}
