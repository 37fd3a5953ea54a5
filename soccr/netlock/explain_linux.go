package netlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// traceWait is how long the packet may still be on its way, over lo and through
// softirqs, when inject has returned.
const traceWait = 100 * time.Millisecond

// Explain finds out which rules drop injected segments: it runs inject, has the
// kernel trace the packets of this network namespace that have the mark (WithMark;
// rawfin.DefaultMark without), and returns the verdicts that dropped one, in the
// order in which they fell. inject is to send again what did not arrive: the
// segment, or the whole restore. Its error is returned, joined with what went
// wrong with the tracing itself.
//
// What is no chain of nftables does not show: the rules of iptables-legacy,
// reverse path filtering, a cgroup's egress program. With iptables-nft, which is
// what most distributions call iptables, rules do show.
func Explain(inject func() error, options ...Option) ([]Drop, error) {
	c, err := newConfig(options)
	if err != nil {
		return nil, opError("explain", err)
	}
	drops, failed, err := explain(c, inject)
	return drops, errors.Join(failed, opError("explain", err))
}

// errNoMark: without a mark, every other packet is traced as well.
var errNoMark = errors.New("segments without a mark cannot be told from other packets")

// ExplainInjected is [Explain] in the lock's network namespace, for segments with
// any mark, with each verdict as a line of text: what package soccr asks for when
// an injected segment has not arrived. The lock's own verdicts are among them.
func (l *Lock) ExplainInjected(mark uint32, inject func()) ([]string, error) {
	lines, err := l.explainInjected(mark, inject)
	return lines, opError("explain", err)
}

func (l *Lock) explainInjected(mark uint32, inject func()) (lines []string, err error) {
	if mark == 0 {
		return nil, errNoMark
	}
	ns, err := l.openNetNS()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	drops, _, err := explain(config{mark: mark, netNS: &ns, timeout: DefaultTimeout},
		func() error { inject(); return nil })
	for _, d := range drops {
		line := d.String()
		if d.Table == l.table.name {
			line += fmt.Sprintf(", this lock's own, which lets mark %#x pass", l.table.config.mark)
		}
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines, err
}

// openNetNS opens the network namespace that the lock is in. The caller closes it.
func (l *Lock) openNetNS() (ns int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return -1, err
	}
	raw, err := l.table.conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS) })
	return ns, errors.Join(controlErr, err)
}

func explain(c config, inject func() error) (drops []Drop, failed, err error) {
	t, err := makeTable(c, (*table).fillTrace)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	var traces *netlink.Conn // apart from the table's socket, whose answers they would mix with
	err = c.withNetNS(func(ns int) (err error) {
		traces, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
		return err
	})
	if err != nil {
		return nil, nil, because(err)
	}
	defer traces.Close()
	if err := traces.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		return nil, nil, because(err)
	}
	failed = inject()
	drops, err = readDrops(traces)
	return drops, failed, err
}

// fillTrace makes chains that come before all others and say which packets the
// kernel is to trace.
func (t *table) fillTrace(tx *transaction) error {
	for _, c := range chains {
		c.priority = math.MinInt32
		tx.newBaseChain(c)
		rule := slices.Concat(isMarked(t.config.mark), []expr.Any{
			&expr.Immediate{Register: register, Data: []byte{1}},
			&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: register},
		})
		if err := tx.newRules(c.name, [][]expr.Any{rule}); err != nil {
			return err
		}
	}
	return nil
}

// readDrops reads traces when no more can be on their way.
func readDrops(traces *netlink.Conn) ([]Drop, error) {
	raw, err := traces.SyscallConn()
	if err != nil {
		return nil, err
	}
	time.Sleep(traceWait)
	var drops []Drop
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = drain(int(fd), func(m syscall.NetlinkMessage) error {
			d, dropped, err := decodeTrace(m.Data)
			if dropped {
				drops = append(drops, d)
			}
			return err
		})
	})
	return drops, errors.Join(err, failed)
}

// nftFamilies are the families' names as nft writes them.
var nftFamilies = map[byte]string{
	unix.NFPROTO_INET: "inet",
	unix.NFPROTO_IPV4: "ip",
	unix.NFPROTO_IPV6: "ip6",
}

// decodeTrace reads one trace: what a rule or a chain's policy did to a packet.
func decodeTrace(body []byte) (d Drop, dropped bool, err error) {
	if len(body) < len(header(0)) {
		return d, false, io.ErrUnexpectedEOF
	}
	d.Family = nftFamilies[body[0]]
	attributes, err := netlink.NewAttributeDecoder(body[len(header(0)):])
	if err != nil {
		return d, false, err
	}
	attributes.ByteOrder = binary.BigEndian
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_TRACE_TABLE:
			d.Table = attributes.String()
		case unix.NFTA_TRACE_CHAIN:
			d.Chain = attributes.String()
		case unix.NFTA_TRACE_RULE_HANDLE:
			d.Rule = attributes.Uint64()
		case unix.NFTA_TRACE_POLICY:
			dropped = dropped || isDrop(attributes.Uint32())
		case unix.NFTA_TRACE_VERDICT:
			attributes.Nested(func(verdict *netlink.AttributeDecoder) error {
				for verdict.Next() {
					if verdict.Type() == unix.NFTA_VERDICT_CODE {
						dropped = dropped || isDrop(verdict.Uint32())
					}
				}
				return nil
			})
		}
	}
	return d, dropped, attributes.Err()
}

// isDrop looks at a verdict without its upper half, which NF_DROP_ERR puts an
// errno into.
func isDrop(verdict uint32) bool { return verdict&0xff == 0 }
