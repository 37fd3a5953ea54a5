package proc

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A remote has a stopped thread make system calls, by an instruction that every
// program has in it: that of the kernel's own code there, the vDSO. Nothing is left
// of it: memory, registers, signal mask are as they were when it leaves, and a call
// in which the thread was stopped goes on.
type remote struct {
	thread      *thread
	memory      *os.File
	instruction uint64 // its address
	scratch     uint64 // the address of memory to be used, which is put back

	registers registers
	mask      uint64
	was       []byte // in the scratch
	section   restartable
	signals   []unix.Signal // which have come meanwhile, and go back
}

// scratchSize is how much memory there is for arguments and answers.
const scratchSize = 1024

// Callable reports, as an error, why processes of the stopped program cannot be made
// to make system calls: what SetDescriptors would find, without touching anything.
func (z *Frozen) Callable(pid int) error {
	return z.freezer.do(func() error {
		r, err := z.remote(pid)
		if err == nil {
			err = r.memory.Close()
		}
		return err
	})
}

// remote prepares one in a process.
func (z *Frozen) remote(pid int) (_ *remote, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make system calls in process %d (%s): %w", pid, Name(pid), err)
		}
	}()
	switch wide, err := is64(pid); {
	case err != nil:
		return nil, err
	case !wide:
		return nil, errors.New("it is a 32-bit program")
	}
	r := &remote{}
	for _, t := range z.threads {
		if t.pid != pid || !t.stopped {
			continue
		}
		registers, err := registersOf(t.tid)
		if err != nil {
			return nil, err
		}
		// One that waits in a call is in no restartable sequence.
		if registers.native() && (r.thread == nil || registers.waits() && !r.registers.waits()) {
			r.thread, r.registers = t, registers
		}
	}
	if r.thread == nil {
		return nil, errors.New("no thread that runs code of 64 bits")
	}
	if filtered := statusNumber(pid, "Seccomp"); filtered != 0 {
		// Its filter might kill it. To set it aside takes CAP_SYS_ADMIN.
		err := unix.PtraceSetOptions(r.thread.tid, unix.PTRACE_O_SUSPEND_SECCOMP)
		if err == nil {
			err = unix.PtraceSetOptions(r.thread.tid, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("it filters system calls (seccomp), and to set the filter aside takes CAP_SYS_ADMIN: %w", err)
		}
	}
	if r.memory, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if err := r.find(pid); err != nil {
		return nil, errors.Join(err, r.memory.Close())
	}
	return r, nil
}

// is64 reports whether a process runs a 64-bit program.
func is64(pid int) (bool, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false, err
	}
	defer file.Close()
	header := make([]byte, 5) // e_ident up to EI_CLASS
	if _, err := io.ReadFull(file, header); err != nil {
		return false, err
	}
	const class64 = 2
	return header[4] == class64, nil
}

// find looks for the instruction and the scratch: the top of the stack, where the
// kernel has put arguments and environment, is always there.
func (r *remote) find(pid int) error {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &from, &to); err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(lines.Text(), "[stack]"):
			r.scratch = to - scratchSize
		case strings.HasSuffix(lines.Text(), "[vdso]"):
			code := make([]byte, to-from)
			if _, err := r.memory.ReadAt(code, int64(from)); err != nil {
				return err
			}
			if i := bytes.Index(code, callInstruction); i >= 0 && len(callInstruction) > 0 {
				r.instruction = from + uint64(i)
			}
		}
	}
	switch {
	case r.scratch == 0:
		return errors.New("it has no stack")
	case r.instruction == 0:
		return errors.New("it has no vDSO with a system call in it")
	}
	return nil
}

// enter makes a remote ready for calls. Whoever calls it calls leave, too.
func (r *remote) enter(z *Frozen) error {
	// Being traced they stay where they are, and frozen they could make no calls.
	if err := z.cgroup.set(false); err != nil {
		return err
	}
	tid := r.thread.tid
	options := unix.PTRACE_O_TRACESYSGOOD
	if statusNumber(r.thread.pid, "Seccomp") != 0 {
		options |= unix.PTRACE_O_SUSPEND_SECCOMP
	}
	r.was = make([]byte, scratchSize)
	if _, err := r.memory.ReadAt(r.was, int64(r.scratch)); err != nil {
		return err
	}
	if err := r.section.read(tid, r.memory); err != nil {
		return err
	}
	if err := signalMask(unix.PTRACE_GETSIGMASK, tid, &r.mask); err != nil {
		return err
	}
	all := ^uint64(0)
	return errors.Join(os.NewSyscallError("ptrace(PTRACE_SETOPTIONS)", unix.PtraceSetOptions(tid, options)),
		signalMask(unix.PTRACE_SETSIGMASK, tid, &all))
}

// call makes a system call.
func (r *remote) call(number uintptr, args ...uint64) (uint64, error) {
	var five [5]uint64
	copy(five[:], args)
	if err := r.registers.calling(r.instruction, number, five).give(r.thread.tid); err != nil {
		return 0, err
	}
	for range 2 { // it stops when it enters the kernel, and when it leaves it
		if err := r.step(); err != nil {
			return 0, err
		}
	}
	now, err := registersOf(r.thread.tid)
	if err != nil {
		return 0, err
	}
	const maxErrno = 4095
	if result := now.result(); result < 0 && result >= -maxErrno {
		return 0, unix.Errno(-result)
	}
	return uint64(now.result()), nil
}

// step lets the thread run up to the next system call, or to its end.
func (r *remote) step() error {
	const atCall = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	for {
		if err := unix.PtraceSyscall(r.thread.tid, 0); err != nil {
			return os.NewSyscallError("ptrace(PTRACE_SYSCALL)", err)
		}
		status, err := r.wait()
		if err != nil || status.StopSignal() == atCall {
			return err
		}
	}
}

// wait waits until the thread stops. Signals that cannot be blocked are put aside.
func (r *remote) wait() (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(r.thread.tid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("wait4", err)
		case !status.Stopped():
			return 0, fmt.Errorf("thread %d was killed: %w", r.thread.tid, unix.ESRCH)
		}
		if s := status.StopSignal(); int(status)>>16 == 0 && s != unix.SIGTRAP|0x80 {
			r.signals = append(r.signals, s)
		}
		return status, nil
	}
}

// leave puts everything back. The registers are given back at a stop like that at
// which they were taken: from there the kernel itself makes an interrupted call
// again.
func (r *remote) leave() error {
	defer r.memory.Close()
	tid := r.thread.tid
	_, err := r.memory.WriteAt(r.was, int64(r.scratch))
	err = errors.Join(err, os.NewSyscallError("ptrace(PTRACE_INTERRUPT)", unix.PtraceInterrupt(tid)))
	for stopped := false; err == nil && !stopped; {
		if err = os.NewSyscallError("ptrace(PTRACE_CONT)", unix.PtraceCont(tid, 0)); err == nil {
			var status unix.WaitStatus
			status, err = r.wait()
			stopped = int(status)>>16 == unix.PTRACE_EVENT_STOP
		}
	}
	err = errors.Join(err, r.registers.give(tid), signalMask(unix.PTRACE_SETSIGMASK, tid, &r.mask),
		r.section.write(r.memory), os.NewSyscallError("ptrace(PTRACE_SETOPTIONS)", unix.PtraceSetOptions(tid, 0)))
	for _, s := range r.signals {
		err = errors.Join(err, unix.Tgkill(r.thread.pid, tid, s))
	}
	return err
}

// signalMask gets or sets a stopped thread's signal mask.
func signalMask(request, tid int, mask *uint64) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), unsafe.Sizeof(*mask), uintptr(unsafe.Pointer(mask)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("ptrace(signal mask)", errno)
	}
	return nil
}

// A restartable is the sequence of instructions (rseq(2)) in which a thread may have
// been stopped. The kernel forgets it when it sees the thread elsewhere.
type restartable struct {
	address uint64 // of the pointer to it; 0 for none
	pointer []byte
}

func (s *restartable) read(tid int, memory *os.File) error {
	var configuration struct {
		area                        uint64
		size, signature, flags, pad uint32
	}
	// Before Linux 5.13 this fails, and nothing is known.
	_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_RSEQ_CONFIGURATION, uintptr(tid),
		unsafe.Sizeof(configuration), uintptr(unsafe.Pointer(&configuration)), 0, 0)
	if configuration.area == 0 { // it uses none
		return nil
	}
	const pointerAt = 8 // rseq_cs in struct rseq
	s.address, s.pointer = configuration.area+pointerAt, make([]byte, 8)
	_, err := memory.ReadAt(s.pointer, int64(s.address))
	return err
}

func (s *restartable) write(memory *os.File) error {
	if s.address == 0 || binary.NativeEndian.Uint64(s.pointer) == 0 {
		return nil
	}
	_, err := memory.WriteAt(s.pointer, int64(s.address))
	return err
}
