package diag_test

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

var record = flag.Bool("record", false, "keep the messages of the running kernel in testdata/messages")

// messages are what every kernel must say of the sockets that TestMessages
// makes, whether it runs now or did when its messages were recorded.
var messages = []struct {
	name  string
	local string // which of the sockets it is, and where; without the zone
	state diag.State
	ok    func(s diag.Socket) bool
}{
	{"listen", "[::]:4000", diag.StateListen, func(s diag.Socket) bool {
		return s.Family == diag.IPv6 && s.Remote == netip.MustParseAddrPort("[::]:0") && s.Inode != 0 && !s.Options.V6Only &&
			s.SendQueue == 128 && s.Mark == 0x11 && len(s.MD5) == 1
	}},
	{"ipv4", "10.77.0.1:5000", diag.StateEstablished, func(s diag.Socket) bool {
		return s.Family == diag.IPv4 && s.Remote == netip.MustParseAddrPort("10.77.0.2:4000") && s.Info.SACK && s.Info.RecvScale <= 14 &&
			s.Memory.RecvBuffer > 0 && s.Congestion == "reno" && s.TOS == 0x10 && s.MD5 == nil
	}},
	{"mapped", "[::ffff:10.77.0.2]:4000", diag.StateEstablished, func(s diag.Socket) bool {
		return s.Family == diag.IPv6 && s.Remote == netip.MustParseAddrPort("[::ffff:10.77.0.1]:5000") && s.Mark == 0x11
	}},
	{"signed", "[fd77::2]:4000", diag.StateEstablished, func(s diag.Socket) bool {
		return s.Family == diag.IPv6 && len(s.MD5) == 1 && s.MD5[0].Peers == netip.MustParsePrefix("fd77::1/128") && string(s.MD5[0].Key) == "secret"
	}},
	{"linklocal", "[fe80::a]:5002", diag.StateCloseWait, func(s diag.Socket) bool {
		return s.Remote == netip.AddrPortFrom(netip.MustParseAddr("fe80::b").WithZone(s.Local.Addr().Zone()), 4000) &&
			s.Local.Addr().Zone() == strconv.Itoa(s.Interface) && s.RecvShut && !s.SendShut && s.RecvQueue == 6
	}},
	{"timewait", "10.77.0.1:5003", diag.StateTimeWait, func(s diag.Socket) bool {
		return s.Inode == 0 && s.Info == nil && s.Memory == nil && s.Timer.Kind == diag.TimerTimeWait && s.Timer.Expires > 0
	}},
}

func zoneless(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}

func TestMessages(t *testing.T) {
	a, b := hosttest.Pair(t)
	fe80a, fe80b := netip.MustParseAddr("fe80::a"), netip.MustParseAddr("fe80::b")
	if err := errors.Join(a.AddAddr("net0", netip.PrefixFrom(fe80a, 64)), b.AddAddr("net0", netip.PrefixFrom(fe80b, 64))); err != nil {
		t.Fatal(err)
	}
	l := listen(t, b, "tcp", "[::]:4000", func(fd int) error {
		return errors.Join(sign(hosttest.A6)(fd), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x11))
	})
	mustControl(t, l, func(fd int) error { return unix.Listen(fd, 128) })
	link, err := a.Netlink().LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	from := func(addr netip.Addr, port int, f setup) setup {
		return func(fd int) error {
			var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: addr.As16(), Port: port, ZoneId: uint32(link.Attrs().Index)}
			if addr.Is4() {
				sa = &unix.SockaddrInet4{Addr: addr.As4(), Port: port}
			}
			return errors.Join(unix.Bind(fd, sa), f(fd))
		}
	}
	as := func(int) error { return nil }
	dial(t, a, "10.77.0.2:4000", from(hosttest.A4, 5000, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, 0x10),
			unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"),
		)
	}))
	accept(t, l)
	dial(t, a, "[fd77::2]:4000", from(hosttest.A6, 5001, sign(hosttest.B6)))
	accept(t, l)
	dial(t, a, "[fe80::b%net0]:4000", from(fe80a, 5002, as))
	peer := accept(t, l)
	if _, err := peer.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, peer)
	waiting := dial(t, a, "10.77.0.2:4000", from(hosttest.A4, 5003, as))
	peer = accept(t, l)
	closeWrite(t, waiting)
	mustEOF(t, peer)
	peer.Close()
	mustEOF(t, waiting)

	conns := []*diag.Conn{open(t, a), open(t, b)}
	for _, want := range messages {
		await(t, want.name, func() bool {
			for _, d := range conns {
				all, err := d.Messages(diag.Filter{States: diag.SetOf(want.state), Details: diag.DetailAll})
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range all {
					s, err := diag.Decode(m)
					if err != nil {
						t.Fatal(err)
					}
					if s.State != want.state || zoneless(s.Local) != netip.MustParseAddrPort(want.local) || !want.ok(s) {
						continue
					}
					if *record {
						path := filepath.Join("testdata", "messages", want.name+".bin")
						if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, m, 0o644)); err != nil {
							t.Fatal(err)
						}
					}
					return true
				}
			}
			return false
		})
	}
}

func TestRecordedMessages(t *testing.T) {
	if diag.BigEndian {
		t.Skip("the recorded messages are little-endian")
	}
	for _, want := range messages {
		b, err := os.ReadFile(filepath.Join("testdata", "messages", want.name+".bin"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := diag.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if s.State != want.state || zoneless(s.Local) != netip.MustParseAddrPort(want.local) || !want.ok(s) {
			t.Errorf("%s: %+v", want.name, s)
		}
	}
}
