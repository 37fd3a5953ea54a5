package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// program32 is a program of 32 bits that does nothing: pause(2), again and again.
func program32(t *testing.T) string {
	t.Helper()
	code := []byte{0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7} // mov $29, %eax; int $0x80; jmp
	const at, headers = 0x08048000, 52 + 32
	var b bytes.Buffer
	write := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	write([]byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")) // 32 bits, little endian
	write([]uint16{2, 3})                                                    // ET_EXEC, EM_386
	write([]uint32{1, at + headers, 52, 0, 0})                               // version, entry, program headers, sections, flags
	write([]uint16{52, 32, 1, 0, 0, 0})
	size := uint32(headers + len(code))
	write([]uint32{1, 0, at, at, size, size, 5, 0x1000}) // PT_LOAD, readable and executable
	b.Write(code)
	name := filepath.Join(t.TempDir(), "program32")
	if err := os.WriteFile(name, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// The connection of a 32-bit program can be swapped in place, but not be put into a
// new socket.
func TestSwap32(t *testing.T) {
	hosttest.Need(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("the program is for another processor")
	}
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program32(t))
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatalf("this kernel runs no 32-bit programs: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	file.Close()
	accepted.Close()
	pid := cmd.Process.Pid
	swapped(t, pid, 0)
	if r := swapped(t, pid, statusFailed, "--new-socket"); !strings.Contains(r.Error, "32-bit program; without --new-socket") {
		t.Errorf("%+v", r)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := listed(t, pid).Sockets
		if len(s) == 1 && s[0].State == "ESTABLISHED" && s[0].RecvQueue == 5 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
}

// A program whose filter would kill it for our system calls either has its filter
// set aside for them, which takes a capability, or is left alone.
func TestSwapFiltered(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "filtered", "127.0.0.1:0")
	c := converse(t, e.addr)
	time.Sleep(20 * time.Millisecond)
	got, stdout, stderr := status(t, inside(program(t, "swap", "--json", "--new-socket", "-t", fmt.Sprint(e.pid))))
	var r swapResult
	err := json.Unmarshal([]byte(stdout), &r)
	set := got == 0 && r.Swapped == 1
	left := got == statusFailed && r.Swapped == 0 && strings.Contains(r.Error, "seccomp")
	if err != nil || !set && !left {
		t.Errorf("status %d, %v: %s%s", got, err, stdout, stderr)
	}
	t.Logf("status %d: %s", got, r.Error)
	c.end(t)
	if content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.pid)); !bytes.Contains(content, []byte("Seccomp:\t2")) {
		t.Error("it has lost its filter")
	}
}

// A program is stopped by the freezer of its cgroup, if that may be used, and goes on
// afterwards, unless somebody else had stopped it.
func TestFreezeCgroup(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	dir, err := makeCgroup(t) // first, so that it is removed last
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := converse(t, e.addr)
	time.Sleep(20 * time.Millisecond)
	swap := func(args ...string) (int, string) {
		got, stdout, stderr := status(t, inside(program(t, append([]string{"swap", "-t", fmt.Sprint(e.pid)}, args...)...)))
		return got, stdout + stderr
	}
	if got, said := swap("--freeze-cgroup", t.TempDir()); got != statusFailed || !strings.Contains(said, "no cgroup") {
		t.Errorf("status %d: %s", got, said)
	}
	if err != nil {
		t.Logf("no cgroup can be made here: %v", err)
		c.end(t)
		return
	}
	if got, said := swap("--freeze-cgroup", dir); got != statusFailed || !strings.Contains(said, "not in the cgroup") {
		t.Errorf("status %d: %s", got, said)
	}
	write := func(name, value string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	frozen := func() bool {
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(events), "frozen 1")
	}
	write("cgroup.procs", fmt.Sprint(e.pid))
	for _, way := range []string{"--new-socket=false", "--new-socket"} {
		if got, said := swap("--freeze-cgroup", dir, "--every", "10ms", "--count", "5", way); got != 0 {
			t.Errorf("%s: status %d: %s", way, got, said)
		}
		if frozen() {
			t.Errorf("%s: it is still frozen", way)
		}
	}
	write("cgroup.freeze", "1")
	if got, said := swap("--freeze-cgroup", dir, "--new-socket"); got != 0 {
		t.Errorf("status %d: %s", got, said)
	}
	for deadline := time.Now().Add(10 * time.Second); !frozen(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("it is not frozen any more")
			break
		}
	}
	write("cgroup.freeze", "0")
	c.end(t)
}

// makeCgroup makes a cgroup (v2), which is removed when the test ends.
func makeCgroup(t *testing.T) (dir string, err error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		dir = filepath.Join(fields[1], fmt.Sprintf("migrate-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		t.Cleanup(func() {
			for deadline := time.Now().Add(10 * time.Second); unix.Rmdir(dir) != nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("%s is left", dir)
					return
				}
			}
		})
		return dir, nil
	}
	return "", os.ErrNotExist
}
