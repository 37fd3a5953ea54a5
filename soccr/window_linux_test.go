package soccr_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// Windows as the kernel really leaves them, some of which it would not take back
// or would hang with: every one is restored, and data flow in both directions.
func TestOddWindows(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name   string
		change func(s *soccr.Snapshot)
	}{
		{"as saved", func(*soccr.Snapshot) {}},
		{"last update at rcv_nxt", func(s *soccr.Snapshot) { s.Window.SndWl1 = s.RecvSeq }},
		{"last update half the sequence space ago", func(s *soccr.Snapshot) { s.Window.SndWl1 = s.RecvSeq - 1<<31 }},
		{"last update a little more than that ago", func(s *soccr.Snapshot) { s.Window.SndWl1 = s.RecvSeq - 1<<31 - 1000 }},
		{"last update by a segment out of order", func(s *soccr.Snapshot) { s.Window.SndWl1 = s.RecvSeq + 1000 }},
		{"that segment beyond the edge", func(s *soccr.Snapshot) {
			s.Window.SndWl1 = s.RecvSeq + 300_000
			s.Window.RcvWnd, s.Window.RcvWup = 0, s.RecvSeq
		}},
		{"our window closed", func(s *soccr.Snapshot) { s.Window.RcvWnd, s.Window.RcvWup = 0, s.RecvSeq }},
		{"our window taken back below what was received", func(s *soccr.Snapshot) {
			s.Window.RcvWnd, s.Window.RcvWup = 10, s.RecvSeq-1000
		}},
		{"the largest window", func(s *soccr.Snapshot) {
			s.Window.RcvWnd, s.Window.RcvWup = 65535<<14, s.RecvSeq
		}},
		{"the largest window seen smaller than the present one", func(s *soccr.Snapshot) { s.Window.MaxWindow = 1 }},
		{"the peer's window closed", func(s *soccr.Snapshot) { s.Window.SndWnd = 0 }},
		{"nothing known", func(s *soccr.Snapshot) { s.Window = soccr.Window{RcvWup: s.RecvSeq} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, peer := n.connect(t, ip4)
			snap := n.checkpoint(t, conn)
			c.change(snap)
			moved := n.restore(t, snap)
			data := pattern(1, 200_000)
			send(moved, data)
			expect(t, "peer", peer, data)
			send(peer, data)
			expect(t, "conn", moved, data)
		})
	}
}

// What bounds the growth of our window is restored: without it, a window in
// front of a large buffer grows to all of it at once.
func TestWindowGrowthIsBounded(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	snap := n.checkpoint(t, conn)
	s, fd := n.paused(t, snap)
	window, err := s.Window()
	if err != nil {
		t.Fatal(err)
	}
	if window.Clamp != snap.Window.Clamp || window.RcvSsthresh > snap.Window.RcvSsthresh+4096 {
		t.Errorf("clamp %d, rcv_ssthresh %d became %d, %d", snap.Window.Clamp, snap.Window.RcvSsthresh, window.Clamp, window.RcvSsthresh)
	}
	if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || got != int(snap.Options.RecvBuffer) {
		t.Errorf("SO_RCVBUF is %d, was %d: %v", got, snap.Options.RecvBuffer, err)
	}
}

// A kernel that ran out of receive memory takes its window back. If the peer has
// sent less than its window's unit beyond the edge, then since Linux 6.17 its
// acknowledgements are dropped with its data, and nothing goes on until the
// program reads. A move opens the window again.
func TestRetractedWindow(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	queued := pattern(1, 4000)
	write(t, peer, queued)
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(queued) })
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF, 1024)
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		window, err := s.Window()
		if err != nil {
			t.Fatal(err)
		}
		seq, err := s.QueueSeq(soccr.RecvQueue)
		if err != nil {
			t.Fatal(err)
		}
		window.RcvWnd, window.RcvWup, window.SndWl1 = 0, seq, seq-1
		window.RcvSsthresh, window.Clamp = 0, 0
		if err := s.SetWindow(window); err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
	})
	beyond := pattern(2, 500)
	write(t, peer, beyond)
	answer := pattern(3, 300)
	write(t, conn, answer)
	expect(t, "peer", peer, answer)
	// The acknowledgement does not come in; on kernels where it does, this
	// proves nothing, but moving must not harm either.
	deadline := time.Now().Add(500 * time.Millisecond)
	for ioctl(t, conn, unix.SIOCOUTQ) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("before the move, %d of %d bytes are not acknowledged", ioctl(t, conn, unix.SIOCOUTQ), len(answer))
	moved := n.move(t, conn)
	eventually(t, "all is acknowledged", func() bool { return ioctl(t, moved, unix.SIOCOUTQ) == 0 })
	expect(t, "conn", moved, append(queued, beyond...))
}
