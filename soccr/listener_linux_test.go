package soccr_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A listening says how a test listens.
type listening struct {
	family
	multipath bool
	reuseAddr bool
	set       func(fd int) error
}

func (l listening) String() string {
	return l.name + map[bool]string{true: "/MPTCP"}[l.multipath] + map[bool]string{true: "/reuse"}[l.reuseAddr]
}

// listenings are all families, plain and Multipath TCP.
func listenings() (all []listening) {
	for _, f := range families {
		all = append(all, listening{family: f}, listening{family: f, multipath: true, reuseAddr: true})
	}
	return all
}

// listen makes a listener here; Go itself would always set SO_REUSEADDR.
func (n *network) listen(tb testing.TB, l listening) *net.TCPListener {
	tb.Helper()
	addr := netip.AddrPortFrom(l.here, 0)
	if l.family == mapped {
		addr = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	return n.listenAt(tb, l, addr)
}

func (n *network) listenAt(tb testing.TB, l listening, addr netip.AddrPort) *net.TCPListener {
	tb.Helper()
	listener, err := n.tryListen(l, addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { listener.Close() })
	return listener
}

func (n *network) tryListen(l listening, addr netip.AddrPort) (listener *net.TCPListener, err error) {
	var config net.ListenConfig
	config.SetMultipathTCP(l.multipath)
	config.Control = func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) {
			if !l.reuseAddr {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
			}
			if err == nil && l.set != nil {
				err = l.set(int(fd))
			}
		})
		return errors.Join(failed, err)
	}
	err = n.here.Do(func() error {
		made, err := config.Listen(context.Background(), l.network, addr.String())
		if err == nil {
			listener = made.(*net.TCPListener)
		}
		return err
	})
	return listener, err
}

// dial connects from there to a port here.
func (n *network) dial(tb testing.TB, f family, port uint16) (peer *net.TCPConn) {
	tb.Helper()
	hosttest.Do(tb, n.there, func() error {
		var dialer net.Dialer
		dialer.Timeout = 10 * time.Second
		c, err := dialer.Dial("tcp", netip.AddrPortFrom(f.here, port).String())
		if err == nil {
			peer = c.(*net.TCPConn)
		}
		return err
	})
	tb.Cleanup(func() { peer.Close() })
	return peer
}

func accept(tb testing.TB, l net.Listener) *net.TCPConn {
	tb.Helper()
	if err := l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func portOf(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// serves checks that a listener accepts, and that the connection works.
func (n *network) serves(tb testing.TB, f family, l net.Listener) (conn, peer *net.TCPConn) {
	tb.Helper()
	peer = n.dial(tb, f, portOf(l))
	write(tb, peer, []byte("ping"))
	conn = accept(tb, l)
	expect(tb, "conn", conn, []byte("ping"))
	write(tb, conn, []byte("pong"))
	expect(tb, "peer", peer, []byte("pong"))
	return conn, peer
}

// checkpointListener takes a listener, under the lock, through its encoding.
func (n *network) checkpointListener(tb testing.TB, l *net.TCPListener, options ...soccr.Option) *soccr.ListenerSnapshot {
	tb.Helper()
	snap, err := soccr.CheckpointListener(l, append(options, soccr.WithLock(n.lock))...)
	if err != nil {
		tb.Fatal(err)
	}
	image, err := snap.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	var travelled soccr.ListenerSnapshot
	if err := travelled.UnmarshalBinary(image); err != nil {
		tb.Fatal(err)
	}
	return &travelled
}

func (n *network) restoreListener(tb testing.TB, snap *soccr.ListenerSnapshot) (l *soccr.Listener) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() (err error) {
		l, err = soccr.RestoreListener(snap, soccr.WithLock(n.lock))
		return err
	})
	tb.Cleanup(func() { l.Close() })
	return l
}

func saveListener(tb testing.TB, l *net.TCPListener) (snap *soccr.ListenerSnapshot) {
	tb.Helper()
	control(tb, l, func(fd int) {
		var err error
		if snap, err = soccr.SaveListener(fd); err != nil {
			tb.Fatal(err)
		}
	})
	return snap
}

func diffListeners(a, b *soccr.ListenerSnapshot) string {
	return cmp.Diff(a, b, cmpopts.EquateComparable(a.Local), cmpopts.EquateEmpty())
}

// A listener comes back as it was, with all that was set on it, and accepts.
func TestListener(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		t.Run(l.String(), func(t *testing.T) {
			options := map[string]int64{}
			l.set = func(fd int) error {
				for _, o := range []struct {
					name          string
					option, value int
				}{{"TCP_NODELAY", unix.TCP_NODELAY, 1}, {"TCP_FASTOPEN", unix.TCP_FASTOPEN, 5}, {"TCP_DEFER_ACCEPT", unix.TCP_DEFER_ACCEPT, 3}} {
					err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o.option, o.value)
					if l.multipath && (errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)) { // Linux 6.1 does not
						t.Logf("Multipath TCP has no %s here", o.name)
						continue
					}
					if err != nil {
						return err
					}
					options[o.name] = int64(o.value)
				}
				if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
					return err
				}
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 50_000)
			}
			listener := n.listen(t, l)
			control(t, listener, func(fd int) {
				if err := unix.Listen(fd, 17); err != nil { // which changes the backlog
					t.Fatal(err)
				}
			})
			before := saveListener(t, listener)
			if before.Backlog != 17 || before.Options.Congestion != "reno" || before.Multipath != l.multipath ||
				before.Options.ReuseAddr != l.reuseAddr || before.Options.RecvBuffer != 100_000 || before.Local.Port() != portOf(listener) {
				t.Errorf("saved %+v", before)
			}
			snap := n.checkpointListener(t, listener)
			if diff := diffListeners(before, snap); diff != "" {
				t.Errorf("saved, then taken (-saved +taken):\n%s", diff)
			}
			if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the old listener: %v", err)
			}
			for name, want := range options {
				if got, _ := snap.Options.Setting(name); got.Number != want {
					t.Errorf("saved %s %d", name, got.Number)
				}
			}
			restored := n.restoreListener(t, snap)
			if diff := diffListeners(before, saveListener(t, restored.TCPListener)); diff != "" {
				t.Errorf("restored (-before +after):\n%s", diff)
			}
			conn, _ := n.serves(t, l.family, restored)
			if got := getInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF); got != 100_000 {
				t.Errorf("an accepted connection has a receive buffer of %d bytes", got)
			}
		})
	}
}

// Addresses of both families, only one of them, or with a device.
func TestListenerAddresses(t *testing.T) {
	n := newNetwork(t)
	v6only := func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) }
	for _, c := range []struct {
		name  string
		l     listening
		addr  string
		speak []family
	}{
		{"all IPv4", listening{family: ip4}, "0.0.0.0:0", []family{ip4}},
		{"all IPv6", listening{family: ip6, set: v6only}, "[::]:0", []family{ip6}},
		{"all", listening{family: mapped}, "[::]:0", []family{ip4, ip6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			listener := n.listenAt(t, c.l, netip.MustParseAddrPort(c.addr))
			port := portOf(listener)
			restored := n.restoreListener(t, n.checkpointListener(t, listener))
			for _, f := range c.speak {
				n.serves(t, f, restored)
			}
			// What it does not listen on is free.
			if c.l.family != mapped {
				other := map[string]listening{"tcp4": {family: ip6, set: v6only}, "tcp6": {family: ip4}}[c.l.network]
				addr := map[string]string{"tcp4": "[::]", "tcp6": "0.0.0.0"}[c.l.network]
				n.listenAt(t, other, netip.MustParseAddrPort(fmt.Sprint(addr, ":", port)))
			}
		})
	}
}

// A listener and its children come back in any order, whether or not they have
// SO_REUSEADDR, with which and without which the port is taken for all others.
func TestListenerBesideConnections(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		for _, l.reuseAddr = range []bool{false, true} {
			for _, first := range []string{"listener", "connections"} {
				t.Run(l.String()+"/"+first+" first", func(t *testing.T) {
					listener := n.listen(t, l)
					conns, peers := make([]*net.TCPConn, 3), make([]*net.TCPConn, 3)
					for i := range conns {
						conns[i], peers[i] = n.serves(t, l.family, listener)
					}
					// One is not like its listener, and another port does not matter.
					reuse := []int{bit(!l.reuseAddr), bit(l.reuseAddr), bit(l.reuseAddr)}
					setInt(t, conns[0], unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse[0])
					other := l.family.socket(t, n, 0)
					if err := unix.Bind(other, sockaddr(l.family, l.family.at(l.here, portOf(listener)^1))); err != nil {
						t.Fatal(err)
					}
					snap := n.checkpointListener(t, listener)
					snaps := make([]*soccr.Snapshot, len(conns))
					for i, c := range conns {
						snaps[i] = n.checkpoint(t, c)
					}
					var restored *soccr.Listener
					if first == "listener" {
						restored = n.restoreListener(t, snap)
					}
					for i, s := range snaps {
						conns[i] = n.restore(t, s)
					}
					if first != "listener" {
						restored = n.restoreListener(t, snap)
					}
					for i, c := range conns {
						write(t, c, []byte("moved"))
						expect(t, "peer", peers[i], []byte("moved"))
						if got := getInt(t, c, unix.SOL_SOCKET, unix.SO_REUSEADDR); got != reuse[i] {
							t.Errorf("SO_REUSEADDR of connection %d is %d", i, got)
						}
					}
					for name, want := range map[int]int{unix.SO_REUSEADDR: bit(l.reuseAddr), unix.SO_REUSEPORT: 0} {
						if got := getInt(t, restored, unix.SOL_SOCKET, name); got != want {
							t.Errorf("the listener's option %d is %d, want %d", name, got, want)
						}
					}
					n.serves(t, l.family, restored)
					for _, also := range []listening{{reuseAddr: true}, {set: reusePort}} {
						also.family = l.family
						if second, err := n.tryListen(also, snap.Local); !errors.Is(err, unix.EADDRINUSE) {
							t.Errorf("a second listener at %v: %v, %v", snap.Local, second, err)
						}
					}
				})
			}
		}
	}
}

func bit(b bool) int { return map[bool]int{true: 1}[b] }

func reusePort(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// Listeners that share a port do so again, and get their share of connections.
func TestReusePortGroup(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.set = reusePort
		t.Run(l.String(), func(t *testing.T) {
			first := n.listen(t, l)
			second := n.listenAt(t, l, first.Addr().(*net.TCPAddr).AddrPort())
			var snaps []*soccr.ListenerSnapshot
			for _, one := range []*net.TCPListener{first, second} {
				snaps = append(snaps, n.checkpointListener(t, one))
			}
			var group []*soccr.Listener
			for _, s := range snaps {
				group = append(group, n.restoreListener(t, s))
			}
			var counts [2]int
			for range 40 {
				n.dial(t, l.family, portOf(group[0]))
			}
			for i, one := range group {
				if got := getInt(t, one, unix.SOL_SOCKET, unix.SO_REUSEPORT); got != 1 {
					t.Errorf("SO_REUSEPORT is %d", got)
				}
				control(t, one, func(fd int) {
					fds, err := soccr.AcceptAll(fd)
					if err != nil {
						t.Fatal(err)
					}
					for _, fd := range fds {
						unix.Close(fd)
					}
					counts[i] = len(fds)
				})
			}
			if counts[0]+counts[1] != 40 || counts[0] == 0 || counts[1] == 0 {
				t.Errorf("of 40 connections the listeners got %v", counts)
			}
		})
	}
}

// A member of a group may have cleared SO_REUSEPORT since; each is as it was, and
// they share the port, in whatever order they come.
func TestReusePortGroupWithoutReusePort(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.set, l.reuseAddr = reusePort, false
		for first := range 2 {
			t.Run(fmt.Sprintf("%v/%d", l, first), func(t *testing.T) {
				group := [2]*net.TCPListener{n.listen(t, l)}
				group[1] = n.listenAt(t, l, group[0].Addr().(*net.TCPAddr).AddrPort())
				setInt(t, group[0], unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
				var snaps [2]*soccr.ListenerSnapshot
				for i, one := range group {
					snaps[i] = n.checkpointListener(t, one)
				}
				var restored [2]*soccr.Listener
				for _, i := range [2]int{first, 1 - first} {
					hosttest.Do(t, n.here, func() (err error) {
						restored[i], err = soccr.RestoreListener(snaps[i], soccr.WithLock(n.lock), soccr.WithSharedPort())
						return err
					})
					t.Cleanup(func() { restored[i].Close() })
				}
				for i, one := range restored {
					if got := getInt(t, one, unix.SOL_SOCKET, unix.SO_REUSEPORT); got != i {
						t.Errorf("SO_REUSEPORT of listener %d is %d", i, got)
					}
				}
				restored[first].Close()
				n.serves(t, l.family, restored[1-first])
			})
		}
	}
}

// showsBound reports whether sock_diag knows sockets that are bound and do not listen:
// since Linux 6.8.
func showsBound(tb testing.TB, h *host.Host) (shown bool) {
	tb.Helper()
	const boundInactive = 13 // TCP_BOUND_INACTIVE
	hosttest.Do(tb, h, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
			return err
		}
		c, err := diag.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for _, err := range c.Sockets(diag.Filter{States: 1 << boundInactive}) {
			shown = err == nil
		}
		return nil
	})
	return shown
}

// Where another listens, or is about to, nobody else does, children or not.
func TestListenerPortIsTaken(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.reuseAddr = false
		t.Run(l.String(), func(t *testing.T) {
			listener := n.listen(t, l)
			snap := n.checkpointListener(t, listener)
			fails := func(who string) {
				t.Helper()
				err := n.here.Do(func() error {
					_, err := soccr.RestoreListener(snap, soccr.WithLock(n.lock))
					return err
				})
				failure, ok := errors.AsType[*soccr.OpError](err)
				if !errors.Is(err, soccr.ErrAddrInUse) || !ok || failure.Local != snap.Local {
					t.Errorf("beside %s: %v", who, err)
				}
			}
			own, domain := ip4, unix.AF_INET
			if l.family == ip6 {
				own, domain = ip6, unix.AF_INET6
			}
			other := n.rawSocket(t, domain, unix.SOCK_STREAM, 0)
			if err := unix.Bind(other, sockaddr(own, unspecified(own, snap.Local.Port()))); err != nil {
				t.Fatal(err)
			}
			if showsBound(t, n.here) {
				fails("a socket that is bound")
			}
			if err := unix.Listen(other, 1); err != nil {
				t.Fatal(err)
			}
			fails("a listener")
			for _, addr := range []netip.AddrPort{snap.Local, unspecified(ip4, snap.Local.Port())} {
				if err := n.lock.UnlockListener(addr); err != nil {
					t.Fatal(err)
				}
			}
			n.dial(t, l.family, snap.Local.Port())
			fails("a listener with a child")
			fds, err := soccr.AcceptAll(other)
			if err != nil || len(fds) != 1 {
				t.Fatal(fds, err)
			}
			defer unix.Close(fds[0])
			unix.Close(other)
			n.serves(t, l.family, n.restoreListener(t, snap)) // the child is no hindrance
		})
	}
}

// unspecified is every address of a family's own kind.
func unspecified(f family, port uint16) netip.AddrPort {
	if f == ip6 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
}

// Connections in flight are refused with their number, unless somebody says what
// shall become of them; the listener goes on.
func TestInFlightIsRefused(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		listener := n.listen(t, l)
		for range 3 {
			n.dial(t, l.family, portOf(listener))
		}
		waiting(t, listener, 3)
		for what, try := range map[string]func() (*soccr.ListenerSnapshot, error){
			"CheckpointListener": func() (*soccr.ListenerSnapshot, error) {
				return soccr.CheckpointListener(listener, soccr.WithLock(n.lock))
			},
			"SaveListener": func() (s *soccr.ListenerSnapshot, err error) {
				control(t, listener, func(fd int) { s, err = soccr.SaveListener(fd) })
				return s, err
			},
		} {
			_, err := try()
			refused, ok := errors.AsType[*soccr.InFlightError](err)
			if !ok || refused.Count != 3 || len(refused.Conns) != 0 || !errors.Is(err, soccr.ErrInFlight) {
				t.Errorf("%v: %s: %v", l, what, err)
			}
		}
		for range 3 {
			accept(t, listener)
		}
		n.serves(t, l.family, listener)
	}
}

// waiting waits until connections wait in a listener's queue.
func waiting(tb testing.TB, l *net.TCPListener, want uint32) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%d connections wait", want), func() bool { return info(tb, l).Unacked == want })
}

// Connections in flight are kept with what has arrived on them, in their order,
// those of half-closed peers too.
func TestInFlightIsKept(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		t.Run(l.String(), func(t *testing.T) {
			listener := n.listen(t, l)
			var peers []*net.TCPConn
			for i := range 5 {
				peer := n.dial(t, l.family, portOf(listener))
				write(t, peer, pattern(byte(i), 1000*i))
				if i%2 == 1 {
					if err := peer.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				waiting(t, listener, uint32(i+1))
				peers = append(peers, peer)
			}
			eventually(t, "the last bytes are acknowledged", func() bool {
				return !slices.ContainsFunc(peers, func(p *net.TCPConn) bool { return ioctl(t, p, unix.SIOCOUTQ) != 0 })
			})
			snap := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))
			if len(snap.Pending) != 5 {
				t.Fatalf("%d connections were kept", len(snap.Pending))
			}
			restored := n.restoreListener(t, snap)
			if restored.Pending() != 5 {
				t.Errorf("%d connections are pending", restored.Pending())
			}
			late := n.dial(t, l.family, portOf(restored))
			for i, peer := range append(peers, late) {
				conn := accept(t, restored)
				if got := peerAddr(conn); got.Addr().Unmap() != localAddr(peer).Addr() || got.Port() != localAddr(peer).Port() {
					t.Fatalf("connection %d is with %v, want %v", i, conn.RemoteAddr(), peer.LocalAddr())
				}
				if peer == late {
					continue
				}
				expect(t, "conn", conn, pattern(byte(i), 1000*i))
				if i%2 == 1 {
					expectEOF(t, "conn", conn)
				}
				write(t, conn, []byte("welcome"))
				expect(t, "peer", peer, []byte("welcome"))
			}
		})
	}
}

// Connections in flight that are not kept: a reset is seen at once, and one that is
// dropped only by who sends something.
func TestInFlightIsGivenUp(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		for _, what := range []soccr.InFlight{soccr.ResetInFlight, soccr.DropInFlight} {
			listener := n.listen(t, l)
			peer := n.dial(t, l.family, portOf(listener))
			waiting(t, listener, 1)
			snap := n.checkpointListener(t, listener, soccr.WithInFlight(what))
			if len(snap.Pending) != 0 {
				t.Errorf("%d connections were kept", len(snap.Pending))
			}
			if what == soccr.DropInFlight {
				silent(t, peer)
				send(peer, []byte("anybody there?"))
			}
			if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%v, %v: the peer reads: %v", l, what, err)
			}
			n.serves(t, l.family, n.restoreListener(t, snap))
		}
	}
}

// silent checks that a connection has not heard anything.
func silent(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		tb.Fatal(err)
	}
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		tb.Errorf("read %d bytes, %v; want silence", n, err)
	}
}

// What cannot be moved is not lost: the listener goes on, and the connections that
// were taken out of its queue are the caller's.
func TestInFlightIsHandedBack(t *testing.T) {
	n := newNetwork(t)
	listener := n.listen(t, listening{family: ip4, multipath: true})
	var peers []*net.TCPConn
	for i := range 4 {
		hosttest.Do(t, n.there, func() error {
			var dialer net.Dialer
			dialer.SetMultipathTCP(i == 2) // which cannot be paused
			c, err := dialer.Dial("tcp", listener.Addr().String())
			if err == nil {
				peers = append(peers, c.(*net.TCPConn))
			}
			return err
		})
		write(t, peers[i], []byte("hello"))
		waiting(t, listener, uint32(i+1))
	}
	_, err := soccr.CheckpointListener(listener, soccr.WithInFlight(soccr.KeepInFlight), soccr.WithLock(n.lock))
	failed, ok := errors.AsType[*soccr.InFlightError](err)
	if !ok || failed.Count != 4 || len(failed.Conns) != 4 || !errors.Is(err, soccr.ErrMultipath) {
		t.Fatalf("CheckpointListener: %v", err)
	}
	for i, conn := range failed.Conns {
		expect(t, "conn", conn, []byte("hello"))
		write(t, conn, []byte("sorry"))
		expect(t, "peer", peers[i], []byte("sorry"))
	}
	n.serves(t, ip4, listener)
}

// While the listener is gone its lock keeps clients away without a RST, and they
// try again. Those whose handshake was under way end it first, or are counted.
func TestHandshakesUnderWay(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		t.Run(l.String(), func(t *testing.T) {
			t.Parallel()
			listener := n.listen(t, l)
			port := portOf(listener)
			slow := n.client(t, l.family, port, true) // its handshake stops after our SYN|ACK
			eventually(t, "a handshake is under way", func() bool { return saveListener(t, listener).HalfOpen == 1 })

			snap := n.checkpointListener(t, listener, soccr.WithPatience(10*time.Millisecond))
			if snap.HalfOpen != 1 {
				t.Errorf("%d handshakes were under way", snap.HalfOpen)
			}
			late := n.client(t, l.family, port, false) // its SYN is dropped by the lock
			if err := unix.SetsockoptInt(slow, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // for a RST to arrive
			restored := n.restoreListener(t, snap)
			for range 2 {
				write(t, accept(t, restored), []byte("welcome"))
			}
			for _, fd := range []int{slow, late} {
				expect(t, "peer", n.fileConn(t, fd), []byte("welcome"))
			}
		})
	}
}

// A handshake that ends in time becomes a connection in flight, even of a listener
// that waits for data.
func TestHandshakeEndsInTime(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		t.Run(l.String(), func(t *testing.T) {
			t.Parallel()
			l.set = func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30) }
			listener := n.listen(t, l)
			peer := n.dial(t, l.family, portOf(listener)) // and says nothing
			if got := saveListener(t, listener).HalfOpen; got != 1 {
				t.Fatalf("%d handshakes are under way", got)
			}
			waits := getInt(t, listener, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT)
			_, err := soccr.CheckpointListener(listener, soccr.WithLock(n.lock), soccr.WithPatience(10*time.Second))
			if refused, ok := errors.AsType[*soccr.InFlightError](err); !ok || refused.Count != 1 {
				t.Errorf("CheckpointListener: %v", err)
			}
			if got := getInt(t, listener, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT); got != waits {
				t.Errorf("TCP_DEFER_ACCEPT was %d and is %d", waits, got)
			}
			snap := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight), soccr.WithPatience(10*time.Second))
			if snap.HalfOpen != 0 || len(snap.Pending) != 1 {
				t.Fatalf("%d handshakes were under way, %d connections were kept", snap.HalfOpen, len(snap.Pending))
			}
			conn := accept(t, n.restoreListener(t, snap))
			write(t, peer, []byte("at last"))
			expect(t, "conn", conn, []byte("at last"))
		})
	}
}

// client connects from there, without waiting; if it is deaf, it hears nothing.
func (n *network) client(tb testing.TB, f family, port uint16, deaf bool) (fd int) {
	tb.Helper()
	domain, to := unix.AF_INET, ip4
	if f == ip6 {
		domain, to = unix.AF_INET6, ip6
	}
	hosttest.Do(tb, n.there, func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	tb.Cleanup(func() { unix.Close(fd) })
	if deaf {
		dropAll(tb, fd)
	}
	if err := unix.Connect(fd, sockaddr(to, netip.AddrPortFrom(to.here, port))); !errors.Is(err, unix.EINPROGRESS) {
		tb.Fatal(err)
	}
	return fd
}

// Every descriptor of a listener stops to listen, and none is leaked.
func TestListenerLeavesNothing(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		listener := n.listen(t, l)
		n.dial(t, l.family, portOf(listener))
		waiting(t, listener, 1)
		file, err := listener.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		snap := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))
		if state := soccr.State(fdInfo(t, int(file.Fd())).State); state != soccr.StateClose {
			t.Errorf("%v: a duplicate is in %v", l, state)
		}
		before := openDescriptors(t)
		for range 3 {
			restored := n.restoreListener(t, snap)
			snap = n.checkpointListener(t, restored.TCPListener, soccr.WithInFlight(soccr.KeepInFlight))
			conn, err := restored.AcceptTCP() // what is pending is not the kernel's any more
			if err != nil {
				t.Fatal(err)
			}
			again := n.checkpoint(t, conn)
			snap.Pending = []*soccr.Snapshot{again}

			// What fails leaves nothing behind either.
			wrong, elsewhere := *snap, *again
			elsewhere.Remote = netip.MustParseAddrPort("203.0.113.1:1")
			if l.family != ip4 {
				elsewhere.Remote = netip.MustParseAddrPort("[2001:db8::1]:1")
			}
			if l.family == mapped {
				elsewhere.Remote = netip.MustParseAddrPort("[::ffff:203.0.113.1]:1")
			}
			wrong.Pending = append([]*soccr.Snapshot{again}, &elsewhere)
			err = n.here.Do(func() error {
				_, err := soccr.RestoreListener(&wrong, soccr.WithLock(n.lock))
				return err
			})
			if !errors.Is(err, soccr.ErrNoRoute) {
				t.Errorf("%v: a pending connection without a route: %v", l, err)
			}
		}
		if after := openDescriptors(t); after > before {
			t.Errorf("%v: %d descriptors are open, there were %d", l, after, before)
		}
		n.serves(t, l.family, n.restoreListener(t, &soccr.ListenerSnapshot{Local: snap.Local, Backlog: 5}))
	}
}

// What fails at the end does not go on to listen.
func TestListenerThatFailsDoesNotListen(t *testing.T) {
	n := newNetwork(t)
	l := &soccr.ListenerSnapshot{
		Local: netip.AddrPortFrom(ip4.here, 4242), Backlog: 5,
		Options: soccr.Options{Settings: []soccr.Setting{{Name: "SO_ATTACH_FILTER", Bytes: make([]byte, 8)}}}, // which never returns
	}
	fd := n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := soccr.StartListener(fd, l); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an impossible filter: %v", err)
	}
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		t.Errorf("SO_ACCEPTCONN is %d, %v", listens, err)
	}
}

// Who stops to listen resets what he has not accepted, the restored like the kernel.
func TestPendingConnectionsAreResetByClose(t *testing.T) {
	n := newNetwork(t)
	listener := n.listen(t, listening{family: ip4})
	peer := n.dial(t, ip4, portOf(listener))
	waiting(t, listener, 1)
	restored := n.restoreListener(t, n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight)))
	restored.Close()
	if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer reads: %v", err)
	}
	if _, err := restored.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// Only listeners are listeners.
func TestSaveListenerRefuses(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	if _, err := soccr.CheckpointListener(conn); !errors.Is(err, soccr.ErrState) {
		t.Errorf("of a connection: %v", err)
	}
	udp := n.rawSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if _, err := soccr.SaveListener(udp); !errors.Is(err, soccr.ErrNotTCP) {
		t.Errorf("of UDP: %v", err)
	}
	if _, err := soccr.SaveListener(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("of nothing: %v", err)
	}
	listener := n.listen(t, listening{family: ip4})
	listener.Close()
	if _, err := soccr.CheckpointListener(listener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed listener: %v", err)
	}
}

// What is left of a connection, with its port, is no hindrance for a listener.
func TestListenerBesideTheDead(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.reuseAddr = false
		listener := n.listen(t, l)
		conn, peer := n.serves(t, l.family, listener)
		reset(t, peer)
		inState(t, conn, soccr.StateClose)
		snap := n.checkpointListener(t, listener)
		dead := n.move(t, conn)
		n.serves(t, l.family, n.restoreListener(t, snap))
		if _, err := dead.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v: read: %v", l, err)
		}
	}
}

// A connection of TCP Fast Open waits to be accepted before its handshake is over,
// and is saved when it is.
func TestFastOpenInFlight(t *testing.T) {
	n := newNetwork(t)
	for _, h := range []*host.Host{n.here, n.there} {
		// Client and server, both without cookies.
		if err := h.Sysctl("net.ipv4.tcp_fastopen", "519"); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range listenings() {
		t.Run(l.String(), func(t *testing.T) {
			t.Parallel()
			l.set = func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5) }
			listener := n.listen(t, l)
			domain, to := unix.AF_INET, ip4
			if l.family == ip6 {
				domain, to = unix.AF_INET6, ip6
			}
			var fd int
			hosttest.Do(t, n.there, func() (err error) {
				fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				return err
			})
			t.Cleanup(func() { unix.Close(fd) })
			dropAll(t, fd)
			hello := []byte("hello")
			err := unix.Sendto(fd, hello, unix.MSG_FASTOPEN, sockaddr(to, netip.AddrPortFrom(to.here, portOf(listener))))
			if err != nil && !errors.Is(err, unix.EINPROGRESS) {
				t.Fatal(err)
			}
			waiting(t, listener, 1)
			time.AfterFunc(50*time.Millisecond, func() {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
					t.Error(err)
				}
			})
			// A lock that does not know listeners leaves it to the connection to wait.
			snap, err := soccr.CheckpointListener(listener, soccr.WithInFlight(soccr.KeepInFlight),
				soccr.WithPatience(10*time.Second), soccr.WithLock(struct{ soccr.Locker }{n.lock}))
			if err != nil {
				t.Fatal(err)
			}
			if len(snap.Pending) != 1 || snap.Pending[0].State != soccr.StateEstablished {
				t.Fatalf("kept %+v", snap.Pending)
			}
			conn := accept(t, n.restoreListener(t, snap))
			expect(t, "conn", conn, hello)
			write(t, conn, []byte("welcome"))
			expect(t, "peer", n.fileConn(t, fd), []byte("welcome"))
		})
	}
}

// A connection that goes from the listener's port to elsewhere is no hindrance either.
func TestListenerBesideClient(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.reuseAddr = true
		t.Run(l.String(), func(t *testing.T) {
			snap := n.checkpointListener(t, n.listen(t, l))
			server := listen(t, n.there, map[bool]string{true: "tcp6", false: "tcp4"}[l.family == ip6], netip.AddrPortFrom(l.there, 0).String())
			fd := l.family.socket(t, n, 0)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, sockaddr(l.family, l.family.at(l.here, snap.Local.Port()))); err != nil {
				t.Fatal(err)
			}
			if err := unix.Connect(fd, sockaddr(l.family, l.family.at(l.there, portOf(server)))); err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); err != nil {
				t.Fatal(err)
			}
			n.serves(t, l.family, n.restoreListener(t, snap))
			peer := accept(t, server)
			write(t, peer, []byte("still here"))
			expect(t, "the client", n.fileConn(t, fd), []byte("still here"))
		})
	}
}

// A listener is saved by anybody. To come back beside its children takes rights, or
// somebody who has them.
func TestListenerWithoutRights(t *testing.T) {
	n := newNetwork(t)
	for _, l := range listenings() {
		l.reuseAddr = false
		t.Run(l.String(), func(t *testing.T) {
			listener := n.listen(t, l)
			conn, peer := n.serves(t, l.family, listener)
			want := saveListener(t, listener)
			var snap *soccr.ListenerSnapshot
			n.withoutRights(t, func() (err error) {
				snap, err = soccr.CheckpointListener(listener)
				return err
			})
			if diff := diffListeners(want, snap); diff != "" {
				t.Errorf("-with rights +without:\n%s", diff)
			}
			n.withoutRights(t, func() error {
				if _, err := soccr.RestoreListener(snap); !errors.Is(err, soccr.ErrAddrInUse) || !errors.Is(err, soccr.ErrNoPermission) {
					t.Errorf("RestoreListener: %v", err)
				}
				restored, err := soccr.RestoreListener(snap, soccr.WithRepairer(newHelper(t)))
				if err == nil {
					n.serves(t, l.family, restored)
					restored.Close()
				}
				return err
			})
			write(t, conn, []byte("still here"))
			expect(t, "peer", peer, []byte("still here"))
		})
	}
}
