package soccr

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

func (s *Socket) info() (tcpinfo.Info, error) { return tcpinfo.Get(s.fd) }

// State reads the connection's state.
func (s *Socket) State() (State, error) {
	info, err := s.info()
	if err != nil {
		return 0, s.fail("read state", err)
	}
	return State(info.State), nil
}

// Negotiated reads what the handshake agreed on.
func (s *Socket) Negotiated() (Negotiated, error) {
	info, err := s.info()
	if err != nil {
		return Negotiated{}, s.fail("read negotiated options", err)
	}
	n, err := s.negotiated(&info)
	if err != nil {
		return Negotiated{}, s.fail("read negotiated options", err)
	}
	return n, nil
}

func (s *Socket) negotiated(info *tcpinfo.Info) (Negotiated, error) {
	// In repair mode this is the bound that the peer set (mss_clamp), otherwise
	// the size that the next segment may have.
	mss, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	if err != nil {
		return Negotiated{}, err
	}
	n := Negotiated{
		MSS:           uint32(mss),
		WindowScaling: info.Options&tcpinfo.OptWScale != 0,
		SACK:          info.Options&tcpinfo.OptSACK != 0,
		Timestamps:    info.Options&tcpinfo.OptTimestamps != 0,
		ECN:           info.Options&tcpinfo.OptECN != 0,
	}
	n.Microseconds = n.Timestamps && info.Options&tcpinfo.OptUsecTS != 0
	if n.WindowScaling {
		n.SendScale, n.RecvScale = info.SndWscale, info.RcvWscale
	}
	return n, nil
}

// SetNegotiated sets what the handshake would have agreed on, in an established
// socket that has not sent anything yet: MSS, window scales, SACK and whether
// timestamps are used. Their resolution comes with SetTimestamp. The segments
// that the socket sends have the size that MSS and the path allow only after
// SyncMSS. A socket without window scaling will say that it negotiated shifts of
// 0, which is the same.
func (s *Socket) SetNegotiated(n Negotiated) error {
	// connect(2) has set our own shift from this host's settings; without this
	// option it would stay although the peer does not scale.
	var room [4]unix.TCPRepairOpt
	options := append(room[:0],
		unix.TCPRepairOpt{Code: unix.TCPOPT_MAXSEG, Val: n.MSS},
		unix.TCPRepairOpt{Code: unix.TCPOPT_WINDOW, Val: uint32(n.SendScale) | uint32(n.RecvScale)<<16})
	if n.SACK {
		options = append(options, unix.TCPRepairOpt{Code: unix.TCPOPT_SACK_PERMITTED})
	}
	if n.Timestamps {
		options = append(options, unix.TCPRepairOpt{Code: unix.TCPOPT_TIMESTAMP})
	}
	size := len(options) * int(unsafe.Sizeof(options[0]))
	b := unsafe.Slice((*byte)(unsafe.Pointer(&options[0])), size)
	if err := sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, b); err != nil {
		return s.fail("set negotiated options", err)
	}
	return nil
}

// SyncMSS makes the kernel compute the size of the segments it sends from the
// MSS, the path and the peer's largest window. In repair mode connect(2) leaves
// it at the smallest (536 bytes for IPv4, 1220 for IPv6, less options), and
// neither TCP_REPAIR_OPTIONS nor the peer's segments need change that.
//
// The way to tcp_sync_mss is to set IP options that are empty: IP_OPTIONS, and
// for IPv6 the old IPV6_2292PKTOPTIONS, which calls it only for a value that is
// not empty but may be too short to hold an option.
func (s *Socket) SyncMSS() error {
	local, err := localAddr(s.fd)
	if err == nil {
		err = s.syncMSS(local.Addr())
	}
	if err != nil {
		return s.fail("compute segment size", err)
	}
	return nil
}

func (s *Socket) syncMSS(local netip.Addr) error {
	if local.Unmap().Is4() {
		return sockopt.Set(s.fd, unix.IPPROTO_IP, unix.IP_OPTIONS, nil)
	}
	if err := sockopt.Set(s.fd, unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS, []byte{0}); err != nil {
		return err
	}
	return sockopt.Set(s.fd, unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS, nil)
}
