package proc

import (
	"os"

	"golang.org/x/sys/unix"
)

// registers are those of a stopped thread.
type registers struct{ unix.PtraceRegsArm64 }

// callInstruction makes a system call.
var callInstruction = []byte{0x01, 0x00, 0x00, 0xd4} // svc #0

func registersOf(tid int) (r registers, err error) {
	return r, os.NewSyscallError("ptrace(PTRACE_GETREGSET)", unix.PtraceGetRegSetArm64(tid, generalRegisters, &r.PtraceRegsArm64))
}

// give gives the thread these registers.
func (r registers) give(tid int) error {
	return os.NewSyscallError("ptrace(PTRACE_SETREGSET)", unix.PtraceSetRegSetArm64(tid, generalRegisters, &r.PtraceRegsArm64))
}

// calling are the registers with which a thread makes a system call by the
// instruction at an address.
func (r registers) calling(instruction uint64, number uintptr, args [5]uint64) registers {
	r.Pc, r.Regs[8] = instruction, uint64(number)
	copy(r.Regs[:], args[:])
	return r
}

// result is what the call has returned.
func (r registers) result() int64 { return int64(r.Regs[0]) }

// native reports whether the thread runs code of 64 bits.
func (r registers) native() bool {
	const mode32 = 1 << 4 // PSR_MODE32_BIT
	return r.Pstate&mode32 == 0
}

// waits would report whether the thread is in a system call, which its registers do
// not tell.
func (r registers) waits() bool { return false }
