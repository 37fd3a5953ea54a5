package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A ring of frames, each for the headers of one packet: enough for a second of
// full-sized packets at 30 Gbit/s, should the reader not get a CPU that long.
const (
	frameSize = 256
	ringSize  = 16 << 20
	blockSize = 1 << 16 // how the kernel allocates it
)

// Offsets in a frame of TPACKET_V2.
const statusOffset = unsafe.Offsetof(unix.Tpacket2Hdr{}.Status)

// A Capture hands on the segments that pass a device, in both directions.
type Capture struct {
	file *os.File
	ring []byte
	each func(Packet)
	done chan struct{}
	err  error // of the reader, once it is done
	lost atomic.Uint64
}

// Watch captures what passes a device of the calling thread's network namespace
// and calls each for every TCP segment and every ICMP error about one, one after
// the other and in order, until Stop. It needs CAP_NET_RAW there.
//
// On a loopback device each packet is seen once, as it comes in.
func Watch(device string, each func(Segment)) (*Capture, error) {
	return WatchPackets(device, func(p Packet) {
		if s, ok := p.Segment(); ok {
			each(s)
		}
	})
}

// WatchPackets is [Watch] for who wants the packets themselves.
func WatchPackets(device string, each func(Packet)) (*Capture, error) {
	c := &Capture{each: each, done: make(chan struct{})}
	if err := c.open(device); err != nil {
		return nil, fmt.Errorf("capture on %s: %w", device, err)
	}
	go c.read()
	return c, nil
}

func (c *Capture) open(device string) (err error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	// No protocol yet: nothing comes in before the filter and the ring are there.
	// SOCK_DGRAM gives packets from their IP header on, whatever the device.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	c.file = os.NewFile(uintptr(fd), "packets of "+device)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := attachFilter(fd); err != nil {
		return os.NewSyscallError("SO_ATTACH_FILTER", err)
	}
	if iface.Flags&net.FlagLoopback != 0 {
		if err := sockopt.SetInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return os.NewSyscallError("PACKET_IGNORE_OUTGOING", err)
		}
	}
	if err := sockopt.SetInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return os.NewSyscallError("PACKET_VERSION", err)
	}
	req := unix.TpacketReq{
		Block_size: blockSize, Block_nr: ringSize / blockSize,
		Frame_size: frameSize, Frame_nr: ringSize / frameSize,
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return os.NewSyscallError("PACKET_RX_RING", err)
	}
	if c.ring, err = unix.Mmap(fd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order
	address := unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index}
	return os.NewSyscallError("bind", unix.Bind(fd, &address))
}

// attachFilter makes the kernel keep the headers of TCP and ICMP packets, and
// drop all others. The program sees packets from their IP header on.
func attachFilter(fd int) error {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 9, Size: 1}, // IPv4: the protocol
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMP, SkipTrue: 6},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 6, Size: 1}, // IPv6: the next header
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMPv6, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoHopByHop, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: maxHeaders},
	})
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
}

// read hands on frames until Stop makes the wait for more fail.
func (c *Capture) read() {
	defer close(c.done)
	conn, err := c.file.SyscallConn()
	if err != nil {
		c.err = err
		return
	}
	frame := 0
	for {
		ready := func(uintptr) bool { return c.status(frame).Load()&unix.TP_STATUS_USER != 0 }
		if c.err = conn.Read(ready); c.err != nil {
			// Stopped. What came in before is still handed on.
			if errors.Is(c.err, os.ErrDeadlineExceeded) {
				c.err = nil
			}
			for ; ready(0); frame = c.next(frame) {
			}
			return
		}
		for ; ready(0); frame = c.next(frame) {
		}
	}
}

// status is the word by which the kernel and we hand a frame to each other.
func (c *Capture) status(frame int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&c.ring[frame*frameSize+int(statusOffset)]))
}

// next hands on a frame, gives it back to the kernel, and names the next one.
func (c *Capture) next(frame int) int {
	b := c.ring[frame*frameSize:][:frameSize:frameSize]
	header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&b[0]))
	c.each(Packet{
		Time: time.Unix(int64(header.Sec), int64(header.Nsec)),
		Data: b[header.Net:][:header.Snaplen],
		Size: int(header.Len),
	})
	c.status(frame).Store(unix.TP_STATUS_KERNEL)
	return (frame + 1) % (ringSize / frameSize)
}

// Stop ends the capture, after everything that has passed so far has been handed
// on, and returns how many packets were lost because nobody read them in time.
// It must be called exactly once.
func (c *Capture) Stop() (lost uint64, err error) {
	if err := c.file.SetReadDeadline(time.Now()); err != nil {
		return 0, err
	}
	<-c.done
	lost, err = c.Lost()
	if err != nil {
		return 0, errors.Join(err, c.close())
	}
	return lost, errors.Join(c.err, c.close())
}

// Lost is how many packets were lost so far because nobody read them in time.
func (c *Capture) Lost() (uint64, error) {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	stats := &unix.TpacketStats{}
	if controlErr := conn.Control(func(fd uintptr) { // the kernel starts anew with each answer
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); controlErr != nil {
		err = controlErr
	}
	if err != nil {
		return 0, os.NewSyscallError("PACKET_STATISTICS", err)
	}
	return c.lost.Add(uint64(stats.Drops)), nil
}

func (c *Capture) close() error {
	var err error
	if c.ring != nil {
		err = unix.Munmap(c.ring)
	}
	return errors.Join(err, c.file.Close())
}
