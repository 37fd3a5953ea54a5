package rawfin_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/gosoccr/gosoccr/rawfin"
)

var (
	peer4  = netip.MustParseAddrPort("10.77.0.1:443")
	local4 = netip.MustParseAddrPort("10.77.0.2:40000")
	peer6  = netip.MustParseAddrPort("[fd77::1]:443")
	local6 = netip.MustParseAddrPort("[fd77::2]:40000")
)

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func segment(src, dst netip.AddrPort, flags rawfin.Flags) rawfin.Segment {
	return rawfin.Segment{Src: src, Dst: dst, Seq: 0x01020304, Ack: 0xfffefdfc, Window: 0x0123, Flags: flags}
}

// golden packets, put together by hand from RFC 791, 8200 and 9293.
const (
	golden4 = "45000028 00004000 ff06 6733 0a4d0001 0a4d0002" +
		"01bb9c40 01020304 fffefdfc 50110123 fa16 0000"
	golden6 = "60000000 001406ff fd770000000000000000000000000001 fd770000000000000000000000000002" +
		"01bb9c40 01020304 fffefdfc 50100123 13c2 0000"
)

func TestAppendTo(t *testing.T) {
	for _, test := range []struct {
		name    string
		segment rawfin.Segment
		want    string
	}{
		{"IPv4", segment(peer4, local4, rawfin.FIN|rawfin.ACK), golden4},
		{"IPv4-mapped", segment(mapped(peer4), mapped(local4), rawfin.FIN|rawfin.ACK), golden4},
		{"IPv6", segment(peer6, local6, rawfin.ACK), golden6},
	} {
		t.Run(test.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(test.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got, err := test.segment.AppendTo([]byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := bytes.CutPrefix(got, []byte("before")); !ok || !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

// The wire carries no zone.
func TestAppendToIgnoresZones(t *testing.T) {
	plain, err := segment(netip.MustParseAddrPort("[fe80::1]:443"), netip.MustParseAddrPort("[fe80::2]:40000"), rawfin.ACK).AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	zoned, err := segment(netip.MustParseAddrPort("[fe80::1%net0]:443"), netip.MustParseAddrPort("[fe80::2%net0]:40000"), rawfin.ACK).AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(plain, zoned) {
		t.Errorf("got  %x\nwant %x", zoned, plain)
	}
}

func TestAppendToRejects(t *testing.T) {
	with := func(change func(*rawfin.Segment)) rawfin.Segment {
		s := segment(peer4, local4, rawfin.ACK)
		change(&s)
		return s
	}
	addr := netip.MustParseAddrPort
	for name, s := range map[string]rawfin.Segment{
		"nothing":             {},
		"no source":           with(func(s *rawfin.Segment) { s.Src = netip.AddrPort{} }),
		"no destination":      with(func(s *rawfin.Segment) { s.Dst = netip.AddrPortFrom(netip.Addr{}, 1) }),
		"source port 0":       with(func(s *rawfin.Segment) { s.Src = addr("10.77.0.1:0") }),
		"destination port 0":  with(func(s *rawfin.Segment) { s.Dst = addr("10.77.0.2:0") }),
		"unspecified":         with(func(s *rawfin.Segment) { s.Src = addr("0.0.0.0:1") }),
		"unspecified mapped":  segment(addr("[::ffff:0.0.0.0]:1"), mapped(local4), rawfin.ACK),
		"unspecified IPv6":    segment(peer6, addr("[::]:1"), rawfin.ACK),
		"multicast":           with(func(s *rawfin.Segment) { s.Dst = addr("224.0.0.1:1") }),
		"multicast mapped":    segment(mapped(peer4), addr("[::ffff:224.0.0.1]:1"), rawfin.ACK),
		"multicast IPv6":      segment(peer6, addr("[ff02::1]:1"), rawfin.ACK),
		"broadcast":           with(func(s *rawfin.Segment) { s.Src = addr("255.255.255.255:1") }),
		"IPv4 to IPv6":        segment(peer4, local6, rawfin.ACK),
		"IPv6 to IPv4":        segment(peer6, local4, rawfin.ACK),
		"mapped to IPv6":      segment(mapped(peer4), local6, rawfin.ACK),
		"IPv4 to mapped":      segment(peer4, mapped(local4), rawfin.ACK),
		"different zones":     segment(addr("[fe80::1%a]:1"), addr("[fe80::2%b]:1"), rawfin.ACK),
		"flag that is no bit": with(func(s *rawfin.Segment) { s.Flags |= 0x40 }),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.AppendTo([]byte("before"))
			invalid, ok := errors.AsType[*rawfin.SegmentError](err)
			if !ok {
				t.Fatalf("got error %v, want a SegmentError", err)
			}
			if invalid.Segment != s || invalid.Reason == "" {
				t.Errorf("error is about %v (%q), want %v", invalid.Segment, invalid.Reason, s)
			}
			if string(got) != "before" {
				t.Errorf("returned %q with the error", got)
			}
		})
	}
}

func TestFlagsString(t *testing.T) {
	for flags, want := range map[rawfin.Flags]string{
		0:                       "0",
		rawfin.FIN:              "FIN",
		rawfin.FIN | rawfin.ACK: "FIN|ACK",
		0x3f:                    "FIN|SYN|RST|PSH|ACK|URG",
		0xc0 | rawfin.RST:       "RST|0xc0",
	} {
		if got := flags.String(); got != want {
			t.Errorf("Flags(%#x) is %q, want %q", uint8(flags), got, want)
		}
	}
}

func TestSegmentString(t *testing.T) {
	got := segment(peer6, local6, rawfin.FIN|rawfin.ACK).String()
	if want := "[fd77::1]:443 > [fd77::2]:40000 FIN|ACK seq 16909060 ack 4294901244 win 291"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// sum16 is the sum of RFC 1071, done as its section 1 says rather than as
// anybody optimises it. Over a header with its checksum it is 0xffff.
func sum16(parts ...[]byte) uint16 {
	all := bytes.Join(parts, nil)
	if len(all)%2 != 0 {
		all = append(all, 0)
	}
	var sum uint32
	for ; len(all) > 0; all = all[2:] {
		sum += uint32(binary.BigEndian.Uint16(all))
		if sum > 0xffff {
			sum -= 0xffff // end-around carry
		}
	}
	return uint16(sum)
}

// FuzzAppendTo checks that a packet, if there is one, has the right checksums
// and says what the segment says, and that there is one if all is in order.
func FuzzAppendTo(f *testing.F) {
	for _, s := range []rawfin.Segment{
		segment(peer4, local4, rawfin.FIN|rawfin.ACK),
		segment(peer6, local6, rawfin.ACK),
		segment(mapped(peer4), mapped(local4), rawfin.RST),
		// One's complement has two zeros, and sums that carry twice: these come
		// out as checksums of 0x0000 and 0xffff, or near them.
		{Src: peer4, Dst: local4, Seq: 0xffffffff, Ack: 0xffffffff, Window: 0xffff, Flags: 0x3f},
		{Src: peer4, Dst: local4, Window: 0xFFFF, Flags: rawfin.ACK},
	} {
		f.Add(s.Src.Addr().AsSlice(), s.Src.Port(), s.Dst.Addr().AsSlice(), s.Dst.Port(), s.Seq, s.Ack, s.Window, uint8(s.Flags))
	}
	f.Fuzz(func(t *testing.T, src []byte, srcPort uint16, dst []byte, dstPort uint16, seq, ack uint32, window uint16, flags uint8) {
		srcAddr, _ := netip.AddrFromSlice(src)
		dstAddr, _ := netip.AddrFromSlice(dst)
		s := rawfin.Segment{
			Src: netip.AddrPortFrom(srcAddr, srcPort), Dst: netip.AddrPortFrom(dstAddr, dstPort),
			Seq: seq, Ack: ack, Window: window, Flags: rawfin.Flags(flags),
		}
		packet, err := s.AppendTo(nil)
		if err != nil {
			if _, ok := errors.AsType[*rawfin.SegmentError](err); !ok || len(packet) != 0 {
				t.Fatalf("got %x, %v", packet, err)
			}
			if len(src) == len(dst) && ordinary(srcAddr) && ordinary(dstAddr) && srcPort != 0 && dstPort != 0 && flags < 0x40 {
				t.Fatalf("rejected: %v", err)
			}
			return
		}
		checkPacket(t, s, packet)
	})
}

// ordinary tells whether an address is that of one host, whatever its family:
// global ones that are not IPv4-mapped.
func ordinary(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.Is4In6() }

func checkPacket(t *testing.T, s rawfin.Segment, packet []byte) {
	t.Helper()
	src, dst := s.Src.Addr().Unmap(), s.Dst.Addr().Unmap()
	first, header := layers.LayerTypeIPv6, 40
	if src.Is4() {
		first, header = layers.LayerTypeIPv4, 20
		if sum := sum16(packet[:header]); sum != 0xffff {
			t.Errorf("IPv4 header sums up to %#x", sum)
		}
	}
	if len(packet) != header+20 {
		t.Fatalf("packet of %d bytes, want %d", len(packet), header+20)
	}
	pseudo := binary.BigEndian.AppendUint16([]byte{0, 6}, 20)
	if sum := sum16(src.AsSlice(), dst.AsSlice(), pseudo, packet[header:]); sum != 0xffff {
		t.Errorf("TCP segment sums up to %#x", sum)
	}

	decoded := gopacket.NewPacket(packet, first, gopacket.Default)
	if err := decoded.ErrorLayer(); err != nil {
		t.Fatal(err.Error())
	}
	from, to := decoded.NetworkLayer().NetworkFlow().Endpoints()
	if !bytes.Equal(from.Raw(), src.AsSlice()) || !bytes.Equal(to.Raw(), dst.AsSlice()) {
		t.Errorf("packet from %v to %v, want %v to %v", from, to, src, dst)
	}
	tcp, ok := decoded.TransportLayer().(*layers.TCP)
	if !ok {
		t.Fatal("no TCP header")
	}
	var flags rawfin.Flags
	for flag, set := range map[rawfin.Flags]bool{
		rawfin.FIN: tcp.FIN, rawfin.SYN: tcp.SYN, rawfin.RST: tcp.RST,
		rawfin.PSH: tcp.PSH, rawfin.ACK: tcp.ACK, rawfin.URG: tcp.URG,
	} {
		if set {
			flags |= flag
		}
	}
	got := fmt.Sprint(tcp.SrcPort, tcp.DstPort, tcp.Seq, tcp.Ack, tcp.Window, flags, len(tcp.Options), len(tcp.Payload))
	want := fmt.Sprint(layers.TCPPort(s.Src.Port()), layers.TCPPort(s.Dst.Port()), s.Seq, s.Ack, s.Window, s.Flags, 0, 0)
	if got != want {
		t.Errorf("decoded %s, want %s", got, want)
	}
}
