package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A Registration is that of a file with an epoll instance.
type Registration struct {
	Epoll  int // the descriptor of the instance in the process
	Number int // under which the file was registered, whatever that stands for now
	Events uint32
	Data   uint64
	Inode  uint64 // of the file, with the device that is has it
	Device uint64
}

// Registrations gives what the epoll instances of a process watch. An instance of
// which it has several descriptors comes with each.
func Registrations(pid int) (all []Registration, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || link != "anon_inode:[eventpoll]" {
			continue
		}
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, e.Name()))
		if err != nil {
			return nil, err
		}
		var epoll int
		if _, err := fmt.Sscan(e.Name(), &epoll); err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(content)) {
			if !strings.HasPrefix(line, "tfd:") {
				continue
			}
			r := Registration{Epoll: epoll}
			var position, device uint64
			if _, err := fmt.Sscanf(line, "tfd: %d events: %x data: %x pos:%d ino:%x sdev:%x",
				&r.Number, &r.Events, &r.Data, &position, &r.Inode, &device); err != nil {
				return nil, fmt.Errorf("/proc/%d/fdinfo/%d: %q: %w", pid, epoll, line, err)
			}
			const minorBits = 20 // of the kernel's own dev_t
			r.Device = unix.Mkdev(uint32(device>>minorBits), uint32(device&(1<<minorBits-1)))
			all = append(all, r)
		}
	}
	return all, nil
}

// A Change is that of a registration, from one file to another. Descriptors are this
// program's. If Old is -1, it is made and was not there.
type Change struct {
	Registration
	Epoll, Old, New int
}

// Register makes registrations anew, with other files, and gives how many it has
// made: all, if there is no error. What is not there any more, as when the same
// instance comes twice, it leaves out.
//
// To the kernel a registration is a file and a number. So the number has to stand
// for the file while it is changed, and does so in the descriptor table of a thread
// that has a table of its own. The programs whose instances they are do nothing.
//
// A registration that has fired and waits to be armed again (EPOLLONESHOT) is watched
// for errors and hangups again, which every new registration is.
func Register(changes []Change) (done int, err error) {
	if len(changes) == 0 {
		return 0, nil
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		runtime.LockOSThread() // it ends with the goroutine
		if err = os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_FILES)); err != nil {
			return
		}
		done, err = register(changes)
	}()
	<-finished
	return done, err
}

func register(changes []Change) (done int, err error) {
	highest := 0
	for _, c := range changes {
		highest = max(highest, c.Number)
	}
	// First of all, what is needed gets out of the way of the numbers.
	moved := map[int]int{}
	for _, c := range changes {
		for _, fd := range []int{c.Epoll, c.Old, c.New} {
			if _, ok := moved[fd]; ok || fd < 0 {
				continue
			}
			if moved[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highest+1); err != nil {
				return 0, os.NewSyscallError("fcntl", err)
			}
		}
	}
	moved[-1] = -1
	for _, c := range changes {
		c.Epoll, c.Old, c.New = moved[c.Epoll], moved[c.Old], moved[c.New]
		if err := c.make(); err != nil {
			return done, fmt.Errorf("register descriptor %d with an epoll instance again: %w", c.Number, err)
		}
		done++
	}
	return done, nil
}

// make makes one change.
func (c *Change) make() error {
	if c.Old >= 0 {
		err := c.control(unix.EPOLL_CTL_DEL, c.Old)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	err := c.control(unix.EPOLL_CTL_ADD, c.New)
	if err != nil && c.Old >= 0 { // back to the old one
		err = errors.Join(err, c.control(unix.EPOLL_CTL_ADD, c.Old))
	}
	return err
}

// control calls epoll_ctl(2), with the number standing for a file meanwhile.
func (c *Change) control(op, fd int) error {
	if err := unix.Dup3(fd, c.Number, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	defer unix.Close(c.Number)
	event := unix.EpollEvent{Events: c.Events, Fd: int32(uint32(c.Data)), Pad: int32(uint32(c.Data >> 32))}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(c.Epoll, op, c.Number, &event))
}
