package proc

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A call is what must be known of a thread before it is stopped to make its system
// call again: here nothing.
type call struct{}

func callOf(_, _ int) call { return call{} }

// interruptible are the system calls that return EINTR when a thread is stopped,
// without any signal, and have done nothing then.
var interruptible = map[uint64]bool{
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_WRITE: true, unix.SYS_WRITEV: true, unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_CONNECT: true, unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true, unix.SYS_SPLICE: true, unix.SYS_SENDFILE: true,
	unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS: true, unix.SYS_IO_PGETEVENTS: true, unix.SYS_IO_URING_ENTER: true,
}

// interruptible32 are those of 32-bit programs, by their own numbers.
var interruptible32 = map[uint64]bool{
	3: true, 145: true, 371: true, 372: true, 337: true, // read, readv, recvfrom, recvmsg, recvmmsg
	4: true, 146: true, 369: true, 370: true, 345: true, // write, writev, sendto, sendmsg, sendmmsg
	102: true, 362: true, 364: true, 313: true, 187: true, 239: true, // socketcall, connect, accept4, splice, sendfile
	256: true, 319: true, 441: true, // epoll_wait, epoll_pwait, epoll_pwait2
	117: true, 420: true, 177: true, 421: true, // ipc, semtimedop, rt_sigtimedwait
	247: true, 385: true, 416: true, 426: true, // io_getevents, io_pgetevents, io_uring_enter
}

const (
	selector32      = 0x23 // __USER32_CS: a 32-bit program
	errRestartNoSig = 514  // ERESTARTNOHAND
)

// goOn makes a stopped thread go on with its system call if that would return EINTR
// for no reason. The kernel itself can do that: told that the answer is
// ERESTARTNOHAND, it makes the call again, unless a signal is there after all and
// has a handler. Then the program gets EINTR, and rightly.
func (call) goOn(tid int, w waits, stopped time.Time) error {
	// By PTRACE_GETREGS: PTRACE_GETREGSET gives those of a 32-bit program in another form.
	var r unix.PtraceRegsAmd64
	if err := unix.PtraceGetRegsAmd64(tid, &r); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_GETREGS)", err)
	}
	again, timeout := interruptible[r.Orig_rax], &r.R10
	waits := r.Orig_rax == unix.SYS_EPOLL_WAIT || r.Orig_rax == unix.SYS_EPOLL_PWAIT
	if r.Cs == selector32 {
		again, timeout = interruptible32[r.Orig_rax], &r.Rsi
		waits = r.Orig_rax == 256 || r.Orig_rax == 319
	}
	if int64(r.Orig_rax) < 0 || int32(r.Rax) != -int32(unix.EINTR) || !again {
		delete(w, tid)
		return nil
	}
	r.Rax = ^uint64(errRestartNoSig - 1)
	if waits {
		*timeout = uint64(uint32(w.again(tid, int32(*timeout), stopped, time.Now())))
	}
	return os.NewSyscallError("ptrace(PTRACE_SETREGS)", unix.PtraceSetRegsAmd64(tid, &r))
}
