package soccr_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// toStage takes a connection in a state, with data that were not read and, where
// there can be, data that were not acknowledged.
func (n *network) toStage(t *testing.T, f family, stage stage) (snap *soccr.Snapshot, peer *net.TCPConn) {
	t.Helper()
	conn, peer := n.connect(t, f)
	setInt(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
	write(t, peer, []byte("unread"))
	eventually(t, "the bytes have arrived", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
	if stage.peerFIN && stage.state != soccr.StateClosing {
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		inState(t, conn, soccr.StateCloseWait)
	}
	if !stage.acked {
		deafen(t, peer)
		defer undeafen(t, peer)
		write(t, conn, []byte("in flight"))
	}
	if stage.ownFIN {
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	if stage.state == soccr.StateClosing {
		inState(t, conn, soccr.StateFinWait1)
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	inState(t, conn, stage.state)
	return n.checkpoint(t, conn), peer
}

// isOver checks what a program finds on a connection that is over.
func isOver(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	expectEOF(t, "conn", conn)
	if _, err := conn.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v", err)
	}
	control(t, conn, func(fd int) {
		poll := [1]unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(poll[:], 0); err != nil || poll[0].Revents != unix.POLLHUP {
			t.Errorf("poll: %#x, %v", poll[0].Revents, err)
		}
	})
	inState(t, conn, soccr.StateClose)
	if got := getInt(t, conn, unix.SOL_SOCKET, unix.SO_ERROR); got != 0 {
		t.Errorf("SO_ERROR is %v", unix.Errno(got))
	}
	if got := getInt(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); got != 77 {
		t.Errorf("TCP_KEEPIDLE is %d", got)
	}
}

// A connection in any state can come back as closed, even where its addresses are
// unknown, and its port is free for a listener.
func TestRestoreClosed(t *testing.T) {
	n := newNetwork(t)
	for _, stage := range stages {
		if stage.state == soccr.StateClose {
			continue
		}
		for _, f := range families {
			t.Run(stage.state.String()+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				snap, _ := n.toStage(t, f, stage)
				isOver(t, n.restore(t, snap, soccr.WithClosed()))
				elsewhere := *snap
				elsewhere.Local = f.at(netip.MustParseAddr(map[family]string{ip4: "192.0.2.1", ip6: "2001:db8::1", mapped: "192.0.2.1"}[f]), snap.Local.Port())
				elsewhere.Options.Congestion = "nosuch"
				elsewhere.Options.Settings = []soccr.Setting{{Name: "SO_BINDTODEVICE", Text: "nosuch"}, {Name: "TCP_KEEPIDLE", Number: 77}}
				isOver(t, n.restore(t, &elsewhere, soccr.WithClosed()))
				n.listenAt(t, listening{family: f}, snap.Local)
			})
		}
	}
}

// The peer hears nothing of it, until it speaks itself.
func TestRestoreClosedIsSilent(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	setInt(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
	snap := n.checkpoint(t, conn)
	before := info(t, peer).Segs_in
	isOver(t, n.restore(t, snap, soccr.WithClosed()))
	silent(t, peer)
	if after := info(t, peer).Segs_in; after != before {
		t.Errorf("the peer has received %d segments", after-before)
	}
	send(peer, []byte("x"))
	if _, err := peer.Read(make([]byte, 1)); err == nil {
		t.Error("the peer goes on")
	}
}

// With a reset, the peer knows at once, whatever it has acknowledged.
func TestRestoreReset(t *testing.T) {
	n := newNetwork(t)
	for _, stage := range stages {
		if stage.state == soccr.StateClose {
			continue
		}
		for _, f := range families {
			t.Run(stage.state.String()+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				snap, peer := n.toStage(t, f, stage)
				conn := n.restore(t, snap, soccr.WithReset())
				knows(t, peer)
				isOver(t, conn)
			})
		}
	}
}

// knows waits until a peer knows that its connection was reset.
func knows(t *testing.T, peer *net.TCPConn) {
	t.Helper()
	inState(t, peer, soccr.StateClose)
	// EPIPE in CLOSE_WAIT (tcp_reset).
	if got := unix.Errno(getInt(t, peer, unix.SOL_SOCKET, unix.SO_ERROR)); got != unix.ECONNRESET && got != unix.EPIPE {
		t.Errorf("the peer has SO_ERROR %v", got)
	}
}

// ResetPeer needs no socket, also with data that never left.
func TestResetPeer(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		conn, peer := n.connect(t, f)
		n.lockFor(conn)(true)
		write(t, conn, pattern(1, 5000))
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		snap := n.checkpoint(t, conn)
		if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
			t.Fatal(err)
		}
		segments := info(t, peer).Segs_in
		hosttest.Do(t, n.here, func() error { return soccr.ResetPeer(snap) })
		knows(t, peer)
		if got := info(t, peer).Segs_in - segments; got != 1 { // it was the right one
			t.Errorf("%s: the peer has received %d segments", f.name, got)
		}
		wrong := *snap
		wrong.MSS = 0
		if err := soccr.ResetPeer(&wrong); !errors.Is(err, soccr.ErrInvalidSnapshot) {
			t.Errorf("ResetPeer of an invalid snapshot: %v", err)
		}
	}
}

// What had not been a connection, or was not any more, is as always; a connection
// that was being made is closed.
func TestRestoreClosedOfOthers(t *testing.T) {
	n := newNetwork(t)
	fd := ip4.socket(t, n, 0)
	if err := unix.Bind(fd, sockaddr(ip4, netip.AddrPortFrom(ip4.here, 4243))); err != nil {
		t.Fatal(err)
	}
	snap := saved(t, fd)
	again := func(options ...soccr.Option) int {
		fd := n.newSocket(t, snap)
		t.Cleanup(func() { unix.Close(fd) })
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Restore(snap, options...); err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	if got := name(t, again(soccr.WithClosed())); got != snap.Local {
		t.Errorf("a bound socket was at %v and is at %v", snap.Local, got)
	}

	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("unread"))
	eventually(t, "the bytes have arrived", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
	reset(t, peer)
	inState(t, conn, soccr.StateClose)
	expect(t, "conn", n.restore(t, n.checkpoint(t, conn), soccr.WithReset()), []byte("unread"))

	fd = ip4.socket(t, n, unix.SOCK_NONBLOCK)
	if err := unix.Connect(fd, sockaddr(ip4, netip.MustParseAddrPort("10.77.0.99:80"))); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatal(err)
	}
	snap = saved(t, fd)
	if n, err := unix.Read(again(soccr.WithReset()), make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("a connect that did not succeed: read %d bytes, %v", n, err)
	}
}

// A listener comes back without what was in its queue.
func TestRestoreListenerClosed(t *testing.T) {
	n := newNetwork(t)
	for _, option := range []soccr.Option{soccr.WithClosed(), soccr.WithReset()} {
		listener := n.listen(t, listening{family: ip4})
		peer := n.dial(t, ip4, portOf(listener))
		waiting(t, listener, 1)
		snap := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))
		var restored *soccr.Listener
		hosttest.Do(t, n.here, func() (err error) {
			restored, err = soccr.RestoreListener(snap, soccr.WithLock(n.lock), option)
			return err
		})
		t.Cleanup(func() { restored.Close() })
		if restored.Pending() != 0 {
			t.Errorf("%d connections are pending", restored.Pending())
		}
		send(peer, []byte("x")) // at the latest now it knows
		if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer reads: %v", err)
		}
		n.serves(t, ip4, restored)
	}
}

// Buffers that a program has set are kept without a connection, too.
func TestBuffersOfUnconnectedSockets(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		fd := f.socket(t, n, 0)
		for option, size := range map[int]int{unix.SO_RCVBUF: 30_000, unix.SO_SNDBUF: 40_000} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size); err != nil {
				t.Fatal(err)
			}
		}
		_, fd = n.paused(t, saved(t, fd))
		for option, want := range map[int]int{unix.SO_RCVBUF: 60_000, unix.SO_SNDBUF: 80_000, unix.SO_BUF_LOCK: 3} {
			if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil || got != want {
				t.Errorf("%s: option %d is %d, %v; want %d", f.name, option, got, err, want)
			}
		}
	}
}

// A closed connection without timestamps, data unread, waits for the end of its
// TIME_WAIT, and has lost nothing by that; with timestamps it need not.
func TestTimeWaitInTheWay(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		for _, stamps := range []string{"0", "1"} {
			if err := n.there.Sysctl("net.ipv4.tcp_timestamps", stamps); err != nil {
				t.Fatal(err)
			}
			conn, peer := n.connect(t, f)
			setInt(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
			write(t, peer, []byte("unread"))
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			expectEOF(t, "peer", peer)
			peer.Close()
			inState(t, conn, soccr.StateClose)
			snap := n.checkpoint(t, conn)
			if stamps == "0" {
				err := n.here.Do(func() error {
					_, err := soccr.RestoreConn(snap, soccr.WithLock(n.lock))
					return err
				})
				if !errors.Is(err, soccr.ErrAddrInUse) {
					t.Errorf("%s: restored beside its TIME_WAIT: %v", f.name, err)
				}
				n.endTimeWait(t, snap)
			}
			moved := n.restore(t, snap)
			expect(t, "conn", moved, []byte("unread"))
			isOver(t, moved)
		}
	}
}

// endTimeWait does not wait for its end.
func (n *network) endTimeWait(t *testing.T, snap *soccr.Snapshot) {
	t.Helper()
	ns := n.here.FD()
	sockets, err := diag.Dial(&diag.Config{NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	waiting, err := sockets.Lookup(snap.Local, snap.Remote)
	if err == nil {
		err = sockets.Destroy(waiting)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A connection in LAST_ACK ends as soon as its FIN, sent again, is acknowledged. What
// is injected to help it along must not meet its absence: the kernel would answer the
// peer with a RST.
func TestLastAckEndsAtOnce(t *testing.T) {
	n := newNetwork(t)
	tap := n.tap(t)
	for _, f := range families {
		for round := range 10 {
			o := n.observe(t, f)
			conn, peer := n.connect(t, f)
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			expectEOF(t, "conn", conn)
			data := pattern(byte(round), 3000)
			n.lockFor(conn)(true)
			write(t, conn, data)
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateLastAck)
			var options []soccr.Option
			if round%2 == 1 {
				options = append(options, soccr.WithTap(tap))
			}
			snap, err := soccr.Checkpoint(conn, append(options, soccr.WithLock(n.lock))...)
			if err != nil {
				t.Fatal(err)
			}
			moved := n.restore(t, snap, options...)
			expect(t, "peer", peer, data)
			expectEOF(t, "peer", peer)
			inState(t, moved, soccr.StateClose)
			moved.Close()
			peer.Close()
			unnoticed(t, o)
		}
	}
}

// A peer that ends the connection while its flow is locked, and says so more than
// once, is told once that this is known: it has forgotten the connection by then.
func TestPeerEndsMeanwhile(t *testing.T) {
	n := newNetwork(t)
	tap := n.tap(t)
	for _, f := range families {
		o := n.observe(t, f)
		conn, peer := n.connect(t, f)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectEOF(t, "peer", peer)
		inState(t, conn, soccr.StateFinWait2)
		snap, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock), soccr.WithTap(tap))
		if err != nil {
			t.Fatal(err)
		}
		data := pattern(1, 500)
		write(t, peer, data)
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the FIN was sent again", func() bool { return info(t, peer).Total_retrans >= 2 })
		moved := n.restore(t, snap, soccr.WithTap(tap))
		expect(t, "conn", moved, data)
		expectEOF(t, "conn", moved)
		inState(t, peer, soccr.StateClose)
		time.Sleep(20 * time.Millisecond) // for what should not come
		moved.Close()
		peer.Close()
		unnoticed(t, o)
	}
}
