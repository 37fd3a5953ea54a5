package netns

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace is the network namespace of whatever thread opens it.
const threadNamespace = "/proc/thread-self/ns/net"

// Current reports whether fd stands for the network namespace that the calling
// thread is in. To enter it again would need a capability.
func Current(fd int) bool {
	var here, there unix.Stat_t
	return unix.Stat(threadNamespace, &here) == nil && unix.Fstat(fd, &there) == nil &&
		here.Dev == there.Dev && here.Ino == there.Ino
}

// Do runs f on a thread inside the network namespace fd. The thread goes back
// before any other goroutine can run on it, or ends. What setns(2) answers comes
// as an *os.SyscallError, and f's own error as it is.
func Do(fd int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		restored, err := visit(fd, f)
		if restored {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- err
	}()
	return <-done
}

func visit(fd int, f func() error) (restored bool, err error) {
	home, err := os.Open(threadNamespace)
	if err != nil {
		return true, err
	}
	defer home.Close()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return true, os.NewSyscallError("setns", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		if err == nil {
			err = os.NewSyscallError("setns", back)
		}
		return false, err
	}
	return true, err
}
