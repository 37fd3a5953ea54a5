//go:build amd64 || arm64

package soccr_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// What a thread that is watched announces, by a prctl(2) that the kernel does not
// know.
type announcement uintptr

const (
	uncounted announcement = iota // from here on, calls do not count
	counted                       // from here on, they do
	unwatched                     // it was the last one
)

const prctlAnnouncement = 0x736f6363

// announce returns what the watcher answers, if it does.
func announce(a announcement) (answer uintptr) {
	answer, _, _ = unix.RawSyscall(unix.SYS_PRCTL, prctlAnnouncement, uintptr(a), 0)
	return answer
}

// Descriptors of the process that is watched.
const (
	tellWatcher = 3
	waitWatcher = 4
)

// meetWatcher has the calling thread watched.
func meetWatcher(tb testing.TB) {
	tb.Helper()
	_, err := unix.Write(tellWatcher, binary.NativeEndian.AppendUint64(nil, uint64(unix.Gettid())))
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := unix.Read(waitWatcher, make([]byte, 1)); err != nil {
		tb.Fatal(err)
	}
}

// watch runs a program in which one thread calls meetWatcher, and returns the
// system calls of that thread, those that follow each announcement that they
// count.
func watch(t *testing.T, cmd *exec.Cmd) (calls [][]string) {
	t.Helper()
	counting := false
	err := follow(t, cmd, func(_ int, call *syscallInfo) error {
		a, announced := call.announcement()
		switch {
		case call.op != ptraceSyscallEntry:
		case announced:
			if counting = a == counted; counting {
				calls = append(calls, nil)
			}
		case counting && !ofRuntime[call.number]:
			last := len(calls) - 1
			calls[last] = append(calls[last], call.String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// follow runs a program in which one thread calls meetWatcher, and calls each when
// that thread enters a system call and when it leaves it, until it says that it need
// not be watched.
func follow(t *testing.T, cmd *exec.Cmd, each func(tid int, call *syscallInfo) error) error {
	t.Helper()
	runtime.LockOSThread() // the thread that may give orders to the watched one
	defer runtime.UnlockOSThread()
	told, tell := pipe(t)
	wait, release := pipe(t)
	cmd.ExtraFiles = []*os.File{tell, wait}
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1") // by signals
	if cmd.Stdout == nil {
		cmd.Stdout = t.Output()
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tell.Close()
	wait.Close()
	err := func() error {
		tid := make([]byte, 8)
		if _, err := told.Read(tid); err != nil {
			return err
		}
		return trace(int(binary.NativeEndian.Uint64(tid)), func() error {
			_, err := release.Write([]byte{0})
			return err
		}, each)
	}()
	if err == nil {
		return cmd.Wait()
	}
	_ = cmd.Process.Kill()
	return errors.Join(err, cmd.Wait()) // which fails if trace has seen the end
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// trace follows a thread until it says that it need not be.
func trace(tid int, release func() error, each func(tid int, call *syscallInfo) error) error {
	if err := unix.PtraceSeize(tid); err != nil {
		return os.NewSyscallError("PTRACE_SEIZE", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return os.NewSyscallError("PTRACE_INTERRUPT", err)
	}
	ready := false
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(tid, &status, unix.WALL, nil); err != nil {
			if err == unix.EINTR {
				continue
			}
			return os.NewSyscallError("wait4", err)
		}
		if status.Exited() || status.Signaled() {
			return errors.New("the watched process has ended")
		}
		pass := 0 // a signal for the thread
		switch signal := status.StopSignal(); {
		case !ready: // it is stopped for the first time
			ready = true
			if err := unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
				return os.NewSyscallError("PTRACE_SETOPTIONS", err)
			}
			if err := release(); err != nil {
				return err
			}
		case signal == unix.SIGTRAP|0x80: // it enters or leaves a system call
			var call syscallInfo
			if err := call.get(tid); err != nil {
				return err
			}
			if err := each(tid, &call); err != nil {
				return err
			}
			if a, announced := call.announcement(); announced && a == unwatched {
				return os.NewSyscallError("PTRACE_DETACH", unix.PtraceDetach(tid))
			}
		case status>>16 == unix.PTRACE_EVENT_STOP:
		default:
			pass = int(signal)
		}
		if err := unix.PtraceSyscall(tid, pass); err != nil && err != unix.ESRCH {
			return os.NewSyscallError("PTRACE_SYSCALL", err)
		}
	}
}

// syscallInfo is struct ptrace_syscall_info, as it is when a call begins. When it
// ends, only op is right, and number is the result.
type syscallInfo struct {
	op     uint8
	_      [23]byte
	number uint64
	args   [6]uint64
}

const ptraceSyscallEntry = 1

const tcpAOInfo = 40 // TCP_AO_INFO

func (c *syscallInfo) get(tid int) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(*c), uintptr(unsafe.Pointer(c)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("PTRACE_GET_SYSCALL_INFO", errno)
	}
	return nil
}

// announcement is what a thread that enters a call announces.
func (c *syscallInfo) announcement() (a announcement, ok bool) {
	ok = c.op == ptraceSyscallEntry && c.number == unix.SYS_PRCTL && c.args[0] == prctlAnnouncement
	return announcement(c.args[1]), ok
}

// String names the call and, if it is about an option, the option.
func (c *syscallInfo) String() string {
	name, ok := callNames[c.number]
	if !ok {
		return fmt.Sprintf("system call %d", c.number)
	}
	switch c.number {
	case unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT:
		o := [2]uint64{c.args[1], c.args[2]}
		option := optionNames[o]
		if option == "" {
			option = soccr.OptionName(int(o[0]), int(o[1]))
		}
		if option == "" {
			option = fmt.Sprint(o)
		}
		return name + " " + option
	case unix.SYS_IOCTL, unix.SYS_FCNTL:
		if request := requestNames[c.number][c.args[1]]; request != "" {
			return name + " " + request
		}
		return fmt.Sprintf("%s %#x", name, c.args[1])
	}
	return name
}

// ofRuntime are the calls of Go's own.
var ofRuntime = map[uint64]bool{
	unix.SYS_CLOCK_GETTIME:  true, // where the vDSO has no clock
	unix.SYS_EPOLL_PWAIT:    true,
	unix.SYS_FUTEX:          true,
	unix.SYS_GETPID:         true,
	unix.SYS_MADVISE:        true,
	unix.SYS_MMAP:           true,
	unix.SYS_MUNMAP:         true,
	unix.SYS_RT_SIGPROCMASK: true,
	unix.SYS_RT_SIGRETURN:   true,
	unix.SYS_SCHED_YIELD:    true,
	unix.SYS_SIGALTSTACK:    true,
	unix.SYS_TGKILL:         true,
}

// callNames are the calls that may be made; others show as numbers.
var callNames = map[uint64]string{
	poll:                     "poll",
	unix.SYS_ACCEPT4:         "accept",
	unix.SYS_BIND:            "bind",
	unix.SYS_BPF:             "bpf",
	unix.SYS_CLOCK_NANOSLEEP: "nanosleep",
	unix.SYS_CLOSE:           "close",
	unix.SYS_CONNECT:         "connect",
	unix.SYS_DUP3:            "dup",
	unix.SYS_EPOLL_CREATE1:   "epoll_create",
	unix.SYS_EPOLL_CTL:       "epoll_ctl",
	unix.SYS_FCNTL:           "fcntl",
	unix.SYS_FSTAT:           "stat",
	unix.SYS_GETPEERNAME:     "getpeername",
	unix.SYS_GETSOCKNAME:     "getsockname",
	unix.SYS_GETSOCKOPT:      "getsockopt",
	unix.SYS_IOCTL:           "ioctl",
	unix.SYS_LISTEN:          "listen",
	unix.SYS_NANOSLEEP:       "nanosleep",
	unix.SYS_NEWFSTATAT:      "stat",
	unix.SYS_OPENAT:          "open",
	unix.SYS_PPOLL:           "poll",
	unix.SYS_READ:            "read",
	unix.SYS_RECVFROM:        "recv",
	unix.SYS_RECVMSG:         "recv",
	unix.SYS_SENDMSG:         "send",
	unix.SYS_SENDTO:          "send",
	unix.SYS_SETNS:           "setns",
	unix.SYS_SETSOCKOPT:      "setsockopt",
	unix.SYS_SHUTDOWN:        "shutdown",
	unix.SYS_SOCKET:          "socket",
	unix.SYS_TIMERFD_CREATE:  "timerfd_create",
	unix.SYS_TIMERFD_SETTIME: "timerfd_settime",
	unix.SYS_WRITE:           "write",
	unix.SYS_WRITEV:          "write",
}

// optionNames are the options that no program sets on its sockets for good.
var optionNames = map[[2]uint64]string{
	{unix.SOL_SOCKET, unix.SO_ACCEPTCONN}:         "SO_ACCEPTCONN",
	{unix.SOL_SOCKET, unix.SO_BUF_LOCK}:           "SO_BUF_LOCK",
	{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX}:      "SO_BINDTOIFINDEX",
	{unix.SOL_SOCKET, unix.SO_DETACH_FILTER}:      "SO_DETACH_FILTER",
	{unix.SOL_SOCKET, unix.SO_COOKIE}:             "SO_COOKIE",
	{unix.SOL_SOCKET, unix.SO_DOMAIN}:             "SO_DOMAIN",
	{unix.SOL_SOCKET, unix.SO_ERROR}:              "SO_ERROR",
	{unix.SOL_SOCKET, unix.SO_MEMINFO}:            "SO_MEMINFO",
	{unix.SOL_SOCKET, unix.SO_NETNS_COOKIE}:       "SO_NETNS_COOKIE",
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF}:           "SO_PEEK_OFF",
	{unix.SOL_SOCKET, unix.SO_PEERNAME}:           "SO_PEERNAME",
	{unix.SOL_SOCKET, unix.SO_PROTOCOL}:           "SO_PROTOCOL",
	{unix.SOL_SOCKET, unix.SO_RCVBUF}:             "SO_RCVBUF",
	{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE}:        "SO_RCVBUFFORCE",
	{unix.SOL_SOCKET, unix.SO_REUSEADDR}:          "SO_REUSEADDR",
	{unix.SOL_SOCKET, unix.SO_SNDBUF}:             "SO_SNDBUF",
	{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE}:        "SO_SNDBUFFORCE",
	{unix.SOL_SOCKET, unix.SO_TYPE}:               "SO_TYPE",
	{unix.IPPROTO_TCP, unix.TCP_CC_INFO}:          "TCP_CC_INFO",
	{unix.IPPROTO_TCP, tcpAOInfo}:                 "TCP_AO_INFO",
	{unix.IPPROTO_TCP, unix.TCP_CONGESTION}:       "TCP_CONGESTION",
	{unix.IPPROTO_TCP, unix.TCP_INFO}:             "TCP_INFO",
	{unix.IPPROTO_TCP, unix.TCP_MAXSEG}:           "TCP_MAXSEG",
	{unix.IPPROTO_TCP, unix.TCP_MD5SIG}:           "TCP_MD5SIG",
	{unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT}:       "TCP_MD5SIG_EXT",
	{unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ}:        "TCP_QUEUE_SEQ",
	{unix.IPPROTO_TCP, unix.TCP_QUICKACK}:         "TCP_QUICKACK",
	{unix.IPPROTO_TCP, unix.TCP_REPAIR}:           "TCP_REPAIR",
	{unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS}:   "TCP_REPAIR_OPTIONS",
	{unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE}:     "TCP_REPAIR_QUEUE",
	{unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW}:    "TCP_REPAIR_WINDOW",
	{unix.IPPROTO_TCP, unix.TCP_TIMESTAMP}:        "TCP_TIMESTAMP",
	{unix.IPPROTO_TCP, unix.TCP_ULP}:              "TCP_ULP",
	{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP}:     "TCP_WINDOW_CLAMP",
	{unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE}: "TCP_ZEROCOPY_RECEIVE",
	{unix.IPPROTO_IP, unix.IP_MTU}:                "IP_MTU",
	{unix.IPPROTO_IP, unix.IP_OPTIONS}:            "IP_OPTIONS",
	{unix.IPPROTO_IPV6, unix.IPV6_MTU}:            "IPV6_MTU",
	{unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS}: "IPV6_2292PKTOPTIONS",
}

var requestNames = map[uint64]map[uint64]string{
	unix.SYS_FCNTL: {
		unix.F_DUPFD_CLOEXEC: "F_DUPFD_CLOEXEC",
		unix.F_GETFL:         "F_GETFL",
		unix.F_GETOWN_EX:     "F_GETOWN_EX",
		unix.F_GETLK:         "F_GETLK",
		unix.F_GETSIG:        "F_GETSIG",
		unix.F_SETFL:         "F_SETFL",
		unix.F_SETLK:         "F_SETLK",
	},
	unix.SYS_IOCTL: {
		unix.SIOCATMARK:  "SIOCATMARK",
		unix.SIOCGSKNS:   "SIOCGSKNS",
		unix.SIOCINQ:     "SIOCINQ",
		unix.SIOCOUTQ:    "SIOCOUTQ",
		unix.SIOCOUTQNSD: "SIOCOUTQNSD",
	},
}
