package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// A conversation is a client that sends without end what it expects to get back.
type conversation struct {
	conn     net.Conn
	stop     chan struct{}
	sent     chan error
	received chan error
	bytes    atomic.Int64 // which have come back
	ahead    int64        // how many may be on their way, if not 0
}

// converse begins one.
func converse(t *testing.T, addr string) *conversation { return converseAhead(t, addr, 0) }

// converseAhead begins one that does not have more bytes on their way than so many.
func converseAhead(t *testing.T, addr string, ahead int64) *conversation {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &conversation{conn: conn, ahead: ahead, stop: make(chan struct{}), sent: make(chan error, 1), received: make(chan error, 1)}
	seed := [32]byte{byte(conn.LocalAddr().(*net.TCPAddr).Port)}
	go func() { c.sent <- c.send(rand.NewChaCha8(seed)) }()
	go func() { c.received <- c.receive(rand.NewChaCha8(seed)) }()
	return c
}

func (c *conversation) send(random io.Reader) error {
	b := make([]byte, 20_000)
	for sent := int64(0); ; sent += int64(len(b)) {
		for c.ahead > 0 && sent-c.bytes.Load() > c.ahead {
			time.Sleep(time.Millisecond)
		}
		_, _ = random.Read(b)
		if _, err := c.conn.Write(b); err != nil {
			return err
		}
		select {
		case <-c.stop:
			return c.conn.(*net.TCPConn).CloseWrite()
		default:
		}
	}
}

func (c *conversation) receive(random io.Reader) error {
	got, want := make([]byte, 30_000), make([]byte, 30_000)
	for {
		n, err := c.conn.Read(got)
		_, _ = random.Read(want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("wrong bytes behind the first %d", c.bytes.Load())
		}
		c.bytes.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// end ends a conversation, and fails the test if not all came back.
func (c *conversation) end(t *testing.T) {
	t.Helper()
	close(c.stop)
	_ = c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := <-c.sent; err != nil {
		t.Errorf("sending: %v", err)
	}
	if err := <-c.received; err != nil {
		t.Errorf("receiving, after %d bytes: %v", c.bytes.Load(), err)
	}
	if c.bytes.Load() == 0 {
		t.Error("nothing came back")
	}
}

// resets is how many RSTs this network namespace has sent.
func resets(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "OutRsts" {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatal("no OutRsts")
	return 0
}

// swapped runs swap and gives its summary.
func swapped(t *testing.T, pid, want int, args ...string) (r swapResult) {
	t.Helper()
	got, stdout, stderr := status(t, inside(program(t, append([]string{"swap", "--json", "-t", fmt.Sprint(pid)}, args...)...)))
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || got != want {
		t.Fatalf("status %d, want %d; %v: %s%s", got, want, err, stdout, stderr)
	}
	return r
}

// Programs of all kinds have their connections swapped again and again during
// checked streams, and neither they nor their peers notice.
func TestSwap(t *testing.T) {
	hosttest.Need(t)
	before := resets(t)
	t.Run("programs", func(t *testing.T) {
		for _, test := range []struct {
			program, listen string
			clients         int
		}{
			{"go", "127.0.0.1:0", 3}, {"threads", "127.0.0.1:0", 3}, {"epoll", "[::1]:0", 3}, {"poll", "127.0.0.1:0", 3},
			{"forked", "127.0.0.1:0", 1}, // which takes one
		} {
			for way, flags := range map[string][]string{"in place": nil, "new socket": {"--new-socket"}} {
				t.Run(test.program+" "+way, func(t *testing.T) {
					t.Parallel()
					testSwap(t, startEcho(t, test.program, test.listen), test.clients, flags)
				})
			}
		}
	})
	if n := resets(t) - before; n > 0 {
		t.Errorf("%d RSTs", n)
	}
}

// testSwap swaps the connections of a program while it sends back what it gets.
func testSwap(t *testing.T, e *echo, clients int, flags []string) {
	rounds := 5 * effort()
	var all []*conversation
	for range clients {
		all = append(all, converse(t, e.addr))
	}
	time.Sleep(50 * time.Millisecond)
	before := inodes(t, e.pid)
	for len(before) < 1+clients { // it has not accepted all of them yet
		time.Sleep(time.Millisecond)
		before = inodes(t, e.pid)
	}
	r := swapped(t, e.pid, 0, append([]string{"--every", "50ms", "--count", fmt.Sprint(rounds)}, flags...)...)
	if r.Rounds != rounds || r.Swapped+r.Waited != rounds*clients || r.Swapped < rounds || len(r.Frozen) != rounds || len(r.Locked) != rounds {
		t.Errorf("%+v", r)
	}
	same := 0
	for inode := range inodes(t, e.pid) {
		if before[inode] {
			same++
		}
	}
	if want := len(before) - len(flags)*clients; same > want || len(flags) == 0 && same != want {
		t.Errorf("of %d sockets, %d are the same as before, want %d", len(before), same, want)
	}
	for _, c := range all {
		c.end(t)
	}
	if tracer := tracerOf(e.pid); tracer != "0" {
		t.Errorf("process %s traces it", tracer)
	}
	if e.name == "threads" { // accept(2) has waited all the time
		converse(t, e.addr).end(t)
	}
}

// effort is how much longer than usual tests are to take: MIGRATE_EFFORT.
func effort() int {
	n, err := strconv.Atoi(os.Getenv("MIGRATE_EFFORT"))
	if err != nil {
		return 1
	}
	return n
}

// inodes are those of a program's sockets.
func inodes(t *testing.T, pid int) map[uint32]bool {
	t.Helper()
	all := map[uint32]bool{}
	pids, err := proc.Tree(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		for h, err := range diag.HeldBy(pid) {
			if err != nil {
				t.Fatal(err)
			}
			all[h.Inode] = true
		}
	}
	return all
}

func tracerOf(pid int) string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(content), "TracerPid:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// However the one that was started ends, the guard finishes what it is at.
func TestKilled(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := converse(t, e.addr)
	var random = rand.New(rand.NewPCG(1, 2))
	for i := range 10 * effort() {
		ways := []string{"--new-socket", "--new-socket=false"}
		cmd := inside(program(t, "swap", "-t", fmt.Sprint(e.pid), "--every", "2ms", ways[i%len(ways)]))
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		// All of its process group, as a shell would.
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // which waits for the guard, too: it has the same standard output
		if tracer := tracerOf(e.pid); tracer != "0" {
			t.Fatalf("after kill %d, process %s traces it", i+1, tracer)
		}
		if strings.Contains(said.String(), "migrate:") {
			t.Fatal(said.String())
		}
	}
	c.end(t)
}

// ^C ends a series after the round.
func TestInterrupted(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "poll", "127.0.0.1:0")
	c := converse(t, e.addr)
	cmd := inside(program(t, "swap", "--json", "-t", fmt.Sprint(e.pid), "--every", "5ms"))
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); tracerOf(e.pid) == "0"; { // it has begun
		if time.Now().After(deadline) {
			t.Fatal("the program is never stopped")
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	var r swapResult
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v in %q", err, stdout.Bytes())
	}
	if cmd.ProcessState.ExitCode() != statusInterrupted || r.Rounds < 1 || r.Error != "" {
		t.Errorf("status %d, %+v", cmd.ProcessState.ExitCode(), r)
	}
	c.end(t)
}

// childOf waits until a program has a child that has the connection, as descriptor
// 3. (For a moment, Go has other children.)
func childOf(t *testing.T, e *echo) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := proc.Tree(e.pid)
		if err == nil && len(pids) == 2 {
			environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pids[1]))
			for h, err := range diag.HeldBy(pids[1]) {
				if err == nil && h.FD == 3 && bytes.Contains(environment, []byte("MIGRATE_CHILD=1")) {
					return pids[1]
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no child")
		}
	}
}

// What cannot be swapped is refused, and left as it was.
func TestSwapRefuses(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	const own = "127.0.0.1:0"
	for _, test := range []struct {
		name    string
		program string
		prepare func(t *testing.T, e *echo) (pid int, attributes *syscall.SysProcAttr)
		status  int
		says    string
	}{
		{"no such process", "threads", func(*testing.T, *echo) (int, *syscall.SysProcAttr) { return 1<<31 - 1, nil },
			statusFailed, "no process 2147483647"},
		{"a traced process", "threads", func(t *testing.T, e *echo) (int, *syscall.SysProcAttr) {
			f := proc.NewFreezer()
			z, err := f.Freeze(e.pid, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = z.Thaw(); f.Close() })
			return e.pid, nil
		}, statusFailed, fmt.Sprintf("%v: process %d", proc.ErrTraced, os.Getpid())},
		{"no right to trace", "threads", func(_ *testing.T, e *echo) (int, *syscall.SysProcAttr) {
			return e.pid, &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 1, HostID: os.Getuid(), Size: 1}},
			}
		}, statusFailed, "permission denied"},
		{"itself", "threads", func(*testing.T, *echo) (int, *syscall.SysProcAttr) { return os.Getpid(), nil },
			statusFailed, proc.ErrOwn.Error()},
		{"io_uring", "uring", func(_ *testing.T, e *echo) (int, *syscall.SysProcAttr) { return e.pid, nil },
			statusFailed, "io_uring"},
		{"a socket that others have, too", "forked", func(t *testing.T, e *echo) (int, *syscall.SysProcAttr) {
			return childOf(t, e), nil // whose parent has the connection
		}, statusPartly, errOutside.Error()},
		{"another network namespace", "foreign", func(t *testing.T, e *echo) (int, *syscall.SysProcAttr) { return childOf(t, e), nil },
			statusPartly, "another network namespace"},
		{"urgent data", "idle", func(_ *testing.T, e *echo) (int, *syscall.SysProcAttr) { return e.pid, nil },
			statusPartly, "urgent data"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := startEcho(t, test.program, own)
			conn, err := net.Dial("tcp", e.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if test.program == "idle" {
				_ = raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
				if err != nil {
					t.Fatal(err)
				}
			}
			pid, attributes := test.prepare(t, e)
			cmd := inside(program(t, "swap", "-t", fmt.Sprint(pid)))
			cmd.SysProcAttr = attributes
			got, stdout, stderr := status(t, cmd)
			if got != test.status || !strings.Contains(stdout+stderr, test.says) {
				t.Errorf("status %d, want %d and %q: %s%s", got, test.status, test.says, stdout, stderr)
			}
			if test.name == "a traced process" { // by this test
				return
			}
			if tracer := tracerOf(e.pid); tracer != "0" {
				t.Errorf("process %s traces it", tracer)
			}
			if test.program == "threads" {
				if err := exchange(conn); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A connection whose peer has acknowledged nothing since is not swapped again: its
// timers would never come to their end.
func TestSwapWaits(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	for _, way := range []string{"--new-socket=false", "--new-socket"} {
		e := startEcho(t, "threads", "127.0.0.1:0")
		c := dialEcho(t, e)
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		control := func(f func(fd int) error) {
			t.Helper()
			if failure := raw.Control(func(fd uintptr) { err = f(int(fd)) }); failure != nil || err != nil {
				t.Fatal(failure, err)
			}
		}
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		control(func(fd int) error { // the peer gets nothing, and acknowledges nothing
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
		})
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		unacknowledged := func() bool {
			for _, s := range listed(t, e.pid).Sockets {
				if s.State == "ESTABLISHED" && s.SendQueue == 5 {
					return true
				}
			}
			return false
		}
		for deadline := time.Now().Add(10 * time.Second); !unacknowledged(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nothing waits to be acknowledged")
			}
		}
		if r := swapped(t, e.pid, 0, "--every", "5ms", "--count", "5", way); r.Swapped != 1 || r.Waited != 4 {
			t.Errorf("%s: %+v", way, r)
		}
		control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
		b := make([]byte, 5)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		if r := swapped(t, e.pid, 0, way); r.Swapped != 1 {
			t.Errorf("%s: %+v", way, r)
		}
	}
}
