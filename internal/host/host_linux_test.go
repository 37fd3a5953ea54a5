package host_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

func TestPairTalks(t *testing.T) {
	a, b := hosttest.Pair(t)
	for _, addr := range []netip.Addr{hosttest.B4, hosttest.B6} {
		var (
			listener net.Listener
			conn     net.Conn
		)
		hosttest.Do(t, b, func() (err error) {
			listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
			return err
		})
		hosttest.Do(t, a, func() (err error) {
			conn, err = net.Dial("tcp", listener.Addr().String())
			return err
		})
		peer, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		got, err := io.ReadAll(peer)
		if err != nil || string(got) != "hello" {
			t.Errorf("%v: read %q, %v", addr, got, err)
		}
		peer.Close()
		listener.Close()
	}
}

func TestHostsAreApart(t *testing.T) {
	a, b := hosttest.New(t), hosttest.New(t)
	if err := a.Sysctl("net.ipv4.tcp_sack", "0"); err != nil {
		t.Fatal(err)
	}
	for _, h := range []struct {
		want string
		do   func(func() error) error
	}{{"0\n", a.Do}, {"1\n", b.Do}} {
		var got []byte
		if err := h.do(func() (err error) { got, err = os.ReadFile("/proc/sys/net/ipv4/tcp_sack"); return err }); err != nil {
			t.Fatal(err)
		}
		if string(got) != h.want {
			t.Errorf("tcp_sack is %q, want %q", got, h.want)
		}
	}
}
