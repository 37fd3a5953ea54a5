package rawfin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// A Segment is one TCP segment without data: what the peer of a connection
// sends to acknowledge, or to say that it will send no more.
//
// It needs no TCP options. A connection that negotiated timestamps accepts
// it all the same: the kernel checks the timestamp (PAWS, RFC 7323) only of a
// segment that has one (tcp_validate_incoming), and so the clocks of the peer
// need not be known.
type Segment struct {
	// Src is the peer, Dst the local socket, unless it is for [Injector.Send]. Both
	// are IPv4, both IPv6, or both IPv4-mapped IPv6 addresses; the latter, the
	// addresses of an IPv4 connection on an AF_INET6 socket, make an IPv4 packet. A
	// link-local Dst needs a zone, its own or that of Src: a device's name or its
	// index.
	Src, Dst netip.AddrPort

	// Seq and Ack are the numbers in the header. Ack counts only with the flag
	// ACK, which every segment of an open connection has.
	Seq, Ack uint32

	// Window is the 16 bit field as it is in the header, not yet shifted by the
	// window scale. The socket takes it, shifted by its snd_wscale, as the
	// window the peer now offers (tcp_ack_update_window). To leave that
	// window alone, pass snd_wnd >> snd_wscale, both of them the socket's own.
	Window uint16

	Flags Flags

	// Timestamps adds the timestamps option with TSVal and TSEcr, both in ticks of
	// the clock that the socket's connection uses. The kernel takes what has
	// passed since TSEcr for a round trip time. A TSVal of 0 is neutral: other
	// values must not be guessed, for one that lies ahead of the peer's clock makes
	// the socket drop what the peer really sends (tcp_paws_check).
	Timestamps   bool
	TSVal, TSEcr uint32
}

// String gives a line in the manner of tcpdump.
func (s Segment) String() string {
	return fmt.Sprintf("%v > %v %v seq %d ack %d win %d", s.Src, s.Dst, s.Flags, s.Seq, s.Ack, s.Window)
}

// hopLimit is that of a packet which no router has forwarded. Sockets of BGP
// speakers accept nothing less (IP_MINTTL, IPV6_MINHOPCOUNT; RFC 5082).
const hopLimit = 255

// AppendTo appends the segment to b as a whole IP packet, its lengths and
// checksums filled in, and returns the extended slice. On failure, which is
// always a [*SegmentError], it returns b as it was.
func (s Segment) AppendTo(b []byte) ([]byte, error) {
	if err := s.validate(); err != nil {
		return b, err
	}
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(s.Src.Port()),
		DstPort: layers.TCPPort(s.Dst.Port()),
		Seq:     s.Seq,
		Ack:     s.Ack,
		Window:  s.Window,
		FIN:     s.Flags&FIN != 0,
		SYN:     s.Flags&SYN != 0,
		RST:     s.Flags&RST != 0,
		PSH:     s.Flags&PSH != 0,
		ACK:     s.Flags&ACK != 0,
		URG:     s.Flags&URG != 0,
	}
	if s.Timestamps {
		value := binary.BigEndian.AppendUint32(nil, s.TSVal)
		tcp.Options = []layers.TCPOption{
			{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10,
				OptionData: binary.BigEndian.AppendUint32(value, s.TSEcr)},
		}
	}
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}
	src, dst := s.Src.Addr().Unmap(), s.Dst.Addr().Unmap()
	if dst.Is4() {
		ip = &layers.IPv4{
			Version:  4,
			Flags:    layers.IPv4DontFragment,
			TTL:      hopLimit,
			Protocol: layers.IPProtocolTCP,
			SrcIP:    src.AsSlice(),
			DstIP:    dst.AsSlice(),
		}
	} else {
		ip = &layers.IPv6{
			Version:    6,
			HopLimit:   hopLimit,
			NextHeader: layers.IPProtocolTCP,
			SrcIP:      src.AsSlice(),
			DstIP:      dst.AsSlice(),
		}
	}
	packet := gopacket.NewSerializeBuffer()
	err := errors.Join(
		tcp.SetNetworkLayerForChecksum(ip),
		gopacket.SerializeLayers(packet, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp),
	)
	if err != nil {
		return b, &SegmentError{Segment: s, Reason: err.Error()}
	}
	return append(b, packet.Bytes()...), nil
}

// validate tells whether the segment can be one of an open connection.
func (s Segment) validate() error {
	if reason := s.invalid(); reason != "" {
		return &SegmentError{Segment: s, Reason: reason}
	}
	return nil
}

func (s Segment) invalid() string {
	for _, end := range []struct {
		name string
		addr netip.AddrPort
	}{{"source", s.Src}, {"destination", s.Dst}} {
		addr := end.addr.Addr().Unmap()
		switch {
		case !addr.IsValid():
			return "no " + end.name + " address"
		case addr.IsUnspecified(), addr.IsMulticast(), addr == broadcast:
			return end.name + " address is not that of one host"
		case end.addr.Port() == 0:
			return end.name + " port is 0"
		}
	}
	src, dst := s.Src.Addr(), s.Dst.Addr()
	switch {
	case src.BitLen() != dst.BitLen(), src.Is4In6() != dst.Is4In6():
		return "source and destination are of different families"
	case src.Zone() != "" && dst.Zone() != "" && src.Zone() != dst.Zone():
		return "source and destination are in different zones"
	case s.Flags&^allFlags != 0:
		return "unknown flags"
	}
	return ""
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// zone is the zone of the connection: both ends are in the same.
func (s Segment) zone() string {
	if zone := s.Dst.Addr().Zone(); zone != "" {
		return zone
	}
	return s.Src.Addr().Zone()
}
