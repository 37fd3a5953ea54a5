package proc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Thief duplicates file descriptors of processes (pidfd_getfd, Linux 5.6).
type Thief struct{ pidfds map[int]int }

// NewThief makes a Thief. Close gives up what he needs, and not what he has got.
func NewThief() *Thief { return &Thief{map[int]int{}} }

// Duplicate gives a descriptor, close-on-exec, of the same open file as a process
// has by the name of fd. The caller closes it.
func (t *Thief) Duplicate(pid, fd int) (int, error) {
	pidfd, ok := t.pidfds[pid]
	if !ok {
		var err error
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return -1, os.NewSyscallError("pidfd_open", err)
		}
		t.pidfds[pid] = pidfd
	}
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EPERM) {
		return -1, fmt.Errorf("look into process %d (%s): %w: pidfd_getfd: %w (%s)", pid, Name(pid), ErrNoPermission, err, cure())
	}
	if err != nil {
		return -1, os.NewSyscallError("pidfd_getfd", err)
	}
	return own, nil
}

// Close ends the Thief.
func (t *Thief) Close() error {
	var err error
	for _, pidfd := range t.pidfds {
		err = errors.Join(err, unix.Close(pidfd))
	}
	t.pidfds = nil
	return err
}
