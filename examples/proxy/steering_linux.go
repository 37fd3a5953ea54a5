package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A steering sends the client's packets of some connections on to other hosts, though
// their address is this host's own: a routing rule for each connection, with a table
// for each host (ip-rule(8)). The backends have the address too, and do not tell.
//
// Rules are looked at in the order of their priorities, so that ours have to be before
// the one for the host's own addresses, which has priority 0 where nobody has moved it.
type steering struct {
	mu     sync.Mutex
	tables map[int]netip.Addr // of backends
}

const (
	flowPriority  = 10  // of our rules
	localPriority = 20  // of the rule for this host's own addresses
	localTable    = 255 // RT_TABLE_LOCAL
	// firstTable is that of a backend whose address ends with zeros: a backend always
	// has the same one, so that what an earlier front has steered goes on.
	firstTable = 1 << 20
)

// newSteering makes room for the rules.
func newSteering() (*steering, error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		moved := netlink.NewRule()
		moved.Family, moved.Table, moved.Priority = family, localTable, localPriority
		if err := netlink.RuleAdd(moved); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("move the rule for local addresses: %w", err)
		}
		for i := range rules {
			r := &rules[i]
			if r.Table != localTable || r.Priority > flowPriority {
				continue
			}
			r.Family = family
			if err := netlink.RuleDel(r); err != nil {
				return nil, fmt.Errorf("remove %v: %w", r, err)
			}
		}
	}
	return &steering{tables: map[int]netip.Addr{}}, nil
}

// add sends the client's packets of a flow to a host on the same network.
func (s *steering) add(flow netlock.Flow, to net.Addr) error {
	table, err := s.table(to)
	if err != nil {
		return err
	}
	// An earlier front may have left one.
	if err := s.remove(flow); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return netlink.RuleAdd(ruleOf(flow, table))
}

func (s *steering) remove(flow netlock.Flow) error { return netlink.RuleDel(ruleOf(flow, 0)) }

// table is the routing table that leads to a host.
func (s *steering) table(to net.Addr) (int, error) {
	end, err := netip.ParseAddrPort(to.String())
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	addr := end.Addr().Unmap()
	bytes := addr.AsSlice()
	table := firstTable + int(binary.BigEndian.Uint16(bytes[len(bytes)-2:]))
	switch known := s.tables[table]; {
	case known == addr:
		return table, nil
	case known.IsValid():
		return 0, fmt.Errorf("%v and %v end alike", known, addr)
	}
	ways, err := netlink.RouteGet(bytes)
	if err != nil || len(ways) == 0 {
		return 0, errors.Join(fmt.Errorf("no way to %v", addr), err)
	}
	if ways[0].Gw != nil {
		return 0, fmt.Errorf("%v is behind a router, which would bring the packets back", addr)
	}
	bits := 8 * len(bytes)
	err = netlink.RouteReplace(&netlink.Route{
		Table: table, LinkIndex: ways[0].LinkIndex, Gw: bytes,
		Dst: &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
	})
	if err != nil {
		return 0, fmt.Errorf("a route to %v: %w", addr, err)
	}
	s.tables[table] = addr
	return table, nil
}

// ruleOf is the rule for a flow; table 0 is any.
func ruleOf(flow netlock.Flow, table int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family = unix.AF_INET6
	if flow.Local.Addr().Unmap().Is4() {
		r.Family = unix.AF_INET
	}
	r.Priority, r.Table, r.IPProto = flowPriority, table, unix.IPPROTO_TCP
	r.Src, r.Dst = single(flow.Remote.Addr()), single(flow.Local.Addr())
	r.Sport = netlink.NewRulePortRange(flow.Remote.Port(), flow.Remote.Port())
	r.Dport = netlink.NewRulePortRange(flow.Local.Port(), flow.Local.Port())
	return r
}

func single(addr netip.Addr) *net.IPNet {
	ip := addr.Unmap().WithZone("").AsSlice()
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))}
}
