package soccr

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// tcpPacket is a packet as gopacket makes it, with timestamps and a checksum.
func tcpPacket(t testing.TB, src, dst netip.AddrPort, seq uint32, fin bool, payload []byte) []byte {
	t.Helper()
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: seq, Ack: 77, ACK: true, PSH: true, FIN: fin, Window: 500,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}},
	}
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if src.Addr().Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, options, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Our checksums are gopacket's, and the parts of a packet are the packet.
func TestSplit(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, ends := range [][2]string{{"192.0.2.1:443", "198.51.100.2:50000"}, {"[2001:db8::1]:443", "[2001:db8::2]:50000"}} {
		src, dst := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
		for _, size := range []int{0, 1, 2, 3, 1448, 1600, 2047, 9001, 16_384, 65_000} {
			payload := make([]byte, size)
			for i := range payload {
				payload[i] = byte(random.Uint32())
			}
			packet := tcpPacket(t, src, dst, 0xffffff00, true, payload)
			without := bytes.Clone(packet)
			p, ok := parsePacket(without)
			if !ok || p.sum() != 0 {
				t.Fatalf("%d bytes: the checksum is wrong", size)
			}
			p.tcp[16], p.tcp[17] = 0x12, 0x34
			if fillChecksum(without); !bytes.Equal(without, packet) {
				t.Errorf("%d bytes: another checksum", size)
			}
			parts := split(packet)
			if size > 1600 && len(parts) == 1 || size < 1500 && len(parts) != 1 {
				t.Errorf("%d bytes: %d parts", size, len(parts))
			}
			var got []byte
			next := uint32(0xffffff00)
			for i, part := range parts {
				p, ok := parsePacket(part)
				s, parsed := wire.Parse(part, len(part))
				if !ok || !parsed || p.sum() != 0 || s.Seq != next || s.Len != len(p.payload) {
					t.Fatalf("%d bytes: part %d is %v", size, i, s)
				}
				if last := i == len(parts)-1; s.Flags.Has(wire.FIN) != last || s.Flags.Has(wire.PSH) != last || s.TSVal != 0x01020304 {
					t.Errorf("%d bytes: part %d of %d is %v", size, i, len(parts), s)
				}
				next += uint32(s.Len)
				got = append(got, p.payload...)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("%d bytes: the parts are not the whole", size)
			}
			// What was damaged on its way stays one packet, and damaged.
			packet[len(packet)-1]++
			if again := split(packet); len(again) != 1 || !bytes.Equal(again[0], packet) {
				t.Errorf("%d bytes: a damaged packet was mended", size)
			}
		}
	}
}

// Whatever bytes are said to be packets, only those of the connection that say
// something new are delivered, and nothing panics.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20}, uint64(0))
	f.Add(bytes.Repeat([]byte{0x60}, 80), uint64(1<<40))
	snap := &Snapshot{
		State: StateEstablished, Local: netip.MustParseAddrPort("192.0.2.1:443"), Remote: netip.MustParseAddrPort("198.51.100.2:50000"), RecvSeq: 1000,
	}
	whole := tcpPacket(f, snap.Remote, snap.Local, 1000, true, make([]byte, 3000))
	f.Add(whole, uint64(10))
	f.Add(whole[:100], uint64(0))
	f.Add(append(tcpPacket(f, snap.Remote, snap.Local, 995, false, make([]byte, 10)), 0, 0, 0, 0), uint64(0)) // padded
	f.Fuzz(func(t *testing.T, packet []byte, received uint64) {
		if snap.missing(packet, received) {
			p, ok := wire.Parse(packet, len(packet))
			if !ok || p.Dst != snap.Local || p.Src != snap.Remote {
				t.Errorf("%v is not of the connection", p)
			}
		}
		for _, part := range split(bytes.Clone(packet)) {
			if len(part) > len(packet) {
				t.Errorf("a part of %d bytes, of %d", len(part), len(packet))
			}
		}
		withoutPadding(packet)
		fillChecksum(packet)
	})
}

func TestMissing(t *testing.T) {
	local, remote := netip.MustParseAddrPort("192.0.2.1:443"), netip.MustParseAddrPort("198.51.100.2:50000")
	snap := &Snapshot{State: StateEstablished, Local: local, Remote: remote, RecvSeq: 1000, SendSeq: 77}
	for _, test := range []struct {
		name     string
		packet   []byte
		received uint64
		want     bool
	}{
		{"new", tcpPacket(t, remote, local, 1000, false, make([]byte, 10)), 0, true},
		{"partly new", tcpPacket(t, remote, local, 995, false, make([]byte, 10)), 0, true},
		{"old", tcpPacket(t, remote, local, 990, false, make([]byte, 10)), 0, false},
		{"received since", tcpPacket(t, remote, local, 1000, false, make([]byte, 10)), 10, false},
		{"a FIN", tcpPacket(t, remote, local, 1000, true, nil), 0, true},
		{"an acknowledgement", tcpPacket(t, remote, local, 1000, false, nil), 0, true},
		{"of others", tcpPacket(t, netip.AddrPortFrom(remote.Addr(), 1), local, 1000, false, make([]byte, 10)), 0, false},
		{"ours", tcpPacket(t, local, remote, 1000, false, make([]byte, 10)), 0, false},
	} {
		if got := snap.missing(test.packet, test.received); got != test.want {
			t.Errorf("%s: missing is %v", test.name, got)
		}
	}
}
