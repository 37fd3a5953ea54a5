package netlock

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// priority is after defragmentation (-400), which makes ports visible, and
// before everything else: the raw tables (-300) and conntrack (-200), so that
// no entry changes its state or age by a packet that no socket gets to see.
const priority = -350

// chains are the hooks a packet can meet. On the way from a socket of this host
// to another one, over lo, it meets output and then prerouting. The device that
// it leaves or enters by tells that at either.
var chains = []chain{
	{name: "prerouting", hook: unix.NF_INET_PRE_ROUTING, priority: priority, device: expr.MetaKeyIIF},
	{name: "output", hook: unix.NF_INET_LOCAL_OUT, priority: priority, device: expr.MetaKeyOIF},
}

// forwardChain sees the addresses that conntrack's NAT leaves.
var forwardChain = chain{name: "forward", hook: unix.NF_INET_FORWARD, priority: priority, device: expr.MetaKeyIIF}

// locked is the name of the chain that the packets of locked flows go to.
func (c chain) locked() string { return c.name + "-locked" }

func (c chain) isLocked() []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.locked()}}
}

// register is the first of the 16 that a rule has, of 4 bytes each.
const register = unix.NFT_REG32_00

// loopback is the index of lo in every namespace (LOOPBACK_IFINDEX).
const loopback = 1

// A direction is one of a flow's two.
type direction int

const (
	toLocal direction = iota
	toRemote
)

// untrackedName is the set that says whether conntrack is to overlook injected
// segments: by having both families, or none.
const untrackedName = "untracked"

// lockedRules are those of a packet of a locked flow: it is dropped, unless it is
// an injected segment. Those never leave the host; but what the kernel answers to
// one can inherit its mark (net.ipv4.fwmark_reflect), so the mark counts on the
// loopback device only.
func lockedRules(mark uint32, c chain) [][]expr.Any {
	if mark == 0 {
		return [][]expr.Any{drop}
	}
	return append(injectedRules(mark, c), drop)
}

// injectedRules let injected segments with a mark through.
func injectedRules(mark uint32, c chain) [][]expr.Any {
	injected := slices.Concat([]expr.Any{
		&expr.Meta{Key: c.device, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint32(nil, loopback)},
	}, isMarked(mark))
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	return [][]expr.Any{
		slices.Concat(injected, familyIsIn(untrackedName), []expr.Any{&expr.Notrack{}, accept}),
		slices.Concat(injected, []expr.Any{accept}),
	}
}

// isMarked compares the whole mark. A packet with more bits set is some other
// program's: to let it in would lose data, to keep an injected segment out that
// somebody has changed on its way is an error that is noticed.
func isMarked(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.NativeEndian.AppendUint32(nil, mark)},
	}
}

// flowRules find a group's packets, in both directions.
func flowRules(g group, c chain) [][]expr.Any {
	var rules [][]expr.Any
	for _, f := range families {
		for _, d := range []direction{toLocal, toRemote} {
			rules = append(rules, slices.Concat(f.isTCP(), f.isIn(g, d), hasLease(g), c.isLocked()))
		}
	}
	return rules
}

// namespaceRules find all packets but those of ICMPv6 that keep the namespace's
// addresses reachable: multicast listener and neighbor discovery (RFC 2710, 3810,
// 4861). Without them routers would answer the peers with errors. What does the
// same for IPv4, ARP, passes no chain of this family.
func namespaceRules(g group, c chain) [][]expr.Any {
	var rules [][]expr.Any
	for _, types := range []struct{ from, to byte }{{130, 137}, {143, 143}} {
		rules = append(rules, slices.Concat(isProtocol(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6), []expr.Any{
			load(expr.PayloadBaseTransportHeader, 0, 1, register),
			&expr.Cmp{Op: expr.CmpOpGte, Register: register, Data: []byte{types.from}},
			&expr.Cmp{Op: expr.CmpOpLte, Register: register, Data: []byte{types.to}},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}))
	}
	return append(rules, slices.Concat(hasLease(g), c.isLocked()))
}

// family is what differs between IPv4 and IPv6.
type family struct {
	nfproto     byte
	flows       func(group) string // the set
	source      uint32             // offset of the source address in the header
	destination uint32
	size        uint32 // of an address
}

var families = []family{
	{nfproto: unix.NFPROTO_IPV4, flows: group.flows4, source: 12, destination: 16, size: 4},
	{nfproto: unix.NFPROTO_IPV6, flows: group.flows6, source: 8, destination: 24, size: 16},
}

func (f family) isTCP() []expr.Any { return isProtocol(f.nfproto, unix.IPPROTO_TCP) }

// isIn looks a packet of one direction up among a group's flows.
func (f family) isIn(g group, d direction) []expr.Any {
	words := f.size/4 + 1 // registers for an address and a port
	local, remote := uint32(register), register+words
	source, destination := remote, local
	if d == toRemote {
		source, destination = local, remote
	}
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, f.source, f.size, source),
		load(expr.PayloadBaseTransportHeader, 0, 2, source+words-1),
		load(expr.PayloadBaseNetworkHeader, f.destination, f.size, destination),
		load(expr.PayloadBaseTransportHeader, 2, 2, destination+words-1),
		&expr.Lookup{SourceRegister: register, SetName: f.flows(g)},
	}
}

// hasLease looks whether the group's lease has the packet's family, as it has
// either both or, once it is over, none.
func hasLease(g group) []expr.Any { return familyIsIn(g.lease()) }

func familyIsIn(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Lookup{SourceRegister: register, SetName: set},
	}
}

func isProtocol(nfproto, l4 byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{nfproto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{l4}},
	}
}

func load(base expr.PayloadBase, offset, size, register uint32) expr.Any {
	return &expr.Payload{Base: base, Offset: offset, Len: size, DestRegister: register}
}

var drop = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
