package rawfin_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/rawfin"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

// patience is how long a test waits for what takes microseconds.
const patience = 5 * time.Second

// open opens an Injector on a host.
func open(t *testing.T, h *host.Host, opts ...rawfin.Option) *rawfin.Injector {
	t.Helper()
	var i *rawfin.Injector
	hosttest.Do(t, h, func() (err error) {
		i, err = rawfin.Open(opts...)
		return err
	})
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// connect makes a connection from a to an address of b, and returns b's end
// after a's.
func connect(t *testing.T, a, b *host.Host, from, to netip.Addr, network string) (peer, local *net.TCPConn) {
	t.Helper()
	listen := netip.AddrPortFrom(to, 0)
	if network == "mapped" { // a dual-stack socket, which IPv4 reaches too
		listen = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	var listener net.Listener
	hosttest.Do(t, b, func() (err error) {
		listener, err = net.Listen("tcp", listen.String())
		return err
	})
	defer listener.Close()
	dialer := net.Dialer{Timeout: patience}
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	hosttest.Do(t, a, func() error {
		conn, err := dialer.Dial("tcp", netip.AddrPortFrom(to, port).String())
		if err == nil {
			peer = conn.(*net.TCPConn)
		}
		return err
	})
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	local = conn.(*net.TCPConn)
	t.Cleanup(func() {
		peer.Close()
		local.Close()
	})
	return peer, local
}

// onFD runs f on the descriptor of a connection.
func onFD(t *testing.T, c *net.TCPConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func info(t *testing.T, c *net.TCPConn) (i tcpinfo.Info) {
	t.Helper()
	onFD(t, c, func(fd int) (err error) {
		i, err = tcpinfo.Get(fd)
		return err
	})
	return i
}

// The queues of TCP_REPAIR_QUEUE.
const recvQueue, sendQueue = 1, 2

// fromPeer is the segment that the peer of a connection would send now, and
// that leaves the window it offers as it is.
func fromPeer(t *testing.T, c *net.TCPConn, flags rawfin.Flags) rawfin.Segment {
	t.Helper()
	s := rawfin.Segment{
		Src:   c.RemoteAddr().(*net.TCPAddr).AddrPort(),
		Dst:   c.LocalAddr().(*net.TCPAddr).AddrPort(),
		Flags: flags,
	}
	i := info(t, c)
	s.Window = uint16(i.Snd_wnd >> i.SndWscale)
	onFD(t, c, func(fd int) error {
		set := func(option, value int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value) }
		get := func(to *uint32) error {
			v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
			*to = uint32(v)
			return err
		}
		return errors.Join(
			set(unix.TCP_REPAIR, unix.TCP_REPAIR_ON),
			set(unix.TCP_REPAIR_QUEUE, recvQueue), get(&s.Seq),
			set(unix.TCP_REPAIR_QUEUE, sendQueue), get(&s.Ack),
			set(unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP),
		)
	})
	return s
}

// shutdown sends a FIN as repair mode does: it counts as sent and is not. One
// that a packet filter dropped does not count, and cannot be acknowledged.
func shutdown(t *testing.T, c *net.TCPConn) {
	t.Helper()
	onFD(t, c, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, sendQueue),
			unix.Shutdown(fd, unix.SHUT_WR),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP),
		)
	})
}

// waitState waits until a socket is in a state.
func waitState(t *testing.T, c *net.TCPConn, want uint8) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got := info(t, c).State
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("socket is in state %d, want %d", got, want)
		}
	}
}

// linkLocal is the link-local address of a host's net0, zoned by index: names
// mean something in one network namespace only. The kernel makes the address
// when the device comes up, and usable a little later (addrconf_dad_work).
func linkLocal(t *testing.T, h *host.Host) netip.Addr {
	t.Helper()
	link, err := h.Netlink().LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		addrs, err := h.Netlink().AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			addr, _ := netip.AddrFromSlice(a.IP)
			if addr.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return addr.WithZone(strconv.Itoa(link.Attrs().Index))
			}
		}
	}
	t.Fatal("net0 has no usable link-local address")
	return netip.Addr{}
}

// A FIN from the peer that the peer did not send: the local socket reads to the
// end and is in CLOSE_WAIT, the window that the peer offers is as it was, and
// what leaves the host is the socket's own acknowledgement.
func TestInject(t *testing.T) {
	a, b := hosttest.Pair(t)
	for _, name := range []string{"all", "net0", "lo"} {
		if err := b.Sysctl("net.ipv4.conf."+name+".rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	injector := open(t, b)
	llA, llB := linkLocal(t, a), linkLocal(t, b)
	none := func(int) error { return nil }
	zone := func(src, dst string) func(*rawfin.Segment) {
		return func(s *rawfin.Segment) {
			s.Src = netip.AddrPortFrom(s.Src.Addr().WithZone(src), s.Src.Port())
			s.Dst = netip.AddrPortFrom(s.Dst.Addr().WithZone(dst), s.Dst.Port())
		}
	}
	asIs := func(*rawfin.Segment) {}
	for _, test := range []struct {
		name     string
		from, to netip.Addr
		network  string
		prepare  func(fd int) error
		adapt    func(*rawfin.Segment)
	}{
		{"IPv4", netip.Addr{}, hosttest.B4, "", none, asIs},
		{"IPv6", netip.Addr{}, hosttest.B6, "", none, asIs},
		{"IPv4-mapped", netip.Addr{}, hosttest.B4, "mapped", none, func(s *rawfin.Segment) {
			if !s.Src.Addr().Is4In6() || !s.Dst.Addr().Is4In6() {
				t.Errorf("%v is not IPv4-mapped", s)
			}
		}},
		{"link-local, zone by name", netip.Addr{}, llB.WithZone(llA.Zone()), "", none, zone("net0", "net0")},
		{"link-local, zone by index", netip.Addr{}, llB.WithZone(llA.Zone()), "", none, zone(llB.Zone(), llB.Zone())},
		{"link-local, zone of the peer only", netip.Addr{}, llB.WithZone(llA.Zone()), "", none, zone("net0", "")},
		{"link-local peer of a global address", llA, hosttest.B6, "", none, asIs},
		{"IPv4, bound to a device", netip.Addr{}, hosttest.B4, "", func(fd int) error { return unix.BindToDevice(fd, "net0") }, asIs},
		{"IPv6, bound to a device", netip.Addr{}, hosttest.B6, "", func(fd int) error { return unix.BindToDevice(fd, "net0") }, asIs},
		{"IPv4, TTL security", netip.Addr{}, hosttest.B4, "", func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, 255)
		}, asIs},
		{"IPv6, TTL security", netip.Addr{}, hosttest.B6, "", func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, 255)
		}, asIs},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, local := connect(t, a, b, test.from, test.to, test.network)
			onFD(t, local, test.prepare)
			before := info(t, local)
			if before.SndWscale == 0 {
				t.Error("the connection has no window scale to get wrong")
			}
			s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
			test.adapt(&s)

			wire := capture(t, a)
			if err := injector.Inject(s); err != nil {
				t.Fatal(err)
			}
			local.SetReadDeadline(time.Now().Add(patience))
			if n, err := local.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes, %v, want EOF", n, err)
			}
			after := info(t, local)
			if after.State != unix.BPF_TCP_CLOSE_WAIT {
				t.Errorf("socket is in state %d, want CLOSE_WAIT", after.State)
			}
			// What the header cannot say is rounded off.
			if want := before.Snd_wnd >> before.SndWscale << before.SndWscale; after.Snd_wnd != want {
				t.Errorf("the peer's window went from %d to %d, want %d", before.Snd_wnd, after.Snd_wnd, want)
			}
			wire.wantNone(t, s, func(l gopacket.TransportLayer) bool {
				tcp, ok := l.(*layers.TCP)
				return ok && uint16(tcp.SrcPort) == s.Dst.Port() && tcp.Ack == s.Seq+1
			})
		})
	}
}

// One link-local address can be on several devices, and is local on those only.
func TestZonesAreKeptApart(t *testing.T) {
	a, b := hosttest.Pair(t)
	if err := host.Connect(a, b, "net1"); err != nil {
		t.Fatal(err)
	}
	twin, single := netip.MustParseAddr("fe80::b:b"), netip.MustParseAddr("fe80::b:1")
	for device, addrs := range map[string][]netip.Addr{"net0": {twin}, "net1": {twin, single}} {
		for _, addr := range addrs {
			if err := b.AddAddr(device, netip.PrefixFrom(addr, 64)); err != nil {
				t.Fatal(err)
			}
		}
	}
	i := open(t, b)
	for _, device := range []string{"net0", "net1"} {
		// package net caches the names of devices without regard to namespaces.
		var index int
		hosttest.Do(t, a, func() error {
			link, err := net.InterfaceByName(device)
			if err == nil {
				index = link.Index
			}
			return err
		})
		_, local := connect(t, a, b, netip.Addr{}, twin.WithZone(strconv.Itoa(index)), "")
		s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
		s.Src = netip.AddrPortFrom(s.Src.Addr().WithZone(device), s.Src.Port())
		s.Dst = netip.AddrPortFrom(s.Dst.Addr().WithZone(device), s.Dst.Port())
		if err := i.Inject(s); err != nil {
			t.Fatal(err)
		}
		waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
	}
	s := segment(netip.MustParseAddrPort("[fe80::1%net0]:1"), netip.AddrPortFrom(single.WithZone("net0"), 2), rawfin.ACK)
	if err := i.Inject(s); err == nil {
		t.Error("the address passed for local on a device that does not have it")
	} else if _, ok := errors.AsType[*rawfin.SegmentError](err); !ok {
		t.Errorf("got %v, want a SegmentError", err)
	}
}

// A tap sees what arrives at the device of a host.
type tap struct{ fd int }

func capture(t *testing.T, h *host.Host) tap {
	t.Helper()
	var c tap
	hosttest.Do(t, h, func() error {
		link, err := h.Netlink().LinkByName("net0")
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		return errors.Join(
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}),
		)
	})
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

// wantNone reads up to a packet that was sent after the segment was injected:
// had the segment left the host, it would have come before.
func (c tap) wantNone(t *testing.T, s rawfin.Segment, last func(gopacket.TransportLayer) bool) {
	t.Helper()
	frame := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(c.fd, frame, 0)
		if err != nil {
			t.Fatalf("waiting for the last packet: %v", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		packet := gopacket.NewPacket(frame[:n], layers.LayerTypeEthernet, gopacket.Default)
		transport := packet.TransportLayer()
		if transport == nil {
			continue
		}
		if tcp, ok := transport.(*layers.TCP); ok && (uint16(tcp.SrcPort) == s.Src.Port() || tcp.RST) {
			t.Errorf("the host sent %v", packet)
		}
		if last(transport) {
			return
		}
	}
}

// firewall drops all that a host sends, except packets with one of the marks.
func firewall(t *testing.T, h *host.Host, exempt ...uint32) {
	t.Helper()
	marked(t, h, nftables.ChainHookOutput, nftables.ChainPolicyDrop, expr.VerdictAccept, exempt...)
}

// dropInput drops what comes to a host with one of the marks.
func dropInput(t *testing.T, h *host.Host, marks ...uint32) {
	t.Helper()
	marked(t, h, nftables.ChainHookInput, nftables.ChainPolicyAccept, expr.VerdictDrop, marks...)
}

// marked is a firewall with a verdict on packets with one of the marks, and a
// policy for all others.
func marked(t *testing.T, h *host.Host, hook *nftables.ChainHook, policy nftables.ChainPolicy, verdict expr.VerdictKind, marks ...uint32) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewall"})
	chain := c.AddChain(&nftables.Chain{
		Name: "base", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	for _, mark := range marks {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, mark)},
			&expr.Verdict{Kind: verdict},
		}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
}

// Every state that the package's documentation tells the way to, with the peer
// kept from having a say in it.
func TestStates(t *testing.T) {
	a, b := hosttest.Pair(t)
	injector := open(t, b)
	for _, test := range []struct {
		name  string
		steps []string
		want  uint8
	}{
		{"CLOSE_WAIT", []string{"FIN"}, unix.BPF_TCP_CLOSE_WAIT},
		{"FIN_WAIT2", []string{"shutdown", "ACK of our FIN"}, unix.BPF_TCP_FIN_WAIT2},
		{"CLOSING", []string{"shutdown", "FIN"}, unix.BPF_TCP_CLOSING},
		{"LAST_ACK", []string{"FIN", "shutdown"}, unix.BPF_TCP_LAST_ACK},
	} {
		for _, addr := range []netip.Addr{hosttest.B4, hosttest.B6} {
			t.Run(test.name+" "+addr.String(), func(t *testing.T) {
				_, local := connect(t, a, b, netip.Addr{}, addr, "")
				firewall(t, b, rawfin.DefaultMark)
				fin := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
				for _, step := range test.steps {
					s := fin
					switch step {
					case "shutdown":
						shutdown(t, local)
						continue
					case "ACK of our FIN":
						s.Flags = rawfin.ACK
						s.Ack++
					}
					if err := injector.Inject(s); err != nil {
						t.Fatal(err)
					}
				}
				waitState(t, local, test.want)
			})
		}
	}
}

func TestDroppedByFirewall(t *testing.T) {
	a, b := hosttest.Pair(t)
	for _, addr := range []netip.Addr{hosttest.B4, hosttest.B6} {
		t.Run(addr.String(), func(t *testing.T) {
			_, local := connect(t, a, b, netip.Addr{}, addr, "")
			firewall(t, b, 0x2a)
			s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
			for _, test := range []struct {
				opts []rawfin.Option
				mark uint32
			}{
				{nil, rawfin.DefaultMark},
				{[]rawfin.Option{rawfin.WithMark(0x2b)}, 0x2b},
				{[]rawfin.Option{rawfin.WithMark(0)}, 0},
			} {
				err := open(t, b, test.opts...).Inject(s)
				dropped, ok := errors.AsType[*rawfin.DroppedError](err)
				if !ok || !errors.Is(err, unix.EPERM) {
					t.Fatalf("mark %#x: got %v, want a DroppedError with EPERM", test.mark, err)
				}
				if dropped.Mark != test.mark || dropped.Segment != s {
					t.Errorf("error is about mark %#x, %v", dropped.Mark, dropped.Segment)
				}
				if !strings.Contains(err.Error(), fmt.Sprintf("%#x", test.mark)) {
					t.Errorf("%q does not name the mark", err)
				}
				if _, ok := errors.AsType[*rawfin.PermissionError](err); ok {
					t.Error("taken for a lack of rights")
				}
			}
			if state := info(t, local).State; state != unix.BPF_TCP_ESTABLISHED {
				t.Errorf("socket is in state %d, want ESTABLISHED", state)
			}
			if err := open(t, b, rawfin.WithMark(0x2a)).Inject(s); err != nil {
				t.Errorf("with the mark that the firewall accepts: %v", err)
			}
			waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
		})
	}
}

// From outside the namespace, with a zone whose name exists only inside; and
// then no thread of the process is left inside.
func TestWithNetNS(t *testing.T) {
	a, b := hosttest.Pair(t)
	i, err := rawfin.Open(rawfin.WithNetNS(b.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	wantNoThreadIn(t, b)
	_, local := connect(t, a, b, netip.Addr{}, linkLocal(t, b), "")
	s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
	s.Src = netip.AddrPortFrom(s.Src.Addr().WithZone("net0"), s.Src.Port())
	s.Dst = netip.AddrPortFrom(s.Dst.Addr().WithZone("net0"), s.Dst.Port())
	if err := i.Inject(s); err != nil {
		t.Fatal(err)
	}
	waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
}

// wantNoThreadIn allows threads that are just ending, as those of host.Do do.
func wantNoThreadIn(t *testing.T, h *host.Host) {
	t.Helper()
	var ns unix.Stat_t
	if err := unix.Fstat(h.FD(), &ns); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		inside := 0
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil || len(tasks) == 0 {
			t.Fatalf("found %d threads: %v", len(tasks), err)
		}
		for _, task := range tasks {
			var st unix.Stat_t
			if unix.Stat(task, &st) == nil && st.Ino == ns.Ino {
				inside++
			}
		}
		if inside == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are left in the network namespace", inside)
		}
	}
}

func TestWithNetNSFails(t *testing.T) {
	hosttest.Need(t)
	noNamespace, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer noNamespace.Close()
	for fd, want := range map[int]error{-1: unix.EBADF, int(noNamespace.Fd()): unix.EINVAL} {
		i, err := rawfin.Open(rawfin.WithNetNS(fd))
		if !errors.Is(err, want) || i != nil {
			t.Errorf("descriptor %d: got %v, %v, want %v", fd, i, err, want)
		}
	}
}

func TestOpenWithoutRights(t *testing.T) {
	hosttest.Need(t)
	before := descriptors(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, with what it lacks
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		data[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err = errors.Join(err, unix.Capset(&header, &data[0])); err == nil {
			_, err = rawfin.Open()
		}
		done <- err
	}()
	err := <-done
	if denied, ok := errors.AsType[*rawfin.PermissionError](err); !ok || denied.Call != "socket" || !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want a PermissionError of socket", err)
	}
	if _, ok := errors.AsType[*rawfin.DroppedError](err); ok {
		t.Error("taken for a firewall")
	}
	if !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Errorf("%q does not say what is missing", err)
	}
	if after := descriptors(t); len(after) != len(before) {
		t.Errorf("descriptors %v before, %v after", before, after)
	}
}

// A segment for somebody else must not be sent to them.
func TestDestinationIsNotLocal(t *testing.T) {
	a, b := hosttest.Pair(t)
	i := open(t, b)
	for name, s := range map[string]rawfin.Segment{
		"IPv4":       segment(netip.AddrPortFrom(hosttest.B4, 1), netip.AddrPortFrom(hosttest.A4, 2), rawfin.ACK),
		"IPv6":       segment(netip.AddrPortFrom(hosttest.B6, 1), netip.AddrPortFrom(hosttest.A6, 2), rawfin.ACK),
		"link-local": segment(netip.AddrPortFrom(linkLocal(t, b), 1), netip.AddrPortFrom(linkLocal(t, a), 2), rawfin.ACK),
		"subnet":     segment(netip.AddrPortFrom(hosttest.A4, 1), netip.MustParseAddrPort("10.77.0.255:2"), rawfin.ACK),
		"no zone": segment(netip.AddrPortFrom(linkLocal(t, a).WithZone(""), 1),
			netip.AddrPortFrom(linkLocal(t, b).WithZone(""), 2), rawfin.ACK),
		"no such device": segment(netip.AddrPortFrom(linkLocal(t, a).WithZone("nosuch"), 1),
			netip.AddrPortFrom(linkLocal(t, b).WithZone("nosuch"), 2), rawfin.ACK),
		"long zone": segment(netip.AddrPortFrom(linkLocal(t, a).WithZone("a-zone-longer-than-any-device"), 1),
			netip.AddrPortFrom(linkLocal(t, b).WithZone(""), 2), rawfin.ACK),
	} {
		t.Run(name, func(t *testing.T) {
			wire := capture(t, a)
			err := i.Inject(s)
			if invalid, ok := errors.AsType[*rawfin.SegmentError](err); !ok || invalid.Segment != s {
				t.Errorf("got %v, want a SegmentError", err)
			}
			hosttest.Do(t, b, func() error { return knock(hosttest.A4) })
			wire.wantNone(t, s, func(l gopacket.TransportLayer) bool { return l.LayerType() == layers.LayerTypeUDP })
		})
	}
	t.Run("no route", func(t *testing.T) {
		for _, s := range []rawfin.Segment{
			segment(netip.AddrPortFrom(hosttest.A4, 1), netip.MustParseAddrPort("203.0.113.1:2"), rawfin.ACK),
			segment(netip.AddrPortFrom(hosttest.A6, 1), netip.MustParseAddrPort("[2001:db8::1]:2"), rawfin.ACK),
		} {
			if err := i.Inject(s); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("got %v, want ENETUNREACH", err)
			}
		}
	})
}

// knock sends a UDP packet.
func knock(to netip.Addr) error {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("knock"))
	return errors.Join(err, c.Close())
}

// An address routed to this host is this host's, whether a device has it or
// not, and whether all packets see it or those with the mark alone.
func TestDestinationIsRoutedHere(t *testing.T) {
	_, b := hosttest.Pair(t)
	anycast := netip.MustParseAddr("192.0.2.1")
	lo, err := b.Netlink().LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	const table, mark = 100, 0x2a
	rule := netlink.NewRule()
	rule.Mark, rule.Table = mark, table
	if err := errors.Join(b.Netlink().RuleAdd(rule), b.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: netlink.NewIPNet(anycast.AsSlice()),
		Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: table,
	})); err != nil {
		t.Fatal(err)
	}
	s := segment(netip.AddrPortFrom(hosttest.A4, 1), netip.AddrPortFrom(anycast, 2), rawfin.ACK)
	if err := open(t, b, rawfin.WithMark(mark)).Inject(s); err != nil {
		t.Errorf("with the mark of the rule: %v", err)
	}
	if err := open(t, b).Inject(s); err == nil {
		t.Error("without the mark of the rule the address passed for local")
	}
}

// Segments from many goroutines at once, while the Injector is closed under
// them: each is delivered or refused, and the connection lives on.
func TestConcurrentUse(t *testing.T) {
	a, b := hosttest.Pair(t)
	peer, local := connect(t, a, b, netip.Addr{}, hosttest.B6, "")
	s := fromPeer(t, local, rawfin.ACK)
	i := open(t, b)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for range 100 {
				if err := i.Inject(s); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
					return
				}
			}
			if n == 0 {
				if err := i.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := i.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := i.Inject(s); !errors.Is(err, net.ErrClosed) {
		t.Errorf("injected after Close: %v", err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	local.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(local, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestDescriptors(t *testing.T) {
	hosttest.Need(t)
	before := descriptors(t)
	i, err := rawfin.Open()
	if err != nil {
		t.Fatal(err)
	}
	for fd := range descriptors(t) {
		if before[fd] {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is inherited: %#x, %v", fd, flags, err)
		}
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); len(after) != len(before) {
		t.Errorf("descriptors %v before, %v after", before, after)
	}
}

// Open fails at each of its sockets in turn, and leaves none behind.
func TestOpenRunsOutOfDescriptors(t *testing.T) {
	hosttest.Need(t)
	before := descriptors(t)
	var free []int
	for fd := range 256 {
		if !before[fd] {
			free = append(free, fd)
		}
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free[n]), Max: limit.Max}, nil)
		i, openErr := rawfin.Open()
		if err = errors.Join(err, unix.Prlimit(0, unix.RLIMIT_NOFILE, &limit, nil)); err != nil {
			t.Fatal(err)
		}
		if openErr == nil {
			if n == 0 {
				t.Error("Open needed no descriptor")
			}
			openErr = i.Close()
		} else if !errors.Is(openErr, unix.EMFILE) || i != nil {
			t.Errorf("with %d descriptors: %v, %v", n, i, openErr)
		}
		if after := descriptors(t); len(after) != len(before) {
			t.Errorf("with %d descriptors: %v before, %v after", n, before, after)
		}
		if !errors.Is(openErr, unix.EMFILE) {
			return
		}
	}
}

func descriptors(t *testing.T) map[int]bool {
	t.Helper()
	open := make(map[int]bool)
	for fd := range 256 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, syscall.EBADF) {
			open[fd] = true
		}
	}
	return open
}

func BenchmarkInject(b *testing.B) {
	hosttest.Need(b)
	h := hosttest.New(b)
	var listener net.Listener
	var conn net.Conn
	hosttest.Do(b, h, func() (err error) {
		if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		conn, err = net.Dial("tcp", listener.Addr().String())
		return err
	})
	defer listener.Close()
	defer conn.Close()
	var i *rawfin.Injector
	hosttest.Do(b, h, func() (err error) { i, err = rawfin.Open(); return err })
	defer i.Close()
	s := rawfin.Segment{
		Src:   conn.RemoteAddr().(*net.TCPAddr).AddrPort(),
		Dst:   conn.LocalAddr().(*net.TCPAddr).AddrPort(),
		Flags: rawfin.ACK,
	}
	for b.Loop() {
		if err := i.Inject(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	hosttest.Need(b)
	for b.Loop() {
		i, err := rawfin.Open()
		if err != nil {
			b.Fatal(err)
		}
		if err := i.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
