package host

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// An Announcer tells the neighbors on one device of a host that an address has
// come to it.
type Announcer struct {
	fd    int
	index int
	mac   net.HardwareAddr
}

// NewAnnouncer makes an announcer, which needs CAP_NET_RAW. Make it beforehand
// if time matters: closing a packet socket waits for all CPUs (synchronize_net),
// which takes milliseconds.
func (h *Host) NewAnnouncer(device string) (*Announcer, error) {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	a := &Announcer{index: link.Attrs().Index, mac: link.Attrs().HardwareAddr}
	if err := h.Do(func() (err error) {
		a.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return a, nil
}

// Announce tells all neighbors that the host has an address now, so that those
// who know it as another host's send to this one from now on: a gratuitous ARP
// request (RFC 5227, section 3), or an unsolicited neighbor advertisement
// (RFC 4861, section 7.2.6).
func (a *Announcer) Announce(addr netip.Addr) error {
	frame, err := announcement(addr, a.mac)
	if err == nil {
		err = unix.Sendto(a.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: a.index})
	}
	if err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	return nil
}

// Close gives the announcer's socket up.
func (a *Announcer) Close() error { return unix.Close(a.fd) }

// announcement is the whole frame.
func announcement(addr netip.Addr, mac net.HardwareAddr) ([]byte, error) {
	ethernet := &layers.Ethernet{SrcMAC: mac}
	var parts []gopacket.SerializableLayer
	if addr.Is4() {
		ethernet.DstMAC = layers.EthernetBroadcast
		ethernet.EthernetType = layers.EthernetTypeARP
		// A request: of replies the kernel believes only those whose target
		// hardware address is right too (arp_is_garp).
		parts = []gopacket.SerializableLayer{&layers.ARP{
			AddrType:          layers.LinkTypeEthernet,
			Protocol:          layers.EthernetTypeIPv4,
			HwAddressSize:     6,
			ProtAddressSize:   4,
			Operation:         layers.ARPRequest,
			SourceHwAddress:   mac,
			SourceProtAddress: addr.AsSlice(),
			DstHwAddress:      make([]byte, 6),
			DstProtAddress:    addr.AsSlice(),
		}}
	} else {
		ethernet.DstMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
		ethernet.EthernetType = layers.EthernetTypeIPv6
		const override = 0x20
		ip := &layers.IPv6{
			Version:    6,
			NextHeader: layers.IPProtocolICMPv6,
			HopLimit:   255, // proves that it comes from this link
			SrcIP:      addr.AsSlice(),
			DstIP:      net.IPv6linklocalallnodes,
		}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			return nil, err
		}
		parts = []gopacket.SerializableLayer{ip, icmp, &layers.ICMPv6NeighborAdvertisement{
			Flags:         override,
			TargetAddress: addr.AsSlice(),
			Options:       layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac}},
		}}
	}
	b := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	err := gopacket.SerializeLayers(b, options, append([]gopacket.SerializableLayer{ethernet}, parts...)...)
	return b.Bytes(), err
}
