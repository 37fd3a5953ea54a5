package soccr_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// A checkpointer with a format of its own can move a connection step by step.
func TestFinerSteps(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			write(t, peer, []byte("received"))
			eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 8 })
			deafen(t, peer)
			write(t, conn, []byte("sent"))
			local, remote := localAddr(conn), peerAddr(conn)
			n.lockFor(conn)(true)

			// Out of one socket…
			var (
				seqs       [3]uint32
				queues     [3][]byte
				window     soccr.Window
				negotiated soccr.Negotiated
				timestamp  soccr.Timestamp
			)
			control(t, conn, func(fd int) {
				s, err := soccr.Pause(fd)
				if err != nil {
					t.Fatal(err)
				}
				state, err := s.State()
				if err != nil || state != soccr.StateEstablished {
					t.Fatalf("%v, %v", state, err)
				}
				for _, q := range []soccr.Queue{soccr.RecvQueue, soccr.SendQueue} {
					if seqs[q], err = s.QueueSeq(q); err != nil {
						t.Fatal(err)
					}
					if queues[q], err = s.ReadQueue(q); err != nil {
						t.Fatal(err)
					}
				}
				if window, err = s.Window(); err != nil {
					t.Fatal(err)
				}
				if negotiated, err = s.Negotiated(); err != nil {
					t.Fatal(err)
				}
				if timestamp, err = s.Timestamp(); err != nil {
					t.Fatal(err)
				}
				if err := s.Disconnect(); err != nil {
					t.Fatal(err)
				}
				s.Release()
			})
			if string(queues[soccr.RecvQueue]) != "received" || string(queues[soccr.SendQueue]) != "sent" {
				t.Fatalf("read %q and %q", queues[soccr.RecvQueue], queues[soccr.SendQueue])
			}

			// … and into another.
			frame := &soccr.Snapshot{Local: local, Remote: remote}
			fd := n.newSocket(t, frame)
			defer unix.Close(fd)
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, sockaddr(f, local)); err != nil {
				t.Fatal(err)
			}
			for _, q := range []soccr.Queue{soccr.RecvQueue, soccr.SendQueue} {
				if err := s.SetQueueSeq(q, seqs[q]-uint32(len(queues[q]))); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Connect(fd, sockaddr(f, remote)); err != nil {
				t.Fatal(err)
			}
			if err := s.SetNegotiated(negotiated); err != nil {
				t.Fatal(err)
			}
			if err := s.SetTimestamp(timestamp); err != nil {
				t.Fatal(err)
			}
			for _, q := range []soccr.Queue{soccr.RecvQueue, soccr.SendQueue} {
				if got, err := s.WriteQueue(q, queues[q]); err != nil || got != len(queues[q]) {
					t.Fatalf("%v took %d bytes: %v", q, got, err)
				}
				if got, err := s.QueueLen(q); err != nil || got != len(queues[q]) {
					t.Fatalf("%v holds %d bytes: %v", q, got, err)
				}
				if got, err := s.QueueSeq(q); err != nil || got != seqs[q] {
					t.Fatalf("%v is at %d, want %d: %v", q, got, seqs[q], err)
				}
			}
			if err := s.SetWindow(window); err != nil {
				t.Fatal(err)
			}
			if err := s.SyncMSS(); err != nil {
				t.Fatal(err)
			}
			again, err := s.Window()
			if err != nil || again.SndWnd != window.SndWnd || again.RcvWnd != window.RcvWnd || again.RcvWup != window.RcvWup {
				t.Errorf("the window is %+v, want %+v: %v", again, window, err)
			}
			if got, err := s.Negotiated(); err != nil || got != negotiated {
				t.Errorf("negotiated is %+v, want %+v: %v", got, negotiated, err)
			}
			undeafen(t, peer)
			if err := n.lock.UnlockFlow(local, remote); err != nil {
				t.Fatal(err)
			}
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
			moved := n.fileConn(t, fd)
			expect(t, "conn", moved, []byte("received"))
			expect(t, "peer", peer, []byte("sent"))
		})
	}
}

// The finer steps say what they miss.
func TestFinerStepsFail(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetQueueSeq(soccr.RecvQueue, 1); err == nil {
			t.Error("the sequence number of a connected socket can be set")
		}
		if err := s.SetWindow(soccr.Window{SndWnd: 2, MaxWindow: 1}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("a window larger than the largest: %v", err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"QueueSeq":     second(s.QueueSeq(soccr.SendQueue)),
			"Window":       second(s.Window()),
			"SetTimestamp": s.SetTimestamp(soccr.Timestamp{Enabled: true}),
			"Save":         second(s.Save()),
			"WriteQueue":   second(s.WriteQueue(soccr.RecvQueue, []byte("x"))),
		} {
			if !errors.Is(err, soccr.ErrNotPaused) {
				t.Errorf("%s of a socket that is not paused: %v", what, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func sockaddr(f family, addr netip.AddrPort) unix.Sockaddr {
	if f == ip4 {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}
