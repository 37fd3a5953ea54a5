package soccr_test

import "golang.org/x/sys/unix"

// setCall makes the system call that a thread enters another one; -1 is none.
func (r *registers) setCall(_ int, number int64) error {
	r.Orig_rax = uint64(number)
	return nil
}

func (r *registers) setResult(result int64) { r.Rax = uint64(result) }
func (r *registers) argument(n int) *uint64 { return [...]*uint64{&r.Rdi, &r.Rsi, &r.Rdx}[n] }

type registers struct{ unix.PtraceRegs }
