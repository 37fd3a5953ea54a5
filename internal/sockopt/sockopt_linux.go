package sockopt

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Get wraps getsockopt(2): it fills value and returns how many bytes of it the
// kernel wrote. The calls of this package never block, so the scheduler is not
// told of them.
func Get(fd, level, name int, value []byte) (int, error) {
	size := uint32(len(value))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(size), nil
}

// Set wraps setsockopt(2). An empty value is passed as no value of length 0.
func Set(fd, level, name int, value []byte) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// GetInt wraps getsockopt(2) for an int.
func GetInt(fd, level, name int) (int, error) {
	var value int32
	size := uint32(4)
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(value), nil
}

// SetInt wraps setsockopt(2) for an int.
func SetInt(fd, level, name, value int) error {
	v := int32(value)
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&v)), 4, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
