package soccr_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
)

// rawSocket makes a socket here that is closed with the test.
func (n *network) rawSocket(t *testing.T, family, kind, protocol int) (fd int) {
	t.Helper()
	hosttest.Do(t, n.here, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// vacate takes what it stands for from a descriptor that is closed with the test:
// its number must not become another test's meanwhile.
func vacate(t *testing.T, fd int) {
	t.Helper()
	nothing, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(nothing)
	if err := unix.Dup3(nothing, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
}

func TestPauseRefuses(t *testing.T) {
	n := newNetwork(t)
	listening := n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const mptcp = 262
	for _, c := range []struct {
		name string
		fd   int
		want error
	}{
		{"a listener", listening, soccr.ErrState},
		{"MPTCP", n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, mptcp), soccr.ErrMultipath},
		{"UDP", n.rawSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0), soccr.ErrNotTCP},
		{"a Unix socket", n.rawSocket(t, unix.AF_UNIX, unix.SOCK_STREAM, 0), soccr.ErrNotTCP},
		{"a file", int(file.Fd()), soccr.ErrNotTCP},
		{"no descriptor", 1 << 20, unix.EBADF},
	} {
		s, err := soccr.Pause(c.fd)
		if s != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
		if failure, ok := errors.AsType[*soccr.OpError](err); !ok || failure.Op != "pause" {
			t.Errorf("%s: %#v is not an OpError of pause", c.name, err)
		}
	}
}

// MPTCP is refused after a fallback to TCP too, and the connection goes on.
func TestMultipathGoesOn(t *testing.T) {
	n := newNetwork(t)
	var listener net.Listener
	hosttest.Do(t, n.there, func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		listener, err = config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(ip4.there, 0).String())
		return err
	})
	defer listener.Close()
	var conn *net.TCPConn
	hosttest.Do(t, n.here, func() error {
		var dialer net.Dialer
		dialer.SetMultipathTCP(true)
		c, err := dialer.Dial("tcp4", listener.Addr().String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	defer conn.Close()
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock)); !errors.Is(err, soccr.ErrMultipath) {
		t.Fatalf("Checkpoint: %v", err)
	}
	write(t, conn, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// refused checks that Checkpoint refuses a connection and leaves it alive.
func (n *network) refused(t *testing.T, conn, peer *net.TCPConn, want error) {
	t.Helper()
	if _, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock)); !errors.Is(err, want) {
		t.Fatalf("Checkpoint: %v; want %v", err, want)
	}
	if on := getInt(t, conn, unix.IPPROTO_TCP, unix.TCP_REPAIR); on != 0 {
		t.Error("the socket is still in repair mode")
	}
	write(t, conn, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

func TestUrgentDataIsRefused(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name   string
		before string
		inline int
		read   bool // the program has read the urgent byte, but not up to it
	}{
		{"behind other data", "abc", 0, false},
		{"at the head", "", 0, false},
		{"inline behind other data", "abc", 1, false},
		{"inline at the head", "", 1, false},
		{"read ahead", "abc", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, peer := n.connect(t, ip4)
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_OOBINLINE, c.inline)
			if c.before != "" {
				write(t, peer, []byte(c.before))
			}
			control(t, peer, func(fd int) {
				if err := unix.Sendto(fd, []byte("U"), unix.MSG_OOB, nil); err != nil {
					t.Fatal(err)
				}
			})
			write(t, peer, []byte("defg"))
			want := uint64(len(c.before) + 5)
			eventually(t, "all is here", func() bool { return info(t, conn).Bytes_received == want })
			if c.read {
				control(t, conn, func(fd int) {
					if _, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_OOB); err != nil {
						t.Fatal(err)
					}
				})
			}
			n.refused(t, conn, peer, soccr.ErrUrgent)
			if got := getInt(t, conn, unix.SOL_SOCKET, unix.SO_OOBINLINE); got != c.inline {
				t.Errorf("SO_OOBINLINE is %d", got)
			}

			// Once the program is past the mark, nothing keeps the socket here.
			rest := c.before + "Udefg"
			if c.inline == 0 {
				rest = c.before + "defg"
			}
			expect(t, "conn", conn, []byte(rest))
			moved := n.move(t, conn)
			write(t, peer, []byte("more"))
			expect(t, "conn", moved, []byte("more"))
		})
	}
}

// Without CAP_NET_ADMIN nothing is touched, and the error says what is missing.
func TestWithoutPermission(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	failure := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			failure <- err
			return
		}
		_, err := soccr.Checkpoint(conn)
		failure <- err
	}()
	err := <-failure
	if !errors.Is(err, soccr.ErrNoPermission) || !errors.Is(err, unix.EPERM) {
		t.Errorf("Checkpoint: %v", err)
	}
	write(t, conn, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// A connection that is not there any more, or nothing that could be closed.
func TestCheckpointOfNoConnection(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	conn.Close()
	if _, err := soccr.Checkpoint(conn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed conn: %v", err)
	}
	listener := listen(t, n.here, "tcp4", "10.77.0.1:0")
	if _, err := soccr.Checkpoint(listener, soccr.WithLock(n.lock)); !errors.Is(err, soccr.ErrState) {
		t.Errorf("of a listener: %v", err)
	}
}

// What Restore refuses leaves nothing behind, and the same snapshot can be
// restored when the reason is gone.
func TestRestoreFails(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("queued"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
	snap := n.checkpoint(t, conn)

	mtu := *snap
	mtu.MSS = 0
	elsewhere := *snap
	elsewhere.Local = netip.MustParseAddrPort("10.77.0.99:80")
	unreachable := *snap
	unreachable.Remote = netip.MustParseAddrPort("203.0.113.1:80")
	device := *snap
	device.Local, device.Remote = netip.MustParseAddrPort("[fe80::1%nosuch]:80"), netip.MustParseAddrPort("[fe80::2%nosuch]:80")
	unknown := *snap
	unknown.Options.Congestion = "nosuch"
	precise := *snap
	precise.State = soccr.StateSynSent
	precise.RecvQueue = nil

	for _, c := range []struct {
		name string
		snap *soccr.Snapshot
		op   string
		want error
	}{
		{"invalid", &mtu, "restore", soccr.ErrInvalidSnapshot},
		{"address not here", &elsewhere, "bind", soccr.ErrAddrNotAvailable},
		{"no route", &unreachable, "connect", soccr.ErrNoRoute},
		{"no device", &device, "bind", soccr.ErrAddrNotAvailable},
		{"no such congestion control", &unknown, "prepare", unix.ENOENT},
	} {
		fd := n.newSocket(t, c.snap)
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Restore(c.snap)
		failure, ok := errors.AsType[*soccr.OpError](err)
		if !errors.Is(err, c.want) || !ok || failure.Op != c.op {
			t.Errorf("%s: %v; want %v at %s", c.name, err, c.want, c.op)
		}
		if got := soccr.State(fdInfo(t, fd).State); got != soccr.StateClose {
			t.Errorf("%s: the socket is left in %v", c.name, got)
		}
		unix.Close(fd)
	}

	t.Run("flow in use", func(t *testing.T) {
		s, _ := n.paused(t, snap)
		fd := n.newSocket(t, snap)
		defer unix.Close(fd)
		second, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Restore(snap); !errors.Is(err, soccr.ErrAddrInUse) {
			t.Errorf("Restore: %v", err)
		}
		if err := s.Disconnect(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("used socket", func(t *testing.T) {
		s, fd := n.paused(t, snap)
		if err := s.Restore(snap); !errors.Is(err, soccr.ErrState) {
			t.Errorf("Restore into a used socket: %v", err)
		}
		unix.Close(fd)
	})
	t.Run("other family", func(t *testing.T) {
		fd := n.rawSocket(t, unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP)
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Restore(snap); !errors.Is(err, soccr.ErrState) {
			t.Errorf("Restore into an AF_INET6 socket: %v", err)
		}
	})
	t.Run("not paused", func(t *testing.T) {
		fd := n.newSocket(t, snap)
		defer unix.Close(fd)
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restore(snap); !errors.Is(err, soccr.ErrNotPaused) {
			t.Errorf("Restore: %v", err)
		}
	})
	t.Run("no conn", func(t *testing.T) {
		if _, err := soccr.RestoreConn(&precise); !errors.Is(err, soccr.ErrState) {
			t.Errorf("RestoreConn: %v", err)
		}
	})

	// After all that, the connection itself is still there to be restored.
	moved := n.restore(t, snap)
	expect(t, "conn", moved, []byte("queued"))
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// What the kernel does not hold as the snapshot says is named, and the socket is
// left without a connection, as the peer is without a packet.
// A socket may be bound to a broadcast address, but sends from another.
func TestBroadcastAddress(t *testing.T) {
	n := newNetwork(t)
	local := netip.MustParseAddrPort("10.77.0.255:7777")
	for _, state := range []soccr.State{soccr.StateSynSent, soccr.StateEstablished} {
		snap := &soccr.Snapshot{State: state, Local: local, Remote: netip.AddrPortFrom(ip4.there, 7777), MSS: 1000}
		fd := n.newSocket(t, snap)
		t.Cleanup(func() { unix.Close(fd) })
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Restore(snap)
		wrong, mismatch := errors.AsType[*soccr.FieldError](err)
		if !errors.Is(err, soccr.ErrAddrNotAvailable) && (!mismatch || wrong.Field != "Local") {
			t.Errorf("%v: %v", state, err)
		}
		if found := n.preflight(t, []*soccr.Snapshot{snap}, nil); len(found) != 1 || !errors.Is(found[0], soccr.ErrAddrNotAvailable) {
			t.Errorf("%v: Preflight finds %v", state, found)
		}
	}
}

func TestMismatch(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	peeks := knowsOption(t, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 1) // since Linux 6.9
	microseconds := newNetwork(t).microseconds(t)                 // since Linux 6.7
	if peeks {
		setInt(t, conn, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 1)
	}
	write(t, peer, []byte("queued"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
	deafen(t, peer)
	write(t, conn, []byte("sent"))
	snap := n.checkpoint(t, conn)
	undeafen(t, peer)
	set := func(level, option, value int) func(int) {
		return func(fd int) {
			if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
				t.Error(err)
			}
		}
	}
	inQueue := func(q soccr.Queue, f func(fd int)) func(int) {
		return func(fd int) {
			set(unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, int(q))(fd)
			f(fd)
			set(unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, int(soccr.NoQueue))(fd)
		}
	}
	more := func(q soccr.Queue) func(int) {
		return inQueue(q, func(fd int) {
			if _, err := unix.Write(fd, []byte("more")); err != nil {
				t.Error(err)
			}
		})
	}
	negotiated := func(code, value uint32) func(int) {
		return func(fd int) {
			err := unix.SetsockoptTCPRepairOpt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, []unix.TCPRepairOpt{{Code: code, Val: value}})
			if err != nil {
				t.Error(err)
			}
		}
	}
	window := func(change func(*soccr.Window)) func(int) {
		return func(fd int) {
			s, err := soccr.Pause(fd, soccr.WithoutVerifying()) // it is, and stays so
			if err != nil {
				t.Fatal(err)
			}
			w, err := s.Window()
			if err != nil {
				t.Fatal(err)
			}
			w.RcvSsthresh, w.Clamp = 0, 0
			change(&w)
			if err := s.SetWindow(w); err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range []struct {
		field  string
		change func(fd int)
		snap   func(*soccr.Snapshot) // how it differs
	}{
		{"State", func(fd int) {
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				t.Error(err)
			}
		}, nil},
		{"Remote", func(fd int) {
			s, err := soccr.Pause(fd, soccr.WithoutVerifying()) // it is, and stays so
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(s.Disconnect(), unix.Connect(fd, &unix.SockaddrInet4{Addr: hosttest.B4.As4(), Port: 7}))
			if err != nil {
				t.Error(err)
			}
		}, nil},
		{"RecvSeq", more(soccr.RecvQueue), nil},
		{"SendSeq", more(soccr.SendQueue), nil},
		{"RecvQueue", func(fd int) {
			set(unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)(fd)
			if _, err := unix.Read(fd, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			set(unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)(fd)
		}, nil},
		// Marked as sent, and acknowledged.
		{"SendQueue", func(fd int) {
			inQueue(soccr.SendQueue, set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))(fd)
			if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
				t.Error(err)
			}
			n.inject(t, rawfin.Segment{Src: snap.Remote, Dst: snap.Local, Seq: snap.RecvSeq, Ack: snap.SendSeq, Flags: rawfin.ACK})
			if err := n.lock.LockFlow(snap.Local, snap.Remote); err != nil {
				t.Error(err)
			}
		}, nil},
		{"Unsent", inQueue(soccr.SendQueue, set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)), nil},
		{"MSS", negotiated(unix.TCPOPT_MAXSEG, 1000), nil},
		{"SendScale", negotiated(unix.TCPOPT_WINDOW, 3|uint32(snap.RecvScale)<<16), nil},
		{"RecvScale", negotiated(unix.TCPOPT_WINDOW, uint32(snap.SendScale)|3<<16), nil},
		{"SACK", negotiated(unix.TCPOPT_SACK_PERMITTED, 0), func(s *soccr.Snapshot) { s.SACK = false }},
		{"Timestamp.Enabled", negotiated(unix.TCPOPT_TIMESTAMP, 0), func(s *soccr.Snapshot) { s.Timestamp = soccr.Timestamp{} }},
		{"Timestamp.Microseconds", set(unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, 1), nil},
		{"Window.SndWl1", window(func(w *soccr.Window) { w.SndWl1-- }), nil},
		{"Window.SndWnd", window(func(w *soccr.Window) { w.SndWnd-- }), nil},
		{"Window.MaxWindow", window(func(w *soccr.Window) { w.MaxWindow++ }), nil},
		{"Window.RcvWnd", window(func(w *soccr.Window) { w.RcvWnd-- }), nil},
		{"Options.Settings: TCP_KEEPIDLE", set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 99), nil},
		{"Options.Settings: SO_KEEPALIVE", set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0), nil},
		{"Options.PeekOffset", set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3), nil},
		// Priming would have its own congestion control first.
		{"Options.Congestion", func(fd int) {
			if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
				t.Error(err)
			}
		}, func(s *soccr.Snapshot) { s.SendSeq, s.SendQueue, s.Unsent = s.SendSeq-4, nil, 0 }},
	} {
		if c.field == "Options.PeekOffset" && !peeks || c.field == "Timestamp.Microseconds" && !microseconds {
			continue
		}
		changed := *snap
		if c.snap != nil {
			c.snap(&changed)
		}
		fd := n.newSocket(t, &changed)
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		undo := soccr.BeforeVerify(c.change)
		err = s.Restore(&changed)
		undo()
		field, _ := errors.AsType[*soccr.FieldError](err)
		if !errors.Is(err, soccr.ErrMismatch) || field == nil || field.Field != c.field {
			t.Errorf("%s changed: %v", c.field, err)
		}
		if got := soccr.State(fdInfo(t, fd).State); got != soccr.StateClose {
			t.Errorf("%s changed: the socket is left in %v", c.field, got)
		}
		unix.Close(fd)
	}
	moved := n.restore(t, snap)
	expect(t, "conn", moved, []byte("queued"))
	expect(t, "peer", peer, []byte("sent"))
}
