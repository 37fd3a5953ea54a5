package soccr_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// A floorConn moves an established connection by the system calls that libsoccr
// makes for it, and does nothing else: it allocates nothing, keeps no options,
// verifies nothing and looks at no error before the end. What a library does can
// hardly cost less.
type floorConn struct {
	fd            int
	family        int
	local, remote []byte // struct sockaddr
	received      []byte // room for the receive queue

	// As libsoccr keeps them.
	info         [7]byte // the start of struct tcp_info
	mss          uint32
	timestamp    uint32
	window       [20]byte // struct tcp_repair_window
	recv, send   uint32   // sequence numbers
	inq          int32
	outq, unsent int32
	options      [4]struct{ code, value uint32 } // struct tcp_repair_opt

	value  int32  // of the option being set
	length uint32 // of what is being read
	failed unix.Errno
}

// Fields and bits of struct tcp_info.
const (
	infoOptions    = 5
	infoScales     = 6
	infoTimestamps = 1 // TCPI_OPT_TIMESTAMPS
)

// Values of TCP_REPAIR_QUEUE.
const (
	tcpRecvQueue = 1
	tcpSendQueue = 2
)

// Kinds of TCP options, as TCP_REPAIR_OPTIONS names them.
const (
	kindMSS       = 2
	kindScale     = 3
	kindSACK      = 4
	kindTimestamp = 8
)

// newFloorConn takes the connection over from conn.
func newFloorConn(conn *net.TCPConn) (*floorConn, error) {
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	conn.Close()
	f := &floorConn{received: make([]byte, 1<<20)}
	if f.fd, err = unix.Dup(int(file.Fd())); err != nil {
		return nil, err
	}
	for _, a := range []struct {
		number uintptr
		to     *[]byte
	}{{unix.SYS_GETSOCKNAME, &f.local}, {unix.SYS_GETPEERNAME, &f.remote}} {
		address := make([]byte, unix.SizeofSockaddrInet6)
		*a.to, f.length = address, uint32(len(address))
		f.call(a.number, uintptr(unsafe.Pointer(&address[0])), uintptr(unsafe.Pointer(&f.length)), 0, 0, 0)
		*a.to = address[:f.length]
	}
	f.family = int(binary.NativeEndian.Uint16(f.local))
	return f, f.err()
}

// ends tells the library what the floor knows.
func (f *floorConn) ends() soccr.Option {
	end := func(b []byte) netip.AddrPort {
		port := binary.BigEndian.Uint16(b[2:])
		if f.family == unix.AF_INET {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
		}
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
	}
	return soccr.WithEnds(end(f.local), end(f.remote))
}

func (f *floorConn) err() error {
	if f.failed != 0 {
		return os.NewSyscallError("one of the calls", f.failed)
	}
	return nil
}

// move takes the connection to another socket: pause, save, close, restore,
// resume.
func (f *floorConn) move() error {
	f.pause()
	f.save()
	f.close()
	f.restore()
	f.resume()
	return f.err()
}

func (f *floorConn) pause()  { f.set(unix.TCP_REPAIR, unix.TCP_REPAIR_ON) }
func (f *floorConn) close()  { f.call(unix.SYS_CLOSE, 0, 0, 0, 0, 0) }
func (f *floorConn) resume() { f.set(unix.TCP_REPAIR, unix.TCP_REPAIR_OFF) }

func (f *floorConn) save() {
	f.get(unix.TCP_INFO, unsafe.Pointer(&f.info), unsafe.Sizeof(f.info))
	f.call(unix.SYS_IOCTL, unix.SIOCOUTQ, uintptr(unsafe.Pointer(&f.outq)), 0, 0, 0)
	f.call(unix.SYS_IOCTL, unix.SIOCOUTQNSD, uintptr(unsafe.Pointer(&f.unsent)), 0, 0, 0)
	f.call(unix.SYS_IOCTL, unix.SIOCINQ, uintptr(unsafe.Pointer(&f.inq)), 0, 0, 0)
	f.get(unix.TCP_MAXSEG, unsafe.Pointer(&f.mss), unsafe.Sizeof(f.mss))
	if f.timestamps() {
		f.get(unix.TCP_TIMESTAMP, unsafe.Pointer(&f.timestamp), unsafe.Sizeof(f.timestamp))
	}
	f.get(unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&f.window), unsafe.Sizeof(f.window))
	f.set(unix.TCP_REPAIR_QUEUE, tcpRecvQueue)
	f.get(unix.TCP_QUEUE_SEQ, unsafe.Pointer(&f.recv), unsafe.Sizeof(f.recv))
	if f.inq > 0 {
		n := f.call(unix.SYS_RECVFROM, uintptr(unsafe.Pointer(&f.received[0])), uintptr(f.inq+1), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		f.expect(n == uintptr(f.inq))
	}
	f.set(unix.TCP_REPAIR_QUEUE, tcpSendQueue)
	f.get(unix.TCP_QUEUE_SEQ, unsafe.Pointer(&f.send), unsafe.Sizeof(f.send))
	f.expect(f.outq == 0) // this is not written for more
}

func (f *floorConn) timestamps() bool { return f.info[infoOptions]&infoTimestamps != 0 }

func (f *floorConn) restore() {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(f.family), unix.SOCK_STREAM, 0)
	f.note(errno)
	f.fd = int(fd)
	f.pause()
	f.call(unix.SYS_BIND, uintptr(unsafe.Pointer(&f.local[0])), uintptr(len(f.local)), 0, 0, 0)
	f.set(unix.TCP_REPAIR_QUEUE, tcpRecvQueue)
	f.set(unix.TCP_QUEUE_SEQ, int32(f.recv)-f.inq)
	f.set(unix.TCP_REPAIR_QUEUE, tcpSendQueue)
	f.set(unix.TCP_QUEUE_SEQ, int32(f.send))
	f.call(unix.SYS_CONNECT, uintptr(unsafe.Pointer(&f.remote[0])), uintptr(len(f.remote)), 0, 0, 0)
	scales := uint32(f.info[infoScales])
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		scales = scales>>4 | scales<<4 // bit fields begin at the other end
	}
	f.options[0].code = kindSACK
	f.options[1].code, f.options[1].value = kindScale, scales&0xf|scales>>4&0xf<<16
	f.options[2].code, f.options[2].value = kindMSS, f.mss
	options := 3
	if f.timestamps() {
		f.options[3].code = kindTimestamp
		options++
	}
	f.setBytes(unix.TCP_REPAIR_OPTIONS, unsafe.Pointer(&f.options), uintptr(options)*unsafe.Sizeof(f.options[0]))
	if f.timestamps() {
		f.set(unix.TCP_TIMESTAMP, int32(f.timestamp))
	}
	if f.inq > 0 {
		f.set(unix.TCP_REPAIR_QUEUE, tcpRecvQueue)
		n := f.call(unix.SYS_SENDTO, uintptr(unsafe.Pointer(&f.received[0])), uintptr(f.inq), 0, 0, 0)
		f.expect(n == uintptr(f.inq))
	}
	f.setBytes(unix.TCP_REPAIR_WINDOW, unsafe.Pointer(&f.window), unsafe.Sizeof(f.window))
}

func (f *floorConn) get(option int, value unsafe.Pointer, size uintptr) {
	f.length = uint32(size)
	f.call(unix.SYS_GETSOCKOPT, unix.IPPROTO_TCP, uintptr(option), uintptr(value), uintptr(unsafe.Pointer(&f.length)), 0)
}

func (f *floorConn) set(option int, value int32) {
	f.value = value
	f.setBytes(option, unsafe.Pointer(&f.value), unsafe.Sizeof(f.value))
}

func (f *floorConn) setBytes(option int, value unsafe.Pointer, size uintptr) {
	f.call(unix.SYS_SETSOCKOPT, unix.IPPROTO_TCP, uintptr(option), uintptr(value), size, 0)
}

// readOptions reads the socket options, and throws them away: with move it is the
// least that a move costs that keeps them.
func (f *floorConn) readOptions(calls []soccr.OptionCall) error {
	for i := range calls {
		c := &calls[i]
		f.length = c.Size
		_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(f.fd), uintptr(c.Level), uintptr(c.Number),
			uintptr(unsafe.Pointer(&f.received[0])), uintptr(unsafe.Pointer(&f.length)), 0)
		if errno != unix.ENOPROTOOPT && errno != unix.EOPNOTSUPP { // of this kernel
			f.note(errno)
		}
	}
	return f.err()
}

// call makes a system call that never blocks, so the scheduler is not told.
// Pointers among its arguments point into the heap: what is on the stack could
// move.
func (f *floorConn) call(number, a, b, c, d, e uintptr) uintptr {
	r, _, errno := syscall.RawSyscall6(number, uintptr(f.fd), a, b, c, d, e)
	f.note(errno)
	return r
}

func (f *floorConn) note(errno unix.Errno) {
	if f.failed == 0 {
		f.failed = errno
	}
}

func (f *floorConn) expect(ok bool) {
	if !ok {
		f.note(unix.EPROTO)
	}
}
