package main

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A board is memory that all processes of a soak share: how far each stream has
// come, wherever its ends are at the moment.
type board struct {
	Moves    atomic.Int64 // of connections
	MostWant atomic.Int64 // as many are enough
	Stop     atomic.Int32 // not 0: move no more, and come to an end
	_        int32
	Slots    [maxSlots][2]direction // from the moved end to its peer, and back
}

const maxSlots = 4096

// A direction is one of the two streams of a connection. Offsets count the FIN as
// one byte, times are of the monotonic clock, which all processes have in common.
type direction struct {
	Written atomic.Int64 // given to the kernel
	Since   atomic.Int64 // when that began to be more than was taken
	Taken   atomic.Int64 // read, and found right
	Done    atomic.Int64 // 1: the end of it was read
}

func newBoard() (*board, *os.File, error) {
	fd, err := unix.MemfdCreate("soak", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "soak")
	if err := file.Truncate(int64(unsafe.Sizeof(board{}))); err != nil {
		return nil, nil, err
	}
	b, err := openBoard(file)
	return b, file, err
}

func openBoard(file *os.File) (*board, error) {
	mem, err := unix.Mmap(int(file.Fd()), 0, int(unsafe.Sizeof(board{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return (*board)(unsafe.Pointer(&mem[0])), nil
}

func (b *board) begin(slot int) {
	for i := range b.Slots[slot] {
		d := &b.Slots[slot][i]
		d.Written.Store(0)
		d.Since.Store(0)
		d.Taken.Store(0)
		d.Done.Store(0)
	}
}

// over reports whether both ends have read all.
func (b *board) over(slot int) bool {
	s := &b.Slots[slot]
	return s[0].Done.Load() == 1 && s[1].Done.Load() == 1
}

// monotonic is a time that all processes understand.
func monotonic() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // which is always there
	return now.Nano()
}
