package soccr_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of the time these tests, unlike fuzzing, wait for the kernel's timers,
	// not for a CPU.
	if flag.Lookup("test.fuzz").Value.String() == "" {
		if err := flag.Set("test.parallel", "32"); err != nil {
			panic(err)
		}
	}
	hosttest.Main(m)
}

// A network is two hosts: the connections that are moved live on here, their
// peers on there. The lock is here's.
type network struct {
	here, there *host.Host
	lock        *netlock.Lock
}

func newNetwork(tb testing.TB) *network {
	tb.Helper()
	n := &network{}
	n.here, n.there = hosttest.Pair(tb)
	n.makeLock(tb)
	return n
}

// reversed is the network as the peers see it.
func (n *network) reversed(tb testing.TB) *network {
	tb.Helper()
	r := &network{here: n.there, there: n.here}
	r.makeLock(tb)
	return r
}

func (n *network) makeLock(tb testing.TB) {
	tb.Helper()
	lock, err := netlock.New(netlock.WithNetNS(n.here.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lock.Close(); err != nil {
			tb.Error(err)
		}
	})
	n.lock = lock
}

// A family is one of the ways in which a socket can speak IP.
type family struct {
	name        string
	here, there netip.Addr
	network     string // of the listener and of the dialer that is moved
}

var (
	ip4    = family{"IPv4", hosttest.A4, hosttest.B4, "tcp4"}
	ip6    = family{"IPv6", hosttest.A6, hosttest.B6, "tcp6"}
	mapped = family{"mapped", hosttest.A4, hosttest.B4, "tcp"}

	families = []family{ip4, ip6, mapped}
)

// listen makes a plain TCP listener: Go's own default is MPTCP.
func listen(tb testing.TB, h *host.Host, network, addr string) *net.TCPListener {
	tb.Helper()
	var listener net.Listener
	hosttest.Do(tb, h, func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		listener, err = config.Listen(context.Background(), network, addr)
		return err
	})
	tb.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// connect makes a connection that a socket here accepted from a peer there.
func (n *network) connect(tb testing.TB, f family) (conn, peer *net.TCPConn) {
	tb.Helper()
	addr := netip.AddrPortFrom(f.here, 0).String()
	if f == mapped {
		addr = "[::]:0" // an AF_INET6 socket, which takes IPv4 too
	}
	listener := listen(tb, n.here, f.network, addr)
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	hosttest.Do(tb, n.there, func() error {
		c, err := net.Dial("tcp", netip.AddrPortFrom(f.here, port).String())
		if err == nil {
			peer = c.(*net.TCPConn)
		}
		return err
	})
	conn, err := listener.AcceptTCP()
	if err != nil {
		tb.Fatal(err)
	}
	listener.Close()
	tb.Cleanup(func() { abort(conn); abort(peer) })
	return conn, peer
}

// control runs f on a conn's descriptor.
func control(tb testing.TB, c syscall.Conn, f func(fd int)) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
		tb.Fatal(err)
	}
}

func info(tb testing.TB, c syscall.Conn) (i tcpinfo.Info) {
	tb.Helper()
	control(tb, c, func(fd int) { i = fdInfo(tb, fd) })
	return i
}

func fdInfo(tb testing.TB, fd int) tcpinfo.Info {
	tb.Helper()
	i, err := tcpinfo.Get(fd)
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

func ioctl(tb testing.TB, c syscall.Conn, request uint) (n int) {
	tb.Helper()
	control(tb, c, func(fd int) {
		var err error
		if n, err = unix.IoctlGetInt(fd, request); err != nil {
			tb.Fatal(err)
		}
	})
	return n
}

func getInt(tb testing.TB, c syscall.Conn, level, name int) (v int) {
	tb.Helper()
	control(tb, c, func(fd int) {
		var err error
		if v, err = unix.GetsockoptInt(fd, level, name); err != nil {
			tb.Fatal(err)
		}
	})
	return v
}

func setInt(tb testing.TB, c syscall.Conn, level, name, v int) {
	tb.Helper()
	control(tb, c, func(fd int) {
		if err := unix.SetsockoptInt(fd, level, name, v); err != nil {
			tb.Fatal(err)
		}
	})
}

// deafen makes a socket ignore everything that arrives, without an answer; what
// it sends still leaves.
func deafen(tb testing.TB, c syscall.Conn) {
	tb.Helper()
	control(tb, c, func(fd int) { dropAll(tb, fd) })
}

func dropAll(tb testing.TB, fd int) {
	tb.Helper()
	drop, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		tb.Fatal(err)
	}
	program := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: drop[0].Op, K: drop[0].K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		tb.Fatal(err)
	}
}

func undeafen(tb testing.TB, c syscall.Conn) {
	tb.Helper()
	setInt(tb, c, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
}

// eventually waits until a condition holds.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("gave up waiting until %s", what)
		}
	}
}

func inState(tb testing.TB, c syscall.Conn, want soccr.State) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("the socket is in %v (it is in %v)", want, soccr.State(info(tb, c).State)), func() bool {
		return soccr.State(info(tb, c).State) == want
	})
}

// pattern is n bytes that differ with their position.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(31*i+i/251) + seed
	}
	return b
}

func write(tb testing.TB, c net.Conn, data []byte) {
	tb.Helper()
	if err := c.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		tb.Fatal(err)
	}
}

// send writes in the background; what goes wrong shows where it is read.
func send(c net.Conn, data []byte) { go func() { _, _ = c.Write(data) }() }

// abort ends a connection that a test is through with, if it is still there. An
// orphan that nobody answers would live on for minutes, and keep devices and
// namespaces from going away.
func abort(c *net.TCPConn) {
	if c == nil {
		return
	}
	_ = c.SetLinger(0)
	_ = c.Close()
}

// reset ends a connection with a RST.
func reset(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if err := c.SetLinger(0); err != nil {
		tb.Fatal(err)
	}
	c.Close()
}

// expect reads exactly want, however long that takes within 15 s.
func expect(tb testing.TB, who string, c net.Conn, want []byte) {
	tb.Helper()
	if len(want) == 0 {
		return
	}
	if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if err != nil {
		tb.Fatalf("%s read %d of %d bytes: %v", who, n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		tb.Fatalf("%s: byte %d of %d is %#x, want %#x", who, i, len(want), got[i], want[i])
	}
}

// expectEOF reads the end of the stream, and nothing before it.
func expectEOF(tb testing.TB, who string, c net.Conn) {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	var b [1]byte
	if n, err := c.Read(b[:]); n != 0 || !errors.Is(err, io.EOF) {
		tb.Fatalf("%s read %d bytes, %v; want EOF", who, n, err)
	}
}

// checkpoint takes a connection out of a conn, under the lock.
func (n *network) checkpoint(tb testing.TB, conn *net.TCPConn) *soccr.Snapshot {
	tb.Helper()
	snap, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock))
	if err != nil {
		tb.Fatal(err)
	}
	return snap
}

// paused restores a snapshot into a new socket here that stays paused and locked.
func (n *network) paused(tb testing.TB, snap *soccr.Snapshot) (*soccr.Socket, int) {
	tb.Helper()
	return n.pausedWith(tb, snap)
}

func (n *network) pausedWith(tb testing.TB, snap *soccr.Snapshot, options ...soccr.Option) (*soccr.Socket, int) {
	tb.Helper()
	fd := n.newSocket(tb, snap)
	tb.Cleanup(func() { unix.Close(fd) })
	s, err := soccr.Pause(fd)
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Restore(snap, options...); err != nil {
		tb.Fatal(err)
	}
	return s, fd
}

func (n *network) newSocket(tb testing.TB, snap *soccr.Snapshot) (fd int) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() (err error) {
		fd, err = soccr.NewSocket(snap)
		return err
	})
	return fd
}

// restore makes a conn here of a snapshot, under the lock.
func (n *network) restore(tb testing.TB, snap *soccr.Snapshot, options ...soccr.Option) (conn *net.TCPConn) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() (err error) {
		conn, err = soccr.RestoreConn(snap, append(options, soccr.WithLock(n.lock))...)
		return err
	})
	tb.Cleanup(func() { abort(conn) })
	return conn
}

// move takes a connection out of a conn and puts it into another.
func (n *network) move(tb testing.TB, conn *net.TCPConn) *net.TCPConn {
	tb.Helper()
	return n.restore(tb, n.checkpoint(tb, conn))
}

// fileConn makes a conn of a descriptor, which stays the caller's.
func (n *network) fileConn(tb testing.TB, fd int) *net.TCPConn {
	tb.Helper()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	file := os.NewFile(uintptr(own), "")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { abort(conn.(*net.TCPConn)) })
	return conn.(*net.TCPConn)
}

// knowsOption reports whether this kernel has an option of TCP sockets.
func knowsOption(tb testing.TB, level, option, value int) bool {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.SetsockoptInt(fd, level, option, value)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) && !errors.Is(err, unix.EOPNOTSUPP) {
		tb.Fatal(err)
	}
	return err == nil
}

// mayForceBuffers reports whether buffers may exceed net.core.rmem_max and
// wmem_max: with CAP_NET_ADMIN in the initial user namespace only.
func mayForceBuffers(tb testing.TB) bool {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20)
	if err != nil && !errors.Is(err, unix.EPERM) {
		tb.Fatal(err)
	}
	return err == nil
}
