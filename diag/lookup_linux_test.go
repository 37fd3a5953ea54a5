package diag_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func TestLookupMapped(t *testing.T) {
	a, b := hosttest.Pair(t)
	l := listen(t, b, "tcp6", "[::]:0", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	})
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	conn := dial(t, a, netip.AddrPortFrom(hosttest.B4, port).String(), nil)
	accept(t, l)
	for _, c := range []struct {
		name          string
		d             *diag.Conn
		local, remote netip.AddrPort
		family        diag.Family
	}{
		{"IPv4 socket", open(t, a), local(conn), remote(conn), diag.IPv4},
		{"IPv6 socket", open(t, b), remote(conn), local(conn), diag.IPv6},
	} {
		want := [2]netip.AddrPort{c.local, c.remote}
		if c.family == diag.IPv6 {
			want = [2]netip.AddrPort{mapped(c.local), mapped(c.remote)}
		}
		for _, ask := range [][2]netip.AddrPort{
			{c.local, c.remote},
			{mapped(c.local), mapped(c.remote)},
			{mapped(c.local), c.remote},
		} {
			s, err := c.d.Lookup(ask[0], ask[1])
			if err != nil {
				t.Fatalf("%s by %v: %v", c.name, ask, err)
			}
			if s.Family != c.family || s.Local != want[0] || s.Remote != want[1] {
				t.Errorf("%s by %v: %v %v->%v", c.name, ask, s.Family, s.Local, s.Remote)
			}
		}
		// The listing that has IPv4 prefixes finds both kinds, too.
		var found []diag.Socket
		for s, err := range c.d.Sockets(diag.Filter{Remote: netip.PrefixFrom(c.remote.Addr(), 32), RemotePort: c.remote.Port()}) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, s)
		}
		if len(found) != 1 || found[0].Family != c.family {
			t.Errorf("%s by prefix: %+v", c.name, found)
		}
	}
}

func TestLookupLinkLocal(t *testing.T) {
	a, b := hosttest.Pair(t)
	addr := netip.MustParseAddr("fe80::b")
	if err := errors.Join(
		a.AddAddr("net0", netip.MustParsePrefix("fe80::a/64")),
		b.AddAddr("net0", netip.PrefixFrom(addr, 64)),
	); err != nil {
		t.Fatal(err)
	}
	link, err := a.Netlink().LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	index := link.Attrs().Index
	l := listen(t, b, "tcp6", "[::]:0", nil)
	conn := dial(t, a, netip.AddrPortFrom(addr.WithZone("net0"), l.Addr().(*net.TCPAddr).AddrPort().Port()).String(), func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("fe80::a").As16(), ZoneId: uint32(index)})
	})
	d := open(t, a)

	local, remote := local(conn), remote(conn)
	// The zones that package net knows depend on the namespace it was asked in.
	zoned := func(a netip.AddrPort, zone string) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().WithZone(zone), a.Port())
	}
	want := [2]netip.AddrPort{zoned(local, "net0"), zoned(remote, "net0")}
	number := strconv.Itoa(index)
	for _, zones := range [][2]string{{"net0", "net0"}, {number, number}, {"net0", ""}, {"", "net0"}} {
		s, err := d.Lookup(zoned(local, zones[0]), zoned(remote, zones[1]))
		if err != nil {
			t.Errorf("zones %q: %v", zones, err)
			continue
		}
		if s.Local != want[0] || s.Remote != want[1] || s.Interface != index {
			t.Errorf("zones %q: %+v", zones, s)
		}
	}
	if _, err := d.Lookup(zoned(local, ""), zoned(remote, "")); !errors.Is(err, diag.ErrNotFound) {
		t.Errorf("without a zone: %v", err)
	}
	if _, err := d.Lookup(zoned(local, "nodevice"), zoned(remote, "nodevice")); !errors.Is(err, unix.ENODEV) {
		t.Errorf("in an unknown zone: %v", err)
	}
	all := collect(t, d, diag.Filter{Interface: index})
	if len(all) != 1 || all[0].Local != want[0] || all[0].Remote != want[1] {
		t.Errorf("listed as %+v", all)
	}
}

// The kernel offers the listening socket when there is no connection.
func TestLookupNeverFindsListener(t *testing.T) {
	h := hosttest.New(t)
	d := open(t, h)
	for _, address := range []string{"127.0.0.1:4000", "[::]:4001", "0.0.0.0:4002"} {
		l := listen(t, h, "tcp", address, nil)
		local := l.Addr().(*net.TCPAddr).AddrPort()
		for _, c := range []struct{ local, remote netip.AddrPort }{
			{local, netip.AddrPortFrom(netip.IPv6Unspecified(), 0)},
			{local, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)},
			{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local.Port()), netip.MustParseAddrPort("127.0.0.1:9")},
			{netip.AddrPortFrom(netip.IPv6Loopback(), local.Port()), netip.MustParseAddrPort("[::1]:9")},
		} {
			if c.local.Addr().Is6() != c.remote.Addr().Is6() {
				continue
			}
			s, err := d.Lookup(c.local, c.remote)
			if !errors.Is(err, diag.ErrNotFound) || s.Cookie != 0 {
				t.Errorf("%s, %v->%v: %+v, %v", address, c.local, c.remote, s, err)
			}
			e, ok := errors.AsType[*diag.OpError](err)
			if !ok || e.Op != "lookup" || e.Local != c.local || e.Remote != c.remote {
				t.Errorf("%#v", err)
			}
		}
	}
}

func TestLookupOfNoConnection(t *testing.T) {
	d := open(t, hosttest.New(t))
	v4, v6 := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[::1]:1")
	for _, c := range []struct {
		local, remote netip.AddrPort
		want          error
	}{
		{v4, v4, diag.ErrNotFound},
		{v6, v6, diag.ErrNotFound},
		{v4, v6, diag.ErrInvalid},
		{netip.AddrPort{}, v4, diag.ErrInvalid},
		{v4, netip.AddrPort{}, diag.ErrInvalid},
	} {
		if _, err := d.Lookup(c.local, c.remote); !errors.Is(err, c.want) {
			t.Errorf("%v->%v: %v, want %v", c.local, c.remote, err, c.want)
		}
	}
}

// sign makes a socket sign its segments to and from a peer.
func sign(peer netip.Addr) setup {
	return func(fd int) error {
		key := unix.TCPMD5Sig{Keylen: 6, Addr: unix.SockaddrStorage{Family: unix.AF_INET6}}
		copy(key.Key[:], "secret")
		copy(key.Addr.Data[6:], peer.AsSlice()) // after the port and the flow label
		return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key)
	}
}

// Lookup tells everything there is to tell.
func TestDetails(t *testing.T) {
	a, b := hosttest.Pair(t)
	l := listen(t, b, "tcp", netip.AddrPortFrom(hosttest.B6, 0).String(), sign(hosttest.A6))
	conn := dial(t, a, l.Addr().String(), func(fd int) error {
		return errors.Join(
			sign(hosttest.B6)(fd),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x1234),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x48),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 50000),
			unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"),
		)
	})
	peer := accept(t, l)
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, conn)
	d := open(t, a)
	var s diag.Socket
	await(t, "the peer's bytes and its ACK of our FIN", func() bool {
		var err error
		if s, err = d.Lookup(local(conn), remote(conn)); err != nil {
			t.Fatal(err)
		}
		return s.RecvQueue == 5 && s.SendQueue == 0 && s.State == diag.StateFinWait2
	})

	if s.RecvShut || !s.SendShut {
		t.Errorf("shut: receiving %v, sending %v", s.RecvShut, s.SendShut)
	}
	if s.Mark != 0x1234 || s.TClass != 0x48 || s.Congestion != "reno" {
		t.Errorf("mark %#x, traffic class %#x, congestion %q", s.Mark, s.TClass, s.Congestion)
	}
	if !s.Options.FreeBind || s.Options.Transparent || s.Options.RecvErr || s.Options.BindAddressNoPort {
		t.Errorf("options %+v", s.Options)
	}
	if len(s.MD5) != 1 || s.MD5[0].Peers != netip.PrefixFrom(hosttest.B6, 128) || string(s.MD5[0].Key) != "secret" {
		t.Errorf("MD5 keys %+v", s.MD5)
	}
	if s.Memory == nil || s.Memory.RecvBuffer != 100000 || s.Memory.RecvAlloc < 5 || s.Memory.SendBuffer == 0 {
		t.Errorf("memory %+v", s.Memory)
	}
	i := s.Info
	if i == nil {
		t.Fatal("no info")
	}
	if i.BytesReceived != 5 || i.BytesAcked != 2 || i.RTT <= 0 || i.SendMSS < 536 || !i.SACK || len(i.Raw) < 104 {
		t.Errorf("info %+v", i)
	}
	if i.Raw[0] != byte(diag.StateFinWait2) {
		t.Errorf("raw info says state %d", i.Raw[0])
	}
	var cookie uint64
	var inode unix.Stat_t
	mustControl(t, conn, func(fd int) (err error) {
		if cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
			return err
		}
		return unix.Fstat(fd, &inode)
	})
	if s.Cookie != cookie || uint64(s.Inode) != inode.Ino {
		t.Errorf("cookie %d, inode %d, want %d and %d", s.Cookie, s.Inode, cookie, inode.Ino)
	}

	// A listing tells what it was asked for, and no more.
	for _, c := range []struct {
		details diag.Details
		ok      func(s diag.Socket) bool
	}{
		{0, func(s diag.Socket) bool {
			return s.Memory == nil && s.Info == nil && s.MD5 == nil && s.Congestion == "" && s.TClass == 0
		}},
		{diag.DetailMemory, func(s diag.Socket) bool { return s.Memory != nil && s.Info == nil && s.Congestion == "" }},
		{diag.DetailInfo, func(s diag.Socket) bool { return s.Info != nil && len(s.MD5) == 1 && s.Memory == nil }},
		{diag.DetailCongestion, func(s diag.Socket) bool { return s.Congestion == "reno" && s.Info == nil && s.Memory == nil }},
		{diag.DetailTOS, func(s diag.Socket) bool { return s.TClass == 0x48 && s.Congestion == "" && s.Info == nil }},
		{diag.DetailAll, func(s diag.Socket) bool {
			return s.TClass == 0x48 && s.Congestion == "reno" && s.Info != nil && s.Memory != nil
		}},
	} {
		all := collect(t, d, diag.Filter{Details: c.details})
		if len(all) != 1 || !c.ok(all[0]) || all[0].Mark != 0x1234 || !all[0].Options.FreeBind {
			t.Errorf("details %#x: %+v", c.details, all)
		}
	}
}

// A socket with more keys than a batch of a listing has room for is listed whole,
// and the others too.
func TestManyMD5Keys(t *testing.T) {
	const n = 500
	h := hosttest.New(t)
	listen(t, h, "tcp", "[::1]:4000", func(fd int) error {
		for i := range n {
			peer := netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
			if err := sign(peer)(fd); err != nil {
				return fmt.Errorf("key %d: %w", i, err)
			}
		}
		return nil
	})
	l := listen(t, h, "tcp", "[::1]:4001", sign(netip.IPv6Loopback()))
	dial(t, h, l.Addr().String(), sign(netip.IPv6Loopback()))
	want := map[diag.State]int{diag.StateListen: n + 1, diag.StateEstablished: 2}
	for _, states := range []diag.States{0, diag.SetOf(diag.StateListen), diag.Connected} {
		keys := make(map[diag.State]int)
		for _, s := range collect(t, open(t, h), diag.Filter{States: states, Details: diag.DetailInfo}) {
			keys[s.State] += len(s.MD5)
			if s.Info == nil {
				t.Errorf("no info on %+v", s)
			}
		}
		for state, n := range want {
			if states.Has(state) && keys[state] != n {
				t.Errorf("listing of %v: %d keys in %v, want %d", states, keys[state], state, n)
			}
		}
	}
}

// Of listening sockets on the same port, the kernel shows one when asked for it.
func TestDetailsOfSharedPort(t *testing.T) {
	h := hosttest.New(t)
	for range 4 {
		listen(t, h, "tcp", "127.0.0.1:4000", func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
	}
	cookies := make(map[uint64]bool)
	detailed := 0
	for _, s := range collect(t, open(t, h), diag.Filter{Details: diag.DetailAll}) {
		cookies[s.Cookie] = true
		if s.Info != nil {
			detailed++
		}
	}
	if len(cookies) != 4 || detailed == 0 {
		t.Errorf("%d sockets, %d of them with details", len(cookies), detailed)
	}
}
