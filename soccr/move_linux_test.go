package soccr_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/soccr"
)

// observe watches, where the peers are, the next connection of a family.
func (n *network) observe(t *testing.T, f family) *wire.Observer {
	t.Helper()
	var o *wire.Observer
	hosttest.Do(t, n.there, func() (err error) {
		o, err = wire.Observe("net0", wire.Flow{A: netip.AddrPortFrom(f.here, 0), B: netip.AddrPortFrom(f.there, 0)})
		return err
	})
	return o
}

// unnoticed stops to watch, and fails the test if the peer could have noticed.
func unnoticed(t *testing.T, o *wire.Observer) {
	t.Helper()
	report, err := o.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Error(err)
		for _, s := range report.Latest {
			t.Logf("%s %v", s.Time.Format("15:04:05.000000"), s)
		}
	}
}

// Nothing on the peer's wire tells that a conversation is moved again and again.
func TestWire(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			o := n.observe(t, f)
			conn, peer := n.connect(t, f)
			for i := range 50 {
				question, answer := pattern(byte(i), 1+i*997), pattern(byte(i+100), 1+i*1999)
				write(t, peer, question)
				conn = n.move(t, conn)
				expect(t, "conn", conn, question)
				write(t, conn, answer)
				conn = n.move(t, conn)
				expect(t, "peer", peer, answer)
			}
			conn.Close()
			expectEOF(t, "peer", peer)
			peer.Close()
			unnoticed(t, o)
		})
	}
}

// The device of a link-local connection is kept, by its name.
func TestLinkLocal(t *testing.T) {
	n := newNetwork(t)
	var local netip.Addr
	hosttest.Do(t, n.here, func() error {
		device, err := net.InterfaceByName("net0")
		if err != nil {
			return err
		}
		addrs, err := device.Addrs()
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && addr.IsLinkLocalUnicast() {
				local = addr.WithZone("net0")
			}
		}
		return err
	})
	var listener net.Listener
	eventually(t, "the address can be used", func() bool {
		return n.here.Do(func() (err error) {
			listener, err = net.Listen("tcp6", netip.AddrPortFrom(local, 0).String())
			return err
		}) == nil
	})
	defer listener.Close()
	var peer net.Conn
	hosttest.Do(t, n.there, func() (err error) {
		port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
		peer, err = net.Dial("tcp6", netip.AddrPortFrom(local, port).String())
		return err
	})
	defer peer.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	conn := accepted.(*net.TCPConn)
	if err := peer.(*net.TCPConn).CloseWrite(); err != nil { // the injected FIN needs the zone too
		t.Fatal(err)
	}
	inState(t, conn, soccr.StateCloseWait)
	snap := n.checkpoint(t, conn)
	if snap.Local.Addr().Zone() != "net0" || snap.Remote.Addr().Zone() != "net0" {
		t.Fatalf("saved %v->%v", snap.Local, snap.Remote)
	}
	moved := n.restore(t, snap)
	expectEOF(t, "conn", moved)
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// A snapshot can be made by hand, for both ends of a connection that never was,
// and its sequence numbers wrap like any other's.
func TestMadeByHandAndWrapping(t *testing.T) {
	n := newNetwork(t)
	for _, f := range []family{ip4, ip6} {
		t.Run(f.name, func(t *testing.T) {
			const first, second = 0xffff_ff00, 0xffff_fff0
			snap := func(local, remote netip.Addr, send, recv uint32) *soccr.Snapshot {
				return &soccr.Snapshot{
					State: soccr.StateEstablished,
					Local: netip.AddrPortFrom(local, 7777), Remote: netip.AddrPortFrom(remote, 7777),
					SendSeq: send, RecvSeq: recv, MSS: 1400,
					WindowScaling: true, SendScale: 7, RecvScale: 7, SACK: true,
					Window: soccr.Window{SndWnd: 64 << 10, MaxWindow: 64 << 10, RcvWnd: 64 << 10, RcvWup: recv, SndWl1: recv},
				}
			}
			ends := []*soccr.Snapshot{snap(f.here, f.there, first, second), snap(f.there, f.here, second, first)}
			var conns [2]*net.TCPConn
			var sockets [2]*soccr.Socket
			for i, host := range []*network{n, {here: n.there}} {
				s, fd := host.paused(t, ends[i])
				conns[i], sockets[i] = n.fileConn(t, fd), s
			}
			for _, s := range sockets { // when both are there
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
			}
			conn, peer := conns[0], conns[1]
			for i := range 20 {
				data := pattern(byte(i), 5000)
				write(t, conn, data)
				write(t, peer, data)
				eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(data) })
				conn = n.move(t, conn)
				expect(t, "conn", conn, data)
				expect(t, "peer", peer, data)
			}
		})
	}
}

// Queues may be larger than the buffers: a program can shrink these at any time.
func TestQueuesLargerThanBuffers(t *testing.T) {
	n := newNetwork(t)
	size, recvBuffer, sendBuffer := 4<<20, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE
	if !mayForceBuffers(t) {
		size, recvBuffer, sendBuffer = 300_000, unix.SO_RCVBUF, unix.SO_SNDBUF // what net.core.wmem_max allows at the least
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			conn, peer := n.connect(t, f)
			for _, o := range []int{recvBuffer, sendBuffer} {
				setInt(t, conn, unix.SOL_SOCKET, o, size)
				setInt(t, peer, unix.SOL_SOCKET, o, size)
			}
			in, out := pattern(1, size*3/4), pattern(2, size*3/4)
			lock := n.lockFor(conn)
			write(t, peer, in)
			eventually(t, "all is here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(in) })
			lock(true)
			write(t, conn, out)
			for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
				setInt(t, conn, unix.SOL_SOCKET, o, 4096)
			}
			snap := n.checkpoint(t, conn)
			if len(snap.RecvQueue) != len(in) || len(snap.SendQueue) != len(out) {
				t.Fatalf("saved %d and %d bytes", len(snap.RecvQueue), len(snap.SendQueue))
			}
			moved := n.restore(t, snap)
			if got := getInt(t, moved, unix.SOL_SOCKET, unix.SO_SNDBUF); got != int(snap.Options.SendBuffer) {
				t.Errorf("SO_SNDBUF is %d, want %d", got, snap.Options.SendBuffer)
			}
			var wg sync.WaitGroup
			wg.Go(func() { expect(t, "peer", peer, out) })
			expect(t, "conn", moved, in)
			wg.Wait()
		})
	}
}

// What was negotiated, and what was not, stays so.
func TestNegotiatedOptions(t *testing.T) {
	n := newNetwork(t)
	for i := range 8 {
		name, sack, stamps, scaling := "", i&1, i>>1&1, i>>2&1
		for setting, v := range map[string]int{"tcp_sack": sack, "tcp_timestamps": stamps, "tcp_window_scaling": scaling} {
			name += fmt.Sprintf("%s=%d ", setting, v)
			if err := n.there.Sysctl("net.ipv4."+setting, fmt.Sprint(v)); err != nil {
				t.Fatal(err)
			}
		}
		o := n.observe(t, ip4)
		conn, peer := n.connect(t, ip4)
		before := info(t, conn)
		const negotiated = tcpinfo.OptSACK | tcpinfo.OptTimestamps
		for range 3 {
			conn = n.move(t, conn)
			after := info(t, conn)
			// The kernel reserves room for timestamps if this host would use them,
			// and takes it back for each segment (tcp_current_mss).
			mss := before.Snd_mss
			if stamps == 0 {
				mss -= 12
			}
			if before.Options&negotiated != after.Options&negotiated || before.SndWscale != after.SndWscale ||
				before.RcvWscale != after.RcvWscale || mss != after.Snd_mss {
				t.Errorf("%s: options %x, scales %d and %d, MSS %d became %x, %d and %d, %d", name,
					before.Options, before.SndWscale, before.RcvWscale, before.Snd_mss,
					after.Options, after.SndWscale, after.RcvWscale, after.Snd_mss)
			}
			data := pattern(byte(i), 100_000)
			var wg sync.WaitGroup
			wg.Go(func() { expect(t, "peer", peer, data) })
			write(t, conn, data)
			wg.Wait()
			wg.Go(func() { expect(t, "conn", conn, data) })
			write(t, peer, data)
			wg.Wait()
		}
		unnoticed(t, o)
	}
}

// The options that a connection itself needs are kept.
func TestSocketOptions(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	options := []struct {
		name          string
		level, option int
		value         int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 33},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
		{"TCP_CORK", unix.IPPROTO_TCP, unix.TCP_CORK, 1},
	}
	for _, o := range options {
		setInt(t, conn, o.level, o.option, o.value)
	}
	control(t, conn, func(fd int) {
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
			t.Fatal(err)
		}
	})
	for round := range 2 {
		if lock := getInt(t, conn, unix.SOL_SOCKET, unix.SO_BUF_LOCK); lock != 0 {
			t.Errorf("round %d: SO_BUF_LOCK is %d: buffers are not tuned any more", round, lock)
		}
		before := [2]int{getInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF), getInt(t, conn, unix.SOL_SOCKET, unix.SO_SNDBUF)}
		conn = n.move(t, conn)
		if after := [2]int{getInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF), getInt(t, conn, unix.SOL_SOCKET, unix.SO_SNDBUF)}; after != before {
			t.Errorf("the buffers were %v, and are %v", before, after)
		}
		for _, o := range options {
			if got := getInt(t, conn, o.level, o.option); got != o.value {
				t.Errorf("round %d: %s is %d, want %d", round, o.name, got, o.value)
			}
		}
		control(t, conn, func(fd int) {
			if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || name != "reno" {
				t.Errorf("round %d: TCP_CONGESTION is %q, %v", round, name, err)
			}
		})
	}
	// Sizes that the program has chosen stay chosen; a blocking socket blocks.
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF, 80_000)
	control(t, conn, func(fd int) {
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
	})
	snap := n.checkpoint(t, conn)
	s, fd := n.paused(t, snap)
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct{ option, want int }{{unix.SO_RCVBUF, 160_000}, {unix.SO_BUF_LOCK, unix.SOCK_RCVBUF_LOCK}} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.option); err != nil || got != o.want {
			t.Errorf("option %d is %d, %v; want %d", o.option, got, err, o.want)
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v: the socket does not block", flags, err)
	}
}

// A program that has shut down reading reads the end after the move as well.
func TestReadShutdown(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	if err := conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	moved := n.move(t, conn)
	expectEOF(t, "conn", moved)
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// A snapshot is a value: it can be restored again and again.
func TestSnapshotIsNotUsedUp(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("queued"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	inState(t, conn, soccr.StateCloseWait)
	snap := n.checkpoint(t, conn)
	before, err := snap.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s, _ := n.paused(t, snap)
		if err := s.Disconnect(); err != nil {
			t.Fatal(err)
		}
	}
	after, err := snap.MarshalBinary()
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the snapshot has changed: %v", err)
	}
	var travelled soccr.Snapshot
	if err := travelled.UnmarshalBinary(after); err != nil {
		t.Fatal(err)
	}
	moved := n.restore(t, &travelled)
	expect(t, "conn", moved, []byte("queued"))
	expectEOF(t, "conn", moved)
}

// The descriptors that moving takes are given back.
func TestNoDescriptorIsLeaked(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	inState(t, conn, soccr.StateCloseWait)
	conn = n.move(t, conn)
	before := openDescriptors(t)
	for range 10 {
		conn = n.move(t, conn)
		snap := n.checkpoint(t, conn)
		wrong := *snap
		wrong.Local = netip.AddrPortFrom(netip.MustParseAddr("10.77.0.99"), snap.Local.Port())
		if _, err := soccr.RestoreConn(&wrong); err == nil {
			t.Fatal("restored at an address that is not here")
		}
		conn = n.restore(t, snap)
	}
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors are open, there were %d", after, before)
	}
}

func openDescriptors(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

// A restored conn is an ordinary one.
func TestConn(t *testing.T) {
	n := newNetwork(t)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		conn, peer := n.connect(t, ip4)
		moved := n.move(t, conn)
		return moved, peer, func() { moved.Close(); peer.Close() }, nil
	})
}

// Saving without taking the connection away changes nothing.
func TestSaveAndGoOn(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		conn, peer := n.connect(t, f)
		for i := range 20 {
			data := pattern(byte(i), 50_000)
			var wg sync.WaitGroup
			wg.Go(func() { write(t, peer, data) })
			control(t, conn, func(fd int) {
				s, err := soccr.Pause(fd)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Save(); err != nil && !errors.Is(err, soccr.ErrChanged) {
					t.Error(err)
				}
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
			})
			wg.Wait()
			expect(t, "conn", conn, data)
		}
	}
}

// Bytes that were never sent stay unsent until Resume, even without a lock, and
// leave with it, not when a timer remembers them.
func TestUnsentBytesLeaveWithResume(t *testing.T) {
	n := newNetwork(t)
	for _, peerFIN := range []bool{false, true} {
		conn, peer := n.connect(t, ip4)
		if peerFIN {
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
		}
		if err := conn.SetNoDelay(false); err != nil { // setting it would send, too
			t.Fatal(err)
		}
		n.lockFor(conn)(true)
		data := pattern(1, 5000)
		write(t, conn, data)
		snap := n.checkpoint(t, conn)
		if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
			t.Fatal(err)
		}
		s, fd := n.paused(t, snap)
		if i := fdInfo(t, fd); i.Bytes_sent != 0 || i.Notsent_bytes != uint32(len(data)) {
			t.Errorf("before Resume, %d bytes were sent and %d were not, of %d", i.Bytes_sent, i.Notsent_bytes, len(data))
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		if i := fdInfo(t, fd); i.Bytes_sent != uint64(len(data)) {
			t.Errorf("with Resume, %d of %d bytes were sent", i.Bytes_sent, len(data))
		}
		expect(t, "peer", peer, data)
	}
}

// A host may forbid IPv4 on AF_INET6 sockets; a mapped connection has it already.
func TestMappedWhereV6OnlyIsDefault(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, mapped)
	if err := n.here.Sysctl("net.ipv6.bindv6only", "1"); err != nil {
		t.Fatal(err)
	}
	moved := n.move(t, conn)
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// The runtime needs non-blocking sockets, whatever the snapshot's program had.
func TestConnOfBlockingSocket(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	control(t, conn, func(fd int) {
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
	})
	moved := n.move(t, conn)
	if err := moved.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := moved.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past the deadline: %v", err)
	}
	control(t, moved, func(fd int) {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: the socket blocks", flags, err)
		}
	})
}
