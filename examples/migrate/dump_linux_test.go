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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// dumped runs dump, into a pipe, and gives the image.
func dumped(t *testing.T, pid int, args ...string) []byte {
	t.Helper()
	got, stdout, stderr := status(t, inside(program(t, append([]string{"dump", "-t", fmt.Sprint(pid), "-D", "-"}, args...)...)))
	if got != 0 {
		t.Fatalf("status %d: %s", got, stderr)
	}
	return []byte(stdout)
}

// revive restores an image in a new heir, which is killed when the test ends.
func revive(t *testing.T, img []byte, args ...string) (pid int) {
	t.Helper()
	cmd := inside(program(t, append(append([]string{"restore", "--json", "-d", "-D", "-"}, args...), "--", "/proc/self/exe", "heir")...))
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	cmd.Stdin = bytes.NewReader(img)
	// A file, so that nobody waits for the heir.
	file, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stderr = file
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(file.Name())
		t.Fatalf("%v: %s", err, said)
	}
	said, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	var r restoreResult
	if err := json.Unmarshal(said, &r); err != nil || r.PID == 0 || len(r.Warnings) > 0 {
		t.Fatalf("%v: %s", err, said)
	}
	t.Cleanup(func() {
		_ = unix.Kill(r.PID, unix.SIGKILL)
		if said, _ := os.ReadFile(file.Name()); bytes.Contains(said, []byte("heir:")) {
			t.Errorf("the heir said: %s", said)
		}
	})
	return r.PID
}

// A program's connections, with full queues both ways, and its listener go to
// another program, and from that to a third.
func TestDumpRestore(t *testing.T) {
	hosttest.Need(t)
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		e := startEcho(t, "stuffed", listen)
		before := resets(t)
		var conns []net.Conn
		var written []int
		sent := bytes.Repeat([]byte("to be sent back "), 10_000)
		for range 3 {
			c, err := net.Dial("tcp", e.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if !e.lines.Scan() {
				t.Fatal(e.stderr.String())
			}
			n, err := strconv.Atoi(e.lines.Text())
			if err != nil {
				t.Fatal(err)
			}
			conns, written = append(conns, c), append(written, n)
		}
		img := dumped(t, e.pid)
		_ = e.command.Wait()
		if s, ok := e.command.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != unix.SIGKILL {
			t.Errorf("the program has not been killed: %v", e.command.ProcessState)
		}
		pid := revive(t, img)
		for i, c := range conns {
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, written[i]+len(sent))
			if n, err := io.ReadFull(c, got); err != nil {
				t.Fatalf("%v after %d bytes of %d", err, n, len(got))
			}
			for at, b := range got[:written[i]] {
				if b != byte(at%251) {
					t.Fatalf("byte %d is %d", at, b)
				}
			}
			if !bytes.Equal(got[written[i]:], sent) {
				t.Error("what was not read yet has changed")
			}
		}
		revive(t, dumped(t, pid))
		last, err := net.Dial("tcp", e.addr) // to the listener
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { last.Close() })
		for _, c := range append(conns, last) {
			if err := exchange(c); err != nil {
				t.Error(err)
			}
		}
		if n := resets(t) - before; n > 0 {
			t.Errorf("%d RSTs", n)
		}
	}
}

// dumpInto dumps into a directory, and gives the status and what was said. It does
// not wait for the process that keeps the connections locked.
func dumpInto(t *testing.T, dir string, pid int, args ...string) (status int, said string) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "said")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := inside(program(t, append([]string{"dump", "-t", fmt.Sprint(pid), "-D", dir}, args...)...))
	cmd.Stdout, cmd.Stderr = file, file
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// A program that is left running goes on as it was, and the image shows it.
func TestDumpLeaveRunning(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "epoll", "127.0.0.1:0")
	c := converse(t, e.addr)
	time.Sleep(50 * time.Millisecond)
	dir := filepath.Join(t.TempDir(), "image")
	for range 3 {
		if got, said := dumpInto(t, dir, e.pid, "--leave-running"); got != 0 || !strings.Contains(said, "1 connections") {
			t.Fatalf("status %d: %s", got, said)
		}
	}
	for name, want := range map[string]os.FileMode{dir: os.ModeDir | 0o700, filepath.Join(dir, image.Name): 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	got, stdout, stderr := status(t, inside(program(t, "show", "-D", dir, "--hexdump")))
	for _, want := range []string{
		fmt.Sprintf("process %d ", e.pid), "ESTABLISHED  " + e.addr + " -> " + c.conn.LocalAddr().String(),
		"LISTEN  " + e.addr + ", backlog 64", "timestamps", "held by",
	} {
		if got != 0 || !strings.Contains(stdout, want) {
			t.Errorf("status %d, no %q in %s%s", got, want, stdout, stderr)
		}
	}
	got, stdout, stderr = status(t, inside(program(t, "show", "-D", dir, "--json")))
	var shown struct {
		Sockets []struct {
			Kind       string
			Connection struct{ State, Local string }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &shown); got != 0 || err != nil || len(shown.Sockets) != 2 {
		t.Errorf("status %d, %v, %s%s", got, err, stdout, stderr)
	}
	c.end(t)
}

// A program that is left running without its connections reads their end, and the
// peer notices nothing: the connections go on elsewhere.
func TestDumpLeaveClosed(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	first := dialEcho(t, e)
	img := dumped(t, e.pid, "--leave-closed")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l := listed(t, e.pid) // where it has closed the descriptor, at the end
		if len(l.Sockets) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program still has %+v", l.Sockets)
		}
	}
	// The listener is still there, so only the connection can be restored.
	revive(t, only(t, img, image.Connection))
	if err := exchange(first); err != nil {
		t.Error(err)
	}
}

// exchange has an echo send something back.
func exchange(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("got %q", b)
	}
	return nil
}

// Connections that come back as closed are read to their end at once.
func TestRestoreClosed(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	revive(t, dumped(t, e.pid, "--tcp-close"), "--tcp-close") // the heir fails if it reads anything else
	if err := exchange(c); err == nil {
		t.Error("the connection goes on")
	}
	again, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := exchange(again); err != nil {
		t.Error(err)
	}
}

// What cannot be dumped is refused, and goes on as it was.
func TestDumpRefuses(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := converse(t, e.addr)
	idle := startEcho(t, "idle", "127.0.0.1:0")
	for range 2 { // the second waits to be accepted
		waiting, err := net.Dial("tcp", idle.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { waiting.Close() })
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		pid    int
		args   []string
		status int
		says   string
	}{
		{"in flight", idle.pid, []string{"-D", dir}, statusFailed, "--skip-in-flight"},
		{"no directory", e.pid, []string{"-D", file}, statusFailed, "not a directory"},
		{"where to", e.pid, nil, statusUsage, "-D DIR"},
		{"two endings", e.pid, []string{"-D", dir, "--leave-running", "--leave-closed"}, statusUsage, "contradict"},
		{"which lock", e.pid, []string{"-D", dir, "--network-lock", "iptables"}, statusUsage, "namespace or skip"},
		{"in flight, but skipped", idle.pid, []string{"-D", dir, "--skip-in-flight", "--leave-running"}, 0, "1 listeners"},
		{"the namespace", e.pid, []string{"-D", dir, "--network-lock", "namespace", "--leave-running"}, 0, "1 connections"},
	} {
		args := append([]string{"dump", "-t", fmt.Sprint(test.pid)}, test.args...)
		got, stdout, stderr := status(t, inside(program(t, args...)))
		if got != test.status || !strings.Contains(stdout+stderr, test.says) {
			t.Errorf("%s: status %d, want %d and %q: %s%s", test.name, got, test.status, test.says, stdout, stderr)
		}
	}
	c.end(t)
}

func TestRestoreRefuses(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := converse(t, e.addr)
	dir := t.TempDir()
	if got, said := dumpInto(t, dir, e.pid, "--leave-running"); got != 0 {
		t.Fatalf("status %d: %s", got, said)
	}
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, image.Name), []byte("\x89MIGRATE\x00\x01\xff\xff\xff\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		args   []string
		status int
		says   string
	}{
		{"no image", []string{"-D", t.TempDir(), "--", "/proc/self/exe"}, statusFailed, "no such file"},
		{"a bad image", []string{"-D", bad, "--", "/proc/self/exe"}, statusFailed, "not an image"},
		{"no program", []string{"-D", dir}, statusUsage, "-- PROGRAM"},
		{"an unknown program", []string{"-D", dir, "--", "no-such-program"}, statusFailed, "no-such-program"},
		{"the addresses are in use", []string{"-D", dir, "--", "/proc/self/exe"}, statusFailed, "another socket uses"},
		{"addresses of elsewhere", []string{"-D", dir, "--map-local", "127.0.0.1=192.0.2.1", "--", "/proc/self/exe"}, statusFailed, "not on this host"},
		{"no rule", []string{"-D", dir, "--map-local", "127.0.0.1", "--", "/proc/self/exe"}, statusUsage, "OLD=NEW"},
	} {
		got, stdout, stderr := status(t, inside(program(t, append([]string{"restore"}, test.args...)...)))
		if got != test.status || !strings.Contains(stderr, test.says) {
			t.Errorf("%s: status %d, want %d and %q: %s%s", test.name, got, test.status, test.says, stdout, stderr)
		}
	}
	c.end(t)
}

// An image that came by a pipe and could not be restored is kept.
func TestRescue(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	img := dumped(t, e.pid)
	cmd := inside(program(t, "restore", "-D", "-", "--map-local", "127.0.0.1=192.0.2.1", "--", "/proc/self/exe"))
	cmd.Env = append(cmd.Env, "TMPDIR="+t.TempDir())
	cmd.Stdin = bytes.NewReader(img)
	got, _, stderr := status(t, cmd)
	_, dir, kept := strings.Cut(strings.TrimSpace(stderr), "restore -D ")
	if got != statusFailed || !kept {
		t.Fatalf("status %d: %s", got, stderr)
	}
	again, err := os.ReadFile(filepath.Join(dir, image.Name))
	if err != nil || !bytes.Equal(again, img) {
		t.Fatalf("another image is kept: %v", err)
	}
	revive(t, again)
	if err := exchange(c); err != nil {
		t.Error(err)
	}
}

// dialEcho makes a connection that has been used.
func dialEcho(t *testing.T, e *echo) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// However dump is killed: either the program goes on as it was, or the image is
// there as a whole.
func TestDumpKilled(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	began := time.Now()
	img := dumped(t, e.pid)
	took := time.Since(began)
	pid, dumps := revive(t, img), 0
	kills := 6 * effort()
	for range kills {
		dir := t.TempDir()
		cmd := inside(program(t, "dump", "-t", fmt.Sprint(pid), "-D", dir, "--lock-timeout", "100ms"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var said bytes.Buffer // by the guard too, so that it is waited for
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.Int64N(int64(took) * 3 / 2)))
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
		img, err := os.ReadFile(filepath.Join(dir, image.Name))
		if err == nil {
			dumps++
			pid = revive(t, img)
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := exchange(c); err != nil {
			t.Fatalf("%v; %s", err, said.String())
		}
	}
	t.Logf("%d of %d were dumped", dumps, kills)
}
