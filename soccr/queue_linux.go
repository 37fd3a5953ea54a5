package soccr

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// QueueSeq gives a queue's sequence number: the kernel's rcv_nxt for RecvQueue
// and write_seq for SendQueue, which count FINs as one byte.
func (s *Socket) QueueSeq(q Queue) (uint32, error) {
	var seq int
	err := s.inQueue(q, func() (err error) {
		seq, err = sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		return err
	})
	if err != nil {
		return 0, s.fail(q.String()+": read sequence number", err)
	}
	return uint32(seq), nil
}

// seqs reads the sequence numbers of both queues. The receive queue comes first, as
// Restore may have left it selected.
func (s *Socket) seqs() (rcvNxt, writeSeq uint32, err error) {
	if rcvNxt, err = s.seq(RecvQueue); err == nil {
		writeSeq, err = s.seq(SendQueue)
	}
	return rcvNxt, writeSeq, errors.Join(err, s.selectQueue(NoQueue))
}

func (s *Socket) seq(q Queue) (uint32, error) {
	if err := s.selectQueue(q); err != nil {
		return 0, err
	}
	seq, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	return uint32(seq), err
}

// SetQueueSeq sets the sequence number of an empty queue of a socket that is
// not connected yet: the number of the first byte that will be put into it.
func (s *Socket) SetQueueSeq(q Queue, seq uint32) error {
	err := s.inQueue(q, func() error { return s.setSeq(seq) })
	if err != nil {
		return s.fail(q.String()+": set sequence number", err)
	}
	return nil
}

// setSeq sets that of the selected queue.
func (s *Socket) setSeq(seq uint32) error {
	return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(int32(seq)))
}

// QueueLen is how many bytes are in a queue, without the FIN that the kernel's
// counters include in some states.
func (s *Socket) QueueLen(q Queue) (int, error) {
	info, err := s.info()
	if err != nil {
		return 0, s.fail(q.String()+": read length", err)
	}
	n, err := s.queueLen(q, &info)
	if err != nil {
		return 0, s.fail(q.String()+": read length", err)
	}
	return n, nil
}

// queueLen counts, unless TCP_INFO shows that there is nothing: nothing was ever
// received; no segment waits to be acknowledged, and no byte to be sent.
func (s *Socket) queueLen(q Queue, info *tcpinfo.Info) (int, error) {
	if q == RecvQueue {
		if info.Bytes_received == 0 {
			return 0, nil
		}
		return count(s.fd, unix.SIOCINQ) // less the FIN already: tcp_inq
	}
	state := State(info.State)
	// A closed socket's counter still shows what it will never send.
	if state == StateClose || info.Unacked == 0 && info.Notsent_bytes == 0 {
		return 0, nil
	}
	n, err := count(s.fd, unix.SIOCOUTQ)
	if err == nil && n > 0 && state.finPending() {
		n--
	}
	return n, err
}

// ReadQueue gives a copy of what is in a queue, without taking it out.
func (s *Socket) ReadQueue(q Queue) ([]byte, error) {
	n, err := s.QueueLen(q)
	if err != nil {
		return nil, err
	}
	data, err := s.readQueue(q, n)
	if err != nil {
		return nil, s.fail(q.String(), err)
	}
	return data, nil
}

// readQueue reads the n bytes that are in a queue.
func (s *Socket) readQueue(q Queue, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	read := s.peekSendQueue
	if q == RecvQueue {
		read = s.peekRecvQueue
	}
	var data []byte
	err := s.inQueue(q, func() (err error) {
		data, err = read(nil, n)
		return err
	})
	return data, err
}

// sized gives a slice of n bytes, in the memory of b if there is enough.
func sized(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	return make([]byte, n)
}

// peekRecvQueue reads from the queue's start, into b if it is large enough.
// SO_PEEK_OFF, when set, would start elsewhere and move on; it is switched off
// meanwhile.
func (s *Socket) peekRecvQueue(b []byte, n int) ([]byte, error) {
	if n == 0 {
		return b, nil
	}
	offset, err := peekOffset(s.fd)
	if err != nil {
		return nil, err
	}
	if offset >= 0 {
		if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1); err != nil {
			return nil, err
		}
	}
	data := sized(b, n)
	got, err := peek(s.fd, data)
	if offset >= 0 {
		err = errors.Join(err, sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset))
	}
	if err != nil {
		return nil, err
	}
	if got != n {
		if now, err := count(s.fd, unix.SIOCINQ); err != nil || now < n { // somebody reads
			return nil, errors.Join(err, &FieldError{Field: "RecvQueue", Want: n, Got: now, Err: ErrChanged})
		}
		// A peek stops at the urgent mark (tcp_recvmsg_locked), a count does not
		// when the program wants urgent data inline.
		return nil, because(ErrUrgent, fmt.Errorf("only %d of %d bytes before the mark", got, n))
	}
	return data, nil
}

// peekSendQueue reads the queue's last n bytes, likewise. The kernel (tcp_peek_sndq)
// returns whole buffers, the first of which may begin with bytes that the peer
// has acknowledged, and counts them all even if it could not copy them.
func (s *Socket) peekSendQueue(b []byte, n int) ([]byte, error) {
	if n == 0 {
		return b, nil
	}
	data := sized(b, n)
	for range 3 { // it cannot grow while the program is stopped
		got, err := peek(s.fd, data)
		if err != nil {
			return nil, err
		}
		if got < n {
			return nil, &FieldError{Field: "SendQueue", Want: n, Got: got, Err: ErrChanged}
		}
		if got <= len(data) {
			return data[got-n : got : got], nil
		}
		data = make([]byte, got)
	}
	return nil, &FieldError{Field: "SendQueue", Want: n, Got: "growing", Err: ErrChanged}
}

// WriteQueue appends to a queue, in state ESTABLISHED or CLOSE_WAIT: received
// bytes that wait to be read, or sent bytes that wait to be acknowledged. It
// returns how many bytes the queue took; fewer than all come with an error,
// ErrBuffer where the socket's buffer is full.
func (s *Socket) WriteQueue(q Queue, data []byte) (int, error) {
	var n int
	err := s.inQueue(q, func() (err error) {
		n, err = s.write(data)
		return err
	})
	if err != nil {
		return n, s.fail(q.String(), err)
	}
	return n, nil
}

// write sends to the selected queue, in parts as large as the kernel takes.
func (s *Socket) write(data []byte) (int, error) {
	const smallest = 4096
	written, part := 0, len(data)
	for written < len(data) {
		n, err := send(s.fd, data[written:min(written+part, len(data))])
		written += n
		switch {
		case err == nil || errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOMEM) && part > smallest:
			part = max(part/2, smallest) // no memory for one buffer of that size
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS):
			return written, fmt.Errorf("%w: %d of %d bytes: %w", ErrBuffer, written, len(data), err)
		default:
			return written, err
		}
	}
	return written, nil
}

// inQueue runs f while a queue is selected. It is selected no longer than
// needed: an ACK that arrives meanwhile would mark unsent bytes as sent
// (tcp_write_xmit), and what the program writes would end up there.
func (s *Socket) inQueue(q Queue, f func() error) error {
	if err := s.selectQueue(q); err != nil {
		return err
	}
	return errors.Join(f(), s.selectQueue(NoQueue))
}

func (s *Socket) selectQueue(q Queue) error {
	if q == s.selected {
		return nil
	}
	err := sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, int(q))
	if errors.Is(err, unix.EPERM) {
		return because(ErrNotPaused, err)
	}
	if err == nil {
		s.selected = q
	}
	return err
}

// send writes to the selected queue. It never waits, but copying much takes time
// that the scheduler should know of.
func send(fd int, data []byte) (int, error) {
	const much, flags = 64 << 10, unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	var n uintptr
	var errno unix.Errno
	if len(data) > much {
		n, _, errno = unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))),
			uintptr(len(data)), flags, 0, 0)
	} else {
		n, _, errno = syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))),
			uintptr(len(data)), flags, 0, 0)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// peek copies what is in the selected queue; the count may exceed len(data).
func peek(fd int, data []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))),
		uintptr(len(data)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN: // nothing there
		return 0, nil
	default:
		return 0, errno
	}
}

// peekOffset reads SO_PEEK_OFF, −1 where it is off or unknown to TCP (before
// Linux 6.9).
func peekOffset(fd int) (int, error) {
	offset, err := sockopt.GetInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return -1, nil
	}
	return offset, err
}

// count wraps the ioctls that return a length.
func count(fd int, request uint) (int, error) {
	var n int32
	err := ioctl(fd, request, unsafe.Pointer(&n))
	return int(n), err
}
