package wire_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/wire"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

// connect observes on a's device and connects a to b.
func connect(t *testing.T, a, b *host.Host, device string, addrA, addrB netip.Addr) (o *wire.Observer, client, server *net.TCPConn) {
	t.Helper()
	var listener net.Listener
	hosttest.Do(t, b, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addrB, 0).String())
		return err
	})
	defer listener.Close()
	hosttest.Do(t, a, func() (err error) {
		o, err = wire.Observe(device, wire.Flow{
			A: netip.AddrPortFrom(addrA, 0),
			B: listener.Addr().(*net.TCPAddr).AddrPort(),
		})
		return err
	})
	hosttest.Do(t, a, func() error {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			client = conn.(*net.TCPConn)
		}
		return err
	})
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server = conn.(*net.TCPConn)
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return o, client, server
}

func stop(t *testing.T, o *wire.Observer) wire.Report {
	t.Helper()
	r, err := o.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if r.Lost != 0 {
		t.Fatalf("the capture lost %d packets", r.Lost)
	}
	return r
}

// Every byte of a busy connection is seen once, in both directions, on veth as
// on loopback, and nothing is found wrong.
func TestObserve(t *testing.T) {
	a, b := hosttest.Pair(t)
	alone := hosttest.New(t)
	const size = 8 << 20
	for _, test := range []struct {
		name         string
		a, b         *host.Host
		device       string
		addrA, addrB netip.Addr
	}{
		{"IPv4", a, b, "net0", hosttest.A4, hosttest.B4},
		{"IPv6", a, b, "net0", hosttest.A6, hosttest.B6},
		{"loopback", alone, alone, "lo", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, client, server := connect(t, test.a, test.b, test.device, test.addrA, test.addrB)
			errs := make(chan error)
			for _, c := range []*net.TCPConn{client, server} {
				go func() {
					_, err := c.Write(make([]byte, size))
					if err == nil {
						err = c.CloseWrite()
					}
					errs <- err
				}()
				go func() {
					_, err := io.Copy(io.Discard, c)
					errs <- err
				}()
			}
			for range 4 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			r := stop(t, o)
			if err := r.Err(); err != nil {
				t.Error(err)
			}
			for _, sent := range []wire.Sent{r.A, r.B} {
				if sent.Bytes != size || sent.SYNs != 1 || sent.FINs != 1 {
					t.Errorf("%+v, want %d bytes, a SYN and a FIN", sent, size)
				}
			}
			if r.A.Addr != client.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("client %v, want %v", r.A.Addr, client.LocalAddr())
			}
		})
	}
}

func TestObserveRST(t *testing.T) {
	a, b := hosttest.Pair(t)
	o, client, server := connect(t, a, b, "net0", hosttest.A4, hosttest.B4)
	if err := server.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Fatal("no RST came")
	}
	if r := stop(t, o); r.B.RSTs != 1 || r.A.RSTs != 0 || r.Err() == nil {
		t.Errorf("%+v", r)
	}
}

// A window that the kernel itself takes back, as after a careless restore.
func TestObserveWindowTakenBack(t *testing.T) {
	a, b := hosttest.Pair(t)
	o, client, server := connect(t, a, b, "net0", hosttest.A6, hosttest.B6)
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const rcvWnd = 12 // offset in struct tcp_repair_window
	var window [20]byte
	steps := []func(fd int) error{
		func(fd int) error { return sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON) },
		func(fd int) error {
			_, err := sockopt.Get(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, window[:])
			return err
		},
		func(fd int) error {
			was := binary.NativeEndian.Uint32(window[rcvWnd:])
			binary.NativeEndian.PutUint32(window[rcvWnd:], was/2)
			return sockopt.Set(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, window[:])
		},
		// Free memory would make the window grow at once.
		func(fd int) error { return sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) },
		func(fd int) error { return sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF) },
	}
	time.Sleep(2 * time.Millisecond) // a tick of the clock after the handshake
	for _, step := range steps {
		control(t, raw, step)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if r := stop(t, o); r.B.WindowsTakenBack != 1 || r.B.LargestTakenBack < 10000 || r.A.WindowsTakenBack != 0 {
		t.Errorf("%v", r)
	}
}

func control(t *testing.T, raw syscall.RawConn, f func(fd int) error) {
	t.Helper()
	var err error
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

func TestWatchNoDevice(t *testing.T) {
	a := hosttest.New(t)
	before := openFiles(t)
	if err := a.Do(func() error {
		_, err := wire.Watch("none", func(wire.Segment) {})
		return err
	}); err == nil {
		t.Error("captures on a device that is not there")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
