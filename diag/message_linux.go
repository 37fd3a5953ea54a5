package diag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// The sizes of struct inet_diag_req_v2, struct inet_diag_msg, and the struct
// inet_diag_sockid in both. Ports and addresses are in network byte order, all
// else is in the machine's.
const (
	requestSize = 8 + idSize
	messageSize = 4 + idSize + 20
	idSize      = 48
)

// A message is cut to pieces by these offsets, of inet_diag_sockid too.
const (
	idLocalPort  = 0
	idRemotePort = 2
	idLocal      = 4
	idRemote     = 20
	idInterface  = 36
	idCookie     = 40
)

// anyCookie is INET_DIAG_NOCOOKIE twice: whichever socket has the addresses.
const anyCookie = ^uint64(0)

// Attributes of an answer (enum INET_DIAG_*) that x/sys/unix has no names for.
const (
	attrInfo       = 2
	attrCongestion = 4
	attrTOS        = 5
	attrTClass     = 6
	attrMemory     = 7
	attrShutdown   = 8
	attrV6Only     = 11
	attrMark       = 15
	attrMD5        = 18
	attrULP        = 19
	attrCgroupID   = 21
	attrSockOpt    = 22

	attrULPName = 1 // inside attrULP
)

// details says which attributes the kernel adds for a detail: the bit of
// idiag_ext that asks for attribute n is n-1. MD5 keys and the ULP come with
// INET_DIAG_INFO.
var details = [...]struct {
	detail Details
	ext    uint8
}{
	{DetailMemory, 1 << (attrMemory - 1)},
	{DetailInfo, 1 << (attrInfo - 1)},
	{DetailCongestion, 1 << (attrCongestion - 1)},
	{DetailTOS, 1<<(attrTOS-1) | 1<<(attrTClass-1)},
}

// A sockID is a socket's address in a request.
type sockID struct {
	local, remote netip.AddrPort
	ifindex       int
	cookie        uint64
}

// id is the address of the very socket, not of a later one on the same flow.
func (s Socket) id() sockID {
	return sockID{local: s.Local, remote: s.Remote, ifindex: s.Interface, cookie: s.Cookie}
}

// request makes a struct inet_diag_req_v2 for TCP sockets.
func request(family Family, states States, ask Details, id sockID) []byte {
	b := make([]byte, requestSize)
	b[0], b[1] = uint8(family), ProtocolTCP
	for _, d := range details {
		if ask&d.detail != 0 {
			b[2] |= d.ext
		}
	}
	binary.NativeEndian.PutUint32(b[4:], uint32(states))

	to := b[8:]
	binary.BigEndian.PutUint16(to[idLocalPort:], id.local.Port())
	binary.BigEndian.PutUint16(to[idRemotePort:], id.remote.Port())
	copy(to[idLocal:idRemote], id.local.Addr().AsSlice())
	copy(to[idRemote:idInterface], id.remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(to[idInterface:], uint32(id.ifindex))
	binary.NativeEndian.PutUint32(to[idCookie:], uint32(id.cookie))
	binary.NativeEndian.PutUint32(to[idCookie+4:], uint32(id.cookie>>32))
	return b
}

// A zoner names the device of a link-local address by its index.
type zoner func(ifindex uint32) string

// decode reads a struct inet_diag_msg and the attributes after it. What is
// longer than known here comes from a newer kernel and is ignored.
func decode(b []byte, zone zoner) (Socket, error) {
	if len(b) < messageSize {
		return Socket{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	s := Socket{
		Family:   Family(b[0]),
		Protocol: ProtocolTCP,
		State:    State(b[1]),
		Timer:    Timer{Kind: TimerKind(b[2]), Retransmits: b[3]},
	}
	id, rest := b[4:4+idSize], b[4+idSize:messageSize]
	ifindex := binary.NativeEndian.Uint32(id[idInterface:])
	s.Interface = int(ifindex)
	s.Cookie = uint64(binary.NativeEndian.Uint32(id[idCookie:])) | uint64(binary.NativeEndian.Uint32(id[idCookie+4:]))<<32
	for _, end := range []struct {
		to         *netip.AddrPort
		addr, port int
	}{{&s.Local, idLocal, idLocalPort}, {&s.Remote, idRemote, idRemotePort}} {
		addr, err := address(s.Family, id[end.addr:], ifindex, zone)
		if err != nil {
			return Socket{}, err
		}
		*end.to = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(id[end.port:]))
	}
	s.Timer.Expires = time.Duration(binary.NativeEndian.Uint32(rest)) * time.Millisecond
	s.RecvQueue = binary.NativeEndian.Uint32(rest[4:])
	s.SendQueue = binary.NativeEndian.Uint32(rest[8:])
	s.UID = binary.NativeEndian.Uint32(rest[12:])
	s.Inode = binary.NativeEndian.Uint32(rest[16:])

	if err := eachAttribute(b[messageSize:], s.decodeAttribute); err != nil {
		return Socket{}, err
	}
	return s, nil
}

func address(family Family, b []byte, ifindex uint32, zone zoner) (netip.Addr, error) {
	switch family {
	case IPv4:
		return netip.AddrFrom4([4]byte(b)), nil
	case IPv6:
		addr := netip.AddrFrom16([16]byte(b))
		if ifindex != 0 && addr.IsLinkLocalUnicast() && !addr.Is4In6() {
			addr = addr.WithZone(zone(ifindex))
		}
		return addr, nil
	default:
		return netip.Addr{}, fmt.Errorf("%w: %v", ErrMalformed, family)
	}
}

// attributeSizes are how many bytes an attribute must have to be decoded, apart
// from those that can have any number.
var attributeSizes = [...]int{
	attrTOS:      1,
	attrTClass:   1,
	attrShutdown: 1,
	attrV6Only:   1,
	attrMark:     4,
	attrCgroupID: 8,
}

// eachAttribute calls f with the type and the value of each netlink attribute.
// (The decoder of package netlink makes garbage of each of them, too much for
// the many in a listing.)
func eachAttribute(b []byte, f func(typ uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofNlAttr || size > len(b) {
			return fmt.Errorf("%w: attribute %d of %d bytes where %d are left", ErrMalformed, typ, size, len(b))
		}
		if err := f(typ, b[unix.SizeofNlAttr:size]); err != nil {
			return err
		}
		b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return nil
}

func (s *Socket) decodeAttribute(typ uint16, value []byte) (err error) {
	if int(typ) < len(attributeSizes) && len(value) < attributeSizes[typ] {
		return fmt.Errorf("%w: %d bytes of attribute %d", ErrMalformed, len(value), typ)
	}
	switch typ {
	case attrInfo:
		s.Info, err = decodeInfo(value)
	case attrCongestion:
		s.Congestion = unix.ByteSliceToString(value)
	case attrTOS:
		s.TOS = value[0]
	case attrTClass:
		s.TClass = value[0]
	case attrMemory:
		s.Memory = decodeMemory(value)
	case attrShutdown:
		s.RecvShut, s.SendShut = value[0]&1 != 0, value[0]&2 != 0 // RCV_SHUTDOWN, SEND_SHUTDOWN
	case attrV6Only:
		s.Options.V6Only = value[0] != 0
	case attrMark:
		s.Mark = binary.NativeEndian.Uint32(value)
	case attrMD5:
		s.MD5, err = decodeMD5(value)
	case attrULP:
		err = eachAttribute(value, func(typ uint16, value []byte) error {
			if typ == attrULPName {
				s.ULP = unix.ByteSliceToString(value)
			}
			return nil
		})
	case attrCgroupID:
		s.CgroupID = binary.NativeEndian.Uint64(value)
	case attrSockOpt:
		s.Options.decode(value)
	}
	return err
}

var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// bit gives bit field number n of a struct of bit fields that are one bit wide:
// compilers count from the low end of a byte, on big-endian machines from the
// high one. Fields that the kernel does not have yet are false.
func bit(b []byte, n int, bigEndian bool) bool {
	if n/8 >= len(b) {
		return false
	}
	shift := n % 8
	if bigEndian {
		shift = 7 - shift
	}
	return b[n/8]>>shift&1 != 0
}

// decode reads a struct inet_diag_sockopt.
func (o *Options) decode(b []byte) {
	for _, field := range []struct {
		to *bool
		n  int
	}{
		{&o.RecvErr, 0},
		{&o.FreeBind, 2},
		{&o.Transparent, 5},
		{&o.BindAddressNoPort, 8},
		{&o.DeferConnect, 10},
	} {
		*field.to = bit(b, field.n, bigEndian)
	}
}

// decodeMemory reads the array of uint32 that sock_diag(7) describes under
// UDIAG_SHOW_MEMINFO; older kernels have fewer of them.
func decodeMemory(b []byte) *Memory {
	m := new(Memory)
	for i, to := range []*uint32{
		&m.RecvAlloc, &m.RecvBuffer, &m.SendAlloc, &m.SendBuffer, &m.ForwardAlloc,
		&m.SendQueued, &m.OptMem, &m.Backlog, &m.Drops,
	} {
		if len(b) >= 4*(i+1) {
			*to = binary.NativeEndian.Uint32(b[4*i:])
		}
	}
	return m
}

// The size of struct tcp_diag_md5sig, and of the key in it.
const (
	md5KeySize = 80
	md5Size    = 20 + md5KeySize
)

// decodeMD5 reads an array of struct tcp_diag_md5sig. The kernel leaves entries
// zero if keys were removed while it wrote them.
func decodeMD5(b []byte) ([]MD5Key, error) {
	var keys []MD5Key
	for ; len(b) >= md5Size; b = b[md5Size:] {
		size := int(binary.NativeEndian.Uint16(b[2:]))
		if size == 0 {
			continue
		}
		if size > md5KeySize {
			return nil, fmt.Errorf("%w: MD5 key of %d bytes", ErrMalformed, size)
		}
		addr, err := address(Family(b[0]), b[4:20], 0, nil)
		if err != nil {
			return nil, err
		}
		peers := netip.PrefixFrom(addr, int(b[1]))
		if !peers.IsValid() {
			return nil, fmt.Errorf("%w: MD5 key for %v/%d", ErrMalformed, addr, b[1])
		}
		keys = append(keys, MD5Key{Peers: peers, Key: append([]byte(nil), b[20:20+size]...)})
	}
	return keys, nil
}

func decodeInfo(b []byte) (*Info, error) {
	ti, err := tcpinfo.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	const us, ms = time.Microsecond, time.Millisecond
	return &Info{
		Timestamps:      ti.Options&tcpinfo.OptTimestamps != 0,
		SACK:            ti.Options&tcpinfo.OptSACK != 0,
		WindowScaling:   ti.Options&tcpinfo.OptWScale != 0,
		ECN:             ti.Options&tcpinfo.OptECN != 0,
		SendScale:       ti.SndWscale,
		RecvScale:       ti.RcvWscale,
		ECNSeen:         ti.Options&tcpinfo.OptECNSeen != 0,
		SynData:         ti.Options&tcpinfo.OptSynData != 0,
		UsecTS:          ti.Options&tcpinfo.OptUsecTS != 0,
		TFOChild:        ti.Options&tcpinfo.OptTFOChild != 0,
		CongestionState: ti.Ca_state,
		Retransmits:     ti.Retransmits,
		Probes:          ti.Probes,
		Backoff:         ti.Backoff,
		RTO:             time.Duration(ti.Rto) * us,
		ATO:             time.Duration(ti.Ato) * us,
		SendMSS:         ti.Snd_mss,
		RecvMSS:         ti.Rcv_mss,
		AdvertisedMSS:   ti.Advmss,
		PMTU:            ti.Pmtu,
		Unacked:         ti.Unacked,
		Sacked:          ti.Sacked,
		Lost:            ti.Lost,
		Retrans:         ti.Retrans,
		LastDataSent:    time.Duration(ti.Last_data_sent) * ms,
		LastDataRecv:    time.Duration(ti.Last_data_recv) * ms,
		LastAckRecv:     time.Duration(ti.Last_ack_recv) * ms,
		RTT:             time.Duration(ti.Rtt) * us,
		RTTVar:          time.Duration(ti.Rttvar) * us,
		MinRTT:          time.Duration(ti.Min_rtt) * us,
		RecvRTT:         time.Duration(ti.Rcv_rtt) * us,
		SendSSThresh:    ti.Snd_ssthresh,
		SendCwnd:        ti.Snd_cwnd,
		RecvSSThresh:    ti.Rcv_ssthresh,
		RecvSpace:       ti.Rcv_space,
		SendWindow:      ti.Snd_wnd,
		RecvWindow:      ti.Rcv_wnd,
		Reordering:      ti.Reordering,
		ReordSeen:       ti.Reord_seen,
		NotSent:         ti.Notsent_bytes,
		PacingRate:      ti.Pacing_rate,
		MaxPacingRate:   ti.Max_pacing_rate,
		DeliveryRate:    ti.Delivery_rate,
		BytesAcked:      ti.Bytes_acked,
		BytesReceived:   ti.Bytes_received,
		BytesSent:       ti.Bytes_sent,
		BytesRetrans:    ti.Bytes_retrans,
		SegsOut:         ti.Segs_out,
		SegsIn:          ti.Segs_in,
		DataSegsOut:     ti.Data_segs_out,
		DataSegsIn:      ti.Data_segs_in,
		TotalRetrans:    ti.Total_retrans,
		DSACKDups:       ti.Dsack_dups,
		Delivered:       ti.Delivered,
		DeliveredCE:     ti.Delivered_ce,
		OutOfOrder:      ti.Rcv_ooopack,
		Busy:            time.Duration(ti.Busy_time) * us,
		RwndLimited:     time.Duration(ti.Rwnd_limited) * us,
		SndbufLimited:   time.Duration(ti.Sndbuf_limited) * us,
		Rehash:          ti.Rehash,
		Raw:             append([]byte(nil), b...),
	}, nil
}
