package host

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// LimitBuffers keeps the kernel, in the calling thread's network namespace, from
// tuning send buffers beyond what this user can set them to: a full one could not be
// put back into a new socket. Who may exceed net.core.wmem_max needs no limit.
func LimitBuffers() error {
	const sysctl = "/proc/sys/net/ipv4/tcp_wmem"
	settable, err := LargestSendBuffer()
	if err != nil || settable == 0 {
		return err
	}
	content, err := os.ReadFile(sysctl)
	if err != nil {
		return err
	}
	var least, usual, most int
	if _, err := fmt.Sscan(string(content), &least, &usual, &most); err != nil {
		return fmt.Errorf("%s: %w", sysctl, err)
	}
	// The last segment of 64 KiB may go beyond the limit, and the structures that hold
	// the queue are not always the same.
	if limit := settable * 3 / 4; limit < most {
		return os.WriteFile(sysctl, fmt.Append(nil, least, usual, limit), 0)
	}
	return nil
}

// LargestSendBuffer is what this user can set SO_SNDBUF to, in bytes of memory as
// getsockopt gives it; 0: as he likes.
func LargestSendBuffer() (int, error) {
	const huge = 1 << 29
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, huge) == nil {
		return 0, nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, huge); err != nil {
		return 0, os.NewSyscallError("SO_SNDBUF", err)
	}
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return size, os.NewSyscallError("SO_SNDBUF", err)
}
