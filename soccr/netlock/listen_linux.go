package netlock

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// listenSet is the set of the listeners of a kind that no SYN may reach: those of
// a family with an address, and those with all addresses.
type listenSet struct {
	name string
	key  nftables.SetDatatype
	any  bool // the key is a port alone
}

func (f family) listenSets() []listenSet {
	addr, digit := nftables.TypeIPAddr, "4"
	if f.nfproto == unix.NFPROTO_IPV6 {
		addr, digit = nftables.TypeIP6Addr, "6"
	}
	return []listenSet{
		{"listeners" + digit, nftables.MustConcatSetType(addr, nftables.TypeInetService), false},
		{"ports" + digit, nftables.TypeInetService, true},
	}
}

// listenElement gives a listener's set, and what it is there.
func listenElement(local netip.AddrPort) (set string, key []byte, err error) {
	wire := addrOnWire(local)
	if !wire.IsValid() || wire.Port() == 0 {
		return "", nil, fmt.Errorf("%v: %w", local, ErrInvalidFlow)
	}
	f := families[1]
	if wire.Addr().Is4() {
		f = families[0]
	}
	sets := f.listenSets()
	if !wire.Addr().IsUnspecified() {
		set, key = sets[0].name, wire.Addr().AsSlice()
	} else {
		set = sets[1].name
	}
	key = binary.BigEndian.AppendUint16(key, wire.Port())
	if len(key) > 2 {
		key = append(key, 0, 0) // each part of a key that has several is padded
	}
	return set, key, nil
}

// addListeners adds the sets of listeners and the rules that look a SYN up there,
// on its way in. Like flows they are locked while group 0 has its lease.
func (t *table) addListeners(tx *transaction) error {
	for _, f := range families {
		for _, s := range f.listenSets() {
			tx.newSet(set{name: s.name, keyType: s.key})
		}
	}
	for _, c := range t.chains() {
		if c.hook == unix.NF_INET_LOCAL_OUT {
			continue // what stays on the host meets prerouting too
		}
		var rules [][]expr.Any
		for _, f := range families {
			for _, s := range f.listenSets() {
				rules = append(rules, slices.Concat(f.isTCP(), isSYN, f.isFor(s), hasLease(0), c.isLocked()))
			}
		}
		if err := tx.newRules(c.name, rules); err != nil {
			return err
		}
	}
	return nil
}

// isSYN: of the flags FIN, SYN, RST and ACK, only SYN is there.
var isSYN = []expr.Any{
	load(expr.PayloadBaseTransportHeader, 13, 1, register),
	&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
	&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{0x02}},
}

// isFor looks a packet's destination up.
func (f family) isFor(s listenSet) []expr.Any {
	port := uint32(register)
	var loads []expr.Any
	if !s.any {
		loads = append(loads, load(expr.PayloadBaseNetworkHeader, f.destination, f.size, register))
		port += f.size / 4
	}
	loads = append(loads, load(expr.PayloadBaseTransportHeader, 2, 2, port))
	return append(loads, &expr.Lookup{SourceRegister: register, SetName: s.name})
}

// LockListener keeps new connections from a listener, until UnlockListener: each
// SYN to this address and port is dropped, so that the client tries again, a second
// later at first. Other packets pass: handshakes under way come to their end, and
// connections that were accepted go on. An unspecified address stands for all of
// its family: 0.0.0.0 for IPv4 and :: for IPv6, so that a listener for both needs
// both.
//
// With UnlockListener this makes a Lock the ListenLocker of package soccr. Both
// calls are idempotent. A lock of the whole namespace needs neither.
func (l *Lock) LockListener(local netip.AddrPort) error {
	return opError("lock listener", l.changeListener(unix.NFT_MSG_NEWSETELEM, local))
}

// UnlockListener lets new connections through to a listener again.
func (l *Lock) UnlockListener(local netip.AddrPort) error {
	return opError("unlock listener", l.changeListener(unix.NFT_MSG_DELSETELEM, local))
}

func (l *Lock) changeListener(kind int, local netip.AddrPort) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	set, key, err := listenElement(local)
	if err != nil || l.whole {
		return err
	}
	wire, add := addrOnWire(local), kind == unix.NFT_MSG_NEWSETELEM
	if l.listeners[wire] == add {
		return nil
	}
	tx := l.table.begin()
	tx.elements(kind, set, func() { tx.element(key) })
	if err := l.table.commit(tx); err != nil {
		return l.noteLoss(err)
	}
	if add {
		l.listeners[wire] = true
	} else {
		delete(l.listeners, wire)
	}
	return nil
}
