package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Flags are the flags of a TCP header that matter here.
type Flags uint8

// The flags, as in the header.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Has reports whether all the given flags are set.
func (f Flags) Has(flags Flags) bool { return f&flags == flags }

// String gives the flags as tcpdump does: "S.", "F.", "R", ".".
func (f Flags) String() string {
	var b []byte
	for i, letter := range []byte("FSRP.") {
		if f.Has(1 << i) {
			b = append(b, letter)
		}
	}
	return string(b)
}

// A Segment is what the headers of one captured packet say. It may stand for
// many segments on a real wire: devices that segment in hardware, and veth, are
// handed up to 64 KiB and more at once.
type Segment struct {
	Time     time.Time
	Src, Dst netip.AddrPort
	Seq, Ack uint32 // Ack counts only with the flag ACK
	Len      int    // bytes of payload
	Flags    Flags
	Window   uint16 // as in the header, not scaled

	HasScale bool // a SYN that offers window scaling
	Scale    uint8

	HasTimestamp bool
	TSVal, TSEcr uint32

	SACKPermitted bool // a SYN that offers selective acknowledgements
	HasSACK       bool // some are there

	// ICMP marks an error message ("destination unreachable" and the like) about
	// a segment: Src, Dst and Seq are those of the segment it quotes, which came
	// from Src; the rest is zero.
	ICMP bool
}

// String gives the segment in one line, much as tcpdump does.
func (s Segment) String() string {
	if s.ICMP {
		return fmt.Sprintf("%v > %v: ICMP error about seq %d", s.Src, s.Dst, s.Seq)
	}
	text := fmt.Sprintf("%v > %v: [%v] seq %d len %d ack %d win %d", s.Src, s.Dst, s.Flags, s.Seq, s.Len, s.Ack, s.Window)
	if s.HasTimestamp {
		text += fmt.Sprintf(" ts %d", s.TSVal)
	}
	return text
}

// Protocol numbers and message types of IP.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoICMPv6   = 58

	icmpUnreachable     = 3
	icmpTimeExceeded    = 11
	icmpParameter       = 12
	icmpv6FirstInfo     = 128 // below are the errors
	icmpHeader          = 8
	maxHeaders          = 60 + 60 // what a capture has to keep of a packet
	tcpOptionEnd        = 0
	tcpOptionNop        = 1
	tcpOptionScale      = 3
	tcpOptionSACKPerm   = 4
	tcpOptionSACK       = 5
	tcpOptionTimestamps = 8
)

// Parse reads the headers of an IP packet, of which data holds the beginning
// and which is size bytes long. It reports whether the packet is a TCP segment
// or an ICMP error about one, and whole enough to tell. Checksums are not
// looked at: on a device that computes them in hardware, or on veth, packets
// that were sent here do not have them yet.
func Parse(data []byte, size int) (Segment, bool) {
	p, ok := parseIP(data, size)
	if !ok {
		return Segment{}, false
	}
	switch p.protocol {
	case protoTCP:
		return parseTCP(p)
	case protoICMP, protoICMPv6:
		return parseICMP(p)
	}
	return Segment{}, false
}

// An ipPacket is what an IP header says, and what follows it.
type ipPacket struct {
	src, dst netip.Addr
	protocol uint8
	payload  []byte // may be cut short
	size     int    // of the whole payload
}

func parseIP(data []byte, size int) (ipPacket, bool) {
	if len(data) == 0 {
		return ipPacket{}, false
	}
	switch data[0] >> 4 {
	case 4:
		return parseIPv4(data, size)
	case 6:
		return parseIPv6(data, size)
	}
	return ipPacket{}, false
}

func parseIPv4(data []byte, size int) (ipPacket, bool) {
	header := int(data[0]&0xf) * 4
	if header < 20 || len(data) < header {
		return ipPacket{}, false
	}
	if binary.BigEndian.Uint16(data[6:])&0x1fff != 0 {
		return ipPacket{}, false // a later fragment
	}
	// A packet above 64 KiB ("BIG TCP") says 0. Short frames are padded.
	total := int(binary.BigEndian.Uint16(data[2:]))
	if total == 0 {
		total = size
	}
	if total < header {
		return ipPacket{}, false
	}
	return ipPacket{
		src:      netip.AddrFrom4([4]byte(data[12:])),
		dst:      netip.AddrFrom4([4]byte(data[16:])),
		protocol: data[9],
		payload:  data[header:min(len(data), total)],
		size:     total - header,
	}, true
}

func parseIPv6(data []byte, size int) (ipPacket, bool) {
	const header = 40
	if len(data) < header {
		return ipPacket{}, false
	}
	p := ipPacket{
		src:      netip.AddrFrom16([16]byte(data[8:])),
		dst:      netip.AddrFrom16([16]byte(data[24:])),
		protocol: data[6],
		payload:  data[header:],
		size:     int(binary.BigEndian.Uint16(data[4:])),
	}
	if p.size == 0 {
		p.size = size - header
	}
	// Kernels that send more than 64 KiB at once put the length into an option.
	if p.protocol == protoHopByHop {
		if len(p.payload) < 8 {
			return ipPacket{}, false
		}
		extension := (int(p.payload[1]) + 1) * 8
		if len(p.payload) < extension {
			return ipPacket{}, false
		}
		p.protocol = p.payload[0]
		p.payload = p.payload[extension:]
		p.size -= extension
	}
	if p.size < 0 {
		return ipPacket{}, false
	}
	p.payload = p.payload[:min(len(p.payload), p.size)]
	return p, true
}

func parseTCP(p ipPacket) (Segment, bool) {
	b := p.payload
	if len(b) < 20 {
		return Segment{}, false
	}
	header := int(b[12]>>4) * 4
	if header < 20 || len(b) < header {
		return Segment{}, false
	}
	s := Segment{
		Src:    netip.AddrPortFrom(p.src, binary.BigEndian.Uint16(b)),
		Dst:    netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(b[2:])),
		Seq:    binary.BigEndian.Uint32(b[4:]),
		Ack:    binary.BigEndian.Uint32(b[8:]),
		Len:    p.size - header,
		Flags:  Flags(b[13]) & (FIN | SYN | RST | PSH | ACK),
		Window: binary.BigEndian.Uint16(b[14:]),
	}
	s.parseOptions(b[20:header])
	return s, true
}

// parseOptions reads what it knows, up to the first option that makes no sense.
func (s *Segment) parseOptions(b []byte) {
	for len(b) > 0 && b[0] != tcpOptionEnd {
		if b[0] == tcpOptionNop {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || len(b) < int(b[1]) {
			return
		}
		kind, value := b[0], b[2:b[1]]
		switch {
		case kind == tcpOptionScale && len(value) == 1:
			s.HasScale, s.Scale = s.Flags.Has(SYN), value[0]
		case kind == tcpOptionSACKPerm:
			s.SACKPermitted = s.Flags.Has(SYN)
		case kind == tcpOptionSACK:
			s.HasSACK = true
		case kind == tcpOptionTimestamps && len(value) == 8:
			s.HasTimestamp = true
			s.TSVal, s.TSEcr = binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(value[4:])
		}
		b = b[2+len(value):]
	}
}

// parseICMP finds the segment that an error message quotes: at least its ports
// and its sequence number.
func parseICMP(p ipPacket) (Segment, bool) {
	if len(p.payload) < icmpHeader {
		return Segment{}, false
	}
	kind := p.payload[0]
	if p.protocol == protoICMP && kind != icmpUnreachable && kind != icmpTimeExceeded && kind != icmpParameter ||
		p.protocol == protoICMPv6 && kind >= icmpv6FirstInfo {
		return Segment{}, false
	}
	quoted, ok := parseIP(p.payload[icmpHeader:], p.size-icmpHeader)
	if !ok || quoted.protocol != protoTCP || len(quoted.payload) < 8 {
		return Segment{}, false
	}
	return Segment{
		Src:  netip.AddrPortFrom(quoted.src, binary.BigEndian.Uint16(quoted.payload)),
		Dst:  netip.AddrPortFrom(quoted.dst, binary.BigEndian.Uint16(quoted.payload[2:])),
		Seq:  binary.BigEndian.Uint32(quoted.payload[4:]),
		ICMP: true,
	}, true
}
