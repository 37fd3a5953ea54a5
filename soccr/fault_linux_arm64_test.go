package soccr_test

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const ntARMSystemCall = 0x404 // NT_ARM_SYSTEM_CALL

// setCall makes the system call that a thread enters another one; -1 is none.
func (r *registers) setCall(tid int, number int64) error {
	call := int32(number)
	return regset(unix.PTRACE_SETREGSET, tid, ntARMSystemCall, unsafe.Pointer(&call), unsafe.Sizeof(call))
}

func (r *registers) setResult(result int64) { r.Regs[0] = uint64(result) }
func (r *registers) argument(n int) *uint64 { return &r.Regs[n] }

type registers struct{ unix.PtraceRegs }
