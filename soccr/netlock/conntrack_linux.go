package netlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Track tells conntrack that flows are established connections, except those
// that it knows already. A host that a connection has moved to has not seen its
// handshake, and to a firewall that relies on conntrack it may then be INVALID;
// see "Conntrack and strict firewalls" in the package's documentation.
//
// The flows need not be locked, and conntrack's entries outlive the lock; each
// lasts five minutes, and as long as is usual once there are packets. It is an
// error if the kernel has no CONFIG_NF_CT_NETLINK or no memory for more entries;
// the flows before the one that failed are known then.
//
// Do not use it for a connection that this host translates the addresses of
// (NAT): an entry says that there is none.
func (l *Lock) Track(flows ...Flow) error {
	return opError("track", l.track(flows))
}

func (l *Lock) track(flows []Flow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	wanted, err := l.onWire(slices.Values(flows))
	if err != nil {
		return err
	}
	for _, f := range wanted {
		if err := l.table.track(f.Flow); err != nil {
			return fmt.Errorf("conntrack entry of %v: %w", f.Flow, err)
		}
	}
	return nil
}

// TrackFlow is Track for one flow.
func (l *Lock) TrackFlow(local, remote netip.AddrPort) error {
	return l.Track(Flow{Local: local, Remote: remote})
}

// TrackInjected lets conntrack see injected segments, from now on. At first the
// lock exempts them (notrack), because they are no part of what conntrack has seen
// of their connection. But to a firewall that accepts only what is new or
// established, what is not tracked is neither, and it drops them; then this is
// what is left to try.
//
// Segments of connections that conntrack does not know are INVALID to it, unless
// they are plain acknowledgements and net.netfilter.nf_conntrack_tcp_loose is not
// 0. So call [Lock.Track], or inject an ACK with the same numbers before a FIN.
//
// The function that it returns takes this call back: when all calls are taken
// back, the lock exempts injected segments again. Another lock that holds the same
// flow exempts them all the same.
func (l *Lock) TrackInjected() (undo func() error, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return nil, opError("track", err)
	}
	if l.trackers == 0 {
		if err := l.noteLoss(l.table.exemptInjected(false)); err != nil {
			return nil, opError("track", err)
		}
	}
	l.trackers++
	return sync.OnceValue(func() error { return opError("track", l.exemptInjected()) }), nil
}

func (l *Lock) exemptInjected() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trackers--
	if err := l.usable(); err != nil || l.trackers > 0 {
		return err
	}
	return l.noteLoss(l.table.exemptInjected(true))
}

// TracksInjected reports whether conntrack sees injected segments.
func (l *Lock) TracksInjected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trackers > 0
}

// exemptInjected has conntrack overlook injected segments, or see them.
func (t *table) exemptInjected(exempt bool) error {
	kind := unix.NFT_MSG_DELSETELEM
	if exempt {
		kind = unix.NFT_MSG_NEWSETELEM
	}
	tx := t.begin()
	tx.bothFamilies(kind, untrackedName)
	return t.commit(tx)
}

// What x/sys/unix does not have of linux/netfilter/nfnetlink_conntrack.h,
// nf_conntrack_common.h and nf_conntrack_tcp.h.
const (
	ctMsgNew = 0 // IPCTNL_MSG_CT_NEW

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src, ctaIPv4Dst = 1, 2
	ctaIPv6Src, ctaIPv6Dst = 3, 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaProtoInfoTCP      = 1
	ctaTCPState          = 1
	ctaTCPFlagsOriginal  = 4
	ctaTCPFlagsReply     = 5
	ctTCPEstablished     = 3
	ctTCPLiberal         = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL: the windows are not known
	ctSeenReplyConfirmed = 0x02 | 0x04 | 0x08
)

// entryTimeout is that of a connection whose data is not being acknowledged
// (nf_conntrack_tcp_timeout_max_retrans): nobody has heard of the peer yet.
const entryTimeout = 5 * time.Minute

// track adds a conntrack entry, unless there is one of the flow. The local end is
// its originator, as it would be if our first packet had made it.
func (t *table) track(f Flow) error {
	liberal := []byte{ctTCPLiberal, ctTCPLiberal} // struct nf_ct_tcp_flags: flags, mask
	body := header(unix.NFPROTO_IPV6)
	if f.Local.Addr().Is4() {
		body = header(unix.NFPROTO_IPV4)
	}
	for _, a := range [][]byte{
		nest(ctaTupleOrig, tuple(f.Local, f.Remote)...),
		nest(ctaTupleReply, tuple(f.Remote, f.Local)...),
		attrUint32(ctaStatus, ctSeenReplyConfirmed),
		attrUint32(ctaTimeout, uint32(entryTimeout.Seconds())),
		nest(ctaProtoInfo, nest(ctaProtoInfoTCP,
			attr(ctaTCPState, []byte{ctTCPEstablished}),
			attr(ctaTCPFlagsOriginal, liberal), attr(ctaTCPFlagsReply, liberal))),
	} {
		body = append(body, a...)
	}
	_, err := t.conn.Execute(message(unix.NFNL_SUBSYS_CTNETLINK<<8|ctMsgNew, netlink.Acknowledge|netlink.Create|netlink.Excl, body))
	if err != nil {
		t.passAnswers()
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EINVAL): // nfnetlink_rcv_msg: no such subsystem
		return fmt.Errorf("needs CONFIG_NF_CT_NETLINK: %w: %w", errors.ErrUnsupported, err)
	}
	return because(err)
}

// passAnswers takes away what the kernel has answered and nobody has read: the next
// transaction would take it for its own answer.
func (t *table) passAnswers() {
	_ = t.raw.Control(func(fd uintptr) {
		_ = drain(int(fd), func(syscall.NetlinkMessage) error { return nil })
	})
}

func tuple(src, dst netip.AddrPort) [][]byte {
	srcKind, dstKind := uint16(ctaIPv6Src), uint16(ctaIPv6Dst)
	if src.Addr().Is4() {
		srcKind, dstKind = ctaIPv4Src, ctaIPv4Dst
	}
	return [][]byte{
		nest(ctaTupleIP, attr(srcKind, src.Addr().AsSlice()), attr(dstKind, dst.Addr().AsSlice())),
		nest(ctaTupleProto,
			attr(ctaProtoNum, []byte{unix.IPPROTO_TCP}),
			attr(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, src.Port())),
			attr(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))),
	}
}
