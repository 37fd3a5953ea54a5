package proc

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asProgram, in the environment, makes the test binary a program to be stopped.
const asProgram = "PROC_AS_PROGRAM"

func TestMain(m *testing.M) {
	if name := os.Getenv(asProgram); name != "" {
		programs[name]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The programs wait in raw system calls, and say in lines what these return.
var programs = map[string]func(){
	"wait":  wait4ever,
	"vfork": vfork,
	"tree":  tree,
	"busy":  busy,
}

// patience is what a call may wait for.
const patience = 250 * time.Millisecond

// wait4ever waits in many ways at once, each in a thread of its own.
func wait4ever() {
	caught := make(chan os.Signal, 10)
	signal.Notify(caught, unix.SIGUSR1)
	pair := func() (int, int) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			panic(err)
		}
		return fds[0], fds[1]
	}
	poller := func(fd int) int {
		ep, err := unix.EpollCreate1(0)
		if err == nil {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN})
		}
		if err != nil {
			panic(err)
		}
		return ep
	}
	late := func(fd int) {
		time.Sleep(2 * patience)
		_, _ = unix.Write(fd, []byte("x"))
	}
	events := make([]unix.EpollEvent, 1)
	ms := int(patience.Milliseconds())
	calls := map[string]func() (int, error){
		"epoll timeout": func() (int, error) { a, _ := pair(); return unix.EpollWait(poller(a), events, ms) },
		"epoll event": func() (int, error) {
			a, b := pair()
			go late(b)
			return unix.EpollWait(poller(a), events, -1)
		},
		"receive with a timeout": func() (int, error) {
			a, b := pair()
			go late(b)
			if err := unix.SetsockoptTimeval(a, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
				return 0, err
			}
			n, _, err := unix.Recvfrom(a, make([]byte, 1), 0)
			return n, err
		},
		"read": func() (int, error) {
			a, b := pair()
			go late(b)
			return unix.Read(a, make([]byte, 1))
		},
		"poll timeout": func() (int, error) {
			a, _ := pair()
			return unix.Poll([]unix.PollFd{{Fd: int32(a), Events: unix.POLLIN}}, ms)
		},
		"sleep": func() (int, error) {
			t := unix.NsecToTimespec(int64(patience))
			return 0, unix.Nanosleep(&t, nil)
		},
		"signal": func() (int, error) {
			a, _ := pair()
			ep := poller(a)
			fmt.Println("signal thread", unix.Gettid())
			return unix.EpollWait(ep, events, -1)
		},
	}
	for name, call := range calls {
		go func() {
			runtime.LockOSThread()
			began := time.Now()
			n, err := call()
			fmt.Printf("%s: %d %v %d\n", name, n, err, time.Since(began).Milliseconds())
		}()
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
}

// start starts a program and gives what it says, line by line.
func start(t *testing.T, name string) (pid int, lines <-chan string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"="+name, "GODEBUG=asyncpreemptoff=1", // whose signals interrupt, too
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	said := make(chan string, 100)
	go func() {
		defer close(said)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			said <- scanner.Text()
		}
	}()
	return cmd.Process.Pid, said
}

// waitFor reads lines until one has a prefix, and gives the rest of it.
func waitFor(t *testing.T, lines <-chan string, prefix string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the program has ended and not said %q", prefix)
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest
			}
		case <-deadline:
			t.Fatalf("the program does not say %q", prefix)
		}
	}
}

// Programs that wait in system calls see nothing of being stopped again and again:
// no EINTR, and timeouts end when they would have. Nor do they when they are made to
// make other system calls meanwhile.
func TestCallsGoOn(t *testing.T) {
	t.Run("stopped", func(t *testing.T) { testCallsGoOn(t, func(*Frozen, int) {}) })
	t.Run("calling", func(t *testing.T) {
		thief := NewThief()
		defer thief.Close()
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		fd := int(null.Fd())
		testCallsGoOn(t, func(z *Frozen, pid int) {
			if n, err := z.SetDescriptors(thief, pid, []Descriptor{{100, fd, true}, {100, -1, false}}); n != 2 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
	})
}

func testCallsGoOn(t *testing.T, meanwhile func(*Frozen, int)) {
	pid, lines := start(t, "wait")
	f := NewFreezer()
	defer f.Close()
	got := map[string]string{}
	signalled := false
	thread := 0
	freezes := 0
	for deadline := time.Now().Add(20 * time.Second); len(got) < 7; {
		if time.Now().After(deadline) {
			t.Fatalf("after %d stops, only %v have ended", freezes, got)
		}
		z, err := f.Freeze(pid, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		freezes++
		for _, tid := range z.PIDs {
			if state := stateOf(tid, tid); state != 't' {
				t.Fatalf("process %d is in state %c", tid, state)
			}
		}
		if freezes > 20 && thread != 0 && !signalled { // then it waits
			signalled = true
			if err := unix.Tgkill(pid, thread, unix.SIGUSR1); err != nil {
				t.Errorf("the thread that waits for a signal: %v", err)
			}
		}
		meanwhile(z, pid)
		if err := z.Thaw(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		for more := true; more; {
			select {
			case line := <-lines:
				if tid, ok := strings.CutPrefix(line, "signal thread "); ok {
					thread, _ = strconv.Atoi(tid)
				} else if name, result, ok := strings.Cut(line, ": "); ok {
					got[name] = result
				}
			default:
				more = false
			}
		}
	}
	for name, want := range map[string]string{
		"epoll timeout": "0 <nil>", "epoll event": "1 <nil>", "receive with a timeout": "1 <nil>", "read": "1 <nil>",
		"poll timeout": "0 <nil>", "sleep": "0 <nil>", "signal": "-1 interrupted system call",
	} {
		i := strings.LastIndexByte(got[name], ' ')
		took, err := strconv.Atoi(got[name][i+1:])
		if got[name][:i] != want || err != nil {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
		if strings.Contains(name, "timeout") && !strings.Contains(name, "with") || name == "sleep" {
			if took < int(patience.Milliseconds()) {
				t.Errorf("%s took %d ms, with a timeout of %v", name, took, patience)
			}
		}
	}
	t.Logf("%d stops: %v", freezes, got)
}

// vfork starts a program, as Go does by vfork(2).
func vfork() {
	fmt.Println("ready")
	_ = exec.Command(os.Getenv("PROC_FILE")).Run()
	fmt.Println("done")
	time.Sleep(time.Minute)
}

// tree is a process with a child and a grandchild.
func tree() {
	depth, _ := strconv.Atoi(os.Getenv("PROC_DEPTH"))
	if depth < 2 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("PROC_DEPTH=%d", depth+1))
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	} else {
		fmt.Println("ready")
	}
	time.Sleep(time.Minute)
}

func TestTree(t *testing.T) {
	pid, lines := start(t, "tree")
	waitFor(t, lines, "ready")
	f := NewFreezer()
	defer f.Close()
	z, err := f.Freeze(pid, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(z.PIDs) != 3 || z.PIDs[0] != pid || Parent(z.PIDs[1]) != pid || Parent(z.PIDs[2]) != z.PIDs[1] {
		t.Errorf("the tree of %d is %v", pid, z.PIDs)
	}
	for _, p := range z.PIDs {
		threads, err := Threads(p)
		if err != nil || len(threads) < 2 {
			t.Errorf("%v, %v", threads, err)
		}
		for _, tid := range threads {
			if state := stateOf(p, tid); state != 't' {
				t.Errorf("thread %d of %d is in state %c", tid, p, state)
			}
		}
	}
	if err := z.Thaw(); err != nil {
		t.Fatal(err)
	}
	for _, p := range z.PIDs {
		if tracer := statusNumber(p, "TracerPid"); tracer != 0 || stateOf(p, p) == 't' {
			t.Errorf("process %d is traced by %d, in state %c", p, tracer, stateOf(p, p))
		}
	}
}

// A process that cannot be stopped stays as it was, and so do the others.
func TestRefused(t *testing.T) {
	pid, lines := start(t, "tree")
	waitFor(t, lines, "ready")
	pids, err := Tree(pid)
	if err != nil {
		t.Fatal(err)
	}
	f, other := NewFreezer(), NewFreezer()
	defer f.Close()
	defer other.Close()
	child, err := other.Freeze(pids[1], 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Freeze(pid, 10*time.Second); !errors.Is(err, ErrTraced) || !strings.Contains(err.Error(), strconv.Itoa(pids[1])) {
		t.Errorf("%v, want %v", err, ErrTraced)
	}
	if state := stateOf(pid, pid); state == 't' {
		t.Error("the parent is still stopped")
	}
	if err := child.Thaw(); err != nil {
		t.Fatal(err)
	}
	for _, own := range []int{os.Getpid(), os.Getppid()} {
		if own == 0 {
			continue // outside of the PID namespace
		}
		if _, err := f.Freeze(own, time.Second); !errors.Is(err, ErrOwn) {
			t.Errorf("%v, want %v", err, ErrOwn)
		}
	}
	if _, err := f.Freeze(math.MaxInt32, time.Second); err == nil || !strings.Contains(err.Error(), "no process") {
		t.Error(err)
	}
}

// Where Yama forbids it, the message says so.
func TestYama(t *testing.T) {
	defer func(old string) { yama = old }(yama)
	yama = filepath.Join(t.TempDir(), "ptrace_scope")
	for scope, says := range map[string]bool{"": false, "0\n": false, "1\n": true, "3\n": true} {
		if err := os.WriteFile(yama, []byte(scope), 0o600); err != nil {
			t.Fatal(err)
		}
		err := whyNot(os.Getpid(), unix.EPERM)
		if !errors.Is(err, ErrNoPermission) || strings.Contains(err.Error(), yama) != says {
			t.Errorf("scope %q: %v", scope, err)
		}
	}
}

// A thread in vfork(2) cannot be stopped before its child has run the program. Until
// the limit is reached everybody waits, and then all go on.
func TestTimeout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Who opens the file waits until the lease is given up.
	leased, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer leased.Close()
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PROC_FILE", file)
	pid, lines := start(t, "vfork")
	waitFor(t, lines, "ready")
	f := NewFreezer()
	defer f.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		// Not just any child: package os tries once whether it may have one.
		if children, err := childrenOf(pid); err == nil && len(children) > 0 && inExecve(children[0]) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no child that waits for its program")
		}
	}
	failure := make(chan error)
	go func() {
		_, err := f.Freeze(pid, 100*time.Millisecond)
		failure <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if err := <-failure; !errors.Is(err, ErrTimeout) {
		t.Errorf("%v, want %v", err, ErrTimeout)
	}
	waitFor(t, lines, "done")
	if tracer := statusNumber(pid, "TracerPid"); tracer != 0 {
		t.Errorf("process %d is traced by %d", pid, tracer)
	}
}

// inExecve reports whether a process waits in execve(2).
func inExecve(pid int) bool {
	call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	return err == nil && strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_EXECVE, " "))
}

func TestWaits(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1, 0).Add(time.Duration(ms) * time.Millisecond) }
	w := waits{}
	for _, step := range []struct {
		timeout      int32
		stopped, now int
		want         int32
		what         string
	}{
		{1000, 100, 110, 1001, "the first time nothing is known"},
		{1001, 310, 320, 801, "what has passed since is taken off"},
		{801, 1500, 1510, 0, "it is over"},
		{0, 1600, 1610, 0, "it does not wait"},
		{1000, 1700, 1710, 1001, "another call"},
		{1000, 1800, 1810, 1001, "the same call anew"},
		{-1, 1900, 1910, -1, "forever"},
		{math.MaxInt32, 2000, 2010, math.MaxInt32, "as long as can be"},
	} {
		if got := w.again(7, step.timeout, at(step.stopped), at(step.now)); got != step.want {
			t.Errorf("%s: %d, want %d", step.what, got, step.want)
		}
	}
}

func TestDuplicate(t *testing.T) {
	pid, lines := start(t, "tree")
	waitFor(t, lines, "ready")
	thief := NewThief()
	fd, err := thief.Duplicate(pid, 1)
	if err != nil {
		t.Fatal(err)
	}
	var own, theirs unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &own), unix.Stat(fmt.Sprintf("/proc/%d/fd/1", pid), &theirs)); err != nil {
		t.Fatal(err)
	}
	if own.Ino != theirs.Ino {
		t.Error("another file")
	}
	if _, err := thief.Duplicate(pid, 999); !errors.Is(err, unix.EBADF) {
		t.Error(err)
	}
	if err := errors.Join(unix.Close(fd), thief.Close()); err != nil {
		t.Error(err)
	}
}
