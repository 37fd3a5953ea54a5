package rawfin_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/gosoccr/gosoccr/rawfin"
)

// A datagram is the one that gopacket makes of the same fields.
func TestDatagramAppendTo(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{peer4, local4}, {mapped(peer4), mapped(local4)}, {peer6, local6}} {
		for _, size := range []int{0, 1, 2, 1499, 60_001} {
			d := rawfin.Datagram{
				Src: ends[0], Dst: ends[1], HopLimit: 9, TrafficClass: 0x28, Payload: bytes.Repeat([]byte{0xab, 0xcd, 0x01}, size)[:size],
			}
			got, err := d.AppendTo([]byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			got = bytes.TrimPrefix(got, []byte("before"))
			udp := &layers.UDP{SrcPort: layers.UDPPort(d.Src.Port()), DstPort: layers.UDPPort(d.Dst.Port())}
			var ip interface {
				gopacket.NetworkLayer
				gopacket.SerializableLayer
			}
			src, dst := d.Src.Addr().Unmap().AsSlice(), d.Dst.Addr().Unmap().AsSlice()
			if len(dst) == 4 {
				ip = &layers.IPv4{Version: 4, Flags: layers.IPv4DontFragment, TTL: 9, TOS: 0x28, Protocol: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
			} else {
				ip = &layers.IPv6{Version: 6, HopLimit: 9, TrafficClass: 0x28, NextHeader: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
			}
			want := gopacket.NewSerializeBuffer()
			err = errors.Join(udp.SetNetworkLayerForChecksum(ip), gopacket.SerializeLayers(want,
				gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(d.Payload)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%v, %d bytes: %.64x, want %.64x", ends, size, got, want.Bytes())
			}

			d.Lite = true
			lite, err := d.AppendTo(nil)
			if err != nil {
				t.Fatal(err)
			}
			if sum := pseudoSum(lite, 136); sum != 0xffff {
				t.Errorf("%v, %d bytes: the checksum of UDP-Lite sums up to %#x", ends, size, sum)
			}
			if sum := pseudoSum(got, 17); sum != 0xffff {
				t.Errorf("%v, %d bytes: the checksum of UDP sums up to %#x", ends, size, sum)
			}
		}
	}
}

// pseudoSum is the sum over a datagram and its pseudo header, 0xffff if the
// checksum is right.
func pseudoSum(packet []byte, protocol uint32) uint32 {
	addrs, datagram := packet[12:20], packet[20:]
	if packet[0]>>4 == 6 {
		addrs, datagram = packet[8:40], packet[40:]
	}
	all := append(bytes.Clone(addrs), datagram...)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	sum := protocol + uint32(len(datagram))
	for ; len(all) > 0; all = all[2:] {
		sum += uint32(binary.BigEndian.Uint16(all))
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

func TestDatagramRejects(t *testing.T) {
	for name, d := range map[string]rawfin.Datagram{
		"no source":          {Dst: local4},
		"no destination":     {Src: peer4},
		"two families":       {Src: peer4, Dst: local6},
		"to a group":         {Src: peer4, Dst: netip.MustParseAddrPort("239.1.2.3:5")},
		"from nobody":        {Src: netip.MustParseAddrPort("0.0.0.0:5"), Dst: local4},
		"to no port":         {Src: peer4, Dst: netip.AddrPortFrom(local4.Addr(), 0)},
		"more than a packet": {Src: peer4, Dst: local4, Payload: make([]byte, 65528)},
	} {
		b, err := d.AppendTo([]byte("before"))
		if _, ok := errors.AsType[*rawfin.DatagramError](err); !ok || string(b) != "before" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	// Port 0 stands for nobody who could be answered.
	d := rawfin.Datagram{Src: netip.AddrPortFrom(peer4.Addr(), 0), Dst: local4}
	if _, err := d.AppendTo(nil); err != nil {
		t.Error(err)
	}
}
