package soccr_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
)

var lessWork = []struct {
	name    string
	options []soccr.Option
}{
	{"without options", []soccr.Option{soccr.WithoutOptions()}},
	{"without verifying", []soccr.Option{soccr.WithoutVerifying()}},
	{"without either", []soccr.Option{soccr.WithoutOptions(), soccr.WithoutVerifying()}},
}

// What is left to the caller is left alone, and the connection goes on with all
// its bytes.
func TestLessWork(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		for _, size := range []int{0, 100, 100 << 10} {
			for _, way := range lessWork {
				t.Run(fmt.Sprintf("%s, %d bytes, %s", f.name, size, way.name), func(t *testing.T) {
					conn, peer := n.connect(t, f)
					defer peer.Close()
					setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF, 200<<10)
					received, sent := pattern(1, size), pattern(2, size/2)
					send(peer, received)
					eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == size })
					setInt(t, conn, unix.SOL_SOCKET, unix.SO_PRIORITY, 3)
					setInt(t, conn, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
					setInt(t, conn, unix.SOL_SOCKET, unix.SO_SNDBUF, 200<<10)
					lock := n.lockFor(conn)
					lock(true)
					write(t, conn, sent)

					var snap *soccr.Snapshot
					var first error
					control(t, conn, func(fd int) {
						var s *soccr.Socket
						if s, first = soccr.Pause(fd, way.options...); first != nil {
							return
						}
						if snap, first = s.Save(); first == nil {
							first = s.Disconnect()
						}
					})
					if first != nil {
						t.Fatal(first)
					}
					conn.Close()
					options := way.name != "without verifying"
					if o := &snap.Options; options && (o.Settings != nil || o.Congestion != "" || o.ReuseAddr || snap.Window.Clamp != 0) {
						t.Errorf("options were saved: %+v", o)
					} else if _, found := o.Setting("SO_PRIORITY"); !options && !found {
						t.Error("SO_PRIORITY was not saved")
					}

					var fd int
					hosttest.Do(t, n.here, func() (err error) {
						fd, err = soccr.NewSocket(snap)
						return err
					})
					if options { // what the caller has set, stays
						if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 5); err != nil {
							t.Fatal(err)
						}
					}
					s, err := soccr.Pause(fd, way.options...)
					if err == nil {
						err = s.Restore(snap)
					}
					if err != nil {
						t.Fatal(err)
					}
					lock(false)
					if err := s.Resume(); err != nil {
						t.Fatal(err)
					}
					want := map[bool]int{true: 5, false: 3}[options]
					if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY); err != nil || got != want {
						t.Errorf("SO_PRIORITY %d, %v, want %d", got, err, want)
					}
					moved := n.fileConn(t, fd)
					defer moved.Close()
					expect(t, "the moved connection", moved, received)
					expect(t, "the peer", peer, sent)
					write(t, peer, []byte("go"))
					expect(t, "the moved connection", moved, []byte("go"))
					write(t, moved, []byte("on"))
					expect(t, "the peer", peer, []byte("on"))
				})
			}
		}
	}
}

// Without verifying, nothing is read that only shows that all is well; with it, a
// change is found.
func TestWithoutVerifying(t *testing.T) {
	n := newNetwork(t)
	for _, verifying := range []bool{true, false} {
		t.Run(fmt.Sprint(verifying), func(t *testing.T) {
			var options []soccr.Option
			if !verifying {
				options = append(options, soccr.WithoutVerifying())
			}
			conn, peer := n.connect(t, ip4)
			var looks int
			defer soccr.BeforeVerify(func(int) { looks++ })()
			defer soccr.BetweenReads(func() {
				looks++
				write(t, peer, []byte("x"))
				eventually(t, "it is here", func() bool { return ioctl(t, peer, unix.SIOCOUTQ) == 0 })
			})()
			control(t, conn, func(fd int) {
				s, err := soccr.Pause(fd, options...)
				if err != nil {
					t.Fatal(err)
				}
				if _, err = s.Save(); verifying != errors.Is(err, soccr.ErrChanged) {
					t.Error(err)
				}
				if err := s.Resume(); err != nil {
					t.Error(err)
				}
			})
			soccr.BetweenReads(func() {})
			snap := n.checkpoint(t, conn)
			hosttest.Do(t, n.here, func() error {
				fd, err := soccr.NewSocket(snap)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				s, err := soccr.Pause(fd)
				if err != nil {
					return err
				}
				return s.Restore(snap, options...)
			})
			if (looks > 0) != verifying {
				t.Errorf("%d looks", looks)
			}
		})
	}
}

// A snapshot's memory serves again, and nothing of the last connection is in it.
func TestSaveTo(t *testing.T) {
	n := newNetwork(t)
	var snap soccr.Snapshot
	var first *byte
	for i, size := range []int{5000, 3000, 0} {
		conn, peer := n.connect(t, ip4)
		data := pattern(byte(i), size)
		write(t, peer, data)
		eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == size })
		control(t, conn, func(fd int) {
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Resume(); err != nil {
					t.Error(err)
				}
			}()
			if err := s.SaveTo(&snap); err != nil {
				t.Fatal(err)
			}
			fresh, err := s.Save()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(snap.RecvQueue, data) || !slices.Equal(fresh.RecvQueue, data) {
				t.Errorf("%d bytes are not those of the queue", size)
			}
			if snap.Local != fresh.Local || snap.Remote != fresh.Remote || len(snap.Options.Settings) != len(fresh.Options.Settings) {
				t.Errorf("saved again %+v, anew %+v", snap, fresh)
			}
		})
		if first == nil {
			first = &snap.RecvQueue[0]
		} else if size > 0 && first != &snap.RecvQueue[0] {
			t.Error("memory was not used again")
		}
	}
}

// A segment that moves nothing but the peer's window is noticed.
func TestWindowMovesWhileSaving(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	var injector *rawfin.Injector
	hosttest.Do(t, n.here, func() (err error) {
		injector, err = rawfin.Open()
		return err
	})
	defer injector.Close()
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		received, err := s.QueueSeq(soccr.RecvQueue)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := s.QueueSeq(soccr.SendQueue)
		if err != nil {
			t.Fatal(err)
		}
		segments := fdInfo(t, fd).Segs_in
		defer soccr.BetweenReads(func() {
			err := injector.Inject(rawfin.Segment{
				Src: peerAddr(conn), Dst: localAddr(conn), Seq: received, Ack: sent, Window: 65535, Flags: rawfin.ACK,
			})
			if err != nil {
				t.Error(err)
			}
			eventually(t, "it has arrived", func() bool { return fdInfo(t, fd).Segs_in > segments })
		})()
		_, err = s.Save()
		if wrong, ok := errors.AsType[*soccr.FieldError](err); !ok || wrong.Field != "Window.SndWnd" || !errors.Is(err, soccr.ErrChanged) {
			t.Errorf("got %v, want ErrChanged for Window.SndWnd", err)
		}
		if err := s.Resume(); err != nil {
			t.Error(err)
		}
	})
}

// No queue stays selected: what a program writes by mistake must not end up there.
func TestNoQueueStaysSelected(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("received"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 8 })
	refused := func(when string, fd int) {
		if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.EINVAL) {
			t.Errorf("writing after %s: %v, want EINVAL", when, err)
		}
	}
	var snap *soccr.Snapshot
	n.lockFor(conn)(true)
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if snap, err = s.Save(); err != nil {
			t.Fatal(err)
		}
		refused("Save", fd)
		if err := s.Disconnect(); err != nil {
			t.Fatal(err)
		}
	})
	_, fd := n.paused(t, snap)
	refused("Restore", fd)
}
