//go:build amd64 || arm64

package soccr_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var (
	faultCount = flag.Int("faults", 25, "how many faults of each kind TestFaults tries, 0 for all")
	faultSeed  = flag.Uint64("faults.seed", 1, "which of them")
)

// TestFaults has each system call of the library fail, at each place, with each errno
// that it may fail with. Whatever fails: a connection that was to be saved goes on,
// one that was to be restored can be restored again, to the byte, and nothing is left.
// All of them, with a list of what was covered:
//
//	go test ./soccr -run TestFaults -v -timeout 30m -faults 0
//
// Another process makes the calls, whose results this one changes (ptrace).
func TestFaults(t *testing.T) {
	if name := os.Getenv(faultyEnv); name != "" {
		i := slices.IndexFunc(operations[:], func(o operation) bool { return o.name == name })
		makeFaultyCalls(t, operations[i].try)
		return
	}
	covered := make(map[string]map[string]int) // call, errno: at how many places
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) { injectFaults(t, o, covered) })
	}
	total := 0
	for _, call := range slices.Sorted(maps.Keys(covered)) {
		var all []string
		for _, errno := range slices.Sorted(maps.Keys(covered[call])) {
			all = append(all, fmt.Sprintf("%s %d", errno, covered[call][errno]))
			total += covered[call][errno]
		}
		t.Logf("%-36s %s", call, strings.Join(all, ", "))
	}
	t.Logf("%d faults, in %d calls", total, len(covered))
}

const faultyEnv = "GOSOCCR_FAULTY"

// A fault is what happens instead of a call.
type fault struct {
	place int    // among the calls of the operation, when nothing fails
	call  string // its name
	nth   int    // of the calls of that name, which stays when calls of others come between
	errno unix.Errno
	short bool // it does a part of what it shall, one byte
}

// telling is 1 for those that are always tried: they have found most.
func (f fault) telling() int {
	if f.call == "close" || f.call == "shutdown" {
		return 1
	}
	return 0
}

func (f fault) String() string {
	if f.short {
		return "short"
	}
	return unix.ErrnoName(f.errno)
}

// plausible are the errnos that calls may fail with, beside those of any call. ENOSYS
// and EPERM are what seccomp filters answer.
var plausible = map[string][]unix.Errno{
	"":            {unix.ENOSYS, unix.EPERM, unix.ENOMEM},
	"accept":      {unix.EMFILE, unix.EINTR},
	"bind":        {unix.EADDRINUSE, unix.EADDRNOTAVAIL, unix.EINVAL},
	"connect":     {unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EINTR},
	"dup":         {unix.EMFILE},
	"fcntl":       {unix.EMFILE, unix.EINVAL},
	"getsockopt":  {unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EINVAL},
	"ioctl":       {unix.ENOTTY, unix.EINVAL},
	"listen":      {unix.EADDRINUSE},
	"open":        {unix.EMFILE, unix.ENOENT, unix.EINTR},
	"poll":        {unix.EINTR},
	"read":        {unix.EINTR},
	"send":        {unix.ENOBUFS},
	"setsockopt":  {unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOBUFS},
	"socket":      {unix.EMFILE, unix.EAFNOSUPPORT},
	"write":       {unix.EINTR, unix.EAGAIN, unix.ENOBUFS},
	"epoll_ctl":   {unix.ENOSPC},
	"getsockname": {unix.ENOBUFS},
	"getpeername": {unix.ENOTCONN},
}

// faultsIn are all that can happen to an operation's calls. A lock's socket, which
// does not block, is never interrupted.
func faultsIn(calls []string, interrupted bool) (all []fault) {
	seen := make(map[string]int)
	for place, call := range calls {
		nth := seen[call]
		seen[call]++
		kind, _, _ := strings.Cut(call, " ")
		// How github.com/mdlayher/socket begins, which then leaves its socket open.
		if !interrupted && (call == "fcntl F_GETFL" || call == "getsockopt SO_TYPE") {
			continue
		}
		if kind == "close" { // it closes, whatever it says
			all = append(all, fault{place: place, call: call, nth: nth, errno: unix.EINTR})
			continue
		}
		errnos := slices.Concat(plausible[""], plausible[kind])
		if interrupted && (kind == "send" || kind == "recv") {
			errnos = append(errnos, unix.EINTR)
		}
		for _, errno := range errnos {
			all = append(all, fault{place: place, call: call, nth: nth, errno: errno})
		}
		if kind == "write" || kind == "send" {
			all = append(all, fault{place: place, call: call, nth: nth, short: true})
		}
	}
	return all
}

// An injector is who follows the process that makes the calls.
type injector struct {
	interrupted bool
	calls       []string // of the operation when nothing fails
	faults      []fault  // one for each further time

	time     int
	counting bool
	seen     map[string]int     // how many calls of a name there were this time
	leave    func(r *registers) // what to do to the result of the call that is being made
	injected []fault
}

func (i *injector) each(tid int, call *syscallInfo) error {
	if call.op != ptraceSyscallEntry {
		if i.leave == nil {
			return nil
		}
		leave := i.leave
		i.leave = nil
		return changeRegisters(tid, leave)
	}
	if a, announced := call.announcement(); announced {
		i.announced(a)
		return nil
	}
	if !i.counting || ofRuntime[call.number] {
		return nil
	}
	name := call.String()
	nth := i.seen[name]
	i.seen[name]++
	if i.time == 0 {
		i.calls = append(i.calls, name)
		return nil
	}
	f := i.faults[i.time-1]
	if f.call != name || f.nth != nth {
		return nil
	}
	i.injected = append(i.injected, f)
	if f.short {
		return changeRegisters(tid, func(r *registers) {
			if length := r.argument(2); *length > 512 { // bytes of a queue, not a question to the kernel
				*length = 1
			}
		})
	}
	i.leave = func(r *registers) { r.setResult(-int64(f.errno)) }
	if call.number == unix.SYS_CLOSE {
		return nil
	}
	var failed error
	return errors.Join(changeRegisters(tid, func(r *registers) { failed = r.setCall(tid, -1) }), failed)
}

// announced begins and ends a time. The answer to its end is which one it was, or
// negative if it was the last.
func (i *injector) announced(a announcement) {
	switch a {
	case counted:
		i.counting, i.seen = true, make(map[string]int)
	case uncounted:
		i.counting = false
		if i.time == 0 {
			i.faults = faultsIn(i.calls, i.interrupted)
			if n := *faultCount; n > 0 && n < len(i.faults) {
				r := rand.New(rand.NewPCG(*faultSeed, 0))
				r.Shuffle(len(i.faults), func(a, b int) { i.faults[a], i.faults[b] = i.faults[b], i.faults[a] })
				slices.SortStableFunc(i.faults, func(a, b fault) int { return b.telling() - a.telling() })
				i.faults = i.faults[:n]
			}
		}
		more := i.time < len(i.faults)
		i.time++
		i.leave = func(r *registers) {
			r.setResult(0)
			if more {
				r.setResult(1)
			}
		}
	}
}

func changeRegisters(tid int, change func(*registers)) error {
	const general = 1 // NT_PRSTATUS
	var r registers
	if err := regset(unix.PTRACE_GETREGSET, tid, general, unsafe.Pointer(&r), unsafe.Sizeof(r)); err != nil {
		return err
	}
	change(&r)
	return regset(unix.PTRACE_SETREGSET, tid, general, unsafe.Pointer(&r), unsafe.Sizeof(r))
}

func regset(request, tid, kind int, data unsafe.Pointer, size uintptr) error {
	vector := unix.Iovec{Base: (*byte)(data)}
	vector.SetLen(int(size))
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), uintptr(kind), uintptr(unsafe.Pointer(&vector)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("ptrace", errno)
	}
	return nil
}

const problemMark = "PROBLEM "

// injectFaults runs another process that does an operation again and again, and each
// time has something else fail.
func injectFaults(t *testing.T, o operation, covered map[string]map[string]int) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFaults$")
	cmd.Env = append(os.Environ(), faultyEnv+"="+o.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	var said bytes.Buffer
	cmd.Stdout = &said
	i := injector{interrupted: o.interrupted}
	start := time.Now()
	if err := follow(t, cmd, i.each); err != nil {
		var last []fault
		if n := len(i.injected); n > 0 {
			last = i.injected[n-1:]
		}
		t.Errorf("%v, in time %d, after %+v: %s", err, i.time, last, &said)
	}
	for lines := bufio.NewScanner(&said); lines.Scan(); {
		var at int
		line, problem := strings.CutPrefix(lines.Text(), problemMark)
		if !problem {
			continue
		}
		if _, err := fmt.Sscan(line, &at); err != nil || at == 0 || at > len(i.faults) {
			t.Errorf("without a fault: %s", line)
			continue
		}
		f := i.faults[at-1]
		t.Errorf("call %d of %d, %s, fails with %v: time %s", f.place, len(i.calls), f.call, f, line)
	}
	for _, f := range i.injected {
		if covered[f.call] == nil {
			covered[f.call] = make(map[string]int)
		}
		covered[f.call][f.String()]++
	}
	t.Logf("%d faults of %d in %d calls, in %v", len(i.injected), len(i.faults), len(i.calls), time.Since(start).Round(time.Millisecond))
}

// An operation is what fails: what it takes is prepared, it is done, and looked at.
type operation struct {
	name        string
	interrupted bool // it may be, by a signal: there is no lock
	try         func(w *faultyWorld) error
}

// A faultyWorld is where operations are tried.
type faultyWorld struct {
	*network
	t    *testing.T
	more bool // it was not the last time
	done bool
}

// do does what is to fail.
func (w *faultyWorld) do(f func()) {
	announce(counted)
	f()
	w.more = announce(uncounted) == 1
	w.done = true
}

// makeFaultyCalls is the other process.
func makeFaultyCalls(t *testing.T, try func(w *faultyWorld) error) {
	runtime.LockOSThread()
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	w := &faultyWorld{network: &network{here: here, there: here}, t: t, more: true}
	w.makeLock(t)
	if err := try(w); err != nil { // for what is done only once
		t.Fatal(err)
	}
	meetWatcher(t)
	w.more = true
	for i := 0; w.more; i++ {
		hang := time.AfterFunc(time.Minute, func() {
			stacks := make([]byte, 1<<20)
			fmt.Printf("%s%d hangs\n", problemMark, i)
			fmt.Fprintf(os.Stderr, "%s\n", stacks[:runtime.Stack(stacks, true)])
			os.Exit(3)
		})
		files := openFiles(t)
		w.done = false
		err := try(w)
		if !w.done {
			t.Fatalf("the operation was not tried: %v", err)
		}
		err = errors.Join(err, w.leftovers(len(files)))
		if err != nil {
			fmt.Printf("%s%d %q\n", problemMark, i, err.Error())
		}
		hang.Stop()
	}
	announce(unwatched)
}

// leftovers finds descriptors and tables that are still there.
func (w *faultyWorld) leftovers(files int) error {
	var err error
	if now := openFiles(w.t); len(now) > files {
		err = fmt.Errorf("%d descriptors are left, of %v", len(now)-files, now)
	}
	nft, failed := nftables.New()
	if failed != nil {
		return failed
	}
	tables, failed := nft.ListTables()
	if len(tables) > 1 { // the lock's
		err = errors.Join(err, fmt.Errorf("%d tables are left", len(tables)-1))
	}
	return errors.Join(err, failed)
}

// talk is a connection between two ends, with bytes on their way in both directions.
type talk struct {
	conn, peer *net.TCPConn
	in, out    []byte
	flow       [2]netip.AddrPort
}

func (w *faultyWorld) talk() *talk {
	t := &talk{in: pattern(1, 3000), out: pattern(2, 150_000)} // more than the peer's window, so that some wait
	t.conn, t.peer = w.pair()
	setInt(w.t, t.conn, unix.SOL_SOCKET, unix.SO_SNDBUF, 200_000)
	write(w.t, t.peer, t.in)
	write(w.t, t.conn, t.out)
	local, remote := t.conn.LocalAddr().(*net.TCPAddr).AddrPort(), t.conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	t.flow = [2]netip.AddrPort{local, remote}
	return t
}

// pair is connect without what is left until the test ends.
func (w *faultyWorld) pair() (conn, peer *net.TCPConn) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(w.t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return accepted.(*net.TCPConn), dialled.(*net.TCPConn)
}

// close ends it, and unlocks it.
func (t *talk) close(w *faultyWorld) error {
	abort(t.conn)
	abort(t.peer)
	return w.lock.UnlockFlow(t.flow[0], t.flow[1])
}

// goesOn reads what was on its way, and speaks again.
func (t *talk) goesOn() error {
	deadline := time.Now().Add(20 * time.Second)
	errs := make(chan error, 1)
	again := []byte("again")
	go func() { errs <- readExactly("the peer", t.peer, deadline, t.out, again) }()
	err := readExactly("the connection", t.conn, deadline, t.in)
	if err == nil {
		_, err = t.conn.Write(again)
	}
	if err = errors.Join(err, <-errs); err != nil {
		return err
	}
	if _, err := t.peer.Write(again); err != nil {
		return err
	}
	return readExactly("the connection", t.conn, deadline, again)
}

func readExactly(who string, c net.Conn, deadline time.Time, parts ...[]byte) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	for _, want := range parts {
		got := make([]byte, len(want))
		if n, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("%s has read %d of %d bytes: %w", who, n, len(want), err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s has read other bytes than were sent", who)
		}
	}
	return nil
}

// said complains of an error that is not what the library promises.
func said(err error) error {
	if _, ok := errors.AsType[*soccr.OpError](err); err != nil && !ok {
		return fmt.Errorf("no *OpError: %w", err)
	}
	return nil
}

var operations = [...]operation{
	{"save and resume", true, trySave},
	{"checkpoint", false, tryCheckpoint},
	{"restore", false, func(w *faultyWorld) error { return tryRestore(w, func(*talk) error { return nil }) }},
	{"restore half-closed", false, func(w *faultyWorld) error {
		return tryRestore(w, func(t *talk) error { return t.peer.CloseWrite() })
	}},
	{"restore primed", false, func(w *faultyWorld) error {
		return tryRestore(w, func(*talk) error { return nil }, soccr.WithPath(soccr.PathSame))
	}},
	{"disconnect", true, tryDisconnect},
	{"save listener", false, trySaveListener},
	{"restore listener", false, tryRestoreListener},
	{"save datagrams", true, trySaveDatagrams},
	{"restore datagrams", true, tryRestoreDatagrams},
	{"save all", false, trySaveAll},
	{"restore all", false, tryRestoreAll},
	{"lock", false, tryLock},
}

// trySave pauses, saves and resumes a connection. It goes on, whatever fails.
func trySave(w *faultyWorld) error {
	t := w.talk()
	var paused, saved, resumed error
	var s *soccr.Socket
	var snap *soccr.Snapshot
	var left error
	control(w.t, t.conn, func(fd int) {
		w.do(func() {
			if s, paused = soccr.Pause(fd); paused == nil {
				snap, saved = s.Save()
				resumed = s.Resume()
			}
		})
		if resumed != nil {
			left = s.Resume()
		}
		if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); on != 0 || err != nil {
			left = errors.Join(left, fmt.Errorf("in repair mode: %d, %w", on, err))
		}
	})
	if snap != nil && (!bytes.Equal(snap.RecvQueue, t.in) || !bytes.HasSuffix(t.out, snap.SendQueue)) {
		left = errors.Join(left, fmt.Errorf("saved %d and %d bytes, not what was there", len(snap.RecvQueue), len(snap.SendQueue)))
	}
	if paused == nil && saved == nil && snap == nil {
		left = errors.Join(left, errors.New("neither a snapshot nor an error"))
	}
	return errors.Join(said(paused), said(saved), said(resumed), left, t.goesOn(), t.close(w))
}

// tryCheckpoint takes a connection out of its conn, or leaves it there.
func tryCheckpoint(w *faultyWorld) error {
	t := w.talk()
	var snap *soccr.Snapshot
	var err error
	w.do(func() { snap, err = soccr.Checkpoint(t.conn, soccr.WithLock(w.lock)) })
	result := said(err)
	if snap != nil {
		t.conn.Close()
		conn, err := soccr.RestoreConn(snap, soccr.WithLock(w.lock))
		if err != nil {
			return errors.Join(result, fmt.Errorf("restore: %w", err), t.close(w))
		}
		t.conn = conn
	} else if err == nil {
		result = errors.New("neither a snapshot nor an error")
	}
	return errors.Join(result, t.goesOn(), t.close(w))
}

// tryRestore restores a connection; if that fails, it can be done again.
func tryRestore(w *faultyWorld, before func(t *talk) error, options ...soccr.Option) error {
	t := w.talk()
	if err := before(t); err != nil {
		w.t.Fatal(err)
	}
	snap, err := soccr.Checkpoint(t.conn, soccr.WithLock(w.lock))
	if err != nil {
		w.t.Fatal(err)
	}
	options = append(options, soccr.WithLock(w.lock))
	w.do(func() { t.conn, err = soccr.RestoreConn(snap, options...) })
	result := said(err)
	if err != nil {
		var again error
		if t.conn, again = soccr.RestoreConn(snap, options...); again != nil {
			return errors.Join(result, fmt.Errorf("after %w, again: %w", err, again), t.close(w))
		}
	}
	if snap.State != soccr.StateEstablished { // the peer says no more
		return errors.Join(result, readExactly("the connection", t.conn, time.Now().Add(20*time.Second), t.in),
			readExactly("the peer", t.peer, time.Now().Add(20*time.Second), t.out), t.close(w))
	}
	return errors.Join(result, t.goesOn(), t.close(w))
}

// tryDisconnect takes a connection out of a socket. If that fails, the snapshot is
// still good, once the socket is closed.
func tryDisconnect(w *faultyWorld) error {
	t := w.talk()
	if err := w.lock.LockFlow(t.flow[0], t.flow[1]); err != nil {
		w.t.Fatal(err)
	}
	var snap *soccr.Snapshot
	var result error
	control(w.t, t.conn, func(fd int) {
		s, err := soccr.Pause(fd)
		if err == nil {
			snap, err = s.Save()
		}
		for i := 0; i < 20 && errors.Is(err, soccr.ErrChanged); i++ { // what was past the lock when it closed
			time.Sleep(time.Millisecond)
			snap, err = s.Save()
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.do(func() { err = s.Disconnect() })
		result = said(err)
	})
	t.conn.Close()
	conn, err := soccr.RestoreConn(snap, soccr.WithLock(w.lock))
	if err != nil {
		return errors.Join(result, err, t.close(w))
	}
	t.conn = conn
	return errors.Join(result, t.goesOn(), t.close(w))
}

func (w *faultyWorld) faultyListener() *net.TCPListener {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(w.t.Context(), "tcp4", "127.0.0.1:7070")
	if err != nil {
		w.t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// serves connects to a listener.
func serves(l net.Listener) error {
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	defer abort(client.(*net.TCPConn))
	server, err := l.Accept()
	if err == nil {
		abort(server.(*net.TCPConn))
	}
	return err
}

func trySaveListener(w *faultyWorld) error {
	l := w.faultyListener()
	defer l.Close()
	var snap *soccr.ListenerSnapshot
	var err error
	w.do(func() { snap, err = soccr.CheckpointListener(l, soccr.WithLock(w.lock)) })
	result := said(err)
	if snap == nil {
		return errors.Join(result, serves(l))
	}
	l.Close()
	restored, err := soccr.RestoreListener(snap, soccr.WithLock(w.lock))
	if err != nil {
		return errors.Join(result, err)
	}
	return errors.Join(result, serves(restored), restored.Close())
}

func tryRestoreListener(w *faultyWorld) error {
	snap, err := soccr.CheckpointListener(w.faultyListener(), soccr.WithLock(w.lock))
	if err != nil {
		w.t.Fatal(err)
	}
	var restored *soccr.Listener
	w.do(func() { restored, err = soccr.RestoreListener(snap, soccr.WithLock(w.lock)) })
	result := said(err)
	if err != nil {
		var again error
		if restored, again = soccr.RestoreListener(snap, soccr.WithLock(w.lock)); again != nil {
			return errors.Join(result, fmt.Errorf("after %w, again: %w", err, again))
		}
	}
	return errors.Join(result, serves(restored), restored.Close())
}

// datagrams makes a socket with some in its queue.
func (w *faultyWorld) datagrams() (fd int, want []string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: 7071, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range 3 {
		text := strings.Repeat("x", i*700)
		sendTo(w.t, fd, []byte(text), &unix.SockaddrInet4{Port: 7071, Addr: [4]byte{127, 0, 0, 1}})
		want = append(want, text)
	}
	return fd, want
}

func holds(fd int, want []string) error {
	b := make([]byte, 1<<16)
	for i, w := range want {
		n, _, err := unix.Recvfrom(fd, b, 0)
		for deadline := time.Now().Add(5 * time.Second); errors.Is(err, unix.EAGAIN) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			n, _, err = unix.Recvfrom(fd, b, 0)
		}
		if err != nil || string(b[:n]) != w {
			return fmt.Errorf("datagram %d of %d has %d bytes, %w", i, len(want), n, err)
		}
	}
	if n, _, err := unix.Recvfrom(fd, b, 0); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("one more datagram, of %d bytes: %w", n, err)
	}
	return nil
}

func trySaveDatagrams(w *faultyWorld) error {
	fd, want := w.datagrams()
	var snap *soccr.DatagramSnapshot
	var err error
	w.do(func() { snap, err = soccr.SaveDatagram(fd) })
	result := said(err)
	if err == nil && len(snap.RecvQueue) != len(want) {
		result = fmt.Errorf("saved %d datagrams", len(snap.RecvQueue))
	}
	return errors.Join(result, holds(fd, want), unix.Close(fd))
}

func tryRestoreDatagrams(w *faultyWorld) error {
	fd, want := w.datagrams()
	snap, err := soccr.SaveDatagram(fd)
	if err != nil {
		w.t.Fatal(err)
	}
	unix.Close(fd)
	start := func() (fd, lost int, err error) {
		if fd, err = soccr.NewDatagramSocket(snap); err == nil {
			err = soccr.StartDatagram(fd, snap, soccr.WithLosses(func(l soccr.Loss) {
				if l.Setting.Name == "" {
					lost++
				}
			}))
		}
		return fd, lost, err
	}
	lost := 0
	w.do(func() { fd, lost, err = start() })
	result := said(err)
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		var again error
		if fd, lost, again = start(); again != nil {
			return errors.Join(result, fmt.Errorf("after %w, again: %w", err, again))
		}
	}
	if lost > 0 { // as it has said
		return errors.Join(result, unix.Close(fd))
	}
	return errors.Join(result, holds(fd, want), unix.Close(fd))
}

// tryLock makes a lock, locks and unlocks, and ends it. Whatever fails, its end leaves
// nothing.
func tryLock(w *faultyWorld) error {
	flow := netlock.Flow{Local: netip.MustParseAddrPort("127.0.0.1:1"), Remote: netip.MustParseAddrPort("127.0.0.1:2")}
	var l *netlock.Lock
	var err, closed error
	w.do(func() {
		if l, err = netlock.New(); err == nil {
			err = errors.Join(l.Add(flow), l.Remove(flow))
			closed = l.Close()
		}
	})
	if l == nil {
		return nil
	}
	if closed != nil {
		return l.Close()
	}
	return nil
}
