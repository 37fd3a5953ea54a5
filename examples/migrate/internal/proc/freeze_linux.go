package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The reasons for which programs cannot be stopped, to be compared with errors.Is.
var (
	ErrTraced       = errors.New("a debugger or tracer has it")
	ErrNoPermission = errors.New("not permitted")
	ErrOwn          = errors.New("it is this program, or one that started it")
	ErrTimeout      = errors.New("it did not stop in time")
)

// A Freezer stops programs. To the kernel the tracer is a thread, which the Freezer
// has for itself. Its methods must not be called concurrently.
type Freezer struct {
	// Cgroup, if it is not empty, is the directory of a cgroup (v2) whose freezer stops
	// Cgroup, if it is not empty, is the directory of a cgroup (v2) whose freezer stops
	// the programs first: all at once, and with them the others that are in it. They
	// stay frozen until they are let go, even if this program is killed, or until one is
	// made to make system calls.
	Cgroup string

	calls chan func()
	waits waits
}

// NewFreezer makes a Freezer. Close ends it.
func NewFreezer() *Freezer {
	f := &Freezer{calls: make(chan func()), waits: waits{}}
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		for call := range f.calls {
			call()
		}
	}()
	return f
}

// Close ends the Freezer. What is frozen then goes on by itself, though not as if
// nothing had been.
func (f *Freezer) Close() { close(f.calls) }

// do runs a function on the Freezer's thread.
func (f *Freezer) do(call func() error) error {
	done := make(chan error)
	f.calls <- func() { done <- call() }
	return <-done
}

// A Frozen is a program that is stopped, with all its processes and threads.
type Frozen struct {
	PIDs []int // its processes, parents first

	freezer *Freezer
	cgroup  *cgroup // or nil
	threads map[int]*thread
	at      time.Time
}

// A thread is one that this program traces.
type thread struct {
	pid, tid int
	before   call
	stopped  bool
}

// NotOwn fails with ErrOwn if a process is this program, or one that started it:
// nobody would be left to let it go on.
func NotOwn(root int) error {
	for pid := os.Getpid(); pid > 1; pid = Parent(pid) {
		if pid == root {
			return fmt.Errorf("stop process %d: %w", root, ErrOwn)
		}
	}
	return nil
}

// Freeze stops a process and all its descendants. If one of them cannot be stopped
// within the limit, all go on, and it fails. Threads wait in vain to be stopped
// while they are inside the kernel, as in vfork(2) or in a hanging file system.
//
// After Thaw, what a thread waited for goes on: also epoll_wait(2), with the rest of
// its timeout, and calls on sockets with SO_RCVTIMEO or SO_SNDTIMEO, though with
// the whole of it. What the stop leaves to be seen: a blocking send, and a receive
// with MSG_WAITALL, return what they have done so far if that is something; the
// timeout of the first epoll_wait may be longer by the time that it has lasted;
// and so is every timeout of epoll_pwait2(2).
func (f *Freezer) Freeze(root int, limit time.Duration) (*Frozen, error) {
	if err := NotOwn(root); err != nil {
		return nil, err
	}
	z := &Frozen{freezer: f, threads: map[int]*thread{}}
	err := f.do(func() error {
		deadline := time.Now().Add(limit)
		err := z.freezeCgroup(root, deadline)
		if err == nil {
			err = z.freeze(root, deadline)
		}
		if err != nil {
			err = errors.Join(err, z.thaw())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return z, nil
}

func (z *Frozen) freeze(root int, deadline time.Time) error {
	for {
		tree, err := Tree(root)
		if err != nil {
			return err
		}
		z.PIDs = tree
		more := false
		for _, pid := range tree {
			found, err := z.seize(pid)
			if err != nil {
				return err
			}
			more = more || found
		}
		if err := z.wait(deadline); err != nil {
			return err
		}
		z.at = time.Now()
		if !more { // everybody who could have made others has stopped
			return nil
		}
	}
}

// seize begins to trace and stop the threads of a process that are not yet traced,
// and reports whether there were any.
func (z *Frozen) seize(pid int) (more bool, err error) {
	threads, err := Threads(pid)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, tid := range threads {
		if z.threads[tid] != nil {
			continue
		}
		t := &thread{pid: pid, tid: tid, before: callOf(pid, tid)}
		err := unix.PtraceSeize(tid)
		if err == nil {
			z.threads[tid] = t
			err = unix.PtraceInterrupt(tid)
		}
		if errors.Is(err, unix.ESRCH) || err != nil && stateOf(pid, tid) == 'Z' {
			delete(z.threads, tid)
			continue // it has ended
		}
		if err != nil {
			return false, whyNot(pid, err)
		}
		more = true
	}
	return more, nil
}

// wait waits until all threads have stopped or ended.
func (z *Frozen) wait(deadline time.Time) error {
	const pause = 20 * time.Microsecond
	for {
		var running *thread
		for _, t := range z.threads {
			if t.stopped {
				continue
			}
			ended, err := t.look()
			if err != nil {
				return err
			}
			if ended {
				delete(z.threads, t.tid)
			} else if !t.stopped {
				running = t
			}
		}
		if running == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("stop process %d (%s), thread %d in state %c: %w", running.pid, Name(running.pid),
				running.tid, stateOf(running.pid, running.tid), ErrTimeout)
		}
		time.Sleep(pause)
	}
}

// look finds out whether a thread has stopped.
func (t *thread) look() (ended bool, err error) {
	var status unix.WaitStatus
	got, err := unix.Wait4(t.tid, &status, unix.WALL|unix.WNOHANG, nil)
	switch {
	case errors.Is(err, unix.ECHILD):
		return true, nil
	case err != nil:
		return false, os.NewSyscallError("wait4", err)
	case got == 0:
		return false, nil
	case !status.Stopped():
		return true, nil
	case int(status)>>16 == unix.PTRACE_EVENT_STOP:
		t.stopped = true
		return false, nil
	}
	// A signal came first. It is delivered; the stop comes before its handler.
	err = unix.PtraceCont(t.tid, int(status.StopSignal()))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return false, os.NewSyscallError("ptrace(PTRACE_CONT)", err)
	}
	return false, nil
}

// Thaw lets the program go on.
func (z *Frozen) Thaw() error { return z.freezer.do(z.thaw) }

func (z *Frozen) thaw() error {
	failure := z.cgroup.restore() // before they run
	known := make(map[int]bool, len(z.threads))
	letGo := func(t *thread) {
		known[t.tid] = true
		err := t.letGo(z.freezer.waits, z.at)
		if errors.Is(err, unix.ESRCH) { // it has been killed, and its end is for us to see first
			t.stopped = false
			return
		}
		delete(z.threads, t.tid)
		if err != nil {
			failure = errors.Join(failure, fmt.Errorf("thread %d: %w", t.tid, err))
		}
	}
	for _, t := range z.threads {
		if t.stopped {
			letGo(t)
		}
	}
	// Those that would not stop may have waited for the others, as vfork(2) does,
	// and can be let go only when they have.
	const grace = 5 * time.Second
	for deadline := time.Now().Add(grace); len(z.threads) > 0 && time.Now().Before(deadline); {
		for _, t := range z.threads {
			ended, err := t.look()
			if failure = errors.Join(failure, err); ended || err != nil {
				delete(z.threads, t.tid)
			} else if t.stopped {
				letGo(t)
			}
		}
		time.Sleep(time.Millisecond)
	}
	for _, t := range z.threads {
		failure = errors.Join(failure, fmt.Errorf("process %d, thread %d does not react; it is let go when this program ends", t.pid, t.tid))
	}
	for tid := range z.freezer.waits {
		if !known[tid] {
			delete(z.freezer.waits, tid)
		}
	}
	return failure
}

// letGo lets a stopped thread go on.
func (t *thread) letGo(w waits, stopped time.Time) error {
	return errors.Join(t.before.goOn(t.tid, w, stopped),
		os.NewSyscallError("ptrace(PTRACE_DETACH)", unix.PtraceDetach(t.tid)))
}

// whyNot explains why a process cannot be traced.
func whyNot(pid int, err error) error {
	what := fmt.Sprintf("stop process %d (%s)", pid, Name(pid))
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if tracer := statusNumber(pid, "TracerPid"); tracer != 0 { // a thread
		tracer = statusNumber(tracer, "Tgid")
		return fmt.Errorf("%s: %w: process %d (%s)", what, ErrTraced, tracer, Name(tracer))
	}
	return fmt.Errorf("%s: %w: %w (%s)", what, ErrNoPermission, err, cure())
}

// yama is where Yama, a security module, says who may trace whom.
var yama = "/proc/sys/kernel/yama/ptrace_scope"

// cure says what it would take to trace other programs.
func cure() string {
	cure := "it takes CAP_SYS_PTRACE in its user namespace, or to be its user"
	scope, err := os.ReadFile(yama)
	if err == nil && !slices.Contains([]string{"", "0"}, strings.TrimSpace(string(scope))) {
		cure += fmt.Sprintf("; %s is %s, which forbids even that to ordinary users", yama, strings.TrimSpace(string(scope)))
	}
	return cure
}
