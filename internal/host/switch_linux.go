package host

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// A Switch joins any number of hosts into one Ethernet.
type Switch struct {
	host   *Host // which has the bridge, and nothing else
	bridge *netlink.Bridge
	ports  int
}

// NewSwitch makes a switch without hosts. It needs CAP_SYS_ADMIN, like [New].
func NewSwitch() (*Switch, error) {
	h, err := New()
	if err != nil {
		return nil, err
	}
	s := &Switch{host: h, bridge: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}}
	// What a switch sends out of a port must not depend on who has joined which
	// multicast group: the hosts' neighbor discovery relies on multicast.
	s.bridge.MulticastSnooping = new(false)
	if err := h.link.LinkAdd(s.bridge); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge: %w", err), h.Close())
	}
	if err := h.up(s.bridge.Name); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return s, nil
}

// Plug connects a host to the switch, by a device of that name.
func (s *Switch) Plug(h *Host, device string) error {
	port := fmt.Sprintf("port%d", s.ports)
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: s.bridge.Index},
		PeerName:      device,
		PeerNamespace: netlink.NsFd(h.FD()),
	}
	if err := s.host.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", device, err)
	}
	s.ports++
	return errors.Join(s.host.up(port), h.up(device))
}

// Close gives the switch up, and with it the devices of the hosts plugged in.
func (s *Switch) Close() error { return s.host.Close() }
