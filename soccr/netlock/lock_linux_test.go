package netlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
)

// wantLocked has the peer send something into the flow, and then both ends of
// another one: what comes before it arrives before it, or not at all.
func (c *conn) wantLocked(other *conn) {
	c.t.Helper()
	before := info(c.t, c.local).Data_segs_in
	write(c.t, c.peer, "x")
	c.pending += "x"
	other.talk()
	if info(c.t, c.local).Data_segs_in != before {
		c.t.Errorf("%v is not locked", c.Flow)
	}
}

// wantFree waits for all that the peer has sent, before now and now.
func (c *conn) wantFree() {
	c.t.Helper()
	write(c.t, c.peer, "y")
	expect(c.t, c.local, c.pending+"y")
	c.pending = ""
}

// pair makes two hosts with two connections, one to lock and another.
func pair(t testing.TB) (a, b *host.Host, c, other *conn) {
	t.Helper()
	a, b = hosttest.Pair(t)
	return a, b, connect(t, a, b, hosttest.A4, false), connect(t, a, b, hosttest.A4, false)
}

func TestTwoOwners(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	first, second := newTestLock(t, a), newTestLock(t, a)
	must(t, first.Add(c.Flow))
	must(t, second.Add(c.Flow))
	must(t, first.Remove(c.Flow))
	c.wantLocked(other)
	must(t, second.Remove(c.Flow))
	c.wantFree()
}

func TestAddTwice(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l := newTestLock(t, a)
	must(t, l.Remove(c.Flow)) // not locked: nothing to do
	must(t, l.Add(c.Flow, c.Flow))
	must(t, l.Add(c.Flow))
	must(t, l.Remove(other.Flow))
	c.wantLocked(other)
	must(t, l.Remove(c.Flow))
	must(t, l.Remove(c.Flow))
	c.wantFree()
}

func TestClose(t *testing.T) {
	t.Parallel()
	a, _, c, _ := pair(t)
	l := newTestLock(t, a)
	must(t, l.Add(c.Flow))
	must(t, l.Close())
	c.wantFree()
	if got := tables(t, a); len(got) != 0 {
		t.Errorf("tables %v are left", got)
	}
	must(t, l.Close())
	for op, err := range map[string]error{"add": l.Add(c.Flow), "remove": l.Remove(c.Flow)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: %v, want ErrClosed", op, err)
		}
	}
}

// tables lists the locks' tables in a host.
func tables(t testing.TB, h *host.Host) (names []string) {
	t.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	must(t, err)
	list, err := nft.ListTables()
	must(t, err)
	for _, table := range list {
		if strings.HasPrefix(table.Name, tablePrefix) {
			names = append(names, table.Name)
		}
	}
	return names
}

// descriptors counts those of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestNothingLeaks(t *testing.T) {
	h := hosttest.New(t)
	count := func() (fds, goroutines int) { return descriptors(t), runtime.NumGoroutine() }
	fds, goroutines := count()
	for range 3 {
		l, err := New(WithNetNS(h.FD()), WithForwarding())
		must(t, err)
		must(t, l.Add(manyFlows(10)...))
		must(t, l.Close())
		l, err = Namespace(WithNetNS(h.FD()))
		must(t, err)
		must(t, l.Close())
		_, err = Explain(func() error { return nil }, WithNetNS(h.FD()))
		must(t, err)
	}
	nowFDs, nowGoroutines := count()
	for end := time.Now().Add(soon); nowGoroutines > goroutines && time.Now().Before(end); {
		runtime.Gosched()
		nowFDs, nowGoroutines = count()
	}
	if nowFDs != fds || nowGoroutines > goroutines {
		t.Errorf("%d file descriptors and %d goroutines, there were %d and %d", nowFDs, nowGoroutines, fds, goroutines)
	}
	if got := tables(t, h); len(got) != 0 {
		t.Errorf("tables %v are left", got)
	}
}

// manyFlows gives flows that no connection of these tests has, by turns of both
// families.
func manyFlows(n int) []Flow {
	flows := make([]Flow, n)
	for i := range flows {
		local, remote := netip.MustParseAddr("192.0.2.1"), netip.AddrFrom4([4]byte{198, 18, byte(i >> 16), byte(i >> 8)})
		if i%2 == 1 {
			b := netip.MustParseAddr("2001:db8::").As16()
			b[13], b[14] = byte(i>>16), byte(i>>8)
			local, remote = netip.MustParseAddr("2001:db8::1"), netip.AddrFrom16(b)
		}
		flows[i] = Flow{Local: netip.AddrPortFrom(local, 443), Remote: netip.AddrPortFrom(remote, uint16(1024+i%256))}
	}
	return flows
}

// elementsIn counts the flows that the kernel has in a lock's sets.
func elementsIn(t testing.TB, h *host.Host, l *Lock) (n int) {
	t.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	must(t, err)
	table := &nftables.Table{Name: l.table.name, Family: nftables.TableFamilyINet}
	sets, err := nft.GetSets(table)
	must(t, err)
	for _, s := range sets {
		if !strings.HasPrefix(s.Name, "flows") {
			continue
		}
		elements, err := nft.GetSetElements(s)
		must(t, err)
		n += len(elements)
	}
	return n
}

// More flows than a message, and then than a transaction, can hold.
func TestManyFlows(t *testing.T) {
	for _, c := range []struct {
		name       string
		sendBuffer int // 0: what New gets
	}{
		{"one transaction", 0},
		{"several transactions", 256 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _, conn, other := pair(t)
			l := newTestLock(t, a)
			if c.sendBuffer == 0 && mayForceBuffers(t, l) && l.table.capacity < 300_000 {
				t.Errorf("a transaction can hold only %d flows", l.table.capacity)
			}
			if c.sendBuffer != 0 {
				must(t, l.table.conn.SetWriteBuffer(c.sendBuffer/2)) // the kernel doubles it
				must(t, l.table.measure())
				if l.table.capacity > 5000 {
					t.Fatalf("capacity is %d with a buffer of %d", l.table.capacity, c.sendBuffer)
				}
			}
			flows := append(manyFlows(20_000), conn.Flow)
			must(t, l.Add(flows...))
			if n := elementsIn(t, a, l); n != len(flows) {
				t.Errorf("%d flows in the kernel, want %d", n, len(flows))
			}
			conn.wantLocked(other)
			must(t, l.Add(flows[:10_000]...))
			must(t, l.Remove(flows[:10_000]...))
			conn.wantLocked(other)
			must(t, l.Remove(flows...))
			conn.wantFree()
			if !l.renew() {
				t.Error("the lock is lost")
			}
			if n := elementsIn(t, a, l); n != 0 {
				t.Errorf("%d flows left in the kernel", n)
			}
			// Again, in what the first time has left.
			groups := len(l.groups)
			must(t, l.Add(flows...))
			conn.wantLocked(other)
			if len(l.groups) != groups {
				t.Errorf("%d groups, there were %d", len(l.groups), groups)
			}
		})
	}
}

// mayForceBuffers reports whether this process has CAP_NET_ADMIN in the first user
// namespace.
func mayForceBuffers(t testing.TB, l *Lock) bool {
	t.Helper()
	raw, err := l.table.conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20) }))
	return err == nil
}

// What takes several transactions has no effect before the last one.
func TestAddAtOnce(t *testing.T) {
	t.Parallel()
	a, _, conn, other := pair(t)
	l := newTestLock(t, a)
	l.table.capacity = 1
	g, err := l.emptyGroup()
	must(t, err)
	must(t, l.table.change(unix.NFT_MSG_NEWSETELEM, []placed{{conn.Flow, g}}, nil))
	conn.wantFree()
	must(t, l.table.change(unix.NFT_MSG_NEWSETELEM, nil, []group{g}))
	conn.wantLocked(other)
	must(t, l.table.change(unix.NFT_MSG_DELSETELEM, nil, []group{g}))
	conn.wantFree()
}

// A transaction that the kernel refuses leaves nothing behind, and neither do
// those before it that belong to the same Add.
func TestAllOrNothing(t *testing.T) {
	for _, c := range []struct {
		name     string
		capacity int
		left     int // what the kernel had before, unless the set is emptied
	}{{"one transaction", 1 << 20, 1}, {"several transactions", 7, 0}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, _, conn, other := pair(t)
			l := newTestLock(t, a)
			l.table.capacity = c.capacity
			flows := append([]Flow{conn.Flow}, manyFlows(50)...)
			if err := l.Add(append(flows, Flow{})...); !errors.Is(err, ErrInvalidFlow) {
				t.Errorf("an invalid flow: %v, want ErrInvalidFlow", err)
			}
			// Make the kernel refuse the last flow: it is there already, which
			// the lock does not know.
			var g group
			if c.capacity < len(flows) {
				var err error
				g, err = l.emptyGroup()
				must(t, err)
			}
			there := []placed{{flows[50], g}}
			must(t, l.table.change(unix.NFT_MSG_NEWSETELEM, there, nil))
			if err := l.Add(flows...); !errors.Is(err, unix.EEXIST) {
				t.Errorf("a flow that is there: %v, want EEXIST", err)
			}
			if n := elementsIn(t, a, l); n != c.left {
				t.Errorf("%d flows in the kernel, want %d", n, c.left)
			}
			conn.wantFree()
			must(t, l.table.change(unix.NFT_MSG_DELSETELEM, there[:c.left], nil))
			must(t, l.Add(flows...))
			conn.wantLocked(other)
		})
	}
}

// A router that masquerades the inner host sees the flow's own addresses in one
// direction only before conntrack, and in the other only after.
func TestForwardingBehindNAT(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []Option
		locked  bool
	}{
		{"with the option", []Option{WithForwarding()}, true},
		{"without it", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in, router, out := routed(t)
			nft, err := nftables.New(nftables.WithNetNSFd(router.FD()))
			must(t, err)
			table := nft.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyINet})
			chain := nft.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
			nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
			must(t, nft.Flush())

			// The inner host connects; seen from outside, its peer is the router.
			c1, other := connect(t, out, in, outside, false), connect(t, out, in, outside, false)
			if c1.Remote.Addr() != gateway {
				t.Fatalf("connected from %v, which is not the router", c1.Remote)
			}
			l := newTestLock(t, router, c.options...)
			inner := Flow{Local: c1.peer.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: c1.Local}
			must(t, l.Add(inner))
			write(t, c1.local, "from outside")
			if c.locked {
				other.talk()
				if info(t, c1.peer).Data_segs_in != 0 {
					t.Error("not locked toward the inner host")
				}
			} else {
				expect(t, c1.peer, "from outside")
			}
			c1.wantLocked(other)
		})
	}
}

// stateful is a firewall that drops what is INVALID, in both directions, and with
// strict set everything but what is new or established. With it there is
// conntrack. The function it returns counts the drops.
func stateful(t testing.TB, h *host.Host, strict bool) (dropped func() uint64) {
	t.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	must(t, err)
	table := nft.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyINet})
	op := expr.CmpOpNeq
	states := expr.CtStateBitINVALID
	if strict {
		states, op = expr.CtStateBitNEW|expr.CtStateBitESTABLISHED, expr.CmpOpEq
	}
	var all []*nftables.Chain
	for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookInput, "out": nftables.ChainHookOutput} {
		chain := nft.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		all = append(all, chain)
		nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	must(t, nft.Flush())
	return func() (n uint64) {
		for _, chain := range all {
			rules, err := nft.GetRules(table, chain)
			must(t, err)
			for _, e := range rules[0].Exprs {
				if c, ok := e.(*expr.Counter); ok {
					n += c.Packets
				}
			}
		}
		return n
	}
}

// entry gives conntrack's entry of a flow, of which the host tracks both ends.
func entry(t testing.TB, h *host.Host, f Flow) *netlink.ConntrackFlow {
	t.Helper()
	var list []*netlink.ConntrackFlow
	hosttest.Do(t, h, func() (err error) {
		list, err = netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		return err
	})
	for _, e := range list {
		if e.Forward.SrcPort == f.Remote.Port() && e.Forward.DstPort == f.Local.Port() {
			return e
		}
	}
	t.Fatalf("no conntrack entry of %v among %d", f, len(list))
	return nil
}

// Conntrack does not see what the lock drops: neither FIN nor RST changes the
// entry, nothing is counted, and nothing is INVALID afterwards.
func TestConntrack(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	invalid := stateful(t, a, false)
	must(t, a.Sysctl("net.netfilter.nf_conntrack_acct", "1"))
	c, other := connect(t, a, b, hosttest.A4, false), connect(t, a, b, hosttest.A4, false)
	c.talk()
	l := newTestLock(t, a)
	rst := c.fromPeer(rawfin.RST | rawfin.ACK)
	must(t, l.Add(c.Flow))
	before := entry(t, a, c.Flow)

	write(t, c.peer, "from the peer")
	write(t, c.local, "to the peer")
	must(t, c.peer.CloseWrite())
	c.sendRaw(rst)
	other.talk()
	after := entry(t, a, c.Flow)
	if aged := before.TimeOut - after.TimeOut; aged > 5 {
		t.Errorf("conntrack's entry ends in %d s, before the lock in %d s", after.TimeOut, before.TimeOut)
	}
	after.TimeOut = before.TimeOut
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("conntrack's entry has changed:\n%s", diff)
	}

	must(t, l.Remove(c.Flow))
	expect(t, c.local, "from the peer")
	expect(t, c.peer, "to the peer")
	if n := invalid(); n != 0 {
		t.Errorf("%d packets were INVALID", n)
	}
}

// An injected segment reaches the locked socket, conntrack or not; what the
// socket answers does not get out.
func TestMark(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		if way.name == "router" {
			continue // has no socket
		}
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			at, peer, addr, _, device := way.setup(t)
			invalid := stateful(t, at, false)
			c := connect(t, at, peer, addr, way.mapped)
			l := newTestLock(t, at)
			must(t, l.Add(c.Flow, Flow{Local: c.Remote, Remote: c.Local})) // both ends, where both are here
			tap := newTap(t, peer, device)
			fin := c.fromPeer(rawfin.FIN | rawfin.ACK)
			for _, mark := range []uint32{rawfin.DefaultMark ^ 1, rawfin.DefaultMark | 1, 0} {
				if err := inject(at, fin, mark); !errors.Is(err, unix.EPERM) {
					t.Errorf("mark %#x: %v, want EPERM", mark, err)
				}
			}
			if s := info(t, c.local).State; s != established {
				t.Errorf("state is %d after segments with other marks", s)
			}
			must(t, inject(at, fin, rawfin.DefaultMark))
			if s := info(t, c.local).State; s != closeWait {
				t.Errorf("state is %d, want CLOSE_WAIT", s)
			}
			if got := tap.seen(c.Local, c.Remote); len(got) != 0 {
				t.Errorf("the lock let out %v", got)
			}
			if n := invalid(); n != 0 {
				t.Errorf("%d packets were INVALID", n)
			}
		})
	}
}

// One more mark can be let through, and only that; the first one still is.
func TestAllowMark(t *testing.T) {
	const more = 0x2
	for _, first := range []uint32{rawfin.DefaultMark, 0} {
		t.Run(fmt.Sprintf("%#x", first), func(t *testing.T) {
			t.Parallel()
			a, b, c, other := pair(t)
			l := newTestLock(t, a, WithMark(first))
			must(t, l.Add(c.Flow))
			ack := c.fromPeer(rawfin.ACK)
			if err := inject(a, ack, more); !errors.Is(err, unix.EPERM) {
				t.Errorf("not allowed yet: %v, want EPERM", err)
			}
			tap := newTap(t, b, "net0")
			for range 2 {
				must(t, l.AllowMark(more))
			}
			must(t, inject(a, ack, more))
			if first != 0 {
				must(t, inject(a, ack, first))
			}
			for _, mark := range []uint32{0, more | 1} {
				if err := inject(a, ack, mark); !errors.Is(err, unix.EPERM) {
					t.Errorf("mark %#x: %v, want EPERM", mark, err)
				}
			}
			c.wantLocked(other)
			if got := tap.seen(c.Local, c.Remote); len(got) != 0 {
				t.Errorf("the lock let out %v", got)
			}
			stateful(t, a, true)
			if err := inject(a, ack, more); !errors.Is(err, unix.EPERM) {
				t.Errorf("conntrack sees what it shall not: %v", err)
			}
			if err := l.AllowMark(0); err == nil {
				t.Error("segments without a mark are let through")
			}
			must(t, l.Remove(c.Flow))
			c.wantFree()
			must(t, l.Close())
			if err := l.AllowMark(more); !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// A firewall may take nothing but what conntrack knows.
func TestTrackInjected(t *testing.T) {
	for _, c := range []struct {
		name  string
		known bool // conntrack has seen the connection before
	}{{"known connection", true}, {"unknown connection", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := hosttest.Pair(t)
			if c.known {
				stateful(t, a, true)
			}
			conn := connect(t, a, b, hosttest.A4, false)
			l := newTestLock(t, a)
			must(t, l.Add(conn.Flow))
			if !c.known {
				stateful(t, a, true)
			}
			must(t, conn.peer.CloseWrite()) // is dropped, like all that the peer repeats
			ack, fin := conn.fromPeer(rawfin.ACK), conn.fromPeer(rawfin.FIN|rawfin.ACK)
			if err := inject(a, fin, rawfin.DefaultMark); !errors.Is(err, unix.EPERM) {
				t.Errorf("not tracked: %v, want EPERM", err)
			}
			if l.TracksInjected() {
				t.Error("is tracked without having been asked to")
			}
			first, err := l.TrackInjected()
			must(t, err)
			second, err := l.TrackInjected()
			must(t, err)
			must(t, inject(a, ack, rawfin.DefaultMark))
			must(t, first())
			must(t, first()) // does nothing, the second call still counts
			must(t, inject(a, fin, rawfin.DefaultMark))
			if !l.TracksInjected() {
				t.Error("is not tracked")
			}
			must(t, second())
			if err := inject(a, fin, rawfin.DefaultMark); !errors.Is(err, unix.EPERM) || l.TracksInjected() {
				t.Errorf("tracking taken back: %v, want EPERM", err)
			}
			if s := info(t, conn.local).State; s != closeWait {
				t.Errorf("state is %d, want CLOSE_WAIT", s)
			}
			must(t, l.Remove(conn.Flow))
			write(t, conn.local, "to the peer")
			expect(t, conn.peer, "to the peer")
		})
	}
}

// A lock of another flow does not decide about the segments of this one.
func TestTrackInjectedPerFlow(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l, elsewhere := newTestLock(t, a), newTestLock(t, a)
	must(t, l.Add(c.Flow))
	must(t, elsewhere.Add(other.Flow))
	stateful(t, a, true)
	_, err := l.TrackInjected()
	must(t, err)
	must(t, inject(a, c.fromPeer(rawfin.ACK), rawfin.DefaultMark))
	if err := inject(a, other.fromPeer(rawfin.ACK), rawfin.DefaultMark); !errors.Is(err, unix.EPERM) {
		t.Errorf("the other lock's flow is tracked: %v, want EPERM", err)
	}
}

// With an entry made by Track, a firewall that knows nothing of a connection lets
// its FIN pass, where without one nothing helps: no segment is taken for new.
func TestTrack(t *testing.T) {
	for _, addr := range []netip.Addr{hosttest.A4, hosttest.A6} {
		t.Run(addr.String(), func(t *testing.T) {
			t.Parallel()
			a, b := hosttest.Pair(t)
			c, untold := connect(t, a, b, addr, false), connect(t, a, b, addr, false)
			l := newTestLock(t, a)
			must(t, l.Add(c.Flow, untold.Flow))
			stateful(t, a, true)
			must(t, a.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0"))
			must(t, l.Track(c.Flow, c.Flow))
			must(t, l.TrackFlow(c.Local, c.Remote)) // is known
			must(t, l.Remove(c.Flow, untold.Flow))

			must(t, c.local.CloseWrite())
			if _, err := c.peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the peer reads %v, want EOF", err)
			}
			write(t, c.peer, "from the peer")
			expect(t, c.local, "from the peer")
			must(t, untold.local.CloseWrite())
			must(t, untold.peer.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			if _, err := untold.peer.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("without an entry the peer reads %v", err)
			}
		})
	}
}

// An entry that is there already is left as it is.
func TestTrackKnownFlow(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	stateful(t, a, true)
	c := connect(t, a, b, hosttest.A4, false)
	c.talk()
	before := entry(t, a, c.Flow)
	l := newTestLock(t, a)
	must(t, l.Track(c.Flow))
	after := entry(t, a, c.Flow)
	after.TimeOut = before.TimeOut
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("conntrack's entry has changed:\n%s", diff)
	}
	if err := l.Track(Flow{Local: c.Local}); !errors.Is(err, ErrInvalidFlow) {
		t.Errorf("half a flow: %v", err)
	}
	must(t, l.Close())
	if err := l.Track(c.Flow); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := l.TrackInjected(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func inject(h *host.Host, s rawfin.Segment, mark uint32) error {
	i, err := rawfin.Open(rawfin.WithNetNS(h.FD()), rawfin.WithMark(mark))
	if err != nil {
		return err
	}
	return errors.Join(i.Inject(s), i.Close())
}

// What the kernel answers to a marked segment can have its mark, and must not get
// out for that: here the RST for a connection that is not there.
func TestReflectedMark(t *testing.T) {
	t.Parallel()
	a, b, c, other := pair(t)
	must(t, a.Sysctl("net.ipv4.fwmark_reflect", "1"))
	l := newTestLock(t, a)
	must(t, l.Add(c.Flow))
	gone := c.fromPeer(rawfin.ACK)
	gone.Seq -= 1 << 20 // out of window: the socket answers
	must(t, c.local.SetLinger(0))
	must(t, c.local.Close()) // its RST does not get out either
	tap := newTap(t, b, "net0")
	must(t, inject(a, gone, rawfin.DefaultMark))
	other.talk()
	if got := tap.seen(c.Local, c.Remote); len(got) != 0 {
		t.Errorf("the lock let out %v", got)
	}
	must(t, l.Remove(c.Flow))
	must(t, inject(a, gone, rawfin.DefaultMark))
	other.talk()
	if got := tap.seen(c.Local, c.Remote); len(got) == 0 {
		t.Error("there was no answer to keep in")
	}
}

func TestNamespace(t *testing.T) {
	t.Parallel()
	a, b, c, other := pair(t)
	six := connect(t, a, b, hosttest.A6, false)
	lo := connect(t, a, a, netip.MustParseAddr("127.0.0.1"), false)
	elsewhere := connect(t, b, b, hosttest.B4, false)
	tap := newTap(t, b, "net0")
	l, err := Namespace(WithNetNS(a.FD()))
	must(t, err)
	defer l.Close()
	must(t, l.Add(c.Flow))    // is locked anyway
	must(t, l.Remove(c.Flow)) // and stays so
	all := []*conn{c, other, six, lo}
	for _, conn := range all {
		write(t, conn.peer, "from the peer")
		write(t, conn.local, "to the peer")
	}
	// Make the peer ask for the address again: that is answered, and shows
	// that what was sent before has been dropped.
	neighbors(t, b, hosttest.A6, func(n netlink.Neigh) bool { must(t, b.Netlink().NeighDel(&n)); return true })
	hosttest.Do(t, b, func() error {
		u, err := net.Dial("udp", netip.AddrPortFrom(hosttest.A6, 9).String())
		if err != nil {
			return err
		}
		defer u.Close()
		_, err = u.Write([]byte("x"))
		return err
	})
	neighbors(t, b, hosttest.A6, func(n netlink.Neigh) bool { return n.State&unix.NUD_REACHABLE != 0 })
	elsewhere.talk()
	for _, conn := range all {
		if n := info(t, conn.local).Data_segs_in; n != 0 {
			t.Errorf("%v has received %d segments", conn.Flow, n)
		}
		if got := tap.seen(conn.Local, conn.Remote); len(got) != 0 {
			t.Errorf("the lock let out %v", got)
		}
	}
	must(t, inject(a, c.fromPeer(rawfin.ACK), rawfin.DefaultMark))
	// Switches hear which groups it is in.
	reports := newTap(t, b, "net0")
	hosttest.Do(t, a, func() error {
		device, err := net.InterfaceByName("net0")
		if err != nil {
			return err
		}
		u, err := net.ListenMulticastUDP("udp6", device, &net.UDPAddr{IP: net.ParseIP("ff02::77"), Port: 5000})
		if err == nil {
			t.Cleanup(func() { u.Close() })
		}
		return err
	})
	reports.await(143) // a report of multicast listener discovery
	// Who tries to connect hears nothing, be there a listener or not, until the
	// lock is gone.
	listener := listen(t, a, "[::]:0")
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(hosttest.A4, port), netip.AddrPortFrom(hosttest.A6, port), netip.AddrPortFrom(hosttest.A4, 9),
	} {
		_, err := dial(b, to, 50*time.Millisecond)
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Errorf("dial %v: %v; want silence", to, err)
		}
	}
	must(t, l.Close())
	for _, to := range []netip.Addr{hosttest.A4, hosttest.A6} {
		conn, err := dial(b, netip.AddrPortFrom(to, port), soon)
		must(t, err)
		conn.Close()
	}
	for _, conn := range all {
		expect(t, conn.local, "from the peer")
		expect(t, conn.peer, "to the peer")
	}
}

// neighbors waits until a host knows a neighbor for which ok holds.
func neighbors(t testing.TB, h *host.Host, addr netip.Addr, ok func(netlink.Neigh) bool) {
	t.Helper()
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(time.Millisecond) {
		list, err := h.Netlink().NeighList(0, unix.AF_INET6)
		must(t, err)
		for _, n := range list {
			if n.IP.String() == addr.String() && ok(n) {
				return
			}
		}
	}
	t.Fatalf("no such neighbor %v", addr)
}

func TestNetNSPath(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	path := fmt.Sprintf("/proc/self/fd/%d", a.FD())
	l, err := New(WithNetNSPath(path))
	must(t, err)
	must(t, l.Add(c.Flow))
	c.wantLocked(other)
	must(t, l.Close())
	c.wantFree()

	for name, o := range map[string]struct {
		option Option
		want   error
	}{
		"no such path":    {WithNetNSPath("/nowhere"), fs.ErrNotExist},
		"not a namespace": {WithNetNSPath("/dev/null"), unix.EINVAL},
		"no descriptor":   {WithNetNS(0), unix.EBADF},
		"closed":          {WithNetNS(1 << 20), unix.EBADF},
	} {
		if _, err := New(o.option); !errors.Is(err, o.want) {
			t.Errorf("%s: %v, want %v", name, err, o.want)
		}
	}
}

func TestTimeoutTooShort(t *testing.T) {
	if l, err := New(WithTimeout(time.Millisecond)); err == nil {
		t.Errorf("a timeout of 1 ms: %v", l.Close())
	}
}

// An answer of conntrack's that could not be read is not taken for that of the next
// transaction.
func TestUnreadAnswer(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	c := connect(t, a, b, hosttest.A4, false)
	l := newTestLock(t, a)
	must(t, l.Track(c.Flow))
	must(t, l.table.conn.SetReadDeadline(time.Unix(1, 0)))
	if err := l.Track(c.Flow); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	must(t, l.table.conn.SetReadDeadline(time.Time{}))
	must(t, l.Add(c.Flow))
	must(t, l.Remove(c.Flow))
}
