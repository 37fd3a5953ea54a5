package rawfin

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// A Datagram is one datagram of UDP or UDP-Lite that a socket of this host had
// received and is to receive again.
type Datagram struct {
	// Src is whom it is from, whose port may be 0, and Dst the local socket. Their
	// families and zones are as in [Segment].
	Src, Dst netip.AddrPort
	// Lite: it is UDP-Lite (RFC 3828); its checksum covers all of it.
	Lite bool
	// HopLimit (TTL, of IPv4) and TrafficClass (TOS) are in the IP header.
	HopLimit, TrafficClass uint8
	Payload                []byte
}

const (
	udpHeader  = 8
	maxPayload = 65535 - udpHeader
	udpLite    = layers.IPProtocol(136) // IPPROTO_UDPLITE
)

// A DatagramError says why a datagram cannot be delivered here. Nothing was sent,
// or it was dropped on its way out to the loopback device.
type DatagramError struct {
	Src, Dst netip.AddrPort
	Reason   string
	Err      error // what the kernel answered, or nil
}

func (e *DatagramError) Error() string {
	text := fmt.Sprintf("rawfin: datagram %v > %v: %s", e.Src, e.Dst, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *DatagramError) Unwrap() error { return e.Err }

func (d *Datagram) fail(reason string, err error) error {
	return &DatagramError{Src: d.Src, Dst: d.Dst, Reason: reason, Err: err}
}

// AppendTo appends the datagram to b as a whole IP packet, its lengths and
// checksums filled in. On failure, a [*DatagramError], it returns b as it was.
func (d Datagram) AppendTo(b []byte) ([]byte, error) {
	if len(d.Payload) > maxPayload {
		return b, d.fail(fmt.Sprintf("%d bytes are too many", len(d.Payload)), nil)
	}
	// The port does not matter: 0 stands for nobody who could be answered.
	ends := Segment{Src: netip.AddrPortFrom(d.Src.Addr(), 1), Dst: d.Dst}
	if reason := ends.invalid(); reason != "" {
		return b, d.fail(reason, nil)
	}
	src, dst := d.Src.Addr().Unmap(), d.Dst.Addr().Unmap()
	protocol := layers.IPProtocolUDP
	if d.Lite {
		protocol = udpLite
	}
	size := udpHeader + len(d.Payload)
	udp := binary.BigEndian.AppendUint16(make([]byte, 0, size), d.Src.Port())
	udp = binary.BigEndian.AppendUint16(udp, d.Dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(size)) // for UDP-Lite, how much the checksum covers
	udp = append(append(udp, 0, 0), d.Payload...)
	binary.BigEndian.PutUint16(udp[6:], checksum(src, dst, protocol, udp))
	var ip gopacket.SerializableLayer
	if dst.Is4() {
		ip = &layers.IPv4{
			Version: 4, Flags: layers.IPv4DontFragment, TTL: d.HopLimit, TOS: d.TrafficClass, Protocol: protocol,
			SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
		}
	} else {
		ip = &layers.IPv6{
			Version: 6, HopLimit: d.HopLimit, TrafficClass: d.TrafficClass, NextHeader: protocol,
			SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
		}
	}
	packet := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(packet, options, ip, gopacket.Payload(udp)); err != nil {
		return b, d.fail(err.Error(), nil)
	}
	return append(b, packet.Bytes()...), nil
}

// checksum is that of RFC 768, over the pseudo header too. Its 0 would mean that
// there is none.
func checksum(src, dst netip.Addr, protocol layers.IPProtocol, udp []byte) uint16 {
	sum := uint64(protocol) + uint64(len(udp))
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint64(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint64(b[0]) << 8
		}
	}
	add(src.AsSlice())
	add(dst.AsSlice())
	add(udp)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if folded := ^uint16(sum); folded != 0 {
		return folded
	}
	return 0xffff
}
