package soccr_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// criuMark is the mark of CRIU's segments. It has kubeBit, by which kubelet's
// chain KUBE-FIREWALL drops packets.
const (
	criuMark = 0xc114
	kubeBit  = 0x8000
)

// A firewall is one nftables table with the base chains input and output, or one
// of them.
type firewall struct {
	conn   *nftables.Conn
	table  *nftables.Table
	chains []*nftables.Chain
}

var (
	input  = nftables.ChainHookInput
	output = nftables.ChainHookOutput
)

func newFirewall(tb testing.TB, h *host.Host, name string, policy nftables.ChainPolicy, hooks ...*nftables.ChainHook) *firewall {
	tb.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	f := &firewall{conn: conn, table: conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})}
	for _, hook := range hooks {
		f.chains = append(f.chains, conn.AddChain(&nftables.Chain{
			Name: map[*nftables.ChainHook]string{input: "input", output: "output"}[hook], Table: f.table,
			Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		}))
	}
	return f
}

// rule adds a rule to all base chains.
func (f *firewall) rule(parts ...[]expr.Any) {
	for _, c := range f.chains {
		f.conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: slices.Concat(parts...)})
	}
}

func (f *firewall) install(tb testing.TB) {
	tb.Helper()
	if err := f.conn.Flush(); err != nil {
		tb.Fatal(err)
	}
}

func (f *firewall) remove(tb testing.TB) {
	tb.Helper()
	f.conn.DelTable(f.table)
	f.install(tb)
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func jump(chain *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}
}

// markedWith is "meta mark & bits == bits".
func markedWith(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(bits)},
	}
}

func ctState(states uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(states), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
	}
}

func protocol(l4 byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{l4}},
	}
}

// syn is "tcp flags & syn == syn".
func syn() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{2}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
	}
}

// The firewalls of the tests.

// kubernetes is "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP", jumped to
// from the hooks.
func kubernetes(hooks ...*nftables.ChainHook) func(testing.TB, *host.Host) *firewall {
	return func(tb testing.TB, h *host.Host) *firewall {
		tb.Helper()
		f := newFirewall(tb, h, "filter", nftables.ChainPolicyAccept, hooks...)
		chain := f.conn.AddChain(&nftables.Chain{Name: "KUBE-FIREWALL", Table: f.table})
		f.conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: slices.Concat(markedWith(kubeBit), verdict(expr.VerdictDrop))})
		f.rule(jump(chain))
		f.install(tb)
		return f
	}
}

// dropMark drops what comes in with the default mark.
func dropMark(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "filter", nftables.ChainPolicyAccept, input)
	f.rule(markedWith(rawfin.DefaultMark), verdict(expr.VerdictDrop))
	f.install(tb)
	return f
}

// rejectMark answers all that has the default mark with a RST.
func rejectMark(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "filter", nftables.ChainPolicyAccept, input, output)
	f.rule(markedWith(rawfin.DefaultMark), protocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	f.install(tb)
	return f
}

// strict accepts, in and out, only what is new or established to conntrack.
func strict(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "filter", nftables.ChainPolicyDrop, input, output)
	f.rule(protocol(unix.IPPROTO_ICMPV6), verdict(expr.VerdictAccept)) // neighbor discovery
	f.rule(ctState(expr.CtStateBitNEW|expr.CtStateBitESTABLISHED), verdict(expr.VerdictAccept))
	f.install(tb)
	return f
}

// strictWithoutMark drops what has the default mark, too.
func strictWithoutMark(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "marks", nftables.ChainPolicyAccept, input, output)
	f.rule(markedWith(rawfin.DefaultMark), verdict(expr.VerdictDrop))
	f.install(tb)
	return strict(tb, h)
}

// stricter accepts as new only what has the flag SYN.
func stricter(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "filter", nftables.ChainPolicyDrop, input, output)
	f.rule(protocol(unix.IPPROTO_ICMPV6), verdict(expr.VerdictAccept))
	f.rule(ctState(expr.CtStateBitESTABLISHED), verdict(expr.VerdictAccept))
	f.rule(ctState(expr.CtStateBitNEW), protocol(unix.IPPROTO_TCP), syn(), verdict(expr.VerdictAccept))
	f.install(tb)
	return f
}

// onlyNet0 lets nothing out but on net0.
func onlyNet0(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "filter", nftables.ChainPolicyDrop, output)
	f.rule(onNet0(expr.MetaKeyOIFNAME), verdict(expr.VerdictAccept))
	f.install(tb)
	return f
}

// noTCP keeps peers away, without a lock.
func noTCP(tb testing.TB, h *host.Host) *firewall {
	tb.Helper()
	f := newFirewall(tb, h, "lock", nftables.ChainPolicyAccept, input, output)
	for _, name := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		f.rule(onNet0(name), protocol(unix.IPPROTO_TCP), verdict(expr.VerdictDrop))
	}
	f.install(tb)
	return f
}

func onNet0(name expr.MetaKey) []expr.Any {
	device := make([]byte, unix.IFNAMSIZ)
	copy(device, "net0")
	return []expr.Any{
		&expr.Meta{Key: name, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: device},
	}
}

func strictReversePath(tb testing.TB, h *host.Host) {
	tb.Helper()
	for _, device := range []string{"all", "default", "lo", "net0"} {
		if err := h.Sysctl("net.ipv4.conf."+device+".rp_filter", "1"); err != nil {
			tb.Fatal(err)
		}
	}
}

// withMark makes the network's lock anew, for another mark.
func (n *network) withMark(tb testing.TB, mark uint32) {
	tb.Helper()
	n.lock = newLock(tb, n.here, netlock.WithMark(mark))
}

// inStage makes a connection and brings it into a state. The peer is deaf if
// something of ours has to stay unacknowledged.
func (n *network) inStage(tb testing.TB, f family, stage stage) (conn, peer *net.TCPConn) {
	tb.Helper()
	conn, peer = n.connect(tb, f)
	closeWrite := func(c *net.TCPConn) {
		if err := c.CloseWrite(); err != nil {
			tb.Fatal(err)
		}
	}
	if stage.peerFIN && stage.state != soccr.StateClosing {
		closeWrite(peer)
		inState(tb, conn, soccr.StateCloseWait)
		inState(tb, peer, soccr.StateFinWait2) // or it would repeat its FIN
	}
	if stage.ownFIN && !stage.acked {
		deafen(tb, peer)
	}
	if stage.ownFIN {
		closeWrite(conn)
	}
	if stage.state == soccr.StateClosing {
		inState(tb, conn, soccr.StateFinWait1)
		closeWrite(peer)
	}
	inState(tb, conn, stage.state)
	return conn, peer
}

// goesOn lets a restored connection go on to its end.
func (n *network) goesOn(t *testing.T, conn, peer *net.TCPConn, stage stage) {
	t.Helper()
	if stage.ownFIN && !stage.acked {
		undeafen(t, peer)
	}
	n.finish(t, conn, peer, stage)
}

// TestFirewalls moves connections in every state behind firewalls that stand in
// the way of injected segments, and has them go on there. Nothing on the peer's
// wire tells of it.
func TestFirewalls(t *testing.T) {
	none := func(testing.TB, *host.Host) *firewall { return nil }
	for _, test := range []struct {
		name        string
		mark        uint32
		reversePath bool
		firewall    func(testing.TB, *host.Host) *firewall
	}{
		{"KUBE-FIREWALL", rawfin.DefaultMark, true, kubernetes(output, input)},
		{"KUBE-FIREWALL in OUTPUT against CRIU's mark", criuMark, false, kubernetes(output)},
		{"new and established only", rawfin.DefaultMark, true, strict},
		{"new with SYN and established only", rawfin.DefaultMark, false, stricter},
		{"OUTPUT to net0 only", rawfin.DefaultMark, false, onlyNet0},
		{"reverse path filter", rawfin.DefaultMark, true, none},
		{"KUBE-FIREWALL against CRIU's mark", criuMark, false, kubernetes(output, input)},
		{"INPUT drops the mark", rawfin.DefaultMark, false, dropMark},
		{"a RST for the mark", rawfin.DefaultMark, false, rejectMark},
		{"new and established only, without the mark", rawfin.DefaultMark, false, strictWithoutMark},
	} {
		for _, f := range families {
			t.Run(test.name+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				n.withMark(t, test.mark)
				if test.reversePath {
					strictReversePath(t, n.here)
				}
				test.firewall(t, n.here)
				for _, stage := range stages {
					t.Run(stage.state.String(), func(t *testing.T) {
						o := n.observe(t, f)
						conn, peer := n.inStage(t, f, stage)
						restored := n.restore(t, n.checkpoint(t, conn), soccr.WithMark(test.mark))
						n.goesOn(t, restored, peer, stage)
						restored.Close()
						peer.Close()
						unnoticed(t, o)
					})
				}
			})
		}
	}
}

// A oneMark is a lock that lets no other mark through.
type oneMark struct{ *netlock.Lock }

func (oneMark) AllowMark(uint32) error { return errors.ErrUnsupported }

// The rule of KUBE-FIREWALL as kubelet made it, by iptables, where that is
// installed. CRIU's mark cannot get through, and the chain's name is found out;
// another mark can.
func TestKubernetesIptables(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for _, program := range []string{"iptables-nft", "ip6tables-nft"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skip(err)
		}
		for _, args := range []string{
			"-N KUBE-FIREWALL",
			"-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
			"-A OUTPUT -j KUBE-FIREWALL",
			"-A INPUT -j KUBE-FIREWALL",
		} {
			hosttest.Do(t, n.here, func() error {
				out, err := exec.Command(path, strings.Fields(args)...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%s %s: %w: %s", program, args, err, out)
				}
				return nil
			})
		}
	}
	for _, f := range families {
		for _, stage := range stages {
			t.Run(f.name+"/"+stage.state.String(), func(t *testing.T) {
				conn, peer := n.inStage(t, f, stage)
				n.goesOn(t, n.move(t, conn), peer, stage)
			})
		}
		t.Run(f.name+"/CRIU's mark", func(t *testing.T) {
			n := &network{n.here, n.there, newLock(t, n.here, netlock.WithMark(criuMark))}
			conn, peer := n.inStage(t, f, stages[1])
			snap := n.checkpoint(t, conn)
			err := n.restoreFails(t, snap, soccr.WithMark(criuMark), soccr.WithLock(oneMark{n.lock}))
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "filter KUBE-FIREWALL") {
				t.Errorf("%v", err)
			}
			n.goesOn(t, n.restore(t, snap, soccr.WithMark(criuMark)), peer, stages[1])
		})
	}
}

// What nothing can be done about is explained, and leaves nothing behind: no
// packet reaches the peer, and once the rule is gone the connection is restored.
func TestFirewallIsToBlame(t *testing.T) {
	for _, test := range []struct {
		name     string
		mark     uint32
		firewall func(testing.TB, *host.Host) *firewall
		eperm    bool
		drops    []string // parts of them
	}{
		{"KUBE-FIREWALL against CRIU's mark", criuMark, kubernetes(output, input), true, []string{"chain inet filter KUBE-FIREWALL"}},
		{"silence", rawfin.DefaultMark, dropMark, false, []string{"chain inet filter input"}},
		{"reject", rawfin.DefaultMark, rejectMark, true, []string{"chain inet filter output", "chain inet filter input"}},
	} {
		for _, stage := range stages {
			if stage.state == soccr.StateEstablished || stage.state == soccr.StateFinWait1 {
				continue // need no segment of the peer's
			}
			t.Run(test.name+"/"+stage.state.String(), func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				n.withMark(t, test.mark)
				o := n.observe(t, ip4)
				conn, peer := n.inStage(t, ip4, stage)
				snap := n.checkpoint(t, conn)
				firewall := test.firewall(t, n.here)
				err := n.restoreFails(t, snap, soccr.WithMark(test.mark), soccr.WithLock(oneMark{n.lock}))
				failure, ok := errors.AsType[*soccr.InjectionError](err)
				if !ok || !errors.Is(err, soccr.ErrInjection) {
					t.Fatalf("%v", err)
				}
				if errors.Is(err, unix.EPERM) != test.eperm {
					t.Errorf("errno is wrong in: %v", err)
				}
				if len(failure.Drops) != len(test.drops) || failure.Unexplained != nil {
					t.Errorf("drops %q, %v; want %q", failure.Drops, failure.Unexplained, test.drops)
				}
				for i, drop := range test.drops {
					if i < len(failure.Drops) && !strings.HasSuffix(failure.Drops[i], drop) {
						t.Errorf("drop %q, want %q", failure.Drops[i], drop)
					}
				}
				for _, part := range append(test.drops, fmt.Sprintf("%#x", test.mark), "raw socket", "lo", "conntrack", "another mark", "WithMark") {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%q does not say %q", err, part)
					}
				}
				if n.lock.TracksInjected() {
					t.Error("the lock still lets conntrack see injected segments")
				}

				firewall.remove(t)
				restored := n.restore(t, snap, soccr.WithMark(test.mark))
				n.goesOn(t, restored, peer, stage)
				restored.Close()
				peer.Close()
				unnoticed(t, o)
			})
		}
	}
}

// restoreFails returns why a snapshot cannot be restored here.
func (n *network) restoreFails(tb testing.TB, snap *soccr.Snapshot, options ...soccr.Option) (failure error) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() error {
		conn, err := soccr.RestoreConn(snap, options...)
		if err == nil {
			conn.Close()
			return errors.New("was restored")
		}
		failure = err
		return nil
	})
	return failure
}

// TestFirewallOfAnotherHost moves connections in every state to a host whose
// conntrack has never heard of them.
func TestFirewallOfAnotherHost(t *testing.T) {
	for _, test := range []struct {
		name     string
		firewall func(testing.TB, *host.Host) *firewall
		loose    string // net.netfilter.nf_conntrack_tcp_loose
		track    bool   // the caller has conntrack told of all connections
	}{
		{"new and established only", strict, "1", false},
		{"new and established only, nothing picked up", strict, "0", true},
		{"new with SYN and established only", stricter, "1", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			hosts := newSwitched(t)
			n := &network{here: hosts[0], there: hosts[2], lock: newLock(t, hosts[0])}
			test.firewall(t, n.here)
			test.firewall(t, hosts[1])
			if err := hosts[1].Sysctl("net.netfilter.nf_conntrack_tcp_loose", test.loose); err != nil {
				t.Fatal(err)
			}

			type moved struct {
				name  string
				stage stage
				peer  *net.TCPConn
				snap  *soccr.Snapshot
				next  *network // with a lock of its own, which has found out nothing yet
			}
			var all []moved
			for _, f := range families {
				for _, stage := range stages {
					conn, peer := n.inStage(t, f, stage)
					next := &network{here: hosts[1], there: hosts[2], lock: newLock(t, hosts[1])}
					all = append(all, moved{f.name + "/" + stage.state.String(), stage, peer, n.checkpoint(t, conn), next})
				}
			}
			for _, m := range all {
				if err := m.next.lock.LockFlow(m.snap.Local, m.snap.Remote); err != nil {
					t.Fatal(err)
				}
				if test.track {
					if err := m.next.lock.TrackFlow(m.snap.Local, m.snap.Remote); err != nil {
						t.Fatal(err)
					}
				}
			}
			n.moveAddresses(t, hosts[1])
			for _, m := range all {
				t.Run(m.name, func(t *testing.T) {
					restored := m.next.restore(t, m.snap)
					m.next.goesOn(t, restored, m.peer, m.stage)
				})
			}
		})
	}
}

// newSwitched makes three hosts on one switch: here, with the usual addresses,
// another one that has none yet, and there.
func newSwitched(tb testing.TB) (hosts [3]*host.Host) {
	tb.Helper()
	hosttest.Need(tb)
	network, err := host.NewSwitch()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { network.Close() })
	for i := range hosts {
		hosts[i] = hosttest.New(tb)
		if err := network.Plug(hosts[i], "net0"); err != nil {
			tb.Fatal(err)
		}
	}
	for h, addrs := range map[*host.Host][]netip.Addr{
		hosts[0]: {hosttest.A4, hosttest.A6}, hosts[2]: {hosttest.B4, hosttest.B6},
	} {
		for _, addr := range addrs {
			if err := h.AddAddr("net0", prefix(addr)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return hosts
}

func prefix(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(addr, 24)
	}
	return netip.PrefixFrom(addr, 64)
}

// moveAddresses gives the addresses of here to another host.
func (n *network) moveAddresses(tb testing.TB, to *host.Host) {
	tb.Helper()
	announcer, err := to.NewAnnouncer("net0")
	if err != nil {
		tb.Fatal(err)
	}
	defer announcer.Close()
	for _, addr := range []netip.Addr{hosttest.A4, hosttest.A6} {
		err := errors.Join(n.here.RemoveAddr("net0", prefix(addr)), to.AddAddr("net0", prefix(addr)), announcer.Announce(addr))
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func newLock(tb testing.TB, h *host.Host, options ...netlock.Option) *netlock.Lock {
	tb.Helper()
	lock, err := netlock.New(append(options, netlock.WithNetNS(h.FD()))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lock.Close(); err != nil {
			tb.Error(err)
		}
	})
	return lock
}

// A Locker of somebody's own can neither track nor explain.
type plainLocker struct{ soccr.Locker }

// What cannot be explained says why.
func TestInjectionErrorWithoutRules(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	conn, peer := n.inStage(t, ip4, stages[1])
	snap := n.checkpoint(t, conn)

	t.Run("no explainer", func(t *testing.T) {
		firewall := dropMark(t, n.here)
		defer firewall.remove(t)
		err := n.restoreFails(t, snap, soccr.WithLock(plainLocker{n.lock}))
		failure, ok := errors.AsType[*soccr.InjectionError](err)
		if !ok || len(failure.Drops) != 0 || !strings.Contains(err.Error(), "no lock") {
			t.Errorf("%v", err)
		}
	})
	t.Run("another mark than the lock's", func(t *testing.T) {
		err := n.restoreFails(t, snap, soccr.WithLock(oneMark{n.lock}), soccr.WithMark(0x2a))
		failure, ok := errors.AsType[*soccr.InjectionError](err)
		if !ok || len(failure.Drops) == 0 || !strings.Contains(failure.Drops[0], "this lock's own, which lets mark 0x1000 pass") {
			t.Errorf("%v", err)
		}
	})
	t.Run("no rule", func(t *testing.T) {
		lo, err := n.here.Netlink().LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.here.Netlink().LinkSetDown(lo); err != nil {
			t.Fatal(err)
		}
		failed := n.restoreFails(t, snap, soccr.WithLock(n.lock))
		if err := n.here.Netlink().LinkSetUp(lo); err != nil {
			t.Fatal(err)
		}
		failure, ok := errors.AsType[*soccr.InjectionError](failed)
		if !ok || len(failure.Drops) != 0 || !strings.Contains(failed.Error(), "no chain of nftables") || !errors.Is(failed, unix.ENETDOWN) {
			t.Errorf("%v", failed)
		}
	})
	n.goesOn(t, n.restore(t, snap), peer, stages[1])
}

// noEntries is a lock on a kernel that conntrack can be told nothing.
type noEntries struct{ oneMark }

func (noEntries) TrackFlow(netip.AddrPort, netip.AddrPort) error { return errors.ErrUnsupported }

// Where conntrack cannot be told of a connection, it is shown an acknowledgement.
func TestFirewallWithoutEntries(t *testing.T) {
	for _, stage := range stages {
		t.Run(stage.state.String(), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			conn, _ := n.inStage(t, ip4, stage)
			snap := n.checkpoint(t, conn)
			firewall := strict(t, n.here) // conntrack starts here
			fd := n.newSocket(t, snap)
			defer unix.Close(fd)
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Restore(snap, soccr.WithLock(noEntries{oneMark{n.lock}})); err != nil {
				t.Error(err)
			}
			if stage != stages[1] {
				return
			}
			if err := s.Disconnect(); err != nil {
				t.Error(err)
			}
			firewall.remove(t)
			dropMark(t, n.here)
			err = n.restoreFails(t, snap, soccr.WithLock(noEntries{oneMark{n.lock}}))
			if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "conntrack entry: ") {
				t.Errorf("does not say that there is no entry: %v", err)
			}
		})
	}
}

// What one restore has found out about a firewall, the next ones with the same
// lock need not find out again.
func TestFirewallIsRemembered(t *testing.T) {
	n := newNetwork(t)
	strict(t, n.here)
	best := time.Hour
	for i := range 5 {
		conn, _ := n.inStage(t, ip4, stages[1])
		snap := n.checkpoint(t, conn)
		start := time.Now()
		n.restore(t, snap)
		if i > 0 {
			best = min(best, time.Since(start))
		}
		if !n.lock.TracksInjected() {
			t.Fatal("conntrack does not see injected segments")
		}
	}
	if best > 150*time.Millisecond {
		t.Errorf("took %v at best: a way was tried, and waited for, that had failed before", best)
	}
}

// Who keeps the peer away without a lock has one more way: without the mark.
func TestFirewallWithoutLock(t *testing.T) {
	for _, stage := range stages {
		t.Run(stage.state.String(), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			kubernetes(output, input)(t, n.here)
			conn, peer := n.inStage(t, ip4, stage)
			lock := noTCP(t, n.here)
			snap, err := soccr.Checkpoint(conn)
			if err != nil {
				t.Fatal(err)
			}
			var restored *net.TCPConn
			hosttest.Do(t, n.here, func() (err error) {
				restored, err = soccr.RestoreConn(snap, soccr.WithMark(criuMark))
				return err
			})
			defer restored.Close()
			lock.remove(t)
			n.goesOn(t, restored, peer, stage)
		})
	}
}

// A socket bound to a device is not looked for behind another one: the kernel
// would tell the peer that there is none.
func TestFirewallAndBoundSocket(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	o := n.observe(t, ip4)
	conn, peer := n.inStage(t, ip4, stages[1])
	snap := n.checkpoint(t, conn)
	if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil { // it would keep an answer in
		t.Fatal(err)
	}
	firewall := onlyNet0(t, n.here)
	fd := n.newSocket(t, snap)
	defer unix.Close(fd)
	if err := unix.BindToDevice(fd, "net0"); err != nil {
		t.Fatal(err)
	}
	s, err := soccr.Pause(fd)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Restore(snap)
	if _, ok := errors.AsType[*soccr.InjectionError](err); !ok || !strings.Contains(err.Error(), "bound to a device") {
		t.Errorf("%v", err)
	}
	firewall.remove(t)
	restored := n.restore(t, snap)
	n.goesOn(t, restored, peer, stages[1])
	restored.Close()
	peer.Close()
	unnoticed(t, o)
}

// Without CAP_NET_RAW half-closed states are out of reach, and the error says so.
func TestInjectionWithoutPermission(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	conn, peer := n.inStage(t, ip4, stages[1])
	snap := n.checkpoint(t, conn)
	fd := n.newSocket(t, snap)
	defer unix.Close(fd)
	err := n.here.Do(func() error { // on a thread that ends, with what it lacks
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		s, err := soccr.Pause(fd)
		if err != nil {
			return err
		}
		return s.Restore(snap, soccr.WithLock(n.lock))
	})
	if !errors.Is(err, soccr.ErrNoPermission) || !errors.Is(err, unix.EPERM) || errors.Is(err, soccr.ErrInjection) ||
		errors.Is(err, soccr.ErrNotPaused) || !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Errorf("%v", err)
	}
	n.goesOn(t, n.restore(t, snap), peer, stages[1])
}
