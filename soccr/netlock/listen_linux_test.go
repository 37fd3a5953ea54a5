package netlock

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// dial connects to a listener; it gives up soon where none is expected.
func dial(h *host.Host, to netip.AddrPort, patience time.Duration) (c *net.TCPConn, err error) {
	err = h.Do(func() error {
		conn, err := net.DialTimeout("tcp", to.String(), patience)
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

func listen(t testing.TB, h *host.Host, addr string) (l net.Listener) {
	t.Helper()
	hosttest.Do(t, h, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// A locked listener gets no new connection, neither over the wire nor over lo, and
// nobody else is affected: neither other addresses and ports, nor what is
// established.
func TestListener(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	listener := listen(t, a, "[::]:0")
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	at := func(addr netip.Addr) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
	four, six := at(hosttest.A4), at(hosttest.A6)
	lo4, lo6 := at(netip.MustParseAddr("127.0.0.1")), at(netip.IPv6Loopback())

	l := newTestLock(t, a)
	peer, err := dial(b, four, soon)
	must(t, err)
	defer peer.Close()
	accepted, err := listener.Accept()
	must(t, err)
	defer accepted.Close()

	for _, c := range []struct {
		lock         netip.AddrPort
		locked, free []netip.AddrPort
	}{
		{four, []netip.AddrPort{four}, []netip.AddrPort{six, lo4, lo6}},
		{at(netip.MustParseAddr("::ffff:10.77.0.1")), []netip.AddrPort{four}, []netip.AddrPort{six, lo4}},
		{six, []netip.AddrPort{six}, []netip.AddrPort{four, lo6}},
		{lo6, []netip.AddrPort{lo6}, []netip.AddrPort{six}},
		{at(netip.IPv4Unspecified()), []netip.AddrPort{four, lo4}, []netip.AddrPort{six, lo6}},
		{at(netip.IPv6Unspecified()), []netip.AddrPort{six, lo6}, []netip.AddrPort{four, lo4}},
		{netip.AddrPortFrom(netip.IPv4Unspecified(), port+1), nil, []netip.AddrPort{four}},
	} {
		from := func(to netip.AddrPort) *host.Host {
			if to.Addr().IsLoopback() {
				return a
			}
			return b
		}
		must(t, l.UnlockListener(c.lock)) // not locked: nothing to do
		must(t, l.LockListener(c.lock))
		must(t, l.LockListener(c.lock))
		for _, to := range c.locked {
			_, err := dial(from(to), to, 50*time.Millisecond)
			timeout, ok := errors.AsType[net.Error](err)
			if !ok || !timeout.Timeout() {
				t.Errorf("%v is locked, dial %v: %v; want silence", c.lock, to, err)
			}
		}
		for _, to := range c.free {
			conn, err := dial(from(to), to, soon)
			if err != nil {
				t.Errorf("%v is locked, dial %v: %v", c.lock, to, err)
				continue
			}
			conn.Close()
		}
		write(t, peer, "still here")
		expect(t, accepted.(*net.TCPConn), "still here")
		must(t, l.UnlockListener(c.lock))
		for _, to := range c.locked {
			conn, err := dial(from(to), to, soon)
			must(t, err)
			conn.Close()
		}
	}
	// What answers a connect from there is no new connection.
	client := netip.AddrPortFrom(hosttest.A4, port+1)
	must(t, l.LockListener(client))
	at4 := listen(t, b, netip.AddrPortFrom(hosttest.B4, 0).String()).Addr().String()
	hosttest.Do(t, a, func() error {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(client), Timeout: soon}
		conn, err := dialer.Dial("tcp", at4)
		if err == nil {
			conn.Close()
		}
		return err
	})
	must(t, l.LockListener(four))
	must(t, l.Close())
	conn, err := dial(b, four, soon)
	must(t, err)
	conn.Close()
	if err := l.LockListener(four); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A client whose SYN was dropped tries again, and gets its connection when the
// listener is unlocked.
func TestListenerUnlocked(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	listener := listen(t, a, netip.AddrPortFrom(hosttest.A4, 0).String())
	addr := listener.Addr().(*net.TCPAddr).AddrPort()
	l := newTestLock(t, a)
	must(t, l.LockListener(addr))
	dialed := make(chan error)
	go func() {
		c, err := dial(b, addr, soon)
		if err == nil {
			c.Close()
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatalf("a locked listener was reached: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	must(t, l.UnlockListener(addr))
	must(t, <-dialed)
}

func TestListenerIsInvalid(t *testing.T) {
	a := hosttest.New(t)
	l := newTestLock(t, a)
	for _, addr := range []netip.AddrPort{{}, netip.MustParseAddrPort("10.77.0.1:0"), netip.AddrPortFrom(netip.Addr{}, 80)} {
		if err := l.LockListener(addr); !errors.Is(err, ErrInvalidFlow) {
			t.Errorf("%v: %v", addr, err)
		}
	}
	whole, err := Namespace(WithNetNS(a.FD()))
	must(t, err)
	defer whole.Close()
	must(t, whole.LockListener(netip.MustParseAddrPort("10.77.0.1:80")))
	must(t, whole.UnlockListener(netip.MustParseAddrPort("10.77.0.1:80")))
}
