package netlock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
)

// firewall puts a table with one base chain into a host. The rule in it is that
// of KUBE-FIREWALL, "mark & bits == bits: drop", in a chain that the base chain
// jumps to; with no bits there is none, and the base chain's policy is to drop.
func firewall(t testing.TB, h *host.Host, family nftables.TableFamily, hook *nftables.ChainHook, bits uint32) (want Drop) {
	t.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	must(t, err)
	table := nft.AddTable(&nftables.Table{Name: "firewall", Family: family})
	policy := nftables.ChainPolicyDrop
	if bits != 0 {
		policy = nftables.ChainPolicyAccept
	}
	base := nft.AddChain(&nftables.Chain{Name: "base", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	want = Drop{Family: nftFamilies[byte(family)], Table: table.Name, Chain: base.Name}
	if bits == 0 {
		must(t, nft.Flush())
		return want
	}
	mask := binary.NativeEndian.AppendUint32(nil, bits)
	marked := nft.AddChain(&nftables.Chain{Name: "marked", Table: table})
	nft.AddRule(&nftables.Rule{Table: table, Chain: marked, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mask},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	nft.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: []expr.Any{
		&expr.Verdict{Kind: expr.VerdictJump, Chain: marked.Name},
	}})
	must(t, nft.Flush())
	rules, err := nft.GetRules(table, marked)
	must(t, err)
	want.Chain, want.Rule = marked.Name, rules[0].Handle
	return want
}

func TestExplain(t *testing.T) {
	const kubernetes = 0x8000
	for _, c := range []struct {
		name   string
		mapped bool
		mark   uint32
		family nftables.TableFamily
		hook   *nftables.ChainHook
		bits   uint32 // of the firewall's rule; 0 for its policy
		err    error  // of the injection
		drops  int
	}{
		{"rule in output", false, 0xc114, nftables.TableFamilyIPv4, nftables.ChainHookOutput, kubernetes, unix.EPERM, 1},
		{"rule in input", false, 0xc114, nftables.TableFamilyINet, nftables.ChainHookInput, kubernetes, nil, 1},
		{"rule in prerouting, mapped", true, 0xc114, nftables.TableFamilyIPv4, nftables.ChainHookPrerouting, kubernetes, nil, 1},
		{"policy of input", false, 0xc114, nftables.TableFamilyINet, nftables.ChainHookInput, 0, nil, 1},
		{"nothing", false, rawfin.DefaultMark, nftables.TableFamilyINet, nftables.ChainHookOutput, kubernetes, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := hosttest.Pair(t)
			conn := connect(t, a, b, hosttest.A4, c.mapped)
			l := newTestLock(t, a, WithMark(c.mark))
			must(t, l.Add(conn.Flow))
			ack := conn.fromPeer(rawfin.ACK)
			want := firewall(t, a, c.family, c.hook, c.bits)
			drops, err := Explain(func() error { return inject(a, ack, c.mark) }, WithNetNS(a.FD()), WithMark(c.mark))
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if len(drops) != c.drops || (len(drops) == 1 && drops[0] != want) {
				t.Errorf("dropped by %v, want %d times %v", drops, c.drops, want)
			}
		})
	}
}

// A lock explains in its own namespace, each rule once, and knows itself.
func TestExplainInjected(t *testing.T) {
	t.Parallel()
	a, b := hosttest.Pair(t)
	conn := connect(t, a, b, hosttest.A4, false)
	l := newTestLock(t, a)
	must(t, l.Add(conn.Flow))
	ack := conn.fromPeer(rawfin.ACK)
	twice := func(mark uint32) func() {
		return func() {
			for range 2 {
				if err := inject(a, ack, mark); err != nil && !errors.Is(err, unix.EPERM) {
					t.Error(err)
				}
			}
		}
	}
	drops, err := l.ExplainInjected(rawfin.DefaultMark, twice(rawfin.DefaultMark))
	if err != nil || len(drops) != 0 {
		t.Errorf("nothing drops it, but: %q, %v", drops, err)
	}
	drops, err = l.ExplainInjected(0x2a, twice(0x2a))
	if err != nil || len(drops) != 1 || !strings.HasSuffix(drops[0], ", this lock's own, which lets mark 0x1000 pass") {
		t.Errorf("the lock itself drops it, but: %q, %v", drops, err)
	}
	want := firewall(t, a, nftables.TableFamilyINet, nftables.ChainHookInput, rawfin.DefaultMark)
	drops, err = l.ExplainInjected(rawfin.DefaultMark, twice(rawfin.DefaultMark))
	if err != nil || len(drops) != 1 || drops[0] != want.String() {
		t.Errorf("got %q, %v, want %v", drops, err, want)
	}
	if _, err := l.ExplainInjected(0, func() { t.Error("was injected") }); err == nil {
		t.Error("explained what has no mark")
	}
}

// FuzzDecodeTrace: a trace is malformed, or names a verdict that can be written down.
func FuzzDecodeTrace(f *testing.F) {
	trace := bytes.Join([][]byte{
		header(unix.NFPROTO_INET), attrString(unix.NFTA_TRACE_TABLE, "filter"), attrString(unix.NFTA_TRACE_CHAIN, "input"),
		attrUint64(unix.NFTA_TRACE_RULE_HANDLE, 7), nest(unix.NFTA_TRACE_VERDICT, attrUint32(unix.NFTA_VERDICT_CODE, 0)),
	}, nil)
	f.Add(trace)
	f.Add(trace[:len(trace)-2])
	f.Add(append(header(unix.NFPROTO_IPV4), attrUint32(unix.NFTA_TRACE_POLICY, 0)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, dropped, err := decodeTrace(body)
		if err != nil {
			return
		}
		if len(body) < len(header(0)) {
			t.Errorf("%d bytes are a trace", len(body))
		}
		if text := d.String(); dropped && text == "" {
			t.Error("a drop by nobody")
		}
	})
}

func TestDropString(t *testing.T) {
	d := Drop{Family: "ip", Table: "filter", Chain: "KUBE-FIREWALL", Rule: 7}
	if got, want := d.String(), "rule 7 of chain ip filter KUBE-FIREWALL"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !isDrop(0) || !isDrop(uint32(unix.ECONNREFUSED)<<16) || isDrop(1) || isDrop(uint32(0xffff_fffd)) { // NFT_JUMP
		t.Error("verdicts are misread")
	}
	d.Rule = 0
	if got, want := d.String(), "the policy of chain ip filter KUBE-FIREWALL"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
