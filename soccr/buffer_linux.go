package soccr

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A bufferKind is one of a socket's two buffers. getsockopt gives, and the
// functions here take, sizes in bytes of memory: twice what setsockopt takes.
type bufferKind struct {
	option, force int
	lock          uint8 // in SO_BUF_LOCK
}

var (
	recvBuffer = bufferKind{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, unix.SOCK_RCVBUF_LOCK}
	sendBuffer = bufferKind{unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, unix.SOCK_SNDBUF_LOCK}
)

// largest is a size that no queue reaches; the kernel doubles it into an int.
const largest = maxInt - 1

func (s *Socket) memory() (memory, error) {
	var b [9 * 4]byte // SK_MEMINFO_VARS
	if _, err := sockopt.Get(s.fd, unix.SOL_SOCKET, unix.SO_MEMINFO, b[:]); err != nil {
		return memory{}, err
	}
	return memory{
		recvAlloc:  binary.NativeEndian.Uint32(b[0:]),  // SK_MEMINFO_RMEM_ALLOC
		recvBuffer: binary.NativeEndian.Uint32(b[4:]),  // SK_MEMINFO_RCVBUF
		sendAlloc:  binary.NativeEndian.Uint32(b[8:]),  // SK_MEMINFO_WMEM_ALLOC
		sendBuffer: binary.NativeEndian.Uint32(b[12:]), // SK_MEMINFO_SNDBUF
		sendQueue:  binary.NativeEndian.Uint32(b[20:]), // SK_MEMINFO_WMEM_QUEUED
		options:    binary.NativeEndian.Uint32(b[24:]), // SK_MEMINFO_OPTMEM
	}, nil
}

// bufferLock reads SO_BUF_LOCK; before Linux 5.15 nobody can tell.
func (s *Socket) bufferLock() (uint8, error) {
	lock, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return uint8(lock), err
}

func (s *Socket) setBufferLock(lock uint8) error {
	if lock == 0 && !s.sized {
		return nil // as in any new socket
	}
	err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, int(lock))
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil // before Linux 5.15 a buffer once set stays as it is
	}
	return err
}

// setBuffer sets a buffer's size as near to size as it may, and keeps the kernel
// from tuning it until setBufferLock. Beyond net.core.rmem_max and wmem_max that
// takes CAP_NET_ADMIN in the initial user namespace. A buffer of now bytes that is
// to be larger never becomes smaller.
func (s *Socket) setBuffer(b bufferKind, now, size int) error {
	const usual = 2 * 212992 // what anybody may set, unless the limits were changed
	s.sized = true
	err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, b.force, (size+1)/2)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	settable := size
	if now > usual && now < size {
		settable, _ = mostSettable(b) // what is not known is not tried
	}
	if settable > now || size < now {
		if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, b.option, (size+1)/2); err != nil || b != recvBuffer {
			return err
		}
		if now, err = s.bufferSize(b); err != nil {
			return err
		}
	}
	if b != recvBuffer || now >= size {
		return nil
	}
	return s.followLowat(size)
}

// maximize makes a buffer as large as it may be.
func (s *Socket) maximize(b bufferKind) error {
	now, err := s.bufferSize(b)
	if err != nil {
		return err
	}
	return s.setBuffer(b, now, largest)
}

// followLowat enlarges a receive buffer in another way: one that is not locked follows
// SO_RCVLOWAT up to tcp_rmem[2], as far as tuning could have brought it
// (tcp_set_rcvlowat).
func (s *Socket) followLowat(size int) error {
	lock, err := s.bufferLock()
	if err != nil {
		return err
	}
	if err := s.setBufferLock(lock &^ recvBuffer.lock); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) { // Multipath TCP: it stays as near as it came
			return nil
		}
		return err
	}
	low, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	if err != nil {
		return err
	}
	for _, v := range [...]int{(size + 1) / 2, low} {
		if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, v); err != nil {
			return err
		}
	}
	return s.setBufferLock(lock | recvBuffer.lock)
}

func (s *Socket) bufferSize(b bufferKind) (int, error) {
	return sockopt.GetInt(s.fd, unix.SOL_SOCKET, b.option)
}

// mostSettable tries with another socket how large this user can set a buffer.
func mostSettable(b bufferKind) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = sockopt.SetInt(fd, unix.SOL_SOCKET, b.force, largest/2)
	if errors.Is(err, unix.EPERM) {
		err = sockopt.SetInt(fd, unix.SOL_SOCKET, b.option, largest/2)
	}
	if err != nil {
		return 0, err
	}
	return sockopt.GetInt(fd, unix.SOL_SOCKET, b.option)
}

// setBuffers sets both buffers of a socket that is not connected to their saved
// sizes, and whether the kernel tunes them.
func (s *Socket) setBuffers(o *Options) error {
	for _, b := range [...]struct {
		field string
		kind  bufferKind
		size  uint32
	}{{"Options.RecvBuffer", recvBuffer, o.RecvBuffer}, {"Options.SendBuffer", sendBuffer, o.SendBuffer}} {
		now, err := s.bufferSize(b.kind)
		if err == nil && b.size != 0 && now != int(b.size) {
			err = s.setBuffer(b.kind, now, int(b.size))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.field, err)
		}
	}
	if err := s.setBufferLock(o.BufferLock); err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // of Multipath TCP
		return fmt.Errorf("Options.BufferLock: %w", err)
	}
	return nil
}

// recvQueueMemory is what a receive buffer must have for a queue to get in: for the
// bytes, and for the structures that hold them (a quarter of a percent of a long queue
// on Linux 6.18). The last write may go beyond it (tcp_send_rcvq).
func recvQueueMemory(bytes int) int { return bytes + bytes/128 - recvWrite }

// sendQueueMemory is that for a send buffer, where a structure holds up to 64 KiB, and
// half of the peer's largest window at most (832 bytes each). The parts that count as
// sent and as never sent are kept apart.
func sendQueueMemory(bytes int) int { return bytes + bytes/32 + 8<<10 }

// CheckQueues finds out whether a new socket of the calling thread's network namespace
// and user can hold a snapshot's queues, and fails with ErrBuffer if not: what
// Restore would find out when the connection is gone. Preflight asks too.
func CheckQueues(snap *Snapshot) error {
	return checkQueues(snap, 0, func(b bufferKind, _ int) (int, error) {
		fd, err := NewSocket(snap)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		fresh := Socket{fd: fd}
		if err := fresh.maximize(b); err != nil {
			return 0, err
		}
		return fresh.bufferSize(b)
	})
}

// CheckQueues finds out whether this socket can hold its own queues, as they are in a
// snapshot, once it is disconnected, and fails with ErrBuffer if not; it changes
// nothing. Who restores in place asks before Disconnect: a buffer that the kernel has
// tuned may be larger than any that the user can set, and Restore leaves it so.
func (s *Socket) CheckQueues(snap *Snapshot) error {
	memory, err := s.memory()
	if err != nil {
		return s.fail("look", err)
	}
	return checkQueues(snap, int(memory.sendQueue), func(b bufferKind, need int) (int, error) {
		size, err := s.bufferSize(b)
		if err != nil || size >= need {
			return size, err
		}
		// Whether SO_RCVLOWAT would bring it further depends on what it has received.
		settable, err := mostSettable(b)
		return max(size, settable), err
	})
}

// checkQueues compares what the queues need with the largest size of their buffers.
// What the send queue takes now tells what small windows make of it.
func checkQueues(snap *Snapshot, sendQueue int, largest func(b bufferKind, need int) (int, error)) error {
	const anybody = 64 << 10 // bytes that any user's buffers hold
	for _, q := range [...]struct {
		queue       Queue
		buffer      bufferKind
		bytes, need int
	}{
		{RecvQueue, recvBuffer, len(snap.RecvQueue), recvQueueMemory(len(snap.RecvQueue))},
		{SendQueue, sendBuffer, len(snap.SendQueue), max(sendQueueMemory(len(snap.SendQueue)), sendQueue)},
	} {
		if q.bytes <= anybody {
			continue
		}
		size, err := largest(q.buffer, q.need)
		if err == nil && size < q.need {
			err = fmt.Errorf("%w: %d bytes need about %d, and there are %d", ErrBuffer, q.bytes, q.need, size)
		}
		if err != nil {
			return &OpError{Op: q.queue.String(), Local: snap.Local, Remote: snap.Remote, Err: err}
		}
	}
	return nil
}
