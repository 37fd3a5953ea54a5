package soccr_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// datagramKinds are the transports.
var datagramKinds = []struct {
	name     string
	protocol int
	on       soccr.Sockets
}{{"UDP", unix.IPPROTO_UDP, soccr.UDP}, {"UDP-Lite", unix.IPPROTO_UDPLITE, soccr.UDPLite}}

// sockaddr is an address as a family's socket has it.
func (f family) sockaddr(addr netip.Addr, port int) unix.Sockaddr {
	if f == ip4 {
		return &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: addr.As16()} // IPv4 mapped
}

func (f family) anyAddr() netip.Addr {
	if f == ip4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (f family) domain() int {
	if f == ip4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// datagramSocket makes a bound, non-blocking socket on a host.
func datagramSocket(t *testing.T, h *host.Host, f family, protocol int, addr netip.Addr, port int) (fd int) {
	t.Helper()
	hosttest.Do(t, h, func() (err error) {
		fd, err = unix.Socket(f.domain(), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, f.sockaddr(addr, port)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// udpConn makes a conn of a descriptor, which it takes away.
func udpConn(t *testing.T, fd int) *net.UDPConn {
	t.Helper()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	vacate(t, fd)
	file := os.NewFile(uintptr(own), "")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

func sendTo(t *testing.T, fd int, data []byte, to unix.Sockaddr) {
	t.Helper()
	if err := unix.Sendto(fd, data, 0, to); err != nil {
		t.Fatal(err)
	}
}

// receive reads a datagram, as "from port: data".
func receive(t *testing.T, fd int) (got string, err error) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err != nil {
		return "", err
	}
	port := 0
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	}
	return fmt.Sprintf("%d: %.20q of %d", port, b[:n], n), nil
}

// expectDatagrams reads exactly these.
func expectDatagrams(t *testing.T, fd int, want []string) {
	t.Helper()
	for i, w := range want {
		got, err := receive(t, fd)
		for deadline := time.Now().Add(5 * time.Second); errors.Is(err, unix.EAGAIN) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			got, err = receive(t, fd)
		}
		if err != nil || got != w {
			t.Fatalf("datagram %d is %s, %v; want %s", i, got, err, w)
		}
	}
	if got, err := receive(t, fd); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("one more: %s, %v", got, err)
	}
}

// moveDatagram saves a socket, closes it and restores it here, by way of its
// encoding. It returns what was lost.
func (n *network) moveDatagram(t *testing.T, fd int) (snap *soccr.DatagramSnapshot, moved int, lost []soccr.Loss) {
	t.Helper()
	saved, err := soccr.SaveDatagram(fd)
	if err != nil {
		t.Fatal(err)
	}
	vacate(t, fd)
	b, err := saved.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	snap = new(soccr.DatagramSnapshot)
	if err := snap.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	hosttest.Do(t, n.here, func() error {
		moved, err = soccr.NewDatagramSocket(snap)
		return err
	})
	t.Cleanup(func() { unix.Close(moved) })
	if err := soccr.StartDatagram(moved, snap, soccr.WithRoutes(), soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) })); err != nil {
		t.Fatal(err)
	}
	return snap, moved, lost
}

// Every option of the table is kept when a datagram socket is moved, connected or
// not.
func TestEveryOptionOfDatagramSockets(t *testing.T) {
	n := newNetwork(t)
	allowPing(t, n.here)
	for _, k := range []struct {
		name            string
		style           int
		protocol, over6 int // the latter for AF_INET6
		on              soccr.Sockets
		family6         soccr.Sockets
	}{
		{"UDP", unix.SOCK_DGRAM, unix.IPPROTO_UDP, unix.IPPROTO_UDP, soccr.UDP, soccr.Dual},
		{"UDP-Lite", unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, unix.IPPROTO_UDPLITE, soccr.UDPLite, soccr.Dual},
		{"ping", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, soccr.Ping, soccr.IPv6},
		{"raw", unix.SOCK_RAW, 253, 253, soccr.Raw, soccr.IPv6},
		{"raw ICMP", unix.SOCK_RAW, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, soccr.Raw, soccr.IPv6},
	} {
		for _, f := range families {
			connected := f == mapped // to IPv4, and what is of IPv6 alone to IPv6
			to, protocol, on := f, k.over6, k.on|k.family6
			switch {
			case f == ip4:
				protocol, on = k.protocol, k.on|soccr.IPv4
			case f == mapped && k.family6 == soccr.IPv6:
				to = ip6
			}
			on |= map[bool]soccr.Sockets{true: soccr.Connected, false: soccr.Unconnected}[connected]
			for _, row := range soccr.OptionRows(on) {
				if !row.Kept || row.FromGone || connected && row.Name == "IPV6_V6ONLY" { // which would not let it connect
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", k.name, f.name, row.Name), func(t *testing.T) {
					fd := n.rawSocket(t, f.domain(), k.style, protocol)
					want, reason := setUnusual(t, fd, row)
					if reason != "" {
						t.Logf("%s cannot be set here: %s", row.Name, reason)
						return
					}
					if err := unix.Bind(fd, f.sockaddr(f.anyAddr(), 4242)); err != nil {
						t.Fatal(err)
					}
					if connected {
						if err := unix.Connect(fd, f.sockaddr(to.there, 6001)); err != nil {
							t.Fatal(err)
						}
					}
					snap, moved, lost := n.moveDatagram(t, fd)
					if d := missing(snap.Options.Settings, want); d != nil {
						t.Fatalf("saved, -want +got:\n%s", d)
					}
					if lost != nil {
						t.Errorf("lost: %v", lost)
					}
					got, err := soccr.ReadSettings(moved, on)
					if err != nil {
						t.Fatal(err)
					}
					if d := missing(got, want); d != nil {
						t.Errorf("restored, -want +got:\n%s", d)
					}
				})
			}
		}
	}
}

// Ping and raw sockets begin with SO_REUSEADDR, and those of IPv6 have no options of
// IPv4's: both are as they were after a move, also on an address that is gone.
func TestDatagramSocketsThatBeginOtherwise(t *testing.T) {
	n := newNetwork(t)
	allowPing(t, n.here)
	gone := map[family]netip.Addr{ip4: netip.MustParseAddr("10.77.0.9"), ip6: netip.MustParseAddr("fd77::9")}
	for _, k := range []struct {
		name            string
		style           int
		protocol, over6 int
	}{
		{"UDP", unix.SOCK_DGRAM, unix.IPPROTO_UDP, unix.IPPROTO_UDP},
		{"ping", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6},
		{"raw", unix.SOCK_RAW, 253, 253},
	} {
		for _, f := range []family{ip4, ip6} {
			for reuse := range 2 {
				t.Run(fmt.Sprintf("%s/%s/%d", k.name, f.name, reuse), func(t *testing.T) {
					protocol, level, option := k.protocol, unix.IPPROTO_IP, unix.IP_FREEBIND
					if f == ip6 {
						protocol, level, option = k.over6, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
					}
					fd := n.rawSocket(t, f.domain(), k.style, protocol)
					for _, err := range []error{
						unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse),
						unix.SetsockoptInt(fd, level, option, 1),
						unix.Bind(fd, f.sockaddr(gone[f], 4243)),
						unix.SetsockoptInt(fd, level, option, 0),
					} {
						if err != nil {
							t.Fatal(err)
						}
					}
					snap, moved, _ := n.moveDatagram(t, fd)
					if !snap.Options.Foreign || snap.Options.ReuseAddr != (reuse == 1) {
						t.Errorf("saved as %+v", snap.Options)
					}
					again, err := soccr.SaveDatagram(moved)
					if err != nil {
						t.Fatal(err)
					}
					if again.Local != snap.Local || !again.Options.Foreign || again.Options.ReuseAddr != snap.Options.ReuseAddr {
						t.Errorf("restored as %+v, want %+v", again, snap)
					}
				})
			}
		}
	}
}

// What was not read is read after the move: in order, from whom it came.
func TestUnreadDatagrams(t *testing.T) {
	for _, k := range datagramKinds {
		for _, f := range families {
			for _, c := range []struct {
				name             string
				wildcard, device bool
				connected        bool
			}{
				{name: "bound"},
				{name: "to any address", wildcard: true},
				{name: "to any address of a device", wildcard: true, device: true},
				{name: "connected", connected: true},
			} {
				t.Run(fmt.Sprintf("%s/%s/%s", k.name, f.name, c.name), func(t *testing.T) {
					n := newNetwork(t)
					addr := f.here
					if c.wildcard {
						addr = f.anyAddr()
					}
					fd := datagramSocket(t, n.here, f, k.protocol, addr, 5000)
					if c.device {
						if err := unix.BindToDevice(fd, "net0"); err != nil {
							t.Fatal(err)
						}
					}
					peers := [2]int{
						datagramSocket(t, n.there, f, k.protocol, f.there, 6001),
						datagramSocket(t, n.there, f, k.protocol, f.there, 6002),
					}
					for _, peer := range peers {
						for name, v := range map[string]int64{"IP_TTL": 33, "IP_TOS": 0x28, "IPV6_UNICAST_HOPS": 33, "IPV6_TCLASS": 0x28} {
							if strings.HasPrefix(name, "IPV6_") && f == ip4 {
								continue
							}
							if err := soccr.SetOption(peer, soccr.Setting{Name: name, Number: v}); err != nil {
								t.Fatal(err)
							}
						}
					}
					var want []string
					for i, size := range []int{0, 5, 0, 0, 1, 1400, 0, 9000, 60_000, 3, 0} {
						data := pattern(byte(i), size)
						sendTo(t, peers[i%2], data, f.sockaddr(f.here, 5000))
						want = append(want, fmt.Sprintf("%d: %.20q of %d", 6001+i%2, data, size))
					}
					if c.connected { // the other one's are in the queue already
						if err := unix.Connect(fd, f.sockaddr(f.there, 6001)); err != nil {
							t.Fatal(err)
						}
					}
					snap, moved, lost := n.moveDatagram(t, fd)
					if lost != nil {
						t.Errorf("lost: %v", lost)
					}
					if len(snap.RecvQueue) != len(want) {
						t.Fatalf("saved %d datagrams, want %d", len(snap.RecvQueue), len(want))
					}
					for i, d := range snap.RecvQueue {
						if d.To.Unmap() != f.here || d.From.Addr().Unmap() != f.there || d.HopLimit != 33 || d.TrafficClass != 0x28 {
							t.Errorf("datagram %d is from %v to %v with hop limit %d, class %#x", i, d.From, d.To, d.HopLimit, d.TrafficClass)
						}
					}
					again, err := soccr.SaveDatagram(moved)
					if err != nil {
						t.Fatal(err)
					}
					if d := diffDatagrams(snap, again); d != "" {
						t.Errorf("after the move, -before +after:\n%s", d)
					}
					expectDatagrams(t, moved, want)

					// And it goes on, both ways.
					sendTo(t, peers[0], []byte("ping"), f.sockaddr(f.here, 5000))
					expectDatagrams(t, moved, []string{`6001: "ping" of 4`})
					var to unix.Sockaddr
					if !c.connected {
						to = f.sockaddr(f.there, 6001)
					}
					sendTo(t, moved, []byte("pong"), to)
					expectDatagrams(t, peers[0], []string{`5000: "pong" of 4`})
				})
			}
		}
	}
}

// A queue may be larger than the buffer, and than that of a new socket.
func TestUnreadDatagramsBeyondTheBuffer(t *testing.T) {
	n := newNetwork(t)
	fd := datagramSocket(t, n.here, ip4, 0, ip4.here, 5000)
	peer := datagramSocket(t, n.there, ip4, 0, ip4.there, 6001)
	setSize := func(size int) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size); err != nil {
			t.Fatal(err)
		}
	}
	usual, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		t.Fatal(err)
	}
	setSize(usual) // which the kernel doubles
	var want []string
	for i := range 3 * usual / 2 / 2304 { // what such a datagram takes
		data := pattern(byte(i), 1400)
		sendTo(t, peer, data, ip4.sockaddr(ip4.here, 5000))
		want = append(want, fmt.Sprintf("6001: %.20q of %d", data, len(data)))
	}
	setSize(4096)
	_, moved, lost := n.moveDatagram(t, fd)
	if lost != nil {
		t.Errorf("lost: %v", lost)
	}
	if size, err := unix.GetsockoptInt(moved, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || size != 8192 {
		t.Errorf("SO_RCVBUF is %d, %v", size, err)
	}
	expectDatagrams(t, moved, want)
}

func diffDatagrams(want, got *soccr.DatagramSnapshot) string {
	return cmp.Diff(want, got, cmp.Comparer(bytes.Equal), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}))
}

// Saving reads, and no more.
func TestSaveDatagramChangesNothing(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			fd := datagramSocket(t, n.here, f, 0, f.here, 5000)
			peer := datagramSocket(t, n.there, f, 0, f.there, 6001)
			for _, data := range []string{"one", "three", "five"} {
				sendTo(t, peer, []byte(data), f.sockaddr(f.here, 5000))
			}
			for _, offset := range []int{-1, 4} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset); err != nil {
					t.Fatal(err)
				}
				first, err := soccr.SaveDatagram(fd)
				if err != nil {
					t.Fatal(err)
				}
				second, err := soccr.SaveDatagram(fd)
				if err != nil {
					t.Fatal(err)
				}
				if d := diffDatagrams(first, second); d != "" {
					t.Errorf("-first +second:\n%s", d)
				}
				if len(first.RecvQueue) != 3 || first.Options.PeekOffsetOn != (offset >= 0) {
					t.Errorf("saved %+v", first)
				}
			}
			expectDatagrams(t, fd, []string{`6001: "one" of 3`, `6001: "three" of 5`, `6001: "five" of 4`})
		})
	}
}

// Datagrams of which the kernel has made one are put back one by one.
func TestCoalescedDatagrams(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			fd := datagramSocket(t, n.here, f, 0, f.here, 5000)
			peer := datagramSocket(t, n.there, f, 0, f.there, 6001)
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptInt(peer, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 100); err != nil {
				t.Fatal(err)
			}
			data := pattern(1, 350)
			sendTo(t, peer, data, f.sockaddr(f.here, 5000))
			snap, moved, lost := n.moveDatagram(t, fd)
			if lost != nil || len(snap.RecvQueue) != 1 || snap.RecvQueue[0].Segment != 100 {
				t.Fatalf("saved %+v, lost %v", snap.RecvQueue, lost)
			}
			var want []string
			for part := range slices.Chunk(data, 100) {
				want = append(want, fmt.Sprintf("6001: %.20q of %d", part, len(part)))
			}
			expectDatagrams(t, moved, want)
		})
	}
}

// What is shut down stays so, in each direction.
func TestShutDownDatagramSockets(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		for _, connected := range []bool{true, false} {
			for how, name := range []string{unix.SHUT_RD: "reading", unix.SHUT_WR: "writing", unix.SHUT_RDWR: "both", 3: "nothing"} {
				t.Run(fmt.Sprintf("%s/connected %v/%s", f.name, connected, name), func(t *testing.T) {
					fd := datagramSocket(t, n.here, f, 0, f.here, 5000)
					datagramSocket(t, n.there, f, 0, f.there, 6001)
					if connected {
						if err := unix.Connect(fd, f.sockaddr(f.there, 6001)); err != nil {
							t.Fatal(err)
						}
					}
					if how != 3 {
						if err := unix.Shutdown(fd, how); err != nil && (connected || !errors.Is(err, unix.ENOTCONN)) {
							t.Fatal(err)
						}
					}
					snap, moved, _ := n.moveDatagram(t, fd)
					if snap.ReadShutdown != (how == unix.SHUT_RD || how == unix.SHUT_RDWR) ||
						snap.WriteShutdown != (how == unix.SHUT_WR || how == unix.SHUT_RDWR) || snap.Remote.IsValid() != connected {
						t.Errorf("saved %+v", snap)
					}
					var to unix.Sockaddr
					if !connected {
						to = f.sockaddr(f.there, 6001)
					}
					if err := unix.Sendto(moved, []byte("x"), unix.MSG_NOSIGNAL, to); errors.Is(err, unix.EPIPE) != snap.WriteShutdown {
						t.Errorf("write: %v", err)
					}
					if err := unix.SetNonblock(moved, false); err != nil {
						t.Fatal(err)
					}
					if err := unix.SetsockoptTimeval(moved, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 1000}); err != nil {
						t.Fatal(err)
					}
					if n, _, err := unix.Recvfrom(moved, make([]byte, 1), 0); (n == 0 && err == nil) != snap.ReadShutdown {
						t.Errorf("read: %d, %v", n, err)
					}
				})
			}
		}
	}
}

// Memberships are kept, of each group on its device with its sources.
func TestMulticastGroups(t *testing.T) {
	n := newNetwork(t)
	group := netip.MustParseAddr
	if err := n.there.AddAddr("net0", netip.MustParsePrefix("10.77.0.3/24")); err != nil {
		t.Fatal(err)
	}
	groups := []soccr.Group{
		{Addr: group("239.1.2.3"), Device: "lo"},
		{Addr: group("239.1.2.3"), Device: "net0", Only: true, Sources: []netip.Addr{group("10.77.0.2"), group("10.77.0.9")}},
		{Addr: group("239.1.2.4"), Device: "net0", Sources: []netip.Addr{group("10.77.0.9")}},
	}
	for _, f := range []family{ip4, ip6} {
		t.Run(f.name, func(t *testing.T) {
			d := &soccr.DatagramSnapshot{Local: netip.MustParseAddrPort("0.0.0.0:5000"), Groups: groups}
			if f == ip6 {
				d.Local = netip.MustParseAddrPort("[::]:5000")
				d.Groups = append(slices.Clone(groups),
					soccr.Group{Addr: group("ff02::77"), Device: "lo"},
					soccr.Group{Addr: group("ff02::77"), Device: "net0", Only: true, Sources: []netip.Addr{group("fd77::2")}})
			}
			fd := n.rawSocket(t, f.domain(), unix.SOCK_DGRAM, 0)
			if err := soccr.StartDatagram(fd, d); err != nil {
				t.Fatal(err)
			}
			// Another socket's groups are not its own.
			other := datagramSocket(t, n.here, ip4, 0, netip.IPv4Unspecified(), 5001)
			if err := unix.SetsockoptIPMreqn(other, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: [4]byte{239, 9, 9, 9}, Ifindex: 1}); err != nil {
				t.Fatal(err)
			}
			snap, moved, _ := n.moveDatagram(t, fd)
			if diff := cmp.Diff(d.Groups, snap.Groups, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// It hears whom it wants to hear.
			for _, from := range []struct {
				addr  netip.Addr
				heard bool
			}{{ip4.there, true}, {group("10.77.0.3"), false}} {
				peer := datagramSocket(t, n.there, ip4, 0, from.addr, 6001)
				if err := unix.SetsockoptIPMreqn(peer, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Address: ip4.there.As4()}); err != nil {
					t.Fatal(err)
				}
				sendTo(t, peer, []byte("to all"), ip4.sockaddr(groups[0].Addr, 5000))
				if from.heard {
					expectDatagrams(t, moved, []string{`6001: "to all" of 6`})
				} else if got, err := receive(t, moved); !errors.Is(err, unix.EAGAIN) {
					t.Errorf("from %v: %s, %v", from.addr, got, err)
				}
			}
		})
	}
}

// What cannot be put back is told of, and the rest is there.
func TestLostDatagrams(t *testing.T) {
	n := newNetwork(t)
	from, here := netip.MustParseAddrPort("10.77.0.2:6001"), ip4.here
	queue := []soccr.Datagram{
		{From: from, To: here, HopLimit: 9, Data: []byte("one")},
		{From: from, To: netip.MustParseAddr("239.1.2.3"), Data: []byte("to a group")},
		{From: from, To: netip.MustParseAddr("10.77.0.99"), Data: []byte("to an address that is elsewhere")},
		{From: netip.MustParseAddrPort("0.0.0.0:6001"), To: here, Data: []byte("from nobody")},
		{From: from, To: here, HopLimit: 9, Data: []byte("two")},
	}
	d := &soccr.DatagramSnapshot{
		Local: netip.MustParseAddrPort("0.0.0.0:5000"), RecvQueue: queue,
		Options: soccr.Options{Settings: []soccr.Setting{{Name: "SO_BINDTODEVICE", Text: "net0"}}},
	}
	var lost []string
	start := func() (fd int) {
		lost = nil
		hosttest.Do(t, n.here, func() (err error) {
			fd, err = soccr.NewDatagramSocket(d)
			return err
		})
		t.Cleanup(func() { unix.Close(fd) })
		if err := soccr.StartDatagram(fd, d, soccr.WithLosses(func(l soccr.Loss) {
			if l.Datagram == nil || l.Err == nil {
				t.Errorf("lost %+v", l)
			}
			lost = append(lost, string(l.Datagram.Data))
		})); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	fd := start()
	expectDatagrams(t, fd, []string{`6001: "one" of 3`, `6001: "two" of 3`})
	if want := []string{"to a group", "to an address that is elsewhere", "from nobody"}; !slices.Equal(lost, want) {
		t.Errorf("lost %q, want %q", lost, want)
	}
	vacate(t, fd)

	// A firewall that lets nothing out is got past.
	firewall := newFirewall(t, n.here, "filter", nftables.ChainPolicyDrop, output)
	firewall.install(t)
	fd = start()
	expectDatagrams(t, fd, []string{`6001: "one" of 3`, `6001: "two" of 3`})
	vacate(t, fd)
	firewall.remove(t)

	// One that lets nothing in loses all, but the socket is there.
	newFirewall(t, n.here, "filter", nftables.ChainPolicyDrop, input).install(t)
	fd = start()
	if len(lost) != len(queue) {
		t.Errorf("lost %q", lost)
	}
	if got, err := receive(t, fd); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("received %s, %v", got, err)
	}
}

// What cannot be moved is refused, and left as it was.
func TestSaveDatagramRefuses(t *testing.T) {
	n := newNetwork(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	corked := datagramSocket(t, n.here, ip4, 0, ip4.here, 5000)
	peer := datagramSocket(t, n.there, ip4, 0, ip4.there, 6001)
	if err := unix.Connect(corked, ip4.sockaddr(ip4.there, 6001)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(corked, []byte("begin"), unix.MSG_MORE, nil); err != nil {
		t.Fatal(err)
	}
	encap := datagramSocket(t, n.here, ip4, 0, ip4.here, 4500)
	const espInUDP = 2 // UDP_ENCAP_ESPINUDP
	if err := unix.SetsockoptInt(encap, unix.IPPROTO_UDP, unix.UDP_ENCAP, espInUDP); err != nil {
		t.Logf("no UDP_ENCAP here: %v", err)
		encap = -1
	}
	for _, c := range []struct {
		name string
		fd   int
		want error
	}{
		{"corked", corked, soccr.ErrCorked},
		{"UDP_ENCAP", encap, soccr.ErrULP},
		{"TCP", n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0), soccr.ErrNotUDP},
		{"a Unix socket", n.rawSocket(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0), soccr.ErrNotUDP},
		{"a file", int(file.Fd()), soccr.ErrNotUDP},
		{"no descriptor", 1 << 20, unix.EBADF},
	} {
		if c.fd < 0 {
			continue
		}
		d, err := soccr.SaveDatagram(c.fd)
		if d != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
		if failure, ok := errors.AsType[*soccr.OpError](err); !ok || failure.Op != "save" {
			t.Errorf("%s: %#v is not an OpError of save", c.name, err)
		}
	}
	sendTo(t, corked, []byte(" end"), nil)
	expectDatagrams(t, peer, []string{`5000: "begin end" of 9`})
	if _, err := soccr.SaveDatagram(corked); err != nil {
		t.Errorf("complete: %v", err)
	}
}

// What cannot be restored fails with its reason.
func TestStartDatagramRefuses(t *testing.T) {
	n := newNetwork(t)
	taken := datagramSocket(t, n.here, ip4, 0, ip4.here, 5000)
	socket := func(f family, protocol int) int { return n.rawSocket(t, f.domain(), unix.SOCK_DGRAM, protocol) }
	local := netip.MustParseAddrPort
	for _, c := range []struct {
		name string
		fd   int
		snap soccr.DatagramSnapshot
		want error
	}{
		{"invalid", socket(ip4, 0), soccr.DatagramSnapshot{}, soccr.ErrInvalidSnapshot},
		{"address not here", socket(ip4, 0), soccr.DatagramSnapshot{Local: local("10.77.0.99:5001")}, soccr.ErrAddrNotAvailable},
		{"port in use", socket(ip4, 0), soccr.DatagramSnapshot{Local: local("10.77.0.1:5000")}, soccr.ErrAddrInUse},
		{"no route", socket(ip4, 0), soccr.DatagramSnapshot{Local: local("10.77.0.1:5001"), Remote: local("203.0.113.1:1")}, soccr.ErrNoRoute},
		{"bound already", taken, soccr.DatagramSnapshot{Local: local("10.77.0.1:5001")}, soccr.ErrState},
		{"other family", socket(ip6, 0), soccr.DatagramSnapshot{Local: local("10.77.0.1:5001")}, soccr.ErrState},
		{"other protocol", socket(ip4, unix.IPPROTO_UDPLITE), soccr.DatagramSnapshot{Local: local("10.77.0.1:5001")}, soccr.ErrState},
		{"TCP", n.rawSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0), soccr.DatagramSnapshot{Local: local("10.77.0.1:5001")}, soccr.ErrNotUDP},
		{"no such device", socket(ip4, 0), soccr.DatagramSnapshot{
			Local: local("0.0.0.0:5002"), Groups: []soccr.Group{{Addr: netip.MustParseAddr("239.1.2.3"), Device: "nosuch"}},
		}, soccr.ErrAddrNotAvailable},
	} {
		err := soccr.StartDatagram(c.fd, &c.snap)
		if _, ok := errors.AsType[*soccr.OpError](err); !ok || !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
	}
}

// A program's own conn, and one on a port that several share.
func TestDatagramConns(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			fd := datagramSocket(t, n.here, f, 0, f.here, 5000)
			peer := datagramSocket(t, n.there, f, 0, f.there, 6001)
			conn := udpConn(t, fd)
			if err := conn.SetReadBuffer(80_000); err != nil {
				t.Fatal(err)
			}
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			sendTo(t, peer, []byte("queued"), f.sockaddr(f.here, 5000))
			for range 3 {
				snap, err := soccr.CheckpointDatagram(conn)
				if err != nil {
					t.Fatal(err)
				}
				hosttest.Do(t, n.here, func() (err error) {
					conn, err = soccr.RestoreDatagram(snap, soccr.WithLosses(func(l soccr.Loss) { t.Errorf("lost %v", l) }))
					return err
				})
			}
			for option, want := range map[int]int{
				unix.SO_RCVBUF: 160_000, unix.SO_BUF_LOCK: unix.SOCK_RCVBUF_LOCK, unix.SO_REUSEADDR: 1, unix.SO_REUSEPORT: 1,
			} {
				if got := getInt(t, conn, unix.SOL_SOCKET, option); got != want {
					t.Errorf("option %d is %d, want %d", option, got, want)
				}
			}
			b := make([]byte, 10)
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			count, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil || string(b[:count]) != "queued" || from.Addr().Unmap() != f.there {
				t.Errorf("read %q from %v, %v", b[:count], from, err)
			}
			conn.Close()
		})
	}
}
