package wire_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// packet lets somebody else write what Parse reads.
func packet(t testing.TB, payload int, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	parts = append(parts, gopacket.Payload(make([]byte, payload)))
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var (
	src4, dst4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	src6, dst6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
)

func ip4(protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Protocol: protocol, SrcIP: net.IP(src4.AsSlice()), DstIP: net.IP(dst4.AsSlice()),
		Options: []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}},
	}
}

func ip6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, NextHeader: next, SrcIP: net.IP(src6.AsSlice()), DstIP: net.IP(dst6.AsSlice())}
}

func tcp() *layers.TCP {
	return &layers.TCP{
		SrcPort: 1000, DstPort: 2000, Seq: 4e9, Ack: 17, Window: 500, SYN: true, ACK: true,
		Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}},
			{OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
			{OptionType: layers.TCPOptionKindSACK, OptionLength: 10, OptionData: make([]byte, 8)},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 0, 0, 9, 0, 0, 0, 8}},
		},
	}
}

func segment(src, dst netip.Addr, size int) wire.Segment {
	return wire.Segment{
		Src: netip.AddrPortFrom(src, 1000), Dst: netip.AddrPortFrom(dst, 2000),
		Seq: 4e9, Ack: 17, Len: size, Flags: wire.SYN | wire.ACK, Window: 500,
		HasScale: true, Scale: 7, HasTimestamp: true, TSVal: 9, TSEcr: 8,
		SACKPermitted: true, HasSACK: true,
	}
}

func quoted(src, dst netip.Addr) wire.Segment {
	return wire.Segment{Src: netip.AddrPortFrom(src, 1000), Dst: netip.AddrPortFrom(dst, 2000), Seq: 4e9, ICMP: true}
}

func TestParse(t *testing.T) {
	icmp4 := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}
	echo4 := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}
	icmp6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 3)}
	unused := gopacket.Payload(make([]byte, 4)) // of ICMPv6 errors; the layer has the first 4 bytes only
	neighbor := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(136, 0)}

	// More than 64 KiB at once: IPv4 says 0, IPv6 says 0 and maybe has an option.
	const big = 100_000
	big4 := packet(t, 100, ip4(layers.IPProtocolTCP), tcp())
	binary.BigEndian.PutUint16(big4[2:], 0)
	big6 := packet(t, 100, ip6(layers.IPProtocolTCP), tcp())
	binary.BigEndian.PutUint16(big6[4:], 0)
	jumbo6 := append([]byte(nil), big6[:40]...)
	jumbo6[6] = 0
	jumbo6 = append(jumbo6, 6, 0, 0xc2, 4, 0, 1, 0x86, 0xa0)
	jumbo6 = append(jumbo6, big6[40:]...)

	fragment := packet(t, 100, ip4(layers.IPProtocolTCP), tcp())
	fragment[7] = 1

	header4, header6 := 24+52, 40+52
	for _, test := range []struct {
		name string
		data []byte
		size int
		want *wire.Segment
	}{
		{"IPv4", packet(t, 100, ip4(layers.IPProtocolTCP), tcp()), 100 + header4, new(segment(src4, dst4, 100))},
		{"IPv4, cut after its headers", packet(t, 100, ip4(layers.IPProtocolTCP), tcp())[:header4], 100 + header4, new(segment(src4, dst4, 100))},
		{"IPv4, padded", packet(t, 0, ip4(layers.IPProtocolTCP), tcp()), 6 + header4, new(segment(src4, dst4, 0))},
		{"IPv6", packet(t, 100, ip6(layers.IPProtocolTCP), tcp()), 100 + header6, new(segment(src6, dst6, 100))},
		{"big IPv4", big4, big + header4, new(segment(src4, dst4, big))},
		{"big IPv6", big6, big + header6, new(segment(src6, dst6, big))},
		{"big IPv6 with its length in an option", jumbo6, big + header6 + 8, new(segment(src6, dst6, big))},
		{"ICMP error", packet(t, 0, ip4(layers.IPProtocolICMPv4), icmp4, ip4(layers.IPProtocolTCP), tcp()), 200, new(quoted(src4, dst4))},
		{"ICMPv6 error", packet(t, 0, ip6(layers.IPProtocolICMPv6), icmp6, unused, ip6(layers.IPProtocolTCP), tcp()), 200, new(quoted(src6, dst6))},
		{"ICMP echo", packet(t, 0, ip4(layers.IPProtocolICMPv4), echo4, ip4(layers.IPProtocolTCP), tcp()), 200, nil},
		{"ICMPv6 neighbor advertisement", packet(t, 0, ip6(layers.IPProtocolICMPv6), neighbor, unused, ip6(layers.IPProtocolTCP), tcp()), 200, nil},
		{"ICMP error about UDP", packet(t, 0, ip4(layers.IPProtocolICMPv4), icmp4, ip4(layers.IPProtocolUDP), tcp()), 200, nil},
		{"a later fragment", fragment, 100 + header4, nil},
		{"UDP", packet(t, 100, ip4(layers.IPProtocolUDP), tcp()), 100 + header4, nil},
		{"cut within the options", packet(t, 100, ip4(layers.IPProtocolTCP), tcp())[:header4-1], 100 + header4, nil},
		{"IPv9", []byte{0x90, 1, 2, 3}, 4, nil},
		{"nothing", nil, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, ok := wire.Parse(test.data, test.size)
			if ok != (test.want != nil) {
				t.Fatalf("parsed: %v, %v", ok, got)
			}
			if !ok {
				return
			}
			if diff := cmp.Diff(*test.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
		})
	}
}

// Whatever is on the wire, neither reading nor judging it crashes.
func FuzzParse(f *testing.F) {
	f.Add(packet(f, 10, ip4(layers.IPProtocolTCP), tcp()), 100)
	f.Add(packet(f, 10, ip6(layers.IPProtocolTCP), tcp()), 100)
	f.Add(packet(f, 0, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, ip4(layers.IPProtocolTCP), tcp()), 100)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		s, ok := wire.Parse(data, max(size, len(data)))
		if !ok {
			return
		}
		if s.Len < 0 {
			t.Fatalf("%d bytes of payload", s.Len)
		}
		check := wire.NewChecker(wire.Flow{A: s.Src, B: s.Dst})
		check.Add(s)
		s.Seq += uint32(s.Len) / 2
		check.Add(s)
		_ = check.Report().String()
	})
}
