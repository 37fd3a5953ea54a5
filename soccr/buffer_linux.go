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

// memory is what of SO_MEMINFO (Linux 4.12) matters here, in bytes.
type memory struct {
	recvAlloc, recvBuffer, sendAlloc, sendBuffer uint32
	// options is what filters, keys of TCP-MD5 and headers of IPv6 take, each of
	// them some (sk_omem_alloc).
	options uint32
}

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
// takes CAP_NET_ADMIN in the initial user namespace.
func (s *Socket) setBuffer(b bufferKind, size int) error {
	half := (size + 1) / 2
	s.sized = true
	err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, b.force, half)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, b.option, half); err != nil || b != recvBuffer {
		return err
	}
	// A receive buffer that is not locked follows SO_RCVLOWAT up to tcp_rmem[2],
	// as far as tuning could have brought it (tcp_set_rcvlowat).
	if got, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, b.option); err != nil || got >= size {
		return err
	}
	lock, err := s.bufferLock()
	if err != nil {
		return err
	}
	if err := s.setBufferLock(lock &^ b.lock); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) { // Multipath TCP: it stays as near as it came
			return nil
		}
		return err
	}
	low, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	if err != nil {
		return err
	}
	for _, v := range [...]int{half, low} {
		if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, v); err != nil {
			return err
		}
	}
	return s.setBufferLock(lock | b.lock)
}

// setBuffers sets both buffers of a socket that is not connected to their saved
// sizes, and whether the kernel tunes them.
func (s *Socket) setBuffers(o *Options) error {
	for _, b := range [...]struct {
		field string
		kind  bufferKind
		size  uint32
	}{{"Options.RecvBuffer", recvBuffer, o.RecvBuffer}, {"Options.SendBuffer", sendBuffer, o.SendBuffer}} {
		now, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, b.kind.option)
		if err == nil && b.size != 0 && now != int(b.size) {
			err = s.setBuffer(b.kind, int(b.size))
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

// CheckQueues finds out whether a socket of the calling thread's network namespace
// and user can hold a snapshot's queues, and fails with ErrBuffer if not: what
// Restore would find out when the connection is gone. Who restores where he has
// saved asks before Disconnect; Preflight asks too.
func CheckQueues(snap *Snapshot) error {
	const anybody = 64 << 10 // bytes that any user's buffers hold
	if len(snap.RecvQueue) <= anybody && len(snap.SendQueue) <= anybody {
		return nil
	}
	fd, err := NewSocket(snap)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return (&Socket{fd: fd, local: snap.Local, remote: snap.Remote}).checkQueues(snap)
}

// checkQueues tries how large the buffers of a fresh socket can be.
func (s *Socket) checkQueues(snap *Snapshot) error {
	for _, q := range [...]struct {
		queue  Queue
		buffer bufferKind
		bytes  int
	}{{RecvQueue, recvBuffer, len(snap.RecvQueue)}, {SendQueue, sendBuffer, len(snap.SendQueue)}} {
		if q.bytes == 0 {
			continue
		}
		if err := s.setBuffer(q.buffer, largest); err != nil {
			return s.fail(q.queue.String(), err)
		}
		size, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, q.buffer.option)
		if err != nil {
			return s.fail(q.queue.String(), err)
		}
		// With what the kernel's structures take.
		if need := q.bytes + q.bytes/16; need > size {
			return s.fail(q.queue.String(), fmt.Errorf("%w: %d bytes take about %d, and there are %d", ErrBuffer, q.bytes, need, size))
		}
	}
	return nil
}
