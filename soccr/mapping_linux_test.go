package soccr_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
)

// translate has a host's packets to one address and port go to another, and come
// from there, without a state: what a NAT on the way would do.
func translate(tb testing.TB, h *host.Host, from, to netip.AddrPort) {
	tb.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	family, source, destination := nftables.TableFamilyIPv4, uint32(12), uint32(16)
	if from.Addr().Is6() {
		family, source, destination = nftables.TableFamilyIPv6, 8, 24
	}
	table := nft.AddTable(&nftables.Table{Family: family, Name: "translate"})
	for _, way := range []struct {
		hook       *nftables.ChainHook
		addr, port uint32 // offsets
		old, now   netip.AddrPort
	}{
		{nftables.ChainHookOutput, destination, 2, from, to},
		{nftables.ChainHookPrerouting, source, 0, to, from},
	} {
		chain := nft.AddChain(&nftables.Chain{
			Name: string(rune('a' + *way.hook)), Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: way.hook, Priority: nftables.ChainPriorityRaw,
		})
		var match, change []expr.Any
		for _, field := range []struct {
			base             expr.PayloadBase
			offset           uint32
			old, now         []byte
			checksum, pseudo uint32
		}{
			{expr.PayloadBaseNetworkHeader, way.addr, way.old.Addr().AsSlice(), way.now.Addr().AsSlice(), 10, 1},
			{expr.PayloadBaseTransportHeader, way.port, portBytes(way.old), portBytes(way.now), 16, 0},
		} {
			size := uint32(len(field.old))
			match = append(match,
				&expr.Payload{DestRegister: 1, Base: field.base, Offset: field.offset, Len: size},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: field.old})
			write := &expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: 1, Base: field.base, Offset: field.offset, Len: size,
				CsumType: expr.CsumTypeInet, CsumOffset: field.checksum, CsumFlags: field.pseudo,
			}
			if family == nftables.TableFamilyIPv6 && field.pseudo != 0 { // whose header has no checksum
				write.CsumType, write.CsumOffset = expr.CsumTypeNone, 0
			}
			change = append(change, &expr.Immediate{Register: 1, Data: field.now}, write)
		}
		nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(append(protocol(unix.IPPROTO_TCP), match...), change...)})
	}
	if err := nft.Flush(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		nft.DelTable(table)
		if err := nft.Flush(); err != nil {
			tb.Error(err)
		}
	})
}

func portBytes(a netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, a.Port()) }

// elsewhere are the addresses to which the tests map those of here and there.
var elsewhere = map[family][2]netip.Addr{
	ip4:    {netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("10.77.0.12")},
	ip6:    {netip.MustParseAddr("fd77::11"), netip.MustParseAddr("fd77::12")},
	mapped: {netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("10.77.0.12")},
}

func (n *network) addElsewhere(t *testing.T) {
	t.Helper()
	for _, f := range []family{ip4, ip6} {
		for i, h := range []*host.Host{n.here, n.there} {
			bits := map[family]int{ip4: 24, ip6: 64}[f]
			if err := h.AddAddr("net0", netip.PrefixFrom(elsewhere[f][i], bits)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Behind something that translates, a connection goes on at another address and
// port, with data in flight, and so does a half-closed one and a listener.
func TestMoveBehindTranslation(t *testing.T) {
	n := newNetwork(t)
	n.addElsewhere(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			listener := n.listen(t, listening{family: f})
			at := netip.AddrPortFrom(f.here, portOf(listener))
			to := netip.AddrPortFrom(elsewhere[f][0], 7777)
			conn, peer := n.serves(t, f, listener)
			half, halfPeer := n.serves(t, f, listener)
			inQueue := n.dial(t, f, at.Port())
			waiting(t, listener, 1)
			l := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))
			if err := halfPeer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, half, soccr.StateCloseWait)
			n.lockFor(conn)(true)
			write(t, conn, pattern(1, 10_000))
			snaps := []*soccr.Snapshot{n.checkpoint(t, conn), n.checkpoint(t, half)}
			write(t, peer, pattern(2, 10_000))

			m := &soccr.Mapping{Local: []soccr.AddrRule{soccr.MapAddr(at.Addr(), to.Addr()), {}}}
			m.Local[0].FromPort, m.Local[0].ToPort = at.Port(), to.Port()
			m.Local[1].FromPort, m.Local[1].ToPort = at.Port(), to.Port() // of the listener's unspecified address
			gone, err := m.ApplyListener(l)
			if err != nil {
				t.Fatal(err)
			}
			var moved [2]*soccr.Snapshot
			for i, s := range snaps {
				if moved[i], err = m.Apply(s); err != nil {
					t.Fatal(err)
				}
				if moved[i].Local != f.at(to.Addr(), to.Port()) || s.Local != f.at(at.Addr(), at.Port()) {
					t.Fatalf("mapped %v to %v", s.Local, moved[i].Local)
				}
			}
			// What comes to the new address must not find that nobody is there.
			for _, s := range append(moved[:], gone.Pending...) {
				if err := n.lock.LockFlow(s.Local, s.Remote); err != nil {
					t.Fatal(err)
				}
			}
			translate(t, n.there, at, to)
			restored := n.restoreListener(t, gone)
			conn, half = n.restore(t, moved[0]), n.restore(t, moved[1])
			expect(t, "peer", peer, pattern(1, 10_000))
			expect(t, "conn", conn, pattern(2, 10_000))
			expectEOF(t, "the half-closed conn", half)
			write(t, half, []byte("bye"))
			expect(t, "its peer", halfPeer, []byte("bye"))
			waited := accept(t, restored)
			write(t, inQueue, []byte("hello"))
			expect(t, "what was pending", waited, []byte("hello"))
			late := n.dial(t, f, at.Port()) // who does not know of the move
			write(t, late, []byte("hello"))
			expect(t, "a new connection", accept(t, restored), []byte("hello"))
		})
	}
}

// Both ends are moved to other addresses, each with its own mapping.
func TestMoveBothEndsElsewhere(t *testing.T) {
	n := newNetwork(t)
	n.addElsewhere(t)
	other := n.reversed(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			for i, c := range []interface{ Write([]byte) (int, error) }{conn, peer} {
				if _, err := c.Write(pattern(byte(i), 5000)); err != nil {
					t.Fatal(err)
				}
			}
			snap, peerSnap := n.checkpoint(t, conn), other.checkpoint(t, peer)
			ours := []soccr.AddrRule{soccr.MapAddr(f.here, elsewhere[f][0])}
			theirs := []soccr.AddrRule{soccr.MapAddr(f.there, elsewhere[f][1])}
			mappedSnap, err := (&soccr.Mapping{Local: ours, Remote: theirs}).Apply(snap)
			if err != nil {
				t.Fatal(err)
			}
			mappedPeer, err := (&soccr.Mapping{Local: theirs, Remote: ours}).Apply(peerSnap)
			if err != nil {
				t.Fatal(err)
			}
			// Who comes first must not find that nobody is there.
			if err := n.lock.LockFlow(mappedSnap.Local, mappedSnap.Remote); err != nil {
				t.Fatal(err)
			}
			peer = other.restore(t, mappedPeer)
			conn = n.restore(t, mappedSnap)
			expect(t, "conn", conn, pattern(1, 5000))
			expect(t, "peer", peer, pattern(0, 5000))
			if got := peerAddr(conn).Addr().Unmap(); got != elsewhere[f][1] {
				t.Errorf("the peer is %v", got)
			}
		})
	}
}
