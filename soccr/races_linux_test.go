package soccr_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var races = flag.Int("races", 0, "how often each race is run; 0: a few times")

// raceRounds is how often to run a race of which there are so many.
func raceRounds(usual int) int {
	if *races > 0 {
		return *races
	}
	return usual
}

// A race is what a peer does while its other end is being saved, beginning at any
// moment. Before it, the conn has written out and the peer in.
var peerRaces = []struct {
	name string
	// prepare is done before.
	prepare func(t *testing.T, conn, peer *net.TCPConn)
	// run is done meanwhile. It may write more of in, and says how much.
	run func(peer *net.TCPConn, in []byte) (written int, err error)
	// closes, resets: what the conn finds in the end.
	closes, resets bool
	// moves: the connection moves all the while, so that Save sees it.
	moves bool
}{
	{
		name: "it sends",
		run: func(peer *net.TCPConn, in []byte) (n int, err error) {
			for n < len(in) && err == nil {
				var more int
				more, err = peer.Write(in[n:min(n+1+min(n/3, 200), len(in))])
				n += more
			}
			return n, err
		},
		moves: true,
	}, {
		name:   "it closes",
		run:    func(peer *net.TCPConn, _ []byte) (int, error) { return 0, peer.CloseWrite() },
		closes: true,
	}, {
		name: "it sends and closes",
		run: func(peer *net.TCPConn, in []byte) (int, error) {
			n, err := peer.Write(in[:1000])
			return n, errors.Join(err, peer.CloseWrite())
		},
		closes: true,
	}, {
		name: "it resets",
		run: func(peer *net.TCPConn, _ []byte) (int, error) {
			return 0, errors.Join(peer.SetLinger(0), peer.Close())
		},
		resets: true,
	}, {
		name: "its window closes",
		run: func(peer *net.TCPConn, _ []byte) (int, error) {
			return 0, onFD(peer, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 2048)
			})
		},
	}, {
		name: "it probes a window that is closed",
		prepare: func(t *testing.T, conn, _ *net.TCPConn) {
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
		},
		run: func(peer *net.TCPConn, in []byte) (int, error) { return peer.Write(in) },
	}, {
		name: "it reads", // and so acknowledges, and opens its window
		run: func(peer *net.TCPConn, _ []byte) (int, error) {
			return 0, onFD(peer, func(fd int) error {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20); err != nil {
					return err
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
			})
		},
	},
}

func onFD(c *net.TCPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if outer := raw.Control(func(fd uintptr) { err = f(int(fd)) }); outer != nil {
		return outer
	}
	return err
}

// Whatever the peer does while a connection is saved: under the lock it is moved
// whole, and without one, for it goes on, Save has a snapshot that is exactly the
// socket or says that it has changed. Nothing is ever lost in silence.
func TestPeerRaces(t *testing.T) {
	for _, race := range peerRaces {
		for _, locked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, locked %v", race.name, locked), func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				changed, right := 0, 0
				for round := range raceRounds(12) {
					f := families[round%len(families)]
					random := rand.New(rand.NewPCG(uint64(round), 1))
					in, out := pattern(byte(round), 50_000), pattern(byte(round+7), 30_000)
					conn, peer := n.connect(t, f)
					if race.prepare != nil {
						race.prepare(t, conn, peer)
					}
					write(t, peer, in[:100])
					eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 100 })
					if !race.resets {
						write(t, conn, out)
					}
					done := make(chan result, 1)
					begin := make(chan struct{})
					if err := peer.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
						t.Fatal(err)
					}
					var finished atomic.Bool
					peers, ours := time.Duration(random.IntN(200))*time.Microsecond, time.Duration(random.IntN(200))*time.Microsecond
					go func() {
						<-begin
						spin(peers)
						n, err := race.run(peer, in[100:])
						finished.Store(true)
						done <- result{n, err}
					}()
					close(begin)
					var err error
					if locked {
						spin(ours)
						if conn, err = n.raced(t, conn); errors.Is(err, soccr.ErrChanged) {
							changed++
							err = nil
						}
					} else {
						var looks, moved int
						looks, moved, err = lookAt(conn, in, out, race.resets, &finished)
						right += looks
						changed += moved
					}
					if err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
					var wg sync.WaitGroup
					wg.Go(func() {
						if !race.resets {
							expect(t, "peer", peer, out)
						}
					})
					if race.resets {
						expectReset(t, conn, in[:100])
						<-done
					} else {
						// The peer may be writing until this end reads.
						expect(t, "conn", conn, in[:100])
						r := drainAll(t, conn, in[100:], done)
						if r.err != nil {
							t.Fatalf("round %d: the peer: %v", round, r.err)
						}
						if race.closes {
							expectEOF(t, "conn", conn)
						}
					}
					wg.Wait()
					abort(conn)
					abort(peer)
				}
				t.Logf("in %d rounds it was right %d times, and had changed %d times", raceRounds(12), right, changed)
				if !locked && race.moves && (changed == 0 || right == 0) {
					t.Error("Save was never in its way")
				}
			})
		}
	}
}

// spin waits for less time than a timer takes.
func spin(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
	}
}

// A result is how much a peer has written, and how that ended.
type result struct {
	n   int
	err error
}

// drainAll reads what the peer writes, until it says how much that was.
func drainAll(t *testing.T, conn net.Conn, want []byte, written <-chan result) (r result) {
	t.Helper()
	got := make([]byte, 0, len(want))
	buf := make([]byte, 8192)
	for finished := false; !finished || len(got) < r.n; {
		select {
		case r = <-written:
			finished = true
			continue
		default:
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		k, err := conn.Read(buf)
		got = append(got, buf[:k]...)
		if errors.Is(err, io.EOF) && !finished {
			r, finished = <-written, true
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if errors.Is(err, io.EOF) && len(got) < r.n {
			t.Fatalf("the stream ends after %d bytes of %d", len(got), r.n)
		}
	}
	if !bytes.Equal(got, want[:len(got)]) || len(got) != r.n {
		t.Errorf("read %d bytes of %d, or others", len(got), r.n)
	}
	return r
}

// raced moves a connection under the lock.
func (n *network) raced(t *testing.T, conn *net.TCPConn) (*net.TCPConn, error) {
	t.Helper()
	snap, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock))
	if err != nil {
		return conn, err // it goes on
	}
	return n.restore(t, snap), nil
}

// lookAt saves a connection that nothing keeps from moving, again and again while its
// peer does something, and lets it go on. What was saved has to be right.
func lookAt(conn *net.TCPConn, in, out []byte, reset bool, finished *atomic.Bool) (right, changed int, err error) {
	const most = 500
	err = onFD(conn, func(fd int) error {
		s, err := soccr.Pause(fd)
		if err != nil {
			return err
		}
		var first *soccr.Snapshot
		for last := false; err == nil && !last && right+changed < most; {
			last = finished.Load()
			var snap *soccr.Snapshot
			snap, err = s.Save()
			if errors.Is(err, soccr.ErrChanged) {
				changed++
				err = nil
				continue
			}
			if err != nil || reset {
				continue
			}
			right++
			if first == nil {
				first = snap
			}
			switch {
			case !bytes.HasPrefix(in, snap.RecvQueue) || len(snap.RecvQueue) < 100:
				err = fmt.Errorf("saved %d received bytes, or others", len(snap.RecvQueue))
			case !bytes.HasSuffix(out, snap.SendQueue):
				err = fmt.Errorf("saved %d bytes to send, or others", len(snap.SendQueue))
			case snap.RecvSeq-uint32(len(snap.RecvQueue)) != first.RecvSeq-uint32(len(first.RecvQueue)) || snap.SendSeq != first.SendSeq:
				err = fmt.Errorf("saved the sequence numbers %d and %d, %d and %d before", snap.RecvSeq, snap.SendSeq, first.RecvSeq, first.SendSeq)
			}
		}
		return errors.Join(err, s.Resume())
	})
	return right, changed, err
}

// expectReset reads what came before a RST, and that there was one. Where it was kept
// away by the lock, the next word to the peer brings another.
func expectReset(t *testing.T, conn *net.TCPConn, before []byte) {
	t.Helper()
	expect(t, "conn", conn, before)
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, told := conn.Write([]byte("anybody there?"))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(errors.Join(told, err), unix.ECONNRESET) {
		t.Errorf("write: %v, read: %d bytes, %v; want ECONNRESET", told, n, err)
	}
}

// An owner's threads may be anywhere in read(2), and in a write(2) that does not wait,
// when their connection is taken. What they were told that they have read and written
// is in the snapshot, to the byte; or Save says that a write has done damage. (One that
// waits for room in a send buffer has to be stopped before: see Pause.)
func TestOwnerRaces(t *testing.T) {
	n := newNetwork(t)
	damaged := 0
	for round := range raceRounds(30) {
		random := rand.New(rand.NewPCG(uint64(round), 2))
		conn, peer := n.connect(t, families[round%len(families)])
		in, out := pattern(byte(round), 4<<20), pattern(byte(round+9), 4<<20)
		local, remote := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		fd := ownDescriptor(t, conn)
		var read, written atomic.Int64
		var owners, peers sync.WaitGroup
		owners.Go(func() {
			for buf := make([]byte, 5000); ; {
				k, err := unix.Read(fd, buf)
				if err != nil || k <= 0 {
					return
				}
				read.Add(int64(k))
			}
		})
		owners.Go(func() {
			for {
				at := written.Load()
				k, err := unix.SendmsgN(fd, out[at:min(at+30_000, int64(len(out)))], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
				if errors.Is(err, unix.EAGAIN) {
					time.Sleep(50 * time.Microsecond)
					continue
				}
				if err != nil || k <= 0 {
					return
				}
				written.Add(int64(k))
			}
		})
		peers.Go(func() { _, _ = peer.Write(in) })
		got := make([]byte, 0, len(out))
		peers.Go(func() {
			for buf := make([]byte, 7000); ; {
				k, err := peer.Read(buf)
				got = append(got, buf[:k]...)
				if err != nil {
					return
				}
			}
		})
		spin(time.Duration(random.IntN(3000)) * time.Microsecond)
		snap, err := takeWith(n.lock, fd, local, remote)
		if errors.Is(err, soccr.ErrDamaged) { // it was not stopped, and is told so
			damaged++
			unix.Close(fd)
			abort(peer)
			owners.Wait()
			peers.Wait()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		owners.Wait()
		if at := in[read.Load():]; !bytes.HasPrefix(at, snap.RecvQueue) {
			t.Errorf("round %d: the owner has read %d bytes, and the next %d are not those in the queue", round, read.Load(), len(snap.RecvQueue))
		}
		if rest := out[:written.Load()]; !bytes.HasSuffix(rest, snap.SendQueue) {
			t.Errorf("round %d: the owner has written %d bytes, and the last %d are not those in the queue", round, written.Load(), len(snap.SendQueue))
		}
		moved := n.restore(t, snap)
		expect(t, "conn", moved, in[read.Load():])
		if err := moved.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		peers.Wait()
		if !bytes.Equal(got, out[:written.Load()]) {
			t.Errorf("round %d: the peer has read %d bytes, or others; the owner has written %d", round, len(got), written.Load())
		}
		unix.Close(fd)
		abort(moved)
		abort(peer)
	}
	t.Logf("%d of %d times the owner had damaged it", damaged, raceRounds(30))
}

// ownDescriptor is a blocking one, in place of the conn's.
func ownDescriptor(t *testing.T, conn *net.TCPConn) (fd int) {
	t.Helper()
	control(t, conn, func(own int) {
		var err error
		if fd, err = unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	conn.Close()
	return fd
}

// takeWith does what a checkpointer does: it takes the connection, or lets it go on.
func takeWith(lock *netlock.Lock, fd int, local, remote netip.AddrPort) (*soccr.Snapshot, error) {
	if err := lock.LockFlow(local, remote); err != nil {
		return nil, err
	}
	s, err := soccr.Pause(fd)
	if err != nil {
		return nil, errors.Join(err, lock.UnlockFlow(local, remote))
	}
	var snap *soccr.Snapshot
	for range 20 {
		if snap, err = s.Save(); !errors.Is(err, soccr.ErrChanged) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.UnlockFlow(local, remote), s.Resume())
	}
	err = s.Disconnect()
	s.Release()
	return snap, err
}
