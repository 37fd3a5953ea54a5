package diag_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// holdEnv makes a run of the test binary hold what it is given, until its
// standard input ends.
const holdEnv = "GOSOCCR_TEST_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(holdEnv) != "" {
		fmt.Println("holding")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	hosttest.Main(m)
}

// open makes a Conn that looks at a host from outside.
func open(tb testing.TB, h *host.Host) *diag.Conn {
	tb.Helper()
	c, err := diag.Dial(&diag.Config{NetNS: h.FD()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// collect lists all that pass the filter.
func collect(tb testing.TB, c *diag.Conn, filter diag.Filter) []diag.Socket {
	tb.Helper()
	var all []diag.Socket
	for s, err := range c.Sockets(filter) {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// await waits until something holds that the kernel brings about.
func await(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for end := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not after 5 s", what)
		}
	}
}

// control calls setsockopt and the like on a socket.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

func mustControl(tb testing.TB, c syscall.Conn, f func(fd int) error) {
	tb.Helper()
	if err := control(c, f); err != nil {
		tb.Fatal(err)
	}
}

// setup is called on a socket before it is bound or connected.
type setup func(fd int) error

func (f setup) control(_, _ string, raw syscall.RawConn) error {
	if f == nil {
		return nil
	}
	var inner error
	err := raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

func listen(tb testing.TB, h *host.Host, network, address string, f setup) *net.TCPListener {
	tb.Helper()
	var l net.Listener
	config := net.ListenConfig{Control: f.control}
	config.SetMultipathTCP(false)
	hosttest.Do(tb, h, func() (err error) {
		l, err = config.Listen(context.Background(), network, address)
		return err
	})
	tb.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func dial(tb testing.TB, h *host.Host, address string, f setup) *net.TCPConn {
	tb.Helper()
	var c net.Conn
	dialer := net.Dialer{Control: f.control}
	hosttest.Do(tb, h, func() (err error) {
		c, err = dialer.Dial("tcp", address)
		return err
	})
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func accept(tb testing.TB, l *net.TCPListener) *net.TCPConn {
	tb.Helper()
	c, err := l.AcceptTCP()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// connect makes a connection from a host to an address of another.
func connect(tb testing.TB, from, to *host.Host, addr netip.Addr) (conn, peer *net.TCPConn) {
	tb.Helper()
	l := listen(tb, to, "tcp", netip.AddrPortFrom(addr, 0).String(), nil)
	conn = dial(tb, from, l.Addr().String(), nil)
	return conn, accept(tb, l)
}

func local(c net.Conn) netip.AddrPort  { return c.LocalAddr().(*net.TCPAddr).AddrPort() }
func remote(c net.Conn) netip.AddrPort { return c.RemoteAddr().(*net.TCPAddr).AddrPort() }

func closeWrite(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if err := c.CloseWrite(); err != nil {
		tb.Fatal(err)
	}
}

// fill writes more than the peer's buffer takes, so that a FIN cannot leave.
func fill(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	chunk := make([]byte, 64<<10)
	mustControl(tb, c, func(fd int) error {
		for {
			if _, err := unix.Write(fd, chunk); err == unix.EAGAIN {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
}

func mustEOF(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil {
		tb.Fatal(err)
	}
}

// openFDs counts this process's file descriptors.
func openFDs(tb testing.TB) int {
	tb.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(names)
}
