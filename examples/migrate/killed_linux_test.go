package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

var stages = flag.Int("stages", 3, "kill each command at so many of the system calls that it enters and leaves, spread over all")

// A stepped program stops whenever one of its threads enters or leaves a system call,
// until it has done so last times; then it is killed there, with all its threads.
type stepped struct {
	last, stops int

	// guard is whether it is the program's first child that this happens to. It must
	// have none itself. What it does before it begins to trace does not count.
	guard, traces bool
	victim        int

	code int // the program's exit status
}

// run starts a program, and sees it end. Children of the program are left alone.
func (s *stepped) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	runtime.LockOSThread() // it is the thread that traces
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		t.Fatalf("it did not stop: %v, %#x", err, status)
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if s.victim = pid; s.guard {
		s.victim = 0 // not known yet
		options |= unix.PTRACE_O_TRACEVFORK
	}
	err := unix.PtraceSetOptions(pid, options)
	if err == nil {
		err = unix.PtraceSyscall(pid, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Each thread is waited for by its own number: other tests have children, too.
	threads := map[int]int{pid: pid} // and the processes that they are of
	for idle := 0; len(threads) > 0; idle++ {
		for tid := range threads {
			switch got, err := unix.Wait4(tid, &status, unix.WALL|unix.WNOHANG, nil); {
			case errors.Is(err, unix.EINTR) || err == nil && got == 0:
				continue
			case err != nil || status.Exited() || status.Signaled():
				delete(threads, tid)
				if tid == pid && err == nil {
					s.code = status.ExitStatus()
				}
			default:
				s.stopped(t, tid, status, threads)
			}
			idle = 0
		}
		if idle > 100 { // it waits for something
			time.Sleep(20 * time.Microsecond)
			findBorn(pid, threads)
			findBorn(s.victim, threads)
		}
	}
	_ = cmd.Wait() // that it is gone is known; its output is awaited
}

// findBorn finds threads whose birth was not heard of any more, as the process was
// killed or has ended: it is there until its tracer has heard of the end of each.
func findBorn(pid int, threads map[int]int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			threads[tid] = pid
		}
	}
}

// counts reports whether a stop of the victim's counts.
func (s *stepped) counts(tid int) bool {
	if s.guard && !s.traces {
		var info struct { // struct ptrace_syscall_info
			op         uint8
			arch       uint32
			ip, sp, nr uint64
			args       [6]uint64
		}
		const entry = 1 // PTRACE_SYSCALL_INFO_ENTRY
		_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
		s.traces = info.op == entry && info.nr == unix.SYS_PTRACE
	}
	return !s.guard || s.traces
}

// stopped lets a thread go on, or kills it with all others.
func (s *stepped) stopped(t *testing.T, tid int, status unix.WaitStatus, threads map[int]int) {
	t.Helper()
	const inCall = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	signal := status.StopSignal()
	switch {
	case signal == inCall:
		if threads[tid] == s.victim && s.counts(tid) {
			s.stops++
		}
		if threads[tid] == s.victim && s.stops == s.last {
			if err := unix.Kill(s.victim, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
		signal = 0
	case signal == unix.SIGTRAP && status.TrapCause() > 0:
		created, err := unix.PtraceGetEventMsg(tid)
		if err != nil {
			t.Fatal(err)
		}
		threads[int(created)] = threads[tid]
		if status.TrapCause() == unix.PTRACE_EVENT_VFORK {
			threads[int(created)] = int(created)
			s.victim = int(created)
		}
		signal = 0
	case signal == unix.SIGTRAP, signal == unix.SIGSTOP: // exec, and a thread's beginning
		signal = 0
	}
	if err := unix.PtraceSyscall(tid, int(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
}

// command runs one of the program's commands, and returns what it has said.
func (s *stepped) command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := inside(program(t, args...))
	var said bytes.Buffer // of the guard too, so that it is waited for
	cmd.Stdout, cmd.Stderr = &said, &said
	s.run(t, cmd)
	return said.String()
}

// killedAtStages runs a command as often as it is to be killed, and once to its end.
// try runs it once, and sees what has become of the program it works on.
func killedAtStages(t *testing.T, guard bool, try func(s *stepped)) {
	t.Helper()
	whole := stepped{last: math.MaxInt, guard: guard}
	try(&whole)
	kills, all := 0, *stages
	if guard { // there are two programs to trace
		all = max(all*2/3, 1)
	}
	for i := range all {
		s := stepped{guard: guard, last: 1 + (2*i+1)*whole.stops/(2*all)}
		try(&s)
		if s.stops == s.last {
			kills++
		}
	}
	t.Logf("killed %d times of %d, in %d entries and exits of system calls", kills, all, whole.stops)
	if kills == 0 {
		t.Error("it was never killed")
	}
}

// Wherever dump is killed, either the program goes on as it was, or the image is there
// as a whole; and nobody traces the program.
func TestDumpKilledAtStages(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	pid := e.pid
	killedAtStages(t, false, func(s *stepped) {
		img, said := s.dump(t, pid)
		if img != nil {
			pid = revive(t, img)
		} else if tracer := tracerOf(pid); tracer != "0" {
			t.Fatalf("at stop %d: process %s traces it; %s", s.last, tracer, said)
		}
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
}

// dump dumps a program, and returns the image, if it is there, and what was said.
func (s *stepped) dump(t *testing.T, pid int) (img []byte, said string) {
	t.Helper()
	dir := t.TempDir()
	said = s.command(t, "dump", "-t", fmt.Sprint(pid), "-D", dir, "--lock-timeout", "1s")
	img, err := os.ReadFile(filepath.Join(dir, image.Name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return img, said
}

// Wherever restore is killed, either the sockets are in the new program, or they can be
// restored again.
func TestRestoreKilledAtStages(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	pid := e.pid
	killedAtStages(t, false, func(s *stepped) {
		img := dumped(t, pid)
		if pid = killRestore(t, img, func(cmd *exec.Cmd) { s.run(t, cmd) }); pid == 0 {
			pid = revive(t, img)
		}
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v", s.last, err)
		}
	})
}

// Wherever swap is killed, the program goes on, and nobody traces it.
func TestSwapKilledAtStages(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	e := startEcho(t, "threads", "127.0.0.1:0")
	c := dialEcho(t, e)
	for _, way := range []string{"--new-socket", "--new-socket=false"} {
		t.Run(way, func(t *testing.T) {
			killedAtStages(t, false, func(s *stepped) {
				said := s.command(t, "swap", "-t", fmt.Sprint(e.pid), way)
				if tracer := tracerOf(e.pid); tracer != "0" {
					t.Fatalf("at stop %d: process %s traces it", s.last, tracer)
				}
				if strings.Contains(said, "migrate:") {
					t.Fatalf("at stop %d: %s", s.last, said)
				}
				if err := exchange(c); err != nil {
					t.Fatalf("at stop %d: %v; %s", s.last, err, said)
				}
			})
		})
	}
}
