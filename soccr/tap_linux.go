package soccr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/wire"
)

const (
	tapBuffer = 16 << 20
	maxPorts  = 500 // of a filter; with more, all of TCP is held
)

// OpenTap opens a tap in the network namespace of the calling thread. It needs
// CAP_NET_RAW there; without, the error is an ErrNoPermission. The caller closes
// it.
func OpenTap() (*Tap, error) {
	t := &Tap{caught: map[flow]*catch{}}
	for i := range t.sockets {
		t.sockets[i].fd = -1
	}
	for i, protocol := range [...]uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		fd, err := openPackets()
		if err != nil {
			return nil, errors.Join(&OpError{Op: "tap", Err: err}, t.Close())
		}
		t.sockets[i] = tapSocket{fd: fd, protocol: protocol}
	}
	return t, nil
}

// openPackets makes a packet socket that receives nothing yet.
func openPackets() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = because(ErrNoPermission, err)
		}
		return -1, err
	}
	// More than net.core.rmem_max is for root of the initial namespace.
	err = sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer/2)
	if errors.Is(err, unix.EPERM) {
		err = sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, tapBuffer/2)
	}
	if err == nil {
		err = sockopt.SetInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Close gives the tap up, with all that it holds. It takes milliseconds
// (synchronize_net).
func (t *Tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for i := range t.sockets {
		if s := &t.sockets[i]; s.fd >= 0 {
			errs = append(errs, unix.Close(s.fd))
			s.fd = -1
		}
	}
	return errors.Join(errs...)
}

// Watch has the tap keep what arrives for a connection from now on. Call it before
// the flow is locked. A flow that is watched already is watched once.
func (t *Tap) Watch(local, remote netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := flowOf(local, remote)
	if t.caught[key] != nil {
		return nil
	}
	if err := t.socket(key).watch(key.local.Port()); err != nil {
		return &OpError{Op: "tap", Local: local, Remote: remote, Err: err}
	}
	t.caught[key] = &catch{seen: map[wire.Segment]bool{}}
	return nil
}

// Take returns the packets that have arrived for a connection since Watch or the
// last Take, from their IP headers on, in their order. The caller owns them.
func (t *Tap) Take(local, remote netip.AddrPort) ([][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := flowOf(local, remote)
	for {
		packet, err := t.socket(key).receive()
		if err != nil {
			return nil, &OpError{Op: "tap", Local: local, Remote: remote, Err: err}
		}
		if packet == nil {
			break
		}
		t.sort(packet)
	}
	c := t.caught[key]
	if c == nil {
		return nil, nil
	}
	packets := c.packets
	c.packets = nil
	return packets, nil
}

// Forget ends what Watch began.
func (t *Tap) Forget(local, remote netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.caught, flowOf(local, remote))
}

func (t *Tap) socket(f flow) *tapSocket {
	if f.local.Addr().Is4() {
		return &t.sockets[0]
	}
	return &t.sockets[1]
}

// sort keeps a packet if its flow is watched.
func (t *Tap) sort(packet []byte) {
	p, ok := wire.Parse(packet, len(packet))
	if !ok || p.ICMP {
		return
	}
	c := t.caught[flow{p.Dst, p.Src}]
	if c == nil || c.seen[p] {
		return
	}
	c.seen[p] = true
	c.packets = append(c.packets, packet)
}

// watch adds a port to the filter.
func (s *tapSocket) watch(port uint16) error {
	if s.fd < 0 {
		return unix.EBADF
	}
	if slices.Contains(s.ports, port) {
		return nil
	}
	first := len(s.ports) == 0
	ports := append(slices.Clip(s.ports), port)
	program, err := bpf.Assemble(s.program(ports))
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
	}
	s.ports = ports
	if !first {
		return nil
	}
	var order [2]byte
	binary.BigEndian.PutUint16(order[:], s.protocol)
	// Bound to a protocol of its own and not to ETH_P_ALL, it sees what arrives only.
	return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(order[:])})
}

// program is a filter that sees packets from the IP header on.
func (s *tapSocket) program(ports []uint16) []bpf.Instruction {
	const tcp = unix.IPPROTO_TCP
	drop := bpf.RetConstant{Val: 0}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcp, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: 40 + 2, Size: 2},
	}
	if s.protocol == unix.ETH_P_IP {
		program = []bpf.Instruction{
			bpf.LoadAbsolute{Off: 9, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcp, SkipTrue: 1},
			drop,
			bpf.LoadMemShift{Off: 0},
			bpf.LoadIndirect{Off: 2, Size: 2},
		}
	}
	if len(ports) <= maxPorts {
		for _, port := range ports {
			program = append(program,
				bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipFalse: 1}, bpf.RetConstant{Val: 1 << 17})
		}
		return append(program, drop)
	}
	return append(program, bpf.RetConstant{Val: 1 << 17})
}

// receive returns the next packet, or nil.
func (s *tapSocket) receive() ([]byte, error) {
	if s.fd < 0 {
		return nil, unix.EBADF
	}
	for {
		buffer := make([]byte, 1<<16)
		control := make([]byte, 128)
		n, controls, flags, _, err := unix.Recvmsg(s.fd, buffer, control, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // a device went away
			continue
		case err != nil:
			return nil, err
		case flags&unix.MSG_TRUNC != 0:
			continue // longer than IP can say (BIG TCP): the peer will send it again
		}
		packet := bytes.Clone(withoutPadding(buffer[:n]))
		if packet == nil {
			continue
		}
		if checksumMissing(control[:controls]) {
			fillChecksum(packet)
		}
		return packet, nil
	}
}

// withoutPadding cuts off what a device has added to a short packet; nil if the
// packet is not whole.
func withoutPadding(packet []byte) []byte {
	size := 0
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		size = int(binary.BigEndian.Uint16(packet[2:]))
	case len(packet) >= 40 && packet[0]>>4 == 6:
		size = 40 + int(binary.BigEndian.Uint16(packet[4:]))
	}
	if size > len(packet) || size < 20 {
		return nil
	}
	return packet[:size]
}

// checksumMissing: the packet's checksum was left to a device, or lost when it was
// put together from several.
func checksumMissing(control []byte) bool {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_CSUMNOTREADY != 0
		}
	}
	return false
}

// fillChecksum computes the TCP checksum of a whole packet (RFC 9293, section 3.1).
func fillChecksum(packet []byte) {
	const at, tcpHeader = 16, 20
	var addresses, segment []byte
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		addresses, segment = packet[12:20], packet[min(4*int(packet[0]&0xf), len(packet)):]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		addresses, segment = packet[8:40], packet[40:]
	}
	if len(segment) < tcpHeader {
		return
	}
	binary.BigEndian.PutUint16(segment[at:], 0)
	sum := uint64(unix.IPPROTO_TCP) + uint64(len(segment)) + ones(addresses) + ones(segment)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(segment[at:], ^uint16(sum))
}

// ones adds 16-bit words; the carries are still to be folded in.
func ones(b []byte) (sum uint64) {
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b)) // 2¹⁶ ≡ 1: two words at once
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}
