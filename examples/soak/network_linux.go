package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	inside "github.com/gosoccr/gosoccr/internal/netns"
)

// The hosts: the peers' and those between which connections move.
const (
	peerHost = iota
	hostA
	hostB
	hosts
)

const device = "net0"

// A family is one of the ways in which a socket can speak IP.
type family struct {
	name    string
	network string // of the listener
	six     bool   // on the wire
}

var families = [...]family{{"IPv4", "tcp4", false}, {"IPv6", "tcp6", true}, {"mapped", "tcp", false}}

// address is the slot's own, which goes with its connection from host to host.
func (f family) address(slot int) netip.Addr {
	if f.six {
		return netip.AddrFrom16([16]byte{0xfd, 0x99, 14: byte(slot >> 8), 15: byte(slot)})
	}
	return netip.AddrFrom4([4]byte{10, 99, byte(slot >> 8), byte(slot)})
}

// listenAddress is where the listener of a slot listens: one of a mapped connection
// takes IPv6 as well.
func (f family) listenAddress(slot int) string {
	if f.network == "tcp" {
		return "[::]:0"
	}
	return netip.AddrPortFrom(f.address(slot), 0).String()
}

func hostAddress(which int, six bool) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0xfd, 0x77, 15: byte(which + 1)})
	}
	return netip.AddrFrom4([4]byte{10, 77, 0, byte(which + 1)})
}

// A network is the hosts on one switch. Hosts A and B both have the addresses of all
// slots; the peers' host routes each to where the connection is.
type network struct {
	hub   *host.Switch
	hosts [hosts]*host.Host
}

func newNetwork(slots int) (_ *network, err error) {
	n := &network{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build the network: %w", err), n.close())
		}
	}()
	if n.hub, err = host.NewSwitch(); err != nil {
		return nil, err
	}
	for i := range n.hosts {
		if n.hosts[i], err = host.New(); err != nil {
			return nil, err
		}
		if err = n.hub.Plug(n.hosts[i], device); err != nil {
			return nil, err
		}
		for _, six := range []bool{false, true} {
			if err = n.hosts[i].AddAddr(device, netip.PrefixFrom(hostAddress(i, six), map[bool]int{false: 24, true: 64}[six])); err != nil {
				return nil, err
			}
		}
		// What a listener in the middle of a thousand dials needs.
		if err = n.hosts[i].Sysctl("net.ipv4.tcp_max_syn_backlog", "4096"); err != nil {
			return nil, err
		}
	}
	for _, h := range n.hosts[hostA:] {
		for slot := range slots {
			for _, f := range families[:2] {
				a := f.address(slot)
				if err = h.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
					return nil, err
				}
			}
		}
	}
	return n, nil
}

func (n *network) close() error {
	var err error
	for _, h := range n.hosts {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	if n.hub != nil {
		err = errors.Join(err, n.hub.Close())
	}
	return err
}

// A router says on the peers' host where an address is now.
type router struct {
	link   *netlink.Handle
	device int
}

func newRouter(peers int) (*router, error) {
	link, err := netlink.NewHandleAt(netns.NsHandle(peers))
	if err != nil {
		return nil, err
	}
	l, err := link.LinkByName(device)
	if err != nil {
		return nil, err
	}
	return &router{link, l.Attrs().Index}, nil
}

func (r *router) route(addr netip.Addr, to int) error {
	bits := addr.BitLen()
	return r.link.RouteReplace(&netlink.Route{
		LinkIndex: r.device,
		Dst:       &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Gw:        hostAddress(to, addr.Is6()).AsSlice(),
	})
}

// counters are those of a host's TCP that tell of something wrong, or of why
// something was slow.
func counters(ns int, names ...string) (map[string]int64, error) {
	found := map[string]int64{}
	err := inside.Do(ns, func() error {
		for _, file := range []string{"snmp", "netstat"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(text), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				keys, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for k := range min(len(keys), len(values)) {
					for _, name := range names {
						if keys[k] == name {
							n, err := strconv.ParseInt(values[k], 10, 64)
							if err != nil {
								return err
							}
							found[name] += n
						}
					}
				}
			}
		}
		return nil
	})
	return found, err
}

// setInt sets an option of a socket.
func setInt(fd, level, name, v int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, name, v))
}
