package proc

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A call is the system call in which a thread waited before it was stopped. When it
// has stopped, the kernel has overwritten the first argument with the answer.
type call struct {
	number        int64
	first, sp, pc uint64
}

// callOf reads /proc/PID/task/TID/syscall: the number, six arguments, the stack
// pointer and the program counter of a thread that waits.
func callOf(pid, tid int) call {
	none := call{number: -1}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
	if err != nil {
		return none
	}
	var c call
	var others [5]uint64
	_, err = fmt.Sscanf(string(content), "%d 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x 0x%x", &c.number, &c.first,
		&others[0], &others[1], &others[2], &others[3], &others[4], &c.sp, &c.pc)
	if err != nil { // it runs
		return none
	}
	return c
}

// interruptible are the system calls that return EINTR when a thread is stopped,
// without any signal, and have done nothing then.
var interruptible = map[int64]bool{
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_WRITE: true, unix.SYS_WRITEV: true, unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_CONNECT: true, unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true, unix.SYS_SPLICE: true, unix.SYS_SENDFILE: true,
	unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS: true, unix.SYS_IO_PGETEVENTS: true, unix.SYS_IO_URING_ENTER: true,
}

const (
	generalRegisters = 1 // NT_PRSTATUS
	instruction      = 4 // bytes
)

// goOn makes a stopped thread go on with its system call if that would return EINTR
// for no reason. At this stop the kernel has decided already what to make again
// (do_signal), so the thread is put back before the call.
func (c call) goOn(tid int, w waits, stopped time.Time) error {
	var r unix.PtraceRegsArm64
	if err := unix.PtraceGetRegSetArm64(tid, generalRegisters, &r); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_GETREGSET)", err)
	}
	same := c.number >= 0 && r.Regs[8] == uint64(c.number) && r.Sp == c.sp && r.Pc == c.pc
	if !same || int32(r.Regs[0]) != -int32(unix.EINTR) || !interruptible[c.number] {
		delete(w, tid)
		return nil
	}
	r.Regs[0], r.Pc = c.first, r.Pc-instruction
	if c.number == unix.SYS_EPOLL_PWAIT {
		r.Regs[3] = uint64(uint32(w.again(tid, int32(r.Regs[3]), stopped, time.Now())))
	}
	return os.NewSyscallError("ptrace(PTRACE_SETREGSET)", unix.PtraceSetRegSetArm64(tid, generalRegisters, &r))
}
