package criuimg

import (
	"encoding/binary"
	"net/netip"
)

// The kernel's numbers on the architectures that CRIU knows, MIPS left aside.
const (
	afInet     = 2
	afInet6    = 10
	sockStream = 1
	protoTCP   = 6
)

// maxDevice is the most bytes of a device's name (IFNAMSIZ less the final zero).
const maxDevice = 15

// byteOrder is that of the words in which an entry holds its addresses: CRIU
// copies them from memory.
func (s *Socket) byteOrder() interface {
	binary.ByteOrder
	binary.AppendByteOrder
} {
	if s.BigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// Local is the socket's own address and port; the address may be unspecified and
// the port 0. The zone of a link-local address is the name of its device.
func (s *Socket) Local() (netip.AddrPort, error) {
	return s.end("src", s.Inet.GetSrcAddr(), s.Inet.GetSrcPort())
}

// Remote is the peer's address and port, the zero AddrPort if there is none. A
// link-local address has the same zone as a link-local Local, or that of the
// device to which the socket is bound.
func (s *Socket) Remote() (netip.AddrPort, error) {
	if s.Inet.GetDstPort() == 0 {
		return netip.AddrPort{}, nil
	}
	return s.end("dst", s.Inet.GetDstAddr(), s.Inet.GetDstPort())
}

func (s *Socket) end(which string, words []uint32, port uint32) (netip.AddrPort, error) {
	if port > 65535 {
		return netip.AddrPort{}, invalid("inet_sk."+which+"_port", "at most 65535", port)
	}
	bytes := make([]byte, 0, 16)
	for i := 0; i < len(words) && i < 4; i++ {
		bytes = s.byteOrder().AppendUint32(bytes, words[i])
	}
	var addr netip.Addr
	switch family := s.Inet.GetFamily(); {
	case family == afInet && len(words) > 0: // CRIU has written four words once
		addr = netip.AddrFrom4([4]byte(bytes))
	case family == afInet6 && len(words) == 4:
		addr = netip.AddrFrom16([16]byte(bytes))
	default:
		return netip.AddrPort{}, invalid("inet_sk."+which+"_addr", "one word in family 2, four in family 10", words)
	}
	if addr.IsLinkLocalUnicast() && addr.Is6() && !addr.Is4In6() {
		zone := s.device()
		if len(zone) > maxDevice {
			return netip.AddrPort{}, invalid("inet_sk.ifname", "at most 15 bytes", zone)
		}
		addr = addr.WithZone(zone)
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// device is the device of link-local addresses. A socket that is bound to such
// an address is bound to its device as well, so CRIU has it twice.
func (s *Socket) device() string {
	if name := s.Inet.GetIfname(); name != "" {
		return name
	}
	return s.Inet.GetOpts().GetSoBoundDev()
}

// words are an address as an entry holds it, in the family of the socket.
func (s *Socket) words(addr netip.Addr) []uint32 {
	bytes := addr.AsSlice()
	if len(bytes) == 0 { // no peer
		bytes = make([]byte, 4)
		if s.Inet.GetFamily() == afInet6 {
			bytes = make([]byte, 16)
		}
	}
	var words []uint32
	for ; len(bytes) > 0; bytes = bytes[4:] {
		words = append(words, s.byteOrder().Uint32(bytes))
	}
	return words
}
