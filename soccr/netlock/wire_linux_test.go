package netlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/rawfin"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		helper()
		return
	}
	hosttest.Main(m)
}

// soon is how long a test waits for what has to happen.
const soon = 10 * time.Second

// lockable is what package soccr asks of a lock.
var _ interface {
	LockFlow(local, remote netip.AddrPort) error
	UnlockFlow(local, remote netip.AddrPort) error
} = (*Lock)(nil)

// conn is a connection between two hosts, which may be the same.
type conn struct {
	t        testing.TB
	at       *host.Host // where the local end is
	peerHost *host.Host
	local    *net.TCPConn
	peer     *net.TCPConn
	pending  string // sent by the peer and not yet read
	// Flow has the addresses as the local socket gives them.
	Flow
}

// connect makes a connection from here to an address of there. The local end is
// the listener's; with mapped set it is an AF_INET6 socket in any case.
func connect(t testing.TB, at, peerHost *host.Host, addr netip.Addr, mapped bool) *conn {
	t.Helper()
	c := &conn{t: t, at: at, peerHost: peerHost}
	network, address := "tcp", netip.AddrPortFrom(addr, 0).String()
	if mapped {
		address = "[::]:0"
	}
	var listener *net.TCPListener
	hosttest.Do(t, at, func() error {
		l, err := net.Listen(network, address)
		if err == nil {
			listener = l.(*net.TCPListener)
		}
		return err
	})
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	hosttest.Do(t, peerHost, func() error {
		p, err := net.Dial("tcp", netip.AddrPortFrom(addr, port).String())
		if err == nil {
			c.peer = p.(*net.TCPConn)
		}
		return err
	})
	var err error
	if c.local, err = listener.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.local.Close(); c.peer.Close() })
	if max(info(t, c.local).Rto, info(t, c.peer).Rto) >= 1_000_000 {
		// The first SYN was lost, on a device just made, and the connection
		// would be slow to notice that the lock is gone.
		return connect(t, at, peerHost, addr, mapped)
	}
	for _, end := range []*net.TCPConn{c.local, c.peer} {
		if err := end.SetDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
	}
	c.Flow = Flow{
		Local:  c.local.LocalAddr().(*net.TCPAddr).AddrPort(),
		Remote: c.local.RemoteAddr().(*net.TCPAddr).AddrPort(),
	}
	if mapped {
		c.Flow.Local = netip.AddrPortFrom(netip.AddrFrom16(c.Flow.Local.Addr().As16()), c.Flow.Local.Port())
		c.Flow.Remote = netip.AddrPortFrom(netip.AddrFrom16(c.Flow.Remote.Addr().As16()), c.Flow.Remote.Port())
	}
	return c
}

// talk sends bytes both ways and waits until both have arrived.
func (c *conn) talk() {
	c.t.Helper()
	for _, way := range []struct{ from, to *net.TCPConn }{{c.local, c.peer}, {c.peer, c.local}} {
		write(c.t, way.from, "fence")
		expect(c.t, way.to, "fence")
	}
}

func write(t testing.TB, to *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, from *net.TCPConn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got[:n], err, text)
	}
}

// control runs f with the socket's file descriptor.
func control(t testing.TB, c *net.TCPConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if err = errors.Join(failed, err); err != nil {
		t.Fatal(err)
	}
}

func info(t testing.TB, c *net.TCPConn) (i *unix.TCPInfo) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		i, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return i
}

const (
	established = 1 // TCP_ESTABLISHED
	closeWait   = 8 // TCP_CLOSE_WAIT
)

// sequence gives the sequence numbers that the socket expects next and sends
// next (rcv_nxt, write_seq).
func sequence(t testing.TB, c *net.TCPConn) (recv, send uint32) {
	t.Helper()
	control(t, c, func(fd int) error {
		if err := sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return err
		}
		for _, q := range []struct {
			queue int
			seq   *uint32
		}{{1, &recv}, {2, &send}} {
			if err := sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
				return err
			}
			v, err := sockopt.GetInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			if err != nil {
				return err
			}
			*q.seq = uint32(v)
		}
		return sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, -1) // off, without a probe
	})
	return recv, send
}

// fromPeer is a segment that the peer's host could send: with the right numbers.
func (c *conn) fromPeer(flags rawfin.Flags) rawfin.Segment {
	c.t.Helper()
	recv, send := sequence(c.t, c.local)
	return rawfin.Segment{Src: c.Remote, Dst: c.Local, Seq: recv, Ack: send, Window: 1000, Flags: flags}
}

// sendRaw sends the segment from the peer's host as it is. Where that host has
// the lock, it may be told EPERM.
func (c *conn) sendRaw(s rawfin.Segment) {
	c.t.Helper()
	packet, err := s.AppendTo(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	hosttest.Do(c.t, c.peerHost, func() error {
		var to unix.Sockaddr
		family := unix.AF_INET
		if dst := s.Dst.Addr().Unmap(); dst.Is4() {
			to = &unix.SockaddrInet4{Addr: dst.As4()}
		} else {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, packet, 0, to); !errors.Is(err, unix.EPERM) {
			return err
		}
		return nil
	})
}

// A tap sees the packets of a host's device.
type tap struct {
	t  testing.TB
	fd int
}

func newTap(t testing.TB, h *host.Host, device string) *tap {
	t.Helper()
	s := &tap{t: t}
	hosttest.Do(t, h, func() error {
		link, err := h.Netlink().LinkByName(device)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
	})
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// seen describes the packets since the last call: TCP segments from one address
// and port to another, and ICMP errors.
func (s *tap) seen(from, to netip.AddrPort) (packets []string) {
	s.t.Helper()
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	buf := make([]byte, 1<<16)
	for {
		n, addr, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return packets
		}
		if err != nil {
			s.t.Fatal(err)
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if addr.(*unix.SockaddrLinklayer).Protocol == bigEndian(unix.ETH_P_IPV6) {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(buf[:n], first, gopacket.Default)
		if p.NetworkLayer() == nil {
			continue // ARP
		}
		ends := p.NetworkLayer().NetworkFlow()
		if tcp, ok := p.TransportLayer().(*layers.TCP); ok &&
			ends.Src().String() == src.String() && tcp.SrcPort == layers.TCPPort(from.Port()) &&
			ends.Dst().String() == dst.String() && tcp.DstPort == layers.TCPPort(to.Port()) {
			packets = append(packets, fmt.Sprintf("%v>%v syn %v fin %v rst %v %d bytes", from, to, tcp.SYN, tcp.FIN, tcp.RST, len(tcp.Payload)))
		}
		if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
			packets = append(packets, icmp.TypeCode.String())
		}
		if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && icmp.TypeCode.Type() < 128 {
			packets = append(packets, icmp.TypeCode.String())
		}
	}
}

// await waits for a message of ICMPv6.
func (s *tap) await(kind uint8) {
	s.t.Helper()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(soon); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			time.Sleep(time.Millisecond)
			continue
		}
		must(s.t, err)
		p := gopacket.NewPacket(buf[:n], layers.LayerTypeIPv6, gopacket.Default)
		if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && icmp.TypeCode.Type() == kind {
			return
		}
	}
	s.t.Errorf("no ICMPv6 message of type %d", kind)
}

// bigEndian is htons(3).
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func newTestLock(t testing.TB, h *host.Host, options ...Option) *Lock {
	t.Helper()
	l, err := New(append(options, WithNetNS(h.FD()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ways are the ways that a connection's packets can take to a locked socket.
var ways = []struct {
	name   string
	mapped bool
	// setup gives the host of the local end, the peer's host, the local address,
	// and where the lock and the tap are to be.
	setup func(t testing.TB) (at, peer *host.Host, addr netip.Addr, lockAt *host.Host, device string)
}{
	{name: "IPv4", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a, b := hosttest.Pair(t)
		return a, b, hosttest.A4, a, "net0"
	}},
	{name: "IPv6", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a, b := hosttest.Pair(t)
		return a, b, hosttest.A6, a, "net0"
	}},
	{name: "mapped", mapped: true, setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a, b := hosttest.Pair(t)
		return a, b, hosttest.A4, a, "net0"
	}},
	{name: "lo, IPv4", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a := hosttest.New(t)
		return a, a, netip.MustParseAddr("127.0.0.1"), a, "lo"
	}},
	{name: "lo, IPv6", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a := hosttest.New(t)
		return a, a, netip.IPv6Loopback(), a, "lo"
	}},
	{name: "one host's own address", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a, _ := hosttest.Pair(t)
		return a, a, hosttest.A4, a, "lo"
	}},
	{name: "router", setup: func(t testing.TB) (*host.Host, *host.Host, netip.Addr, *host.Host, string) {
		a, router, b := routed(t)
		return a, b, inside, router, "out"
	}},
}

// Nothing that the peer sends into a locked flow reaches the socket, nothing is
// answered, nothing leaves; and when the lock is gone all goes on.
func TestNothingPasses(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			at, peer, addr, lockAt, device := way.setup(t)
			c := connect(t, at, peer, addr, way.mapped)
			other := connect(t, at, peer, addr, way.mapped)
			other.talk()
			l := newTestLock(t, lockAt)
			tap := newTap(t, peer, device)
			syn, fin, rst := c.fromPeer(rawfin.SYN), c.fromPeer(rawfin.FIN|rawfin.ACK), c.fromPeer(rawfin.RST)

			must(t, l.LockFlow(c.Local, c.Remote))
			write(t, c.peer, "from the peer")
			write(t, c.local, "to the peer")
			c.sendRaw(syn)
			c.sendRaw(fin)
			c.sendRaw(rst)
			must(t, c.peer.CloseWrite())
			for range 2 { // behind it, on the same devices
				other.talk()
			}
			c.datagram()
			for _, p := range tap.seen(c.Local, c.Remote) {
				t.Errorf("the lock let out %s", p)
			}
			i := info(t, c.local)
			if i.State != established || i.Bytes_received != 0 {
				t.Errorf("the locked socket is in state %d and has received %d bytes", i.State, i.Bytes_received)
			}
			if lockAt == at && (i.Notsent_bytes != uint32(len("to the peer")) || i.Unacked != 0) {
				t.Errorf("%d bytes count as not sent, %d segments as sent", i.Notsent_bytes, i.Unacked)
			}

			must(t, l.UnlockFlow(c.Local, c.Remote))
			expect(t, c.local, "from the peer")
			expect(t, c.peer, "to the peer")
			if n, err := c.local.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes, %v, want EOF", n, err)
			}
			// The same segment, unlocked, is one that the socket heeds.
			c.sendRaw(c.fromPeer(rawfin.RST))
			for end := time.Now().Add(soon); info(t, c.local).State == closeWait && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if s := info(t, c.local).State; s == closeWait {
				t.Error("the unlocked socket did not get a RST")
			}
		})
	}
}

// datagram sends one of UDP between the same addresses and ports: it is no part of
// the flow.
func (c *conn) datagram() {
	c.t.Helper()
	socket := func(h *host.Host, at netip.AddrPort) (u *net.UDPConn) {
		hosttest.Do(c.t, h, func() (err error) {
			u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrOnWire(at)))
			return err
		})
		return u
	}
	from, to := socket(c.peerHost, c.Remote), socket(c.at, c.Local)
	defer from.Close()
	defer to.Close()
	must(c.t, to.SetReadDeadline(time.Now().Add(soon)))
	_, err := from.WriteToUDPAddrPort([]byte("x"), addrOnWire(c.Local))
	must(c.t, err)
	if _, err := to.Read(make([]byte, 1)); err != nil {
		c.t.Errorf("UDP does not pass: %v", err)
	}
}

// Addresses on the two sides of a router.
var (
	inside  = netip.MustParseAddr("10.1.0.2")
	outside = netip.MustParseAddr("10.2.0.2")
	gateway = netip.MustParseAddr("10.2.0.1")
)

// routed makes three hosts: one inside, a router, one outside.
func routed(t testing.TB) (in, router, out *host.Host) {
	t.Helper()
	in, router, out = hosttest.New(t), hosttest.New(t), hosttest.New(t)
	must(t, host.Connect(in, router, "in"))
	must(t, host.Connect(router, out, "out"))
	must(t, in.AddAddr("in", netip.PrefixFrom(inside, 24)))
	must(t, router.AddAddr("in", netip.MustParsePrefix("10.1.0.1/24")))
	must(t, router.AddAddr("out", netip.PrefixFrom(gateway, 24)))
	must(t, out.AddAddr("out", netip.PrefixFrom(outside, 24)))
	must(t, router.Sysctl("net.ipv4.ip_forward", "1"))
	addRoute(t, in, "10.2.0.0/24", "10.1.0.1")
	addRoute(t, out, "10.1.0.0/24", "10.2.0.1")
	return in, router, out
}

func addRoute(t testing.TB, h *host.Host, to, via string) {
	t.Helper()
	prefix := netip.MustParsePrefix(to)
	must(t, h.Netlink().RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
		Gw:  netip.MustParseAddr(via).AsSlice(),
	}))
}
