package diag_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// A flow is a connection as one of the hosts sees it.
type flow struct {
	host          *host.Host
	local, remote netip.AddrPort
}

func flowOf(h *host.Host, c net.Conn) flow { return flow{h, local(c), remote(c)} }

// connectionStates are ways to bring a connection into a state and leave it
// there. Go's sockets have keepalive on.
var connectionStates = []struct {
	state  diag.State
	orphan bool // no process holds the socket
	timer  diag.TimerKind
	make   func(t *testing.T, a, b *host.Host) flow
}{
	{state: diag.StateEstablished, timer: diag.TimerKeepalive, make: func(t *testing.T, a, b *host.Host) flow {
		conn, _ := connect(t, a, b, hosttest.B4)
		return flowOf(a, conn)
	}},
	{state: diag.StateSynSent, timer: diag.TimerRetransmit, make: func(t *testing.T, a, b *host.Host) flow {
		nobody := netip.MustParseAddrPort("10.77.0.99:80")
		f := flow{host: a, remote: nobody}
		hosttest.Do(t, a, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: nobody.Addr().As4(), Port: 80}); err != unix.EINPROGRESS {
				return err
			}
			name, err := unix.Getsockname(fd)
			if err != nil {
				return err
			}
			f.local = netip.AddrPortFrom(hosttest.A4, uint16(name.(*unix.SockaddrInet4).Port))
			return nil
		})
		return f
	}},
	{state: diag.StateSynRecv, orphan: true, timer: diag.TimerRetransmit, make: func(t *testing.T, a, b *host.Host) flow {
		// The handshake does not count until data comes.
		l := listen(t, b, "tcp", netip.AddrPortFrom(hosttest.B4, 0).String(), func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30)
		})
		conn := dial(t, a, l.Addr().String(), nil)
		return flow{b, remote(conn), local(conn)}
	}},
	{state: diag.StateFinWait1, timer: diag.TimerProbe, make: func(t *testing.T, a, b *host.Host) flow {
		conn, _ := connect(t, a, b, hosttest.B4)
		fill(t, conn)
		closeWrite(t, conn)
		return flowOf(a, conn)
	}},
	{state: diag.StateFinWait2, timer: diag.TimerKeepalive, make: func(t *testing.T, a, b *host.Host) flow {
		conn, _ := connect(t, a, b, hosttest.B4)
		closeWrite(t, conn)
		return flowOf(a, conn)
	}},
	{state: diag.StateFinWait2, orphan: true, timer: diag.TimerTimeWait, make: func(t *testing.T, a, b *host.Host) flow {
		conn, _ := connect(t, a, b, hosttest.B4)
		conn.Close()
		return flowOf(a, conn)
	}},
	{state: diag.StateTimeWait, orphan: true, timer: diag.TimerTimeWait, make: func(t *testing.T, a, b *host.Host) flow {
		conn, peer := connect(t, a, b, hosttest.B4)
		closeWrite(t, conn)
		mustEOF(t, peer)
		peer.Close()
		mustEOF(t, conn)
		return flowOf(a, conn)
	}},
	{state: diag.StateCloseWait, timer: diag.TimerKeepalive, make: func(t *testing.T, a, b *host.Host) flow {
		conn, peer := connect(t, a, b, hosttest.B4)
		closeWrite(t, peer)
		return flowOf(a, conn)
	}},
	{state: diag.StateLastAck, timer: diag.TimerProbe, make: func(t *testing.T, a, b *host.Host) flow {
		conn, peer := connect(t, a, b, hosttest.B4)
		closeWrite(t, peer)
		mustEOF(t, conn)
		fill(t, conn)
		closeWrite(t, conn)
		return flowOf(a, conn)
	}},
	{state: diag.StateClosing, timer: diag.TimerProbe, make: func(t *testing.T, a, b *host.Host) flow {
		conn, peer := connect(t, a, b, hosttest.B4)
		fill(t, conn)
		closeWrite(t, conn)
		closeWrite(t, peer)
		return flowOf(a, conn)
	}},
}

func TestConnectionStates(t *testing.T) {
	a, b := hosttest.Pair(t)
	conns := map[*host.Host]*diag.Conn{a: open(t, a), b: open(t, b)}
	for _, c := range connectionStates {
		name := c.state.String()
		if c.orphan {
			name += "-orphan"
		}
		t.Run(name, func(t *testing.T) {
			f := c.make(t, a, b)
			d := conns[f.host]
			var s diag.Socket
			await(t, name, func() bool {
				var err error
				if s, err = d.Lookup(f.local, f.remote); err != nil {
					t.Fatal(err)
				}
				return s.State == c.state && s.Timer.Kind == c.timer
			})
			if s.Local != f.local || s.Remote != f.remote || s.Family != diag.IPv4 || s.Protocol != diag.ProtocolTCP {
				t.Errorf("%+v, want %v->%v", s, f.local, f.remote)
			}
			if s.Cookie == 0 || c.orphan != (s.Inode == 0) {
				t.Errorf("cookie %d, inode %d", s.Cookie, s.Inode)
			}
			if c.timer != diag.TimerNone && s.Timer.Expires <= 0 {
				t.Errorf("timer %+v", s.Timer)
			}
			// A listing tells them apart as well.
			for state := range diag.States(0).All() {
				found := 0
				for _, l := range collect(t, d, diag.Filter{States: diag.SetOf(state), LocalPort: f.local.Port(), RemotePort: f.remote.Port()}) {
					if l.State != state {
						t.Errorf("listing %v has a socket in %v", state, l.State)
					}
					if l.Cookie == s.Cookie {
						found++
					}
				}
				if want := state == c.state; found == 1 != want || found > 1 {
					t.Errorf("found %d times in a listing of %v", found, state)
				}
			}
		})
	}
}

func TestSocketsWithoutConnection(t *testing.T) {
	h := hosttest.New(t)
	d := open(t, h)
	l := listen(t, h, "tcp", "[::1]:0", nil)
	fd := -1
	hosttest.Do(t, h, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 4000})
	})
	defer unix.Close(fd)
	for _, want := range []diag.Socket{
		{State: diag.StateListen, Family: diag.IPv6, Local: l.Addr().(*net.TCPAddr).AddrPort(), Remote: netip.MustParseAddrPort("[::]:0")},
		{State: diag.StateClose, Family: diag.IPv4, Local: netip.MustParseAddrPort("127.0.0.1:4000"), Remote: netip.MustParseAddrPort("0.0.0.0:0")},
	} {
		for _, states := range []diag.States{0, diag.SetOf(want.State)} {
			all := collect(t, d, diag.Filter{States: states, LocalPort: want.Local.Port()})
			if len(all) != 1 {
				t.Fatalf("%v: %+v", want.State, all)
			}
			s := all[0]
			if s.State != want.State || s.Family != want.Family || s.Local != want.Local || s.Remote != want.Remote || s.Inode == 0 {
				t.Errorf("%+v, want %+v", s, want)
			}
		}
		if others := collect(t, d, diag.Filter{States: diag.Connected, LocalPort: want.Local.Port()}); len(others) != 0 {
			t.Errorf("%v is listed as connected: %+v", want.State, others)
		}
	}
}

// A listening socket counts connections where others count bytes.
func TestBacklog(t *testing.T) {
	h := hosttest.New(t)
	d := open(t, h)
	l := listen(t, h, "tcp", "127.0.0.1:0", nil)
	mustControl(t, l, func(fd int) error { return unix.Listen(fd, 7) })
	for range 3 {
		dial(t, h, l.Addr().String(), nil)
	}
	await(t, "three connections in the backlog", func() bool {
		all := collect(t, d, diag.Filter{States: diag.SetOf(diag.StateListen)})
		return len(all) == 1 && all[0].RecvQueue == 3 && all[0].SendQueue == 7
	})
}

// Multipath TCP, which Go's listeners speak unless told otherwise, is TCP
// underneath, and shows.
func TestMultipath(t *testing.T) {
	h := hosttest.New(t)
	if err := h.Sysctl("net.mptcp.enabled", "1"); err != nil {
		t.Skip("no MPTCP: ", err)
	}
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	var l net.Listener
	hosttest.Do(t, h, func() (err error) {
		l, err = config.Listen(context.Background(), "tcp", "127.0.0.1:0")
		return err
	})
	defer l.Close()
	all := collect(t, open(t, h), diag.Filter{Details: diag.DetailInfo})
	if len(all) != 1 || all[0].ULP != "mptcp" {
		t.Errorf("%+v, want one socket with ULP mptcp", all)
	}
}

func TestNames(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:1")
	for _, c := range []struct {
		value fmt.Stringer
		want  string
	}{
		{diag.SetOf(diag.StateCloseWait, diag.StateEstablished), "ESTABLISHED|CLOSE_WAIT"},
		{diag.States(0), "all"},
		{diag.StateSynRecv, "SYN_RECV"},
		{diag.State(0), "State(0)"},
		{diag.State(77), "State(77)"},
		{diag.IPv4, "IPv4"},
		{diag.Family(77), "Family(77)"},
		{diag.TimerProbe, "probe"},
		{diag.TimerKind(77), "TimerKind(77)"},
	} {
		if got := c.value.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	for err, want := range map[error]string{
		&diag.OpError{Op: "lookup", Local: at, Remote: at, Err: diag.ErrNotFound}: "diag: lookup 10.0.0.1:1->10.0.0.1:1: no such socket",
		&diag.OpError{Op: "sockets", Err: diag.ErrInterrupted}:                    "diag: sockets: sockets changed while they were listed",
	} {
		if got := err.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if diag.Connected.Has(diag.StateListen) || !diag.Connected.Has(diag.StateFinWait1) || !diag.States(0).Has(diag.StateListen) {
		t.Error("Has")
	}
}
