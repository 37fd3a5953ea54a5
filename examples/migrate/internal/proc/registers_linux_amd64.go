package proc

import (
	"os"

	"golang.org/x/sys/unix"
)

// registers are those of a stopped thread.
type registers struct{ unix.PtraceRegsAmd64 }

// callInstruction makes a system call.
var callInstruction = []byte{0x0f, 0x05} // syscall

func registersOf(tid int) (r registers, err error) {
	return r, os.NewSyscallError("ptrace(PTRACE_GETREGS)", unix.PtraceGetRegsAmd64(tid, &r.PtraceRegsAmd64))
}

// give gives the thread these registers.
func (r registers) give(tid int) error {
	return os.NewSyscallError("ptrace(PTRACE_SETREGS)", unix.PtraceSetRegsAmd64(tid, &r.PtraceRegsAmd64))
}

// calling are the registers with which a thread makes a system call by the
// instruction at an address.
func (r registers) calling(instruction uint64, number uintptr, args [5]uint64) registers {
	r.Rip, r.Rax = instruction, uint64(number)
	r.Orig_rax = ^uint64(0) // the thread is in no call that would have to be made again
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8 = args[0], args[1], args[2], args[3], args[4]
	return r
}

// result is what the call has returned.
func (r registers) result() int64 { return int64(r.Rax) }

// native reports whether the thread runs code of 64 bits.
func (r registers) native() bool { return r.Cs != selector32 }

// waits reports whether the thread is in a system call.
func (r registers) waits() bool { return int64(r.Orig_rax) >= 0 }
