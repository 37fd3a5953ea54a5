package soccr_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/soccr"
)

// A lockHook does something when a flow is locked.
type lockHook func(local, remote netip.AddrPort)

func (h lockHook) LockFlow(local, remote netip.AddrPort) error   { h(local, remote); return nil }
func (lockHook) UnlockFlow(netip.AddrPort, netip.AddrPort) error { return nil }

// Checkpoint reads before the flow is locked what packets do not change, and the
// rest afterwards.
func TestReadBeforeLock(t *testing.T) {
	const before, after = 3, 5 // SO_PRIORITY
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	set := func(level, number, value int) {
		t.Helper()
		if err := controlled(t, conn, func(fd int) error { return sockopt.SetInt(fd, level, number, value) }); err != nil {
			t.Error(err)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_PRIORITY, before)
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	checkpoint := func(locked lockHook) (snap *soccr.Snapshot) {
		t.Helper()
		hosttest.Do(t, n.here, func() (err error) {
			snap, err = soccr.Checkpoint(conn, soccr.WithLock(locked))
			return err
		})
		return snap
	}
	snap := checkpoint(func(local, remote netip.AddrPort) {
		set(unix.SOL_SOCKET, unix.SO_PRIORITY, after)
		if local != addrOf(conn.LocalAddr()) || remote != addrOf(conn.RemoteAddr()) {
			t.Errorf("%v->%v is locked", local, remote)
		}
	})
	priority, _ := snap.Options.Setting("SO_PRIORITY")
	if priority.Number != before || !snap.Options.ReuseAddr || !snap.Options.ReadShutdown {
		t.Errorf("priority %d, options %+v", priority.Number, snap.Options)
	}
	if snap.Local != addrOf(conn.LocalAddr()) || snap.Remote != addrOf(conn.RemoteAddr()) || snap.Options.RecvBuffer == 0 {
		t.Errorf("%v->%v, buffer of %d bytes", snap.Local, snap.Remote, snap.Options.RecvBuffer)
	}
	hosttest.Do(t, n.here, func() (err error) {
		conn, err = soccr.RestoreConn(snap)
		return err
	})
	snap = checkpoint(func(netip.AddrPort, netip.AddrPort) {
		if err := peer.CloseWrite(); err != nil {
			t.Error(err)
		}
		inState(t, conn, soccr.StateCloseWait)
	})
	if snap.State != soccr.StateCloseWait || snap.Options.ReadShutdown {
		t.Errorf("%v, shut down: %v", snap.State, snap.Options.ReadShutdown)
	}
}

// What packets, or the program, have changed since it was read early is read again.
func TestChangedBeforeLock(t *testing.T) {
	const little, much = 1000, 3 << 20
	for _, test := range []struct {
		name           string
		before, hooked func(t *testing.T, conn, peer *net.TCPConn)
		want           error
	}{
		{name: "nothing"},
		{name: "an urgent byte", want: soccr.ErrUrgent, hooked: func(t *testing.T, conn, peer *net.TCPConn) {
			control(t, peer, func(fd int) {
				if err := unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil); err != nil {
					t.Error(err)
				}
			})
			eventually(t, "it is there", func() bool { return ioctl(t, conn, unix.SIOCATMARK) == 1 })
		}},
		{name: "bytes", hooked: func(t *testing.T, conn, peer *net.TCPConn) {
			give(t, peer, little)
			eventually(t, "they are there", func() bool { return ioctl(t, conn, unix.SIOCINQ) == little })
		}},
		{name: "bytes that are read", hooked: func(t *testing.T, conn, peer *net.TCPConn) {
			go func() { _, _ = peer.Write(make([]byte, much)) }()
			take(t, conn, much)
		}},
		{name: "bytes were read", before: func(t *testing.T, conn, peer *net.TCPConn) {
			give(t, peer, little)
			eventually(t, "they are there", func() bool { return ioctl(t, conn, unix.SIOCINQ) == little })
		}, hooked: func(t *testing.T, conn, _ *net.TCPConn) { take(t, conn, little) }},
		{name: "bytes were sent", hooked: func(t *testing.T, conn, peer *net.TCPConn) {
			go func() { _, _ = conn.Write(make([]byte, much)) }()
			take(t, peer, much)
			eventually(t, "they are acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == 0 })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t)
			conn, peer := n.connect(t, ip4)
			if test.before != nil {
				test.before(t, conn, peer)
			}
			var memory [9]uint32 // SK_MEMINFO_VARS
			var clamp int
			hook := lockHook(func(netip.AddrPort, netip.AddrPort) {
				if test.hooked != nil {
					test.hooked(t, conn, peer)
				}
				err := controlled(t, conn, func(fd int) (err error) {
					var b [4 * len(memory)]byte
					if _, err = sockopt.Get(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, b[:]); err != nil {
						return err
					}
					for i := range memory {
						memory[i] = binary.NativeEndian.Uint32(b[4*i:])
					}
					clamp, err = sockopt.GetInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
			var snap *soccr.Snapshot
			var err error
			hosttest.Do(t, n.here, func() error {
				snap, err = soccr.Checkpoint(conn, soccr.WithLock(hook))
				return nil
			})
			if !errors.Is(err, test.want) {
				t.Fatalf("Checkpoint: %v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			got := [...]uint32{snap.Window.RecvMemory, snap.Options.RecvBuffer, snap.Options.SendBuffer, snap.Window.Clamp}
			if want := [...]uint32{memory[0], memory[1], memory[3], uint32(clamp)}; got != want {
				t.Errorf("memory, buffers and clamp are %d, want %d", got, want)
			}
		})
	}
}

func give(t *testing.T, c *net.TCPConn, n int) {
	t.Helper()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Error(err)
	}
}

func take(t *testing.T, c *net.TCPConn, n int) {
	t.Helper()
	if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
		t.Error(err)
	}
}

// Who knows the ends does not have the socket asked for them, and a Socket can be
// used for one connection after the other.
func TestWithEnds(t *testing.T) {
	n := newNetwork(t)
	var socket soccr.Socket
	for _, f := range families {
		conn, _ := n.connect(t, f)
		for _, ends := range []soccr.Option{nil, soccr.WithEnds(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"))} {
			options := []soccr.Option{ends}
			if ends == nil {
				options = nil
			}
			err := controlled(t, conn, func(fd int) error {
				if err := socket.Pause(fd, options...); err != nil {
					return err
				}
				snap, err := socket.Save()
				if err != nil {
					return err
				}
				local, remote := addrOf(conn.LocalAddr()), addrOf(conn.RemoteAddr())
				if ends != nil {
					local, remote = netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
				}
				if unmapped(snap.Local) != local || unmapped(snap.Remote) != remote {
					t.Errorf("%s: %v->%v, want %v->%v", f.name, snap.Local, snap.Remote, local, remote)
				}
				return socket.Resume()
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

func addrOf(a net.Addr) netip.AddrPort { return unmapped(a.(*net.TCPAddr).AddrPort()) }

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func controlled(tb testing.TB, conn *net.TCPConn, f func(fd int) error) (err error) {
	tb.Helper()
	control(tb, conn, func(fd int) { err = f(fd) })
	return err
}
