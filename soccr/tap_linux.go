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
	err := t.drain(t.socket(key)) // what came before is not for this flow
	if err == nil {
		t.caught[key] = &catch{seen: map[wire.Segment]bool{}}
		if err = t.filter(t.socket(key)); err != nil {
			delete(t.caught, key)
		}
	}
	if err != nil {
		return &OpError{Op: "tap", Local: local, Remote: remote, Err: err}
	}
	return nil
}

// Take returns the packets that have arrived for a connection since Watch or the
// last Take, from their IP headers on, in their order. The caller owns them.
func (t *Tap) Take(local, remote netip.AddrPort) ([][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := flowOf(local, remote)
	if err := t.drain(t.socket(key)); err != nil {
		return nil, &OpError{Op: "tap", Local: local, Remote: remote, Err: err}
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
	key := flowOf(local, remote)
	if t.caught[key] != nil {
		delete(t.caught, key)
		_ = t.filter(t.socket(key)) // else packets are held that nobody will take
	}
}

// stop is Forget and then Take.
func (t *Tap) stop(local, remote netip.AddrPort) ([][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := flowOf(local, remote)
	c := t.caught[key]
	if c == nil {
		return nil, nil
	}
	delete(t.caught, key)
	failure := t.filter(t.socket(key)) // first of all, or there may be no end to it
	t.caught[key] = c
	failure = errors.Join(failure, t.drain(t.socket(key)))
	delete(t.caught, key)
	if failure != nil {
		failure = &OpError{Op: "tap", Local: local, Remote: remote, Err: failure}
	}
	return c.packets, failure
}

// drain gives all that a socket holds to the flows it is for.
func (t *Tap) drain(s *tapSocket) error {
	for {
		packet, err := s.receive()
		if packet == nil || err != nil {
			return err
		}
		t.sort(packet)
	}
}

// filter has a socket hold what is for the flows that are watched.
func (t *Tap) filter(s *tapSocket) error {
	var ports []uint16
	for f := range t.caught {
		if t.socket(f) == s {
			ports = append(ports, f.local.Port())
		}
	}
	slices.Sort(ports)
	return s.watch(slices.Compact(ports))
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

// watch has the socket hold what arrives for some ports.
func (s *tapSocket) watch(ports []uint16) error {
	if s.fd < 0 {
		return unix.EBADF
	}
	if slices.Equal(ports, s.ports) {
		return nil
	}
	program, err := bpf.Assemble(s.program(ports))
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
	}
	s.ports = ports
	if s.bound {
		return nil
	}
	s.bound = true
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
	buffer, control := make([]byte, 1<<16), make([]byte, 128)
	for {
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

// An ipPacket is a whole TCP packet, taken apart; the parts share its memory.
type ipPacket struct {
	addresses []byte // of the pseudo header
	ip        []byte // the IP header
	tcp       []byte // the TCP header
	payload   []byte
}

func parsePacket(packet []byte) (p ipPacket, ok bool) {
	const tcpHeader = 20
	var ip int
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		p.addresses, ip = packet[12:20], max(4*int(packet[0]&0xf), 20)
	case len(packet) >= 40 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP:
		p.addresses, ip = packet[8:40], 40
	default:
		return p, false
	}
	if len(packet) < ip+tcpHeader {
		return p, false
	}
	tcp := ip + max(4*int(packet[ip+12]>>4), tcpHeader)
	if len(packet) < tcp {
		return p, false
	}
	p.ip, p.tcp, p.payload = packet[:ip], packet[ip:tcp], packet[tcp:]
	return p, true
}

// sum is 0 if the TCP checksum is right (RFC 9293, section 3.1).
func (p ipPacket) sum() uint16 {
	sum := uint64(unix.IPPROTO_TCP) + uint64(len(p.tcp)+len(p.payload)) + ones(p.addresses) + ones(p.tcp) + ones(p.payload)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// fillChecksum computes the TCP checksum of a whole packet.
func fillChecksum(packet []byte) {
	const at = 16
	if p, ok := parsePacket(packet); ok {
		binary.BigEndian.PutUint16(p.tcp[at:], 0)
		binary.BigEndian.PutUint16(p.tcp[at:], p.sum())
	}
}

// split takes a packet that a device has put together apart again. The kernel
// gives each packet a buffer of the next power of two (kmalloc), up to twice as
// large as what the window has promised room for, and would take the window back
// for want of memory. So the parts are as large as fit into such buffers.
func split(packet []byte) [][]byte {
	const (
		largest, smallest = 16 << 10, 2 << 10
		overhead          = 448 // of a buffer, about
	)
	p, ok := parsePacket(packet)
	if len(packet) <= smallest-overhead || !ok || p.sum() != 0 {
		return [][]byte{packet}
	}
	const (
		seqAt, flagsAt = 4, 13
		finAndPush     = 0x01 | 0x08
	)
	headers := len(p.ip) + len(p.tcp)
	var parts [][]byte
	for at := 0; at < len(p.payload); {
		buffer := largest
		for buffer > smallest && buffer-overhead-headers > len(p.payload)-at {
			buffer /= 2
		}
		end := min(at+buffer-overhead-headers, len(p.payload))
		part := slices.Concat(p.ip, p.tcp, p.payload[at:end])
		tcp := part[len(p.ip):]
		binary.BigEndian.PutUint32(tcp[seqAt:], binary.BigEndian.Uint32(tcp[seqAt:])+uint32(at))
		if end < len(p.payload) {
			tcp[flagsAt] &^= finAndPush
		}
		if len(p.ip) == 40 { // of IPv4 packets the kernel corrects the length and the checksum
			binary.BigEndian.PutUint16(part[4:], uint16(len(part)-40))
		} else {
			binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
		}
		fillChecksum(part)
		parts = append(parts, part)
		at = end
	}
	return parts
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
