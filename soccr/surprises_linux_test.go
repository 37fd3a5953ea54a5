package soccr_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
)

// The tests of this file hold what the kernel does in repair mode against what
// one would expect of it. Each fails without the remedy that it names.

// In repair mode connect(2) leaves the sending MSS at the protocol's minimum;
// SyncMSS is the remedy. On loopback it is larger than TCP_MAXSEG could set.
func TestSendingMSSIsKept(t *testing.T) {
	n := newNetwork(t)
	loopback := family{"loopback", netip.MustParseAddr("127.0.0.1"), netip.Addr{}, "tcp4"}
	loopback6 := family{"loopback6", netip.MustParseAddr("::1"), netip.Addr{}, "tcp6"}
	alone := &network{here: n.here, there: n.here, lock: n.lock}
	for _, c := range []struct {
		n *network
		f family
	}{{n, ip4}, {n, ip6}, {n, mapped}, {alone, loopback}, {alone, loopback6}} {
		t.Run(c.f.name, func(t *testing.T) {
			conn, peer := c.n.connect(t, c.f)
			before := info(t, conn).Snd_mss
			moved := c.n.move(t, conn)
			if after := info(t, moved).Snd_mss; after != before || after < 1400 {
				t.Errorf("the sending MSS was %d, and is %d after the move", before, after)
			}
			data := pattern(1, 100_000)
			send(moved, data)
			expect(t, "peer", peer, data)
		})
	}
}

// connect(2) takes our window scale from this host's settings, which stays when
// none is negotiated: the peer would see windows far too small. The remedy is to
// always set the scales.
func TestNoWindowScaling(t *testing.T) {
	n := newNetwork(t)
	const setting = "net.ipv4.tcp_window_scaling"
	if err := n.here.Sysctl(setting, "0"); err != nil {
		t.Fatal(err)
	}
	conn, peer := n.connect(t, ip4)
	if err := n.here.Sysctl(setting, "1"); err != nil {
		t.Fatal(err)
	}
	before := info(t, peer).Snd_wnd
	moved := n.move(t, conn)
	if i := info(t, moved); i.SndWscale != 0 || i.RcvWscale != 0 {
		t.Errorf("the moved socket scales by %d and %d", i.SndWscale, i.RcvWscale)
	}
	data := pattern(1, 50_000)
	write(t, moved, data) // its segments tell the peer our window
	expect(t, "peer", peer, data)
	if after := info(t, peer).Snd_wnd; after < before/2 {
		t.Errorf("the peer saw a window of %d, and sees %d after the move", before, after)
	}
	if again := n.checkpoint(t, moved); again.SendScale != 0 || again.RecvScale != 0 {
		t.Errorf("saved again, the scales are %d and %d", again.SendScale, again.RecvScale)
	}
}

// A peek at the send queue returns whole buffers: also what the peer has
// acknowledged of the first, and a count beyond what it copied. The remedy is to
// keep the last bytes, in a buffer large enough for all.
func TestPartlyAcknowledgedSegment(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			deafen(t, peer)
			data := pattern(1, 10)
			write(t, conn, data)
			const acked = 4

			var rcvNxt, sndUna uint32
			control(t, conn, func(fd int) {
				s, err := soccr.Pause(fd)
				if err != nil {
					t.Fatal(err)
				}
				snap, err := s.Save()
				if err != nil {
					t.Fatal(err)
				}
				rcvNxt, sndUna = snap.RecvSeq, snap.SendSeq-uint32(len(snap.SendQueue))
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
			})
			n.inject(t, rawfin.Segment{
				Src: peerAddr(conn), Dst: localAddr(conn),
				Seq: rcvNxt, Ack: sndUna + acked, Window: 1000, Flags: rawfin.ACK,
			})
			eventually(t, "a part is acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == len(data)-acked })

			snap := n.checkpoint(t, conn)
			if string(snap.SendQueue) != string(data[acked:]) || snap.SendSeq != sndUna+uint32(len(data)) {
				t.Errorf("saved %v up to %d, want %v up to %d", snap.SendQueue, snap.SendSeq, data[acked:], sndUna+uint32(len(data)))
			}
			n.paused(t, snap) // and it verifies
		})
	}
}

// With SO_PEEK_OFF a peek starts elsewhere and moves the offset on. The remedy is
// to switch it off while saving.
func TestPeekOffset(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	if !knowsOption(t, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3) { // before Linux 6.9
		snap := n.checkpoint(t, conn)
		snap.Options.PeekOffsetOn = true
		if err := n.restoreFails(t, snap); !errors.Is(err, soccr.ErrOption) {
			t.Errorf("Restore: %v, want ErrOption", err)
		}
		return
	}
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3)
	data := pattern(1, 100)
	write(t, peer, data)
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(data) })

	// A socket that was saved and goes on peeks on from where it was.
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Save(); err != nil {
			t.Error(err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
	})
	peekAt := func(c *net.TCPConn, offset int) {
		t.Helper()
		if got := getInt(t, c, unix.SOL_SOCKET, unix.SO_PEEK_OFF); got != offset {
			t.Errorf("SO_PEEK_OFF is %d, want %d", got, offset)
		}
		var b [5]byte
		control(t, c, func(fd int) {
			if _, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err != nil {
				t.Error(err)
			}
		})
		if string(b[:]) != string(data[offset:offset+5]) {
			t.Errorf("peeked %v at %d, want %v", b, offset, data[offset:offset+5])
		}
	}
	peekAt(conn, 3)
	snap := n.checkpoint(t, conn)
	if string(snap.RecvQueue) != string(data) {
		t.Errorf("saved %d bytes %v…", len(snap.RecvQueue), snap.RecvQueue[:5])
	}
	peekAt(n.restore(t, snap), 8)
}

// Repair mode stops neither reception nor transmission. The remedies are the
// lock, and to look again whether anything moved.
func TestTrafficWhileSaving(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name, field string
		do          func(peer *net.TCPConn)
		after       func(conn, peer *net.TCPConn)
	}{
		{"data", "RecvSeq",
			func(peer *net.TCPConn) { write(t, peer, []byte("more")) },
			func(conn, peer *net.TCPConn) { expect(t, "conn", conn, []byte("heremore")) }},
		{"FIN", "State",
			func(peer *net.TCPConn) {
				if err := peer.CloseWrite(); err != nil {
					t.Error(err)
				}
			},
			func(conn, peer *net.TCPConn) {
				expect(t, "conn", conn, []byte("here"))
				expectEOF(t, "conn", conn)
			}},
		{"RST", "State",
			func(peer *net.TCPConn) { reset(t, peer) },
			func(conn, peer *net.TCPConn) {
				expect(t, "conn", conn, []byte("here"))
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("after the RST, read: %v", err)
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, peer := n.connect(t, ip4)
			write(t, peer, []byte("here"))
			eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 4 })
			control(t, conn, func(fd int) {
				s, err := soccr.Pause(fd)
				if err != nil {
					t.Fatal(err)
				}
				segments := fdInfo(t, fd).Segs_in
				restoreHook := soccr.BetweenReads(func() {
					c.do(peer)
					eventually(t, "a segment has arrived", func() bool { return fdInfo(t, fd).Segs_in > segments })
				})
				_, err = s.Save()
				restoreHook()
				field, _ := errors.AsType[*soccr.FieldError](err)
				if !errors.Is(err, soccr.ErrChanged) || field == nil || field.Field != c.field {
					t.Errorf("Save: %v; want ErrChanged of %s", err, c.field)
				}
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
			})
			c.after(conn, peer)
		})
	}
}

// TCP_TIMESTAMP is overwritten by connect(2), and reads its lowest bit as the
// resolution. The remedies are to set it later, and to round it up: the peer
// drops every segment whose timestamp goes back.
func TestTimestampsGoOn(t *testing.T) {
	n := newNetwork(t)
	routes := map[string]family{"milliseconds": ip4, "milliseconds6": ip6}
	for name, f := range routes {
		t.Run(name, func(t *testing.T) { n.testTimestamps(t, f, false) })
	}
	t.Run("microseconds", func(t *testing.T) {
		if n.microseconds(t) {
			n.testTimestamps(t, ip4, true)
			return
		}
		conn, _ := n.connect(t, ip4) // before Linux 6.7
		snap := n.checkpoint(t, conn)
		snap.Timestamp.Microseconds = true
		if err := n.restoreFails(t, snap); !errors.Is(err, soccr.ErrMismatch) {
			t.Errorf("Restore: %v, want ErrMismatch", err)
		}
	})
}

func (n *network) testTimestamps(t *testing.T, f family, microseconds bool) {
	conn, peer := n.connect(t, f)
	for range 20 {
		first := n.checkpoint(t, conn)
		if !first.Timestamp.Enabled || first.Timestamp.Microseconds != microseconds {
			t.Fatalf("saved %+v", first.Timestamp)
		}
		s, _ := n.paused(t, first)
		then, err := s.Timestamp()
		if err != nil {
			t.Fatal(err)
		}
		// Read back it may be one too high, never too low.
		const second = 1_000_000
		if ahead := int32(then.Value - first.Timestamp.Value); ahead < 0 || ahead > second || then.Microseconds != microseconds {
			t.Fatalf("the clock was %+v, and is %+v after the restore", first.Timestamp, then)
		}
		if err := s.Disconnect(); err != nil {
			t.Fatal(err)
		}
		conn = n.restore(t, first)
		write(t, conn, []byte("ping"))
		expect(t, "peer", peer, []byte("ping"))
		write(t, peer, []byte("pong"))
		expect(t, "conn", conn, []byte("pong"))
	}
	if lost := info(t, peer).Dsack_dups; lost > 0 {
		t.Errorf("the peer saw %d duplicates", lost)
	}
}

// A duplicated descriptor keeps the kernel's socket alive beyond Close. The remedy
// is to disconnect it.
func TestDuplicatedDescriptor(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	file, err := conn.File() // blocking, too
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	moved := n.move(t, conn)
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
	if fd := int(file.Fd()); soccr.State(fdInfo(t, fd).State) != soccr.StateClose {
		t.Errorf("the duplicate is in %v", soccr.State(fdInfo(t, fd).State))
	}
}

// Between the old socket's end and the new one's start, the stack answers the
// peer's segments with a RST. The remedy is the lock.
func TestNoRSTInTheGap(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	snap := n.checkpoint(t, conn)
	write(t, peer, []byte("in the gap"))
	eventually(t, "it has left", func() bool { return ioctl(t, peer, unix.SIOCOUTQNSD) == 0 })
	moved := n.restore(t, snap)
	expect(t, "conn", moved, []byte("in the gap"))

	// The proof that the peer would have noticed.
	if _, err := soccr.Checkpoint(moved); err != nil {
		t.Fatal(err)
	}
	write(t, peer, []byte("in the gap"))
	if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("without a lock, the peer reads: %v; want a reset", err)
	}
}

// Leaving repair mode clears SO_REUSEADDR. The remedy is to set it again.
func TestReuseAddrIsKept(t *testing.T) {
	n := newNetwork(t)
	for _, reuse := range []int{0, 1} {
		conn, _ := n.connect(t, ip4)
		setInt(t, conn, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse)
		control(t, conn, func(fd int) {
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
		})
		if got := getInt(t, conn, unix.SOL_SOCKET, unix.SO_REUSEADDR); got != reuse {
			t.Errorf("paused and resumed, SO_REUSEADDR is %d, want %d", got, reuse)
		}
		if got := getInt(t, n.move(t, conn), unix.SOL_SOCKET, unix.SO_REUSEADDR); got != reuse {
			t.Errorf("moved, SO_REUSEADDR is %d, want %d", got, reuse)
		}
	}
}

// Reading and writing are refused to the program while its socket is paused.
func TestPausedSocketIsClosedToItsProgram(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("wait"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 4 })
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Read(fd, make([]byte, 4)); !errors.Is(err, unix.EPERM) {
			t.Errorf("read: %v", err)
		}
		if _, err := unix.Write(fd, []byte("x")); err == nil {
			t.Error("write: no error")
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
	})
	expect(t, "conn", conn, []byte("wait"))
}

// A goroutine that waits in Read learns that the conn is closed, not what repair
// mode answers.
func TestWaitingReaderGetsErrClosed(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	got := make(chan error)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		got <- err
	}()
	eventually(t, "the reader waits", func() bool {
		stacks := make([]byte, 1<<20)
		return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("[IO wait"))
	})
	moved := n.move(t, conn)
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the reader got %v", err)
	}
	write(t, peer, []byte("x"))
	expect(t, "conn", moved, []byte("x"))
	peer.Close()
	if _, err := moved.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func localAddr(c *net.TCPConn) netip.AddrPort { return c.LocalAddr().(*net.TCPAddr).AddrPort() }
func peerAddr(c *net.TCPConn) netip.AddrPort  { return c.RemoteAddr().(*net.TCPAddr).AddrPort() }

// inject delivers a segment to a socket here.
func (n *network) inject(tb testing.TB, segment rawfin.Segment) {
	tb.Helper()
	injector, err := rawfin.Open(rawfin.WithNetNS(n.here.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	defer injector.Close()
	if err := injector.Inject(segment); err != nil {
		tb.Fatal(err)
	}
}

// microseconds makes timestamps of connections between here and there count
// microseconds, as the route's feature tcp_usec_ts asks for, if this kernel has it.
func (n *network) microseconds(tb testing.TB) (known bool) {
	tb.Helper()
	const featureUsecTS = 1 << 4 // RTAX_FEATURE_TCP_USEC_TS
	for _, way := range []struct {
		from *host.Host
		to   netip.Addr
	}{{n.here, hosttest.B4}, {n.there, hosttest.A4}} {
		device, err := way.from.Netlink().LinkByName("net0")
		if err != nil {
			tb.Fatal(err)
		}
		err = way.from.Netlink().RouteAdd(&netlink.Route{
			LinkIndex: device.Attrs().Index,
			Dst:       netlink.NewIPNet(way.to.AsSlice()),
			Scope:     netlink.SCOPE_LINK,
			Features:  featureUsecTS,
		})
		if errors.Is(err, unix.EINVAL) {
			return false
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return true
}

// While the send queue is selected to be read, whatever makes the kernel transmit
// marks unsent bytes as sent. The remedy is to remember that they were not.
func TestUnsentBytesStayUnsent(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	n.lockFor(conn)(true)
	data := pattern(1, 10_000)
	write(t, conn, data)
	var snap *soccr.Snapshot
	control(t, conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer soccr.BetweenReads(func() {
			for _, o := range [][2]int{{unix.TCP_REPAIR_QUEUE, int(soccr.SendQueue)}, {unix.TCP_NODELAY, 1}, {unix.TCP_REPAIR_QUEUE, int(soccr.NoQueue)}} {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o[0], o[1]); err != nil {
					t.Fatal(err)
				}
			}
			if unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD); unsent != 0 || err != nil {
				t.Fatalf("the kernel says that %d bytes are unsent: %v", unsent, err)
			}
		})()
		for range 2 {
			snap, err = s.Save()
			if errors.Is(err, soccr.ErrChanged) { // the kernel has tried to send meanwhile
				snap, err = s.Save()
			}
			if err != nil {
				t.Fatal(err)
			}
			if snap.Unsent != len(data) {
				t.Fatalf("%d bytes are unsent, want %d", snap.Unsent, len(data))
			}
		}
		if err := s.Disconnect(); err != nil {
			t.Fatal(err)
		}
	})
	n.restore(t, snap)
	expect(t, "peer", peer, data)
}
