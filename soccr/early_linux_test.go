package soccr_test

import (
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
