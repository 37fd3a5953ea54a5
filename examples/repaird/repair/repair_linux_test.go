package repair_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/repaird/repair"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(unprivileged); path != "" {
		if err := withoutRights(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	hosttest.Main(m)
}

// unprivileged is the variable that makes the test a program without rights, which
// asks the helper at a path.
const unprivileged = "REPAIRD_TEST_UNPRIVILEGED"

// start serves at a path until the test ends.
func start(t *testing.T, s *repair.Server) (path string) {
	t.Helper()
	hosttest.Need(t)
	path = filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if s.UIDs == nil {
		s.UIDs = []uint32{uint32(os.Getuid())}
	}
	if s.Log == nil {
		s.Log = t.Logf
	}
	done := make(chan error)
	go func() { done <- s.Serve(listener) }()
	t.Cleanup(func() {
		listener.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

// pair makes a connection on the loopback device.
func pair() (here, there *net.TCPConn, err error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	if there, err = net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr)); err != nil {
		return nil, nil, err
	}
	here, err = listener.AcceptTCP()
	return here, there, err
}

// connected is a descriptor of a connected socket.
func connected(t *testing.T) int {
	t.Helper()
	here, there, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	file, err := here.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); here.Close(); there.Close() })
	return int(file.Fd())
}

func socket(t *testing.T, family, kind int) int {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func repairMode(t *testing.T, fd int) int {
	t.Helper()
	mode, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if err != nil {
		t.Fatal(err)
	}
	return mode
}

// A program without any right moves its connection with the helper's help.
func TestUnprivilegedProgram(t *testing.T) {
	path := start(t, &repair.Server{})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), unprivileged+"="+path)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}

// withoutRights gives up all capabilities and runs the program again, as root of a
// user namespace would get them back.
func withoutRights(path string) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return err
	}
	if has[0].Permitted|has[1].Permitted == 0 {
		return moveWithHelp(repair.Client{Path: path})
	}
	runtime.LockOSThread()
	for capability := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return err
		}
	}
	return unix.Exec(os.Args[0], os.Args[:1], os.Environ())
}

func moveWithHelp(helper repair.Client) error {
	conn, peer, err := pair()
	if err != nil {
		return err
	}
	if _, err := soccr.Checkpoint(conn); !errors.Is(err, soccr.ErrNoPermission) {
		return fmt.Errorf("without help: %w", err)
	}
	received, sent := bytes.Repeat([]byte("received "), 1000), bytes.Repeat([]byte("sent "), 2000)
	if _, err := peer.Write(received); err != nil {
		return err
	}
	snap, err := soccr.Checkpoint(conn, soccr.WithRepairer(helper))
	if err != nil {
		return err
	}
	if !bytes.Equal(snap.RecvQueue, received) {
		return fmt.Errorf("saved %d received bytes", len(snap.RecvQueue))
	}
	moved, err := soccr.RestoreConn(snap, soccr.WithRepairer(helper))
	if err != nil {
		return err
	}
	if _, err := moved.Write(sent); err != nil {
		return err
	}
	for _, way := range []struct {
		conn *net.TCPConn
		want []byte
	}{{moved, received}, {peer, sent}} {
		if err := way.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		got := make([]byte, len(way.want))
		if _, err := io.ReadFull(way.conn, got); err != nil || !bytes.Equal(got, way.want) {
			return fmt.Errorf("read %d bytes: %w", len(got), err)
		}
	}
	return nil
}

// The commands do what TCP_REPAIR does, to as many sockets as can travel at once.
func TestCommands(t *testing.T) {
	client := repair.Client{Path: start(t, &repair.Server{})}
	fd := connected(t)
	fds := slices.Repeat([]int{fd}, repair.MaxFDs-1)
	fds = append(fds, socket(t, unix.AF_INET6, unix.SOCK_STREAM))
	for _, step := range []struct {
		command byte
		mode    int
	}{{repair.On, 1}, {repair.Off, 0}, {repair.On, 1}, {repair.On, 1}, {repair.OffNoProbe, 0}} {
		if err := client.Set(step.command, fds...); err != nil {
			t.Fatalf("command %d: %v", int8(step.command), err)
		}
		for _, fd := range []int{fd, fds[len(fds)-1]} {
			if mode := repairMode(t, fd); mode != step.mode {
				t.Errorf("after command %d the mode is %d", int8(step.command), mode)
			}
		}
	}
	if err := client.SetRepair(fd, unix.TCP_REPAIR_ON); err != nil || repairMode(t, fd) != 1 {
		t.Errorf("SetRepair: %v, mode %d", err, repairMode(t, fd))
	}
	if err := client.SetRepair(fd, unix.TCP_REPAIR_OFF_NO_WP); err != nil || repairMode(t, fd) != 0 {
		t.Errorf("SetRepair: %v, mode %d", err, repairMode(t, fd))
	}
}

// What is refused changes nothing, and the helper goes on.
func TestRefusals(t *testing.T) {
	var mu sync.Mutex
	var log []string
	server := &repair.Server{MaxFDs: 3, Log: func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, fmt.Sprintf(format, args...))
	}}
	client := repair.Client{Path: start(t, server)}
	good := connected(t)
	if err := unix.SetsockoptInt(good, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	listening := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		command byte
		fds     []int
		reason  string
	}{
		{"too many", repair.On, []int{good, good, good, good}, "more than 3 descriptors"},
		{"none", repair.On, nil, "without descriptors"},
		{"no socket", repair.On, []int{good, pipe[0]}, "not a TCP socket"},
		{"a Unix socket", repair.On, []int{good, socket(t, unix.AF_UNIX, unix.SOCK_STREAM)}, "not a TCP socket"},
		{"UDP", repair.On, []int{good, socket(t, unix.AF_INET, unix.SOCK_DGRAM)}, "not a TCP socket"},
		{"a listener", repair.On, []int{good, listening}, "TCP_REPAIR 1"},
		{"no command", 2, []int{good}, "command 2"},
		{"no command", 0xfe, []int{good}, "command -2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := client.Set(test.command, test.fds...); !errors.Is(err, repair.ErrRefused) {
				t.Errorf("got %v, want ErrRefused", err)
			}
			reuse, err := unix.GetsockoptInt(good, unix.SOL_SOCKET, unix.SO_REUSEADDR)
			if mode := repairMode(t, good); mode != 0 || reuse != 1 || err != nil {
				t.Errorf("mode %d, SO_REUSEADDR %d, %v", mode, reuse, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(log) != 1 || !strings.Contains(log[0], test.reason) {
				t.Errorf("the helper says %q, want %q", log, test.reason)
			}
			log = nil
		})
	}
	if err := client.Set(repair.On, good); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if err := client.Set(repair.Off, good, listening); !errors.Is(err, repair.ErrRefused) || repairMode(t, good) != 1 {
		t.Errorf("off, with a listener: %v, mode %d", err, repairMode(t, good))
	}
	if err := client.Set(repair.On, slices.Repeat([]int{good}, repair.MaxFDs+1)...); err == nil {
		t.Error("the kernel lets more descriptors travel than MaxFDs")
	}
}

func TestWrongUser(t *testing.T) {
	client := repair.Client{Path: start(t, &repair.Server{UIDs: []uint32{uint32(os.Getuid()) + 1}})}
	fd := connected(t)
	if err := client.Set(repair.On, fd); !errors.Is(err, repair.ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
	if mode := repairMode(t, fd); mode != 0 {
		t.Errorf("mode %d", mode)
	}
}

// Who holds connections without using them loses them.
func TestIdle(t *testing.T) {
	path := start(t, &repair.Server{MaxConns: 1, Idle: 50 * time.Millisecond})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v; want the end", n, err)
	}
}

// Clients that send as fast as they can, and read no answer, do not bring the helper
// down, and it keeps nothing of theirs.
func TestFlood(t *testing.T) {
	path := start(t, &repair.Server{MaxConns: 4, Idle: 200 * time.Millisecond, Log: func(string, ...any) {}})
	fd := connected(t)
	before := openFDs(t)
	deadline := time.Now().Add(time.Second)
	var flood sync.WaitGroup
	for range 20 {
		flood.Go(func() {
			for time.Now().Before(deadline) {
				conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
				if err != nil {
					continue
				}
				_ = conn.SetDeadline(deadline)
				rights := unix.UnixRights(slices.Repeat([]int{fd}, repair.MaxFDs)...)
				for command := byte(0); err == nil; command ^= repair.On {
					_, _, err = conn.WriteMsgUnix([]byte{command}, rights, nil)
				}
				conn.Close()
			}
		})
	}
	flood.Wait()
	client := repair.Client{Path: path}
	eventually(t, "the helper answers again", func() bool { return client.Set(repair.On, fd) == nil })
	eventually(t, "it has closed what it was sent", func() bool { return openFDs(t) <= before })
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// An answer to something else is no answer.
func TestWrongAnswer(t *testing.T) {
	hosttest.Need(t)
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte{repair.Off})
			conn.Close()
		}
	}()
	if err := (repair.Client{Path: path}).Set(repair.On, connected(t)); err == nil || errors.Is(err, repair.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

// One connection can be served alone, as passt wants it.
func TestServeConn(t *testing.T) {
	hosttest.Need(t)
	client, server, err := unixPair()
	if err != nil {
		t.Fatal(err)
	}
	fd := connected(t)
	done := make(chan struct{})
	go func() {
		(&repair.Server{UIDs: []uint32{uint32(os.Getuid())}, Idle: -1}).ServeConn(server)
		close(done)
	}()
	if _, _, err := client.WriteMsgUnix([]byte{repair.On}, unix.UnixRights(fd), nil); err != nil {
		t.Fatal(err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(client, answer[:]); err != nil || answer[0] != repair.On || repairMode(t, fd) != 1 {
		t.Errorf("answer %d, %v; mode %d", answer[0], err, repairMode(t, fd))
	}
	client.Close()
	<-done
}

func unixPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "")
		conn, failed := net.FileConn(file)
		file.Close()
		if failed != nil {
			return nil, nil, failed
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1], nil
}
