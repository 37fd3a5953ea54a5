package soccr_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
)

// A half-closed connection whose peer's window is closed hears that it is open again,
// although the peer's word was lost in the lock, and although it moves more often than
// the kernel's timer, which each move starts anew, lets it ask.
func TestProbe(t *testing.T) {
	n := newNetwork(t)
	for _, stage := range []stage{
		{soccr.StateCloseWait, true, false, false},
		{soccr.StateFinWait1, false, true, false},
		{soccr.StateClosing, true, true, false},
		{soccr.StateLastAck, true, true, false},
	} {
		for _, f := range families {
			for _, way := range []struct {
				name string
				move func(*network, *testing.T, *net.TCPConn) *net.TCPConn
			}{{"alone", (*network).moveShut}, {"batch", (*network).moveShutBatch}} {
				t.Run(stage.state.String()+"/"+f.name+"/"+way.name, func(t *testing.T) {
					t.Parallel()
					n.testProbe(t, f, stage, func(conn *net.TCPConn) *net.TCPConn { return way.move(n, t, conn) })
				})
			}
		}
	}
}

func (n *network) testProbe(t *testing.T, f family, stage stage, move func(*net.TCPConn) *net.TCPConn) {
	conn, peer := n.connect(t, f)
	seen := n.observeConn(t, conn)
	data := n.shutWindow(t, conn, peer)
	for _, end := range []struct {
		closes bool
		conn   *net.TCPConn
	}{{stage.peerFIN && stage.state != soccr.StateClosing, peer}, {stage.ownFIN, conn}, {stage.state == soccr.StateClosing, peer}} {
		if !end.closes {
			continue
		}
		if err := end.conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if end.conn == peer {
			eventually(t, "the FIN is here", func() bool { return ioctl(t, peer, unix.SIOCOUTQ) == 0 })
		}
	}
	inState(t, conn, stage.state)
	n.lockFor(conn)(true)
	read := ioctl(t, peer, unix.SIOCINQ)
	expect(t, "peer", peer, data[:read]) // and says in vain that there is room
	const most = 12
	for moves := 1; ; moves++ {
		conn = move(conn)
		if err := peer.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1)
		_, err := peer.Read(got)
		if err == nil {
			if got[0] != data[read] {
				t.Fatalf("byte %d is %#x, want %#x", read, got[0], data[read])
			}
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || moves == most {
			t.Fatalf("nothing came in %d moves: %v", moves, err)
		}
	}
	expect(t, "peer", peer, data[read+1:])
	n.finish(t, conn, peer, stage)
	unnoticed(t, seen)
}

// A probe that cannot be sent keeps nothing from going on, when the kernel's timer says so.
func TestUnprobed(t *testing.T) {
	for _, test := range []struct {
		name   string
		resume func(*soccr.Socket, func(bool)) error
		cause  func(error) bool
	}{
		{"no raw socket", func(s *soccr.Socket, lock func(bool)) error {
			lock(false)
			return withoutRaw(s.Resume)
		}, func(err error) bool { return errors.Is(err, unix.EPERM) }},
		{"still locked", func(s *soccr.Socket, lock func(bool)) error {
			defer lock(false)
			return s.Resume()
		}, func(err error) bool { _, ok := errors.AsType[*rawfin.DroppedError](err); return ok }},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t)
			conn, peer := n.connect(t, ip4)
			data := n.shutWindow(t, conn, peer)
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
			lock := n.lockFor(conn)
			lock(true)
			expect(t, "peer", peer, data[:ioctl(t, peer, unix.SIOCINQ)])
			rest := data[len(data)-ioctl(t, conn, unix.SIOCOUTQ):]
			s, fd := n.pausedWith(t, n.checkpoint(t, conn), soccr.WithPath(soccr.PathForget))
			hosttest.Do(t, n.here, func() error { return test.resume(s, lock) })
			if e := s.Effects(); e.Probed || !test.cause(e.Unprobed) {
				t.Errorf("%+v", e)
			}
			expect(t, "peer", peer, rest)
			n.finish(t, n.fileConn(t, fd), peer, stage{soccr.StateCloseWait, true, false, false})
		})
	}
}

// observeConn watches a connection that is there already, and idle.
func (n *network) observeConn(t *testing.T, conn *net.TCPConn) (o *wire.Observer) {
	t.Helper()
	i := info(t, conn)
	flow := wire.Flow{
		A: unmapped(addrPort(conn.LocalAddr())), B: unmapped(addrPort(conn.RemoteAddr())), ScaleA: i.RcvWscale, ScaleB: i.SndWscale,
	}
	hosttest.Do(t, n.there, func() (err error) {
		o, err = wire.Observe("net0", flow)
		return err
	})
	return o
}

// shutWindow has conn write until the peer's window is closed and everything that fits
// into it is acknowledged, and returns what was written.
func (n *network) shutWindow(t *testing.T, conn, peer *net.TCPConn) []byte {
	t.Helper()
	if err := errors.Join(peer.SetReadBuffer(64<<10), conn.SetWriteBuffer(16<<10)); err != nil {
		t.Fatal(err)
	}
	data := pattern(1, 1<<20)
	written := 0
	eventually(t, "the window is closed", func() bool {
		if err := conn.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Write(data[written:])
		written += n
		waiting := ioctl(t, conn, unix.SIOCOUTQNSD)
		return err != nil && info(t, conn).Snd_wnd == 0 && waiting > 0 && waiting == ioctl(t, conn, unix.SIOCOUTQ)
	})
	return data[:written]
}

// moveShut moves a connection that may have to ask for the peer's window, and knows
// nothing of the path, so that the kernel's timers are slow.
func (n *network) moveShut(t *testing.T, conn *net.TCPConn) *net.TCPConn {
	t.Helper()
	var e soccr.Effects
	snap := n.checkpoint(t, conn)
	conn = n.restore(t, snap, soccr.WithPath(soccr.PathForget), soccr.WithEffects(&e))
	if shut := snap.Window.SndWnd == 0; e.Probed != shut || e.Unprobed != nil { // or it has just heard
		t.Errorf("%v with window %d, %d to send: %+v", snap.State, snap.Window.SndWnd, len(snap.SendQueue), e)
	}
	return conn
}

func (n *network) moveShutBatch(t *testing.T, conn *net.TCPConn) *net.TCPConn {
	t.Helper()
	var images bytes.Buffer
	saved := n.saveAll(t, &images, conn)
	if err := errors.Join(saved.Err(0), saved.Close()); err != nil {
		t.Fatal(err)
	}
	var fd int
	hosttest.Do(t, n.here, func() error {
		batch, err := soccr.RestoreAll(&images, soccr.WithLock(n.lock), soccr.WithPath(soccr.PathForget))
		if err != nil {
			return err
		}
		fd = batch.FD(0)
		return errors.Join(batch.Resume(), batch.Err(0))
	})
	defer unix.Close(fd)
	return n.fileConn(t, fd)
}

// saveAll takes a connection out of a conn, as a batch of one.
func (n *network) saveAll(t *testing.T, images *bytes.Buffer, conn *net.TCPConn) (batch *soccr.Batch) {
	t.Helper()
	fd := -1
	control(t, conn, func(own int) {
		var err error
		if fd, err = unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	})
	batch, err := soccr.SaveAll(images, []int{fd}, soccr.WithLock(n.lock))
	if err != nil {
		t.Fatal(err)
	}
	batch.Disconnect()
	conn.Close()
	return batch
}
