package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Descriptor is what a descriptor of a process is to stand for.
type Descriptor struct {
	Number      int // in the process
	FD          int // ours, of the same open file; or -1, and it is closed
	CloseOnExec bool
}

// SetDescriptors gives a process of the stopped program descriptors: those it has by
// these numbers stand for other files afterwards, as after dup2(2), and free numbers
// for files of their own. It needs two more numbers for a while, and fails with EMFILE
// without.
//
// It returns how many of them are set, one after the other: all, if there is no
// error. What the rest stood for, they still do.
//
// The files are handed over through a socket that the process is made to open and
// receive from, so that it takes no more than the right to trace it.
func (z *Frozen) SetDescriptors(thief *Thief, pid int, descriptors []Descriptor) (done int, err error) {
	if len(descriptors) == 0 {
		return 0, nil
	}
	err = z.freezer.do(func() (err error) {
		r, err := z.remote(pid)
		if err != nil {
			return err
		}
		if err := r.enter(z); err != nil {
			return errors.Join(err, r.leave())
		}
		defer func() {
			if left := r.leave(); left != nil {
				err = errors.Join(err, fmt.Errorf("process %d may be damaged: %w", pid, left))
			}
		}()
		c, err := r.open(thief, descriptors)
		if err != nil {
			return fmt.Errorf("hand descriptors to process %d (%s): %w", pid, Name(pid), err)
		}
		for _, d := range descriptors {
			if err = c.set(d); err != nil {
				err = fmt.Errorf("hand process %d (%s) descriptor %d: %w", pid, Name(pid), d.Number, err)
				break
			}
			done++
		}
		return errors.Join(err, c.close())
	})
	return done, err
}

// A channel is a socket between this program and a process.
type channel struct {
	remote *remote
	ours   int
	theirs uint64
}

// open makes a channel, whose descriptor in the process is none of those that it is
// to be given.
func (r *remote) open(thief *Thief, descriptors []Descriptor) (_ *channel, err error) {
	if _, err := r.call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0, r.scratch); err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ends := make([]byte, 8)
	if _, err := r.memory.ReadAt(ends, int64(r.scratch)); err != nil {
		return nil, err
	}
	end := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(ends[4*i:])) }
	c := &channel{remote: r, theirs: end(0)}
	c.ours, err = thief.Duplicate(r.thread.pid, int(end(1)))
	_, closing := r.call(unix.SYS_CLOSE, end(1))
	if err = errors.Join(err, closing); err != nil {
		_, closing := r.call(unix.SYS_CLOSE, end(0))
		return nil, errors.Join(err, closing)
	}
	highest, taken := 0, false
	for _, d := range descriptors {
		highest, taken = max(highest, d.Number), taken || d.Number == int(c.theirs)
	}
	if taken {
		moved, err := r.call(unix.SYS_FCNTL, c.theirs, unix.F_DUPFD_CLOEXEC, uint64(highest+1))
		if err != nil {
			return nil, errors.Join(os.NewSyscallError("fcntl", err), c.close())
		}
		if _, err := r.call(unix.SYS_CLOSE, c.theirs); err != nil {
			return nil, err
		}
		c.theirs = moved
	}
	return c, nil
}

func (c *channel) close() error {
	_, err := c.remote.call(unix.SYS_CLOSE, c.theirs)
	return errors.Join(err, unix.Close(c.ours))
}

// set sets one descriptor.
func (c *channel) set(d Descriptor) error {
	if d.FD < 0 {
		_, err := c.remote.call(unix.SYS_CLOSE, uint64(d.Number))
		return os.NewSyscallError("close", err)
	}
	if err := unix.Sendmsg(c.ours, []byte{0}, unix.UnixRights(d.FD), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	got, err := c.receive()
	if err != nil {
		return err
	}
	flags := uint64(0)
	if d.CloseOnExec {
		flags = unix.O_CLOEXEC
	}
	if got == uint64(d.Number) { // it was free
		_, err = c.remote.call(unix.SYS_FCNTL, got, unix.F_SETFD, flags/unix.O_CLOEXEC*unix.FD_CLOEXEC)
		return os.NewSyscallError("fcntl", err)
	}
	_, err = c.remote.call(unix.SYS_DUP3, got, uint64(d.Number), flags)
	if errors.Is(err, unix.EBADF) {
		err = fmt.Errorf("%w: it is beyond the process's limit (RLIMIT_NOFILE)", err)
	}
	_, closing := c.remote.call(unix.SYS_CLOSE, got)
	return errors.Join(os.NewSyscallError("dup3", err), os.NewSyscallError("close", closing))
}

// A message is struct msghdr, as 64-bit programs have it, with what it points to.
type message struct {
	Name           uint64
	NameLength     uint32
	_              uint32
	Vector, Parts  uint64
	Control, Space uint64
	Flags          int32
	_              int32

	Base, Length uint64 // struct iovec

	ControlLength uint64 // struct cmsghdr
	Level, Type   int32
	FD            int32
	_             int32

	Data uint64
}

// Where its parts are, and its size.
const (
	vectorAt  = 56
	controlAt = vectorAt + 16
	dataAt    = controlAt + 24
)

// receive has the process receive a descriptor, and gives its number there.
func (c *channel) receive() (uint64, error) {
	at := c.remote.scratch
	b, err := binary.Append(nil, binary.NativeEndian, message{
		Vector: at + vectorAt, Parts: 1, Control: at + controlAt, Space: dataAt - controlAt, Base: at + dataAt, Length: 1,
	})
	if err != nil {
		return 0, err
	}
	if _, err := c.remote.memory.WriteAt(b, int64(at)); err != nil {
		return 0, err
	}
	if _, err := c.remote.call(unix.SYS_RECVMSG, c.theirs, at, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT); err != nil {
		return 0, os.NewSyscallError("recvmsg", err)
	}
	if _, err := c.remote.memory.ReadAt(b, int64(at)); err != nil {
		return 0, err
	}
	var m message
	if _, err := binary.Decode(b, binary.NativeEndian, &m); err != nil {
		return 0, err
	}
	switch {
	case m.Space == 0 && m.Flags&unix.MSG_CTRUNC != 0:
		return 0, fmt.Errorf("it has no free descriptor: %w", unix.EMFILE)
	case m.Level != unix.SOL_SOCKET || m.Type != unix.SCM_RIGHTS:
		return 0, fmt.Errorf("no descriptor came through the channel: %w", unix.EBADMSG)
	}
	return uint64(m.FD), nil
}
