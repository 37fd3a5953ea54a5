package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// descriptors are those of an image's sockets, by kind.
func descriptors(t *testing.T, img []byte) map[image.Kind]int {
	t.Helper()
	i, err := image.ReadStream(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	all := map[image.Kind]int{}
	for _, s := range i.Sockets {
		all[s.Kind] = s.Holders[0].FD
	}
	return all
}

// only leaves one kind of sockets in an image.
func only(t *testing.T, img []byte, kind image.Kind) []byte {
	t.Helper()
	i, err := image.ReadStream(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	all := i.Sockets
	i.Sockets = nil
	for _, s := range all {
		if s.Kind == kind {
			i.Sockets = append(i.Sockets, s)
		}
	}
	var rest bytes.Buffer
	if _, err := i.WriteTo(&rest); err != nil {
		t.Fatal(err)
	}
	return rest.Bytes()
}

// restoreInto restores an image in a program that runs.
func restoreInto(t *testing.T, img []byte, pid int, args ...string) (code int, said string) {
	t.Helper()
	cmd := inside(program(t, append([]string{"restore", "--json", "-D", "-", "-t", fmt.Sprint(pid)}, args...)...))
	cmd.Env = append(cmd.Env, "TMPDIR="+t.TempDir())
	cmd.Stdin = bytes.NewReader(img)
	got, stdout, stderr := status(t, cmd)
	return got, stdout + stderr
}

// A connection goes into a program that runs already, under a number of our choice.
func TestRestoreInto(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	img := dumped(t, e.pid)
	fds := descriptors(t, img)
	into := startEcho(t, "vacant", "127.0.0.1:0")
	before := inodes(t, into.pid)
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"--fd", fmt.Sprintf("%d=1", fds[image.Connection])}, "is in use"},
		{[]string{"--fd", fmt.Sprintf("%d=70", fds[image.Connection]), "--fd", fmt.Sprintf("%d=70", fds[image.Listener])}, "two sockets"},
		{[]string{"--fd", fmt.Sprintf("%d=70", fds[image.Connection]), "--fd", fmt.Sprintf("%d=900000000", fds[image.Listener])}, "RLIMIT_NOFILE"},
	} {
		if got, said := restoreInto(t, img, into.pid, test.args...); got != statusFailed || !strings.Contains(said, test.says) {
			t.Errorf("%v: status %d: %s", test.args, got, said)
		}
		if after := inodes(t, into.pid); len(after) != len(before) || tracerOf(into.pid) != "0" {
			t.Errorf("%v: %d sockets, not %d; traced by %s", test.args, len(after), len(before), tracerOf(into.pid))
		}
	}
	got, said := restoreInto(t, img, into.pid, "--fd", fmt.Sprintf("%d=%d", fds[image.Connection], vacancy),
		"--fd", fmt.Sprintf("%d=%d", fds[image.Listener], vacancy+1))
	var r restoreResult
	if err := json.Unmarshal([]byte(said), &r); got != 0 || err != nil || r.Connections != 1 || r.Listeners != 1 || r.Frozen <= 0 || len(r.Warnings) > 0 {
		t.Fatalf("status %d, %v: %s", got, err, said)
	}
	if err := exchange(c); err != nil {
		t.Error(err)
	}
}

// A connection comes back under the number of one that is closed, in the same
// program, which waits for it with epoll.
func TestRestoreIntoClosed(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "patient", "127.0.0.1:0")
	c := dialEcho(t, e)
	for range 3 {
		img := only(t, dumped(t, e.pid, "--leave-closed"), image.Connection)
		if _, err := c.Write([]byte("hel")); err != nil { // which waits
			t.Fatal(err)
		}
		if got, said := restoreInto(t, img, e.pid); got != 0 {
			t.Fatalf("status %d: %s", got, said)
		}
		b := make([]byte, 3)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(b); err != nil || string(b) != "hel" {
			t.Fatalf("%q, %v", b, err)
		}
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
	}
}

// However restore is killed: either the sockets are in the new program, or they can
// be restored again.
func TestRestoreKilled(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	pid, restored := e.pid, 0
	img := dumped(t, pid)
	began := time.Now()
	pid = revive(t, img)
	took := time.Since(began)
	kills := 6 * effort()
	for range kills {
		img := dumped(t, pid)
		pid = killRestore(t, img, func(cmd *exec.Cmd) {
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(random.Int64N(int64(took))))
			_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL) // and not its group, which the program belongs to
			_ = cmd.Wait()
		})
		if pid == 0 {
			pid = revive(t, img)
		} else {
			restored++
		}
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d were restored", restored, kills)
}

// killRestore runs restore by a function that kills it, and returns which process has
// the sockets, or 0.
func killRestore(t *testing.T, img []byte, run func(*exec.Cmd)) (pid int) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd := inside(program(t, "restore", "--json", "-d", "-D", "-", "--", "/proc/self/exe", "heir"))
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1", "TMPDIR="+t.TempDir())
	cmd.Stdin, cmd.Stderr = read, said
	if _, err := write.Write(img); err != nil {
		t.Fatal(err)
	}
	run(cmd)
	_ = read.Close()
	// The guard is at its end when nobody reads from the pipe.
	poll := []unix.PollFd{{Fd: int32(write.Fd())}}
	for {
		n, err := unix.Poll(poll, 20_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("the guard goes on: %v", err)
		}
		break
	}
	text, err := os.ReadFile(said.Name())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var r restoreResult
		if json.Unmarshal([]byte(line), &r) == nil && r.PID != 0 {
			t.Cleanup(func() { _ = unix.Kill(r.PID, unix.SIGKILL) })
			return r.PID
		}
	}
	return 0
}

// A UDP socket goes to another program, with the datagrams that were not read.
func TestDumpDatagrams(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		e := startEcho(t, "datagrams", listen)
		c, err := net.Dial("udp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		const datagrams = 3
		for i := range datagrams {
			if _, err := fmt.Fprintf(c, "datagram %d", i); err != nil {
				t.Fatal(err)
			}
		}
		img := dumped(t, e.pid)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, image.Name), img, 0o600); err != nil {
			t.Fatal(err)
		}
		_, shown, _ := status(t, program(t, "show", "--hexdump", "-D", dir))
		for _, want := range []string{"UDP  " + e.addr, "3 datagrams not read yet", "|datagram 2|"} {
			if !strings.Contains(shown, want) {
				t.Errorf("no %q in %s", want, shown)
			}
		}
		revive(t, img)
		if _, err := fmt.Fprintf(c, "datagram %d", datagrams); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 100)
		for i := range datagrams + 1 {
			n, err := c.Read(b)
			if want := fmt.Sprintf("datagram %d", i); err != nil || string(b[:n]) != want {
				t.Errorf("%q, %v, want %q", b[:n], err, want)
			}
		}
	}
}

// A thousand connections of one process go to another one.
func TestThousand(t *testing.T) {
	hosttest.Need(t)
	e := startEcho(t, "go", "127.0.0.1:0")
	const many = 1000
	var conns []net.Conn
	for range many {
		conns = append(conns, dialEcho(t, e))
	}
	before := resets(t)
	dir := filepath.Join(t.TempDir(), "image")
	got, said := dumpInto(t, dir, e.pid, "--json")
	var r dumpResult
	if err := json.Unmarshal([]byte(said), &r); got != 0 || err != nil || r.Connections != many {
		t.Fatalf("status %d, %v: %s", got, err, said)
	}
	img, err := os.ReadFile(filepath.Join(dir, image.Name))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	revive(t, img)
	t.Logf("dumped: stopped for %s, locked for %s, image of %s; restored in %v",
		short(r.Frozen), short(r.Locked), size(r.Image), time.Since(began).Round(time.Millisecond))
	for _, c := range conns {
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
	}
	if n := resets(t) - before; n > 0 {
		t.Errorf("%d RSTs", n)
	}
}
