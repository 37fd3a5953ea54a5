package diag

import (
	"fmt"
	"net/netip"
	"time"
)

// A Family is an address family. A socket of family IPv6 can have an IPv4
// connection; its addresses are IPv4-mapped then (netip.Addr.Is4In6).
type Family uint8

// The address families, numbered as Linux does.
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// String gives "IPv4" or "IPv6".
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	default:
		return fmt.Sprintf("Family(%d)", uint8(f))
	}
}

// ProtocolTCP is the Socket.Protocol of TCP sockets. The subflows of Multipath
// TCP connections are TCP sockets too, with ULP "mptcp".
const ProtocolTCP = 6

// A Socket is what the kernel said of one socket at one moment. It may be in
// another state by now: whoever acts on it looks again, with the socket in hand.
type Socket struct {
	Family   Family
	Protocol uint8 // ProtocolTCP
	State    State

	// The addresses. A link-local one has its zone: the device's name in the
	// namespace of the Conn, or its index if it has none any more. Of a socket
	// without a peer, Remote is the family's zero address with port 0.
	Local, Remote netip.AddrPort

	// Cookie is the socket's number that no other socket of this boot gets,
	// the same as SO_COOKIE.
	Cookie uint64
	// Inode is what /proc/PID/fd/N shows as "socket:[Inode]", see Holders. It
	// is 0 if no process holds the socket: in TIME_WAIT, in SYN_RECV, waiting
	// to be accepted, or closed with data still to be sent.
	Inode uint32
	UID   uint32 // who made the socket, as a user of the reader's user namespace

	Timer Timer

	// RecvQueue is the number of bytes received and not yet read, and one more
	// if the peer's FIN is among them. Of a listening socket it is the number
	// of connections waiting to be accepted.
	RecvQueue uint32
	// SendQueue is the number of bytes written and not yet acknowledged, and
	// one more for a FIN. Of a listening socket it is the limit of RecvQueue,
	// the backlog.
	SendQueue uint32

	Interface int  // the index of the device that the socket is bound to, or 0
	RecvShut  bool // nothing more will be received: shutdown(SHUT_RD), or the peer's FIN
	SendShut  bool // nothing more will be sent: shutdown(SHUT_WR)
	Mark      uint32
	CgroupID  uint64 // of cgroup v2 (Linux 5.8), or 0
	Options   Options

	// What follows is there if Filter.Details asked for it; Lookup does.

	Memory     *Memory
	Info       *Info
	MD5        []MD5Key // the keys that sign segments (RFC 2385); only with CAP_NET_ADMIN
	ULP        string   // upper layer protocol, such as "tls" or "mptcp"
	Congestion string   // the congestion control algorithm
	TOS        uint8
	TClass     uint8 // of IPv6 sockets
}

// Options are the socket options that the kernel always reports (Linux 5.10).
type Options struct {
	V6Only            bool // of a socket in LISTEN or CLOSE
	RecvErr           bool // IP_RECVERR or IPV6_RECVERR
	FreeBind          bool // IP_FREEBIND
	Transparent       bool // IP_TRANSPARENT
	BindAddressNoPort bool // IP_BIND_ADDRESS_NO_PORT
	DeferConnect      bool // TCP_FASTOPEN_CONNECT: connected by the first write
}

// A Timer is what the kernel waits for on a socket.
type Timer struct {
	Kind        TimerKind
	Expires     time.Duration // from the moment of the answer
	Retransmits uint8         // how often it has expired so far, in vain
}

// A TimerKind says what happens when a timer expires.
type TimerKind uint8

// The kinds of timers. A socket in FIN_WAIT2 with TimerTimeWait was closed by its
// program: only a remainder of it waits for the peer's FIN.
const (
	TimerNone       TimerKind = iota
	TimerRetransmit           // something is sent again
	TimerKeepalive            // a keepalive probe, or the end of waiting for the peer's FIN
	TimerTimeWait             // the end of TIME_WAIT
	TimerProbe                // a probe of the peer's closed window
)

var timerNames = [...]string{"none", "retransmit", "keepalive", "timewait", "probe"}

// String gives the kind in a word.
func (k TimerKind) String() string {
	if int(k) < len(timerNames) {
		return timerNames[k]
	}
	return fmt.Sprintf("TimerKind(%d)", uint8(k))
}

// Memory is the memory that a socket uses, in bytes (SO_MEMINFO).
type Memory struct {
	RecvAlloc    uint32 // received segments, with what the kernel needs around them
	RecvBuffer   uint32 // the limit of that, SO_RCVBUF
	SendAlloc    uint32 // on its way to the device
	SendBuffer   uint32 // the limit of SendQueued, SO_SNDBUF
	ForwardAlloc uint32 // reserved and not in use
	SendQueued   uint32 // the send queue, with what the kernel needs around it
	OptMem       uint32 // options, keys and filters
	Backlog      uint32 // received while a program had the socket locked
	Drops        uint32 // packets, not bytes: dropped by this socket
}

// An MD5Key is the key for the segments of certain peers (TCP_MD5SIG_EXT).
type MD5Key struct {
	Peers netip.Prefix
	Key   []byte
}
