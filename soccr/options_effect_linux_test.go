package soccr_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
)

// prefixOf is the prefix that holds just one address.
func prefixOf(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

// route adds a route on a host.
func route(t *testing.T, h *host.Host, device string, r netlink.Route) {
	t.Helper()
	if device != "" {
		link, err := h.Netlink().LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		r.LinkIndex = link.Attrs().Index
		r.Scope = netlink.SCOPE_LINK
	}
	if err := h.Netlink().RouteAdd(&r); err != nil {
		t.Fatal(err)
	}
}

// alive checks that a connection goes on, both ways.
func alive(t *testing.T, conn, peer *net.TCPConn) {
	t.Helper()
	write(t, conn, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
	write(t, peer, []byte("pong"))
	expect(t, "conn", conn, []byte("pong"))
}

// Without its mark, the connection would have no route to connect by.
func TestMarkActs(t *testing.T) {
	const mark, table = 0x77, 100
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			n := newNetwork(t)
			conn, peer := n.connect(t, f)
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_MARK, mark)
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Table, rule.Priority = unix.AF_INET, mark, table, 1
			if f == ip6 {
				rule.Family = unix.AF_INET6
			}
			if err := n.here.Netlink().RuleAdd(rule); err != nil {
				t.Fatal(err)
			}
			route(t, n.here, "net0", netlink.Route{Dst: prefixOf(f.there), Table: table})
			route(t, n.here, "", netlink.Route{Dst: prefixOf(f.there), Type: unix.RTN_UNREACHABLE})
			moved := n.move(t, conn)
			alive(t, moved, peer)

			snap := n.checkpoint(t, moved)
			snap.Options.Settings = nil
			fd := n.newSocket(t, snap)
			defer unix.Close(fd)
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Restore(snap); !errors.Is(err, soccr.ErrNoRoute) {
				t.Errorf("without the mark: %v", err)
			}
		})
	}
}

// The device that a connection is bound to is used, not the one that the routes say.
func TestDeviceActs(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			n := newNetwork(t)
			conn, peer := n.connect(t, f)
			control(t, conn, func(fd int) {
				if err := unix.BindToDevice(fd, "net0"); err != nil {
					t.Fatal(err)
				}
			})
			if f == ip6 {
				route(t, n.here, "lo", netlink.Route{Dst: prefixOf(f.there)}) // leads nowhere
			} else { // without a route, IPv4 takes all to be on the link of the device
				routes, err := n.here.Netlink().RouteList(nil, unix.AF_INET)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range routes {
					if err := n.here.Netlink().RouteDel(&r); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 2 {
				conn = n.move(t, conn)
				alive(t, conn, peer)
			}
		})
	}
}

// A transparent socket keeps an address that the host does not have.
func TestTransparentActs(t *testing.T) {
	for _, f := range []family{
		{"IPv4", netip.MustParseAddr("10.77.0.9"), ip4.there, "tcp4"},
		{"IPv6", netip.MustParseAddr("fd77::9"), ip6.there, "tcp6"},
		{"mapped", netip.MustParseAddr("10.77.0.9"), ip4.there, "tcp"},
	} {
		t.Run(f.name, func(t *testing.T) {
			n := newNetwork(t)
			prefix := netip.PrefixFrom(f.here, f.here.BitLen())
			if err := n.here.AddAddr("net0", prefix); err != nil {
				t.Fatal(err)
			}
			conn, peer := n.connect(t, f)
			write(t, peer, []byte("queued"))
			eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 6 })
			if f.name == "IPv6" {
				setInt(t, conn, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1)
			} else {
				setInt(t, conn, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
			}
			if err := n.here.RemoveAddr("net0", prefix); err != nil {
				t.Fatal(err)
			}
			moved := n.move(t, conn)
			expect(t, "conn", moved, []byte("queued"))
			write(t, moved, []byte("ping"))
			expect(t, "peer", peer, []byte("ping"))
		})
	}
}

// What keeps packets out that have come through routers (RFC 5082) must not keep
// out what stands for the peer's FIN.
func TestMinTTLActsLast(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			hops, minimum := [2]int{unix.IPPROTO_IP, unix.IP_TTL}, [2]int{unix.IPPROTO_IP, unix.IP_MINTTL}
			if f == ip6 {
				hops, minimum = [2]int{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}, [2]int{unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT}
			}
			setInt(t, peer, hops[0], hops[1], 255)
			setInt(t, conn, minimum[0], minimum[1], 255)
			write(t, peer, []byte("queued"))
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
			moved := n.move(t, conn)
			if got := getInt(t, moved, minimum[0], minimum[1]); got != 255 {
				t.Errorf("the least TTL is %d", got)
			}
			expect(t, "conn", moved, []byte("queued"))
			expectEOF(t, "conn", moved)
			write(t, moved, []byte("last"))
			expect(t, "peer", peer, []byte("last"))
		})
	}
}

// IP_TOS changes the priority, which the program may have changed back.
func TestPriorityBesideTOS(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	setInt(t, conn, unix.IPPROTO_IP, unix.IP_TOS, 0x28)
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_PRIORITY, 0)
	moved := n.move(t, conn)
	if tos, priority := getInt(t, moved, unix.IPPROTO_IP, unix.IP_TOS), getInt(t, moved, unix.SOL_SOCKET, unix.SO_PRIORITY); tos != 0x28 || priority != 0 {
		t.Errorf("IP_TOS is %#x, SO_PRIORITY %d", tos, priority)
	}
}

// moveUnconnected moves a socket that was never connected.
func (n *network) moveUnconnected(t *testing.T, fd int) (moved int) {
	t.Helper()
	s, err := soccr.Pause(fd)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	vacate(t, fd)
	restored, moved := n.paused(t, travelled(t, snap))
	if err := restored.Resume(); err != nil {
		t.Fatal(err)
	}
	return moved
}

// What acts at bind and connect acts on a socket that has not come so far.
func TestBindingOptionsAct(t *testing.T) {
	n := newNetwork(t)
	t.Run("IP_FREEBIND", func(t *testing.T) {
		fd := n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
			t.Fatal(err)
		}
		addr := unix.SockaddrInet4{Port: 4242, Addr: [4]byte{10, 99, 0, 1}}
		if err := unix.Bind(fd, &addr); err != nil {
			t.Fatal(err)
		}
		got, err := unix.Getsockname(n.moveUnconnected(t, fd))
		if a, ok := got.(*unix.SockaddrInet4); err != nil || !ok || a.Addr != addr.Addr || a.Port != addr.Port {
			t.Errorf("bound to %+v, %v", got, err)
		}
	})
	// It can be switched off after bind; so can the address be taken away.
	t.Run("IP_FREEBIND, no more", func(t *testing.T) {
		for _, f := range []family{ip4, ip6} {
			elsewhere := netip.MustParseAddr("10.99.0.1")
			if f == ip6 {
				elsewhere = netip.MustParseAddr("fd99::1")
			}
			foreign := func(kind int) (fd int) {
				fd = n.rawSocket(t, f.domain(), kind, 0)
				for _, on := range []int{1, 0} {
					if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, on); err != nil {
						t.Fatal(err)
					}
					if on == 0 {
						break
					}
					if err := unix.Bind(fd, f.sockaddr(elsewhere, 4242)); err != nil {
						t.Fatal(err)
					}
				}
				return fd
			}
			listener := foreign(unix.SOCK_STREAM)
			if err := unix.Listen(listener, 1); err != nil {
				t.Fatal(err)
			}
			l, err := soccr.SaveListener(listener)
			if err != nil {
				t.Fatal(err)
			}
			vacate(t, listener)
			fd := n.rawSocket(t, f.domain(), unix.SOCK_STREAM, 0)
			if err := soccr.StartListener(fd, l); err != nil {
				t.Fatal(err)
			}
			vacate(t, fd)
			_, datagrams, _ := n.moveDatagram(t, foreign(unix.SOCK_DGRAM))
			for what, moved := range map[string]int{"unconnected": n.moveUnconnected(t, foreign(unix.SOCK_STREAM)), "UDP": datagrams} {
				local, err := unix.Getsockname(moved)
				if d := cmp.Diff(f.sockaddr(elsewhere, 4242), local, cmpopts.IgnoreUnexported(unix.SockaddrInet4{}, unix.SockaddrInet6{})); err != nil || d != "" {
					t.Errorf("%s %s: %v, -want +got:\n%s", f.name, what, err, d)
				}
				if on, err := unix.GetsockoptInt(moved, unix.IPPROTO_IP, unix.IP_FREEBIND); err != nil || on != 0 {
					t.Errorf("%s %s: IP_FREEBIND is %d, %v", f.name, what, on, err)
				}
				vacate(t, moved)
			}
		}
	})
	to := listen(t, n.there, "tcp4", "10.77.0.2:0").Addr().(*net.TCPAddr).AddrPort()
	connect := func(t *testing.T, fd int) *unix.SockaddrInet4 {
		t.Helper()
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			t.Fatal(err)
		}
		got, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return got.(*unix.SockaddrInet4)
	}
	t.Run("IP_LOCAL_PORT_RANGE", func(t *testing.T) {
		fd := n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
		const first, last = 45_000, 45_001
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, int(int32(-(1<<16-last)<<16))|first); err != nil {
			t.Fatal(err)
		}
		if got := connect(t, n.moveUnconnected(t, fd)); got.Port != first && got.Port != last {
			t.Errorf("connected from port %d", got.Port)
		}
	})
	t.Run("IP_BIND_ADDRESS_NO_PORT", func(t *testing.T) {
		if err := n.here.AddAddr("net0", netip.MustParsePrefix("10.77.0.8/24")); err != nil {
			t.Fatal(err)
		}
		fd := n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			t.Fatal(err)
		}
		want := [4]byte{10, 77, 0, 8}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: want}); err != nil {
			t.Fatal(err)
		}
		moved := n.moveUnconnected(t, fd)
		got, err := unix.Getsockname(moved)
		if a, ok := got.(*unix.SockaddrInet4); err != nil || !ok || a.Addr != want || a.Port != 0 {
			t.Fatalf("bound to %+v, %v", got, err)
		}
		if got := connect(t, moved); got.Addr != want || got.Port == 0 {
			t.Errorf("connected from %+v", got)
		}
	})
}
