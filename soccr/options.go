package soccr

// sockets is a set of sockets: those of some transports, some families and some
// states. A single socket's has one bit of each.
type sockets uint16

const (
	onTCP sockets = 1 << iota
	onUDP
	onUDPLite
	onPing // SOCK_DGRAM of ICMP and ICMPv6
	onRaw

	onIPv4   // AF_INET
	onIPv6   // AF_INET6, connected to an IPv6 address, or of IPv6 alone
	onMapped // AF_INET6, connected to an IPv4-mapped address
	onDual   // AF_INET6 that may speak with both: TCP not connected, or UDP

	whenUnconnected // bound or not, or closed by both sides
	whenListening
	whenConnected // everything between: the kernel knows the peer

	onDatagram = onUDP | onUDPLite | onPing | onRaw
	inet6      = onIPv6 | onMapped | onDual
	everyIP    = onIPv4 | inet6
	everyState = whenUnconnected | whenListening | whenConnected

	every     = onTCP | onDatagram | everyIP | everyState
	speaking4 = onTCP | onDatagram | onIPv4 | onMapped | onDual | everyState
	speaking6 = onTCP | onDatagram | onIPv6 | onDual | everyState
	tcp       = onTCP | everyIP | everyState
	beginning = onTCP | everyIP | whenUnconnected | whenListening
	datagram  = onDatagram | everyIP | everyState
	datagram4 = onDatagram | onIPv4 | onDual | everyState
	datagram6 = onDatagram | onDual | onIPv6 | everyState
	udp       = onUDP | onUDPLite | everyIP | everyState
	ipv6Alone = onTCP | onPing | onRaw | onIPv6 | everyState // has no options of IPv4
)

// has reports whether a socket is one of these.
func (all sockets) has(one sockets) bool { return all&one == one }

// A phase is when an option is set.
type phase uint8

const (
	// beforeBind: it decides what bind(2) and connect(2) do.
	beforeBind phase = iota
	// beforeConnect: it belongs to what connect(2) or listen(2) starts.
	beforeConnect
	// afterConnect: earlier it would be overwritten, or disturb what Restore does.
	afterConnect
	// afterResume: it makes the kernel send, or signals arrive.
	afterResume
	// atLast: it keeps packets out, those that Restore injects too, and perhaps
	// cannot be changed any more.
	atLast
)

// A level is the protocol that an option belongs to.
type level uint8

const (
	socketLevel level = iota
	tcpLevel
	udpLevel
	ipLevel
	ipv6Level
	rawLevel
	icmpv6Level
	fileLevel // not an option, but fcntl(2)
)

// A kind is how an option's value looks, in the kernel and in a Setting.
type kind uint8

const (
	intKind       kind = iota // int
	longKind                  // unsigned long; its largest value is "no limit"
	timeKind                  // struct timeval, as microseconds
	lingerKind                // struct linger, as seconds, there if it is on
	pairKind                  // two 32-bit fields
	bindKind                  // device: read as SO_BINDTOIFINDEX, set by name
	deviceKind                // device: an index
	netDeviceKind             // device: an index in network byte order
	addressKind               // struct in_addr, as text
	bytesKind                 // whatever it is
	filterKind                // struct sock_fprog
	flagKind                  // bit of F_GETFL
	signalKind                // F_GETSIG
	ownerKind                 // F_GETOWN_EX
	probeKind                 // not kept: its length tells whether others are set
	goneKind                  // shows that something is there that cannot be read
)

// An option is a row of the table: one thing that a program can set on its
// socket, that is, read there and set on another.
type option struct {
	name   string
	level  level
	number int // of asm-generic/socket.h; see numbers for other architectures
	kind   kind
	on     sockets
	phase  phase
	// hard: the socket would talk to others, or let others talk to it, without
	// this; Restore fails if it cannot be set. Others are a Loss.
	hard bool
	// normal is the default, as built into the kernel. An option that has it is
	// not in a snapshot: on another host it has that host's default.
	normal int64
	// min and max bound the number, or the bytes' number.
	min, max int64
	// slack is by how much a value may be larger when it is read back: the kernel
	// counts time in ticks of up to 10 ms.
	slack int64
	// inMemory: SO_MEMINFO tells of memory if this is set (sk_omem_alloc).
	inMemory bool
	// ifSet: an option has its default unless this one, read before, has not.
	ifSet string
	// with: setting that one changes this one, which is therefore kept even with
	// its default.
	with string
}

const (
	maxUint32 = 1<<32 - 1
	maxBytes  = 2048    // of an IPv6 header
	maxTime   = 1 << 53 // microseconds
	tick      = 10_000  // microseconds
)

// options is the table, in the order in which options are read and, within a
// phase, set.
var options = [...]option{
	// What bind(2) and connect(2) depend on.
	{name: "SO_REUSEPORT", number: 15, on: every, hard: true, max: 1},
	{name: "SO_MARK", number: 36, on: every, hard: true, min: -1 << 31, max: maxInt},
	{name: "SO_BINDTODEVICE", number: 25, kind: bindKind, on: every, hard: true},
	{name: "SO_DONTROUTE", number: 5, on: every, hard: true, max: 1},
	{name: "IPV6_V6ONLY", level: ipv6Level, number: 26, on: onTCP | onUDP | onUDPLite | inet6 | everyState, hard: true, max: 1},
	{name: "IP_FREEBIND", level: ipLevel, number: 15, on: speaking4, hard: true, max: 1},
	{name: "IPV6_FREEBIND", level: ipv6Level, number: 78, on: ipv6Alone, hard: true, max: 1},
	{name: "IP_TRANSPARENT", level: ipLevel, number: 19, on: speaking4, hard: true, max: 1},
	{name: "IPV6_TRANSPARENT", level: ipv6Level, number: 75, on: ipv6Alone, hard: true, max: 1},
	{name: "IP_BIND_ADDRESS_NO_PORT", level: ipLevel, number: 24, on: every, max: 1},
	{name: "IP_LOCAL_PORT_RANGE", level: ipLevel, number: 51, on: every, min: -1 << 31, max: maxInt},
	{name: "IP_UNICAST_IF", level: ipLevel, number: 50, kind: netDeviceKind, on: datagram4, hard: true},
	{name: "IPV6_UNICAST_IF", level: ipv6Level, number: 76, kind: netDeviceKind, on: datagram6, hard: true},
	{name: "IPV6_ADDR_PREFERENCES", level: ipv6Level, number: 72, on: speaking6, normal: 0x500, max: 0xffff},
	{name: "SO_INCOMING_CPU", number: 49, on: onTCP | onDatagram | everyIP | whenUnconnected | whenListening, normal: -1, max: maxInt},
	// The priority follows IP_TOS when that is set (ip_sock_set_tos).
	{name: "IP_TOS", level: ipLevel, number: 1, on: speaking4, hard: true, max: 255},
	{name: "SO_PRIORITY", number: 12, on: every, hard: true, with: "IP_TOS", max: maxInt},
	{name: "IPV6_TCLASS", level: ipv6Level, number: 67, on: speaking6, hard: true, max: 255},
	{name: "IPV6_FLOWINFO_SEND", level: ipv6Level, number: 33, on: speaking6, max: 1},
	{name: "IPV6_AUTOFLOWLABEL", level: ipv6Level, number: 70, on: speaking6, normal: 1, max: 1},

	// How packets are sent, from the first one on.
	{name: "IP_TTL", level: ipLevel, number: 2, on: speaking4, phase: beforeConnect, hard: true, normal: 64, min: 1, max: 255},
	{name: "IPV6_UNICAST_HOPS", level: ipv6Level, number: 16, on: speaking6, phase: beforeConnect, hard: true, normal: 64, max: 255},
	{name: "IP_MTU_DISCOVER", level: ipLevel, number: 10, on: speaking4, phase: beforeConnect, hard: true, normal: 1, max: 255},
	{name: "IPV6_MTU_DISCOVER", level: ipv6Level, number: 23, on: speaking6, phase: beforeConnect, hard: true, normal: 1, max: 255},
	{name: "IPV6_DONTFRAG", level: ipv6Level, number: 62, on: datagram6, phase: beforeConnect, max: 1},
	{name: "SO_TXREHASH", number: 74, on: tcp, phase: beforeConnect, normal: 1, max: 1},
	{name: "TCP_MAXSEG", level: tcpLevel, number: 2, on: onTCP | everyIP | whenListening, phase: beforeConnect, normal: 536, min: 88, max: 32767},
	{name: "TCP_WINDOW_CLAMP", level: tcpLevel, number: 10, on: beginning, phase: beforeConnect, min: 1, max: maxInt},
	{name: "TCP_SYNCNT", level: tcpLevel, number: 7, on: tcp, phase: beforeConnect, normal: 6, min: 1, max: 127},
	{name: "TCP_DEFER_ACCEPT", level: tcpLevel, number: 9, on: tcp, phase: beforeConnect, max: maxInt},
	{name: "TCP_FASTOPEN", level: tcpLevel, number: 23, on: beginning, phase: beforeConnect, max: maxInt},
	{name: "TCP_FASTOPEN_KEY", level: tcpLevel, number: 33, kind: bytesKind, on: beginning, phase: beforeConnect, ifSet: "TCP_FASTOPEN", min: 16, max: 32},
	{name: "TCP_FASTOPEN_CONNECT", level: tcpLevel, number: 30, on: onTCP | everyIP | whenUnconnected, phase: beforeConnect, max: 1},
	{name: "TCP_FASTOPEN_NO_COOKIE", level: tcpLevel, number: 34, on: beginning, phase: beforeConnect, max: 1},
	{name: "TCP_SAVE_SYN", level: tcpLevel, number: 27, on: beginning, phase: beforeConnect, max: 2},
	{name: "TCP_USER_TIMEOUT", level: tcpLevel, number: 18, on: tcp, phase: beforeConnect, hard: true, max: maxInt},
	{name: "TCP_LINGER2", level: tcpLevel, number: 8, on: tcp, phase: beforeConnect, normal: 60, min: -1, max: maxInt},
	{name: "TCP_THIN_LINEAR_TIMEOUTS", level: tcpLevel, number: 16, on: tcp, phase: beforeConnect, max: 1},
	{name: "TCP_TX_DELAY", level: tcpLevel, number: 37, on: tcp, phase: beforeConnect, max: maxInt},
	{name: "TCP_RTO_MIN_US", level: tcpLevel, number: 45, on: tcp, phase: beforeConnect, normal: 200000, max: maxInt, slack: tick},
	{name: "TCP_DELACK_MAX_US", level: tcpLevel, number: 46, on: tcp, phase: beforeConnect, normal: 200000, max: maxInt, slack: tick},
	{name: "UDP_SEGMENT", level: udpLevel, number: 103, on: onUDP | everyIP | everyState, phase: beforeConnect, max: 65535},
	{name: "UDP_NO_CHECK6_TX", level: udpLevel, number: 101, on: udp, phase: beforeConnect, max: 1},
	{name: "UDPLITE_SEND_CSCOV", level: udpLevel, number: 10, on: onUDPLite | everyIP | everyState, phase: beforeConnect, hard: true, max: 65535},
	{name: "SO_NO_CHECK", number: 11, on: every, phase: beforeConnect, max: 1},
	{name: "SO_BROADCAST", number: 6, on: every, phase: beforeConnect, max: 1},
	{name: "SO_ZEROCOPY", number: 60, on: every, phase: beforeConnect, max: 1},
	{name: "SO_TXTIME", number: 61, kind: pairKind, on: datagram, phase: beforeConnect, max: maxInt},
	{name: "SO_RESERVE_MEM", number: 73, on: every, phase: beforeConnect, max: maxInt},
	{name: "IP_MULTICAST_TTL", level: ipLevel, number: 33, on: datagram4, phase: beforeConnect, hard: true, normal: 1, max: 255},
	{name: "IP_MULTICAST_LOOP", level: ipLevel, number: 34, on: datagram4, phase: beforeConnect, normal: 1, max: 1},
	// That is the address; set by index alone, it cannot be read.
	{name: "IP_MULTICAST_IF", level: ipLevel, number: 32, kind: addressKind, on: datagram4, phase: beforeConnect, hard: true},
	{name: "IPV6_MULTICAST_HOPS", level: ipv6Level, number: 18, on: datagram6, phase: beforeConnect, hard: true, normal: 1, max: 255},
	{name: "IPV6_MULTICAST_LOOP", level: ipv6Level, number: 19, on: datagram6, phase: beforeConnect, normal: 1, max: 1},
	{name: "IPV6_MULTICAST_IF", level: ipv6Level, number: 17, kind: deviceKind, on: datagram6, phase: beforeConnect, hard: true},

	// What a datagram has to be like to be received. AF_INET6 sockets have
	// another default for IP_MULTICAST_ALL, which they have no use for.
	{name: "IP_MULTICAST_ALL", level: ipLevel, number: 49, on: onDatagram | onIPv4 | everyState, phase: beforeConnect, normal: 1, max: 1},
	{name: "IPV6_MULTICAST_ALL", level: ipv6Level, number: 29, on: datagram6, phase: beforeConnect, normal: 1, max: 1},
	{name: "UDP_GRO", level: udpLevel, number: 104, on: onUDP | everyIP | everyState, phase: beforeConnect, max: 1},
	{name: "UDP_NO_CHECK6_RX", level: udpLevel, number: 102, on: udp, phase: beforeConnect, max: 1},
	{name: "UDPLITE_RECV_CSCOV", level: udpLevel, number: 11, on: onUDPLite | everyIP | everyState, phase: beforeConnect, hard: true, max: 65535},

	// What raw sockets send and receive. The kernel's defaults differ by protocol, so
	// that the first four have none here.
	{name: "IP_HDRINCL", level: ipLevel, number: 3, on: onRaw | onIPv4 | everyState, phase: beforeConnect, hard: true, normal: -1, max: 1},
	{name: "IPV6_HDRINCL", level: ipv6Level, number: 36, on: onRaw | onIPv6 | everyState, phase: beforeConnect, hard: true, normal: -1, max: 1},
	{name: "IPV6_CHECKSUM", level: rawLevel, number: 7, on: onRaw | onIPv6 | everyState, phase: beforeConnect, hard: true, normal: -2, min: -1, max: maxInt},
	{name: "ICMPV6_FILTER", level: icmpv6Level, number: 1, kind: bytesKind, on: onRaw | onIPv6 | everyState, phase: beforeConnect, min: 32, max: 32},
	{name: "ICMP_FILTER", level: rawLevel, number: 1, on: onRaw | onIPv4 | everyState, phase: beforeConnect, min: -1 << 31, max: maxInt},
	{name: "IP_NODEFRAG", level: ipLevel, number: 22, on: onRaw | onIPv4 | everyState, phase: beforeConnect, max: 1},

	// What comes with received data. TCP keeps some of it of the last segment
	// (IP_PKTOPTIONS); if it keeps nothing, none of these options is set.
	{name: "IP_PKTOPTIONS", level: ipLevel, number: 9, kind: probeKind, on: onTCP | onIPv4 | onMapped | onDual | everyState},
	{name: "IP_PKTINFO", level: ipLevel, number: 8, on: speaking4, phase: afterConnect, ifSet: "IP_PKTOPTIONS", max: 1},
	{name: "IP_RECVTTL", level: ipLevel, number: 12, on: speaking4, phase: afterConnect, ifSet: "IP_PKTOPTIONS", max: 1},
	{name: "IP_RECVTOS", level: ipLevel, number: 13, on: speaking4, phase: afterConnect, ifSet: "IP_PKTOPTIONS", max: 1},
	{name: "IP_RECVOPTS", level: ipLevel, number: 6, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_RETOPTS", level: ipLevel, number: 7, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_PASSSEC", level: ipLevel, number: 18, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_ORIGDSTADDR", level: ipLevel, number: 20, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_CHECKSUM", level: ipLevel, number: 23, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_RECVFRAGSIZE", level: ipLevel, number: 25, on: datagram4, phase: afterConnect, max: 1},
	{name: "IP_RECVERR", level: ipLevel, number: 11, on: speaking4, phase: afterConnect, max: 1},
	{name: "IP_RECVERR_RFC4884", level: ipLevel, number: 26, on: datagram4, phase: afterConnect, max: 1},
	{name: "IPV6_2292PKTOPTIONS", level: ipv6Level, number: 6, kind: probeKind, on: onTCP | onIPv6 | onDual | everyState},
	{name: "IPV6_RECVPKTINFO", level: ipv6Level, number: 49, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_RECVHOPLIMIT", level: ipv6Level, number: 51, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_RECVTCLASS", level: ipv6Level, number: 66, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_FLOWINFO", level: ipv6Level, number: 11, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_2292PKTINFO", level: ipv6Level, number: 2, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_2292HOPLIMIT", level: ipv6Level, number: 8, on: speaking6, phase: afterConnect, ifSet: "IPV6_2292PKTOPTIONS", max: 1},
	{name: "IPV6_RECVHOPOPTS", level: ipv6Level, number: 53, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVRTHDR", level: ipv6Level, number: 56, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVDSTOPTS", level: ipv6Level, number: 58, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_2292HOPOPTS", level: ipv6Level, number: 3, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_2292DSTOPTS", level: ipv6Level, number: 4, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_2292RTHDR", level: ipv6Level, number: 5, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVPATHMTU", level: ipv6Level, number: 60, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_ORIGDSTADDR", level: ipv6Level, number: 74, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVFRAGSIZE", level: ipv6Level, number: 77, on: datagram6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVERR", level: ipv6Level, number: 25, on: speaking6, phase: afterConnect, max: 1},
	{name: "IPV6_RECVERR_RFC4884", level: ipv6Level, number: 31, on: datagram6, phase: afterConnect, max: 1},
	{name: "SO_RXQ_OVFL", number: 40, on: datagram, phase: afterConnect, max: 1},
	{name: "SO_RCVMARK", number: 75, on: datagram, phase: afterConnect, max: 1},
	{name: "SO_RCVPRIORITY", number: 82, on: datagram, phase: afterConnect, max: 1},
	{name: "SO_SELECT_ERR_QUEUE", number: 45, on: datagram, phase: afterConnect, max: 1},
	{name: "SO_WIFI_STATUS", number: 41, on: every, phase: afterConnect, max: 1},
	// Of each of these, a socket has one form at most; the new ones have 64-bit times.
	{name: "SO_TIMESTAMP", number: 29, on: every, phase: afterConnect, max: 1},
	{name: "SO_TIMESTAMPNS", number: 35, on: every, phase: afterConnect, max: 1},
	{name: "SO_TIMESTAMP_NEW", number: 63, on: every, phase: afterConnect, max: 1},
	{name: "SO_TIMESTAMPNS_NEW", number: 64, on: every, phase: afterConnect, ifSet: "SO_TIMESTAMP_NEW", max: 1},
	{name: "SO_TIMESTAMPING", number: 37, kind: pairKind, on: every, phase: afterConnect, max: maxInt},
	{name: "SO_TIMESTAMPING_NEW", number: 65, kind: pairKind, on: every, phase: afterConnect, ifSet: "SO_TIMESTAMPING", max: maxInt},
	{name: "TCP_INQ", level: tcpLevel, number: 36, on: tcp, phase: afterConnect, max: 1},

	// How the program reads, writes and waits.
	{name: "SO_LINGER", number: 13, kind: lingerKind, on: every, phase: afterConnect, hard: true, max: maxInt},
	{name: "SO_OOBINLINE", number: 10, on: every, phase: afterConnect, hard: true, max: 1},
	{name: "SO_RCVTIMEO", number: 20, kind: timeKind, on: every, phase: afterConnect, max: maxTime, slack: tick},
	{name: "SO_SNDTIMEO", number: 21, kind: timeKind, on: every, phase: afterConnect, max: maxTime, slack: tick},
	{name: "SO_RCVLOWAT", number: 18, on: every, phase: afterConnect, normal: 1, min: 1, max: maxInt},
	{name: "TCP_NOTSENT_LOWAT", level: tcpLevel, number: 25, on: tcp, phase: afterConnect, min: -1 << 31, max: maxInt},
	{name: "SO_MAX_PACING_RATE", number: 47, kind: longKind, on: every, phase: afterConnect, normal: -1, max: 1<<63 - 1},
	{name: "SO_BUSY_POLL", number: 46, on: every, phase: afterConnect, max: maxInt},
	{name: "SO_PREFER_BUSY_POLL", number: 69, on: every, phase: afterConnect, max: 1},
	// The times come before the switch, which starts the timer.
	{name: "TCP_KEEPIDLE", level: tcpLevel, number: 4, on: tcp, phase: afterConnect, hard: true, normal: 7200, min: 1, max: 32767},
	{name: "TCP_KEEPINTVL", level: tcpLevel, number: 5, on: tcp, phase: afterConnect, hard: true, normal: 75, min: 1, max: 32767},
	{name: "TCP_KEEPCNT", level: tcpLevel, number: 6, on: tcp, phase: afterConnect, hard: true, normal: 9, min: 1, max: 127},
	{name: "SO_KEEPALIVE", number: 9, on: every, phase: afterConnect, hard: true, max: 1},

	// Headers on top of those that IP needs. Computing the size of segments takes
	// them away (SyncMSS), so they come after it.
	{name: "IP_OPTIONS", level: ipLevel, number: 4, kind: bytesKind, on: speaking4, phase: afterConnect, hard: true, min: 4, max: 40},
	{name: "IPV6_HOPOPTS", level: ipv6Level, number: 54, kind: bytesKind, on: speaking6, phase: afterConnect, hard: true, inMemory: true, min: 8, max: maxBytes},
	{name: "IPV6_RTHDRDSTOPTS", level: ipv6Level, number: 55, kind: bytesKind, on: speaking6, phase: afterConnect, hard: true, inMemory: true, min: 8, max: maxBytes},
	{name: "IPV6_RTHDR", level: ipv6Level, number: 57, kind: bytesKind, on: speaking6, phase: afterConnect, hard: true, inMemory: true, min: 8, max: maxBytes},
	{name: "IPV6_DSTOPTS", level: ipv6Level, number: 59, kind: bytesKind, on: speaking6, phase: afterConnect, hard: true, inMemory: true, min: 8, max: maxBytes},

	// What makes the kernel send, or signals arrive. Restore has used the bound of
	// the timers for itself.
	{name: "TCP_RTO_MAX_MS", level: tcpLevel, number: 44, on: tcp, phase: afterResume, normal: 120000, min: 1000, max: maxInt, slack: 10},
	// The kernel changes this one by itself, when segments arrive in disorder.
	{name: "TCP_QUICKACK", level: tcpLevel, number: 12, on: onTCP | everyIP | whenUnconnected | whenConnected, phase: afterResume, normal: 1, max: 1},
	{name: "TCP_NODELAY", level: tcpLevel, number: 1, on: tcp, phase: afterResume, hard: true, max: 1},
	{name: "TCP_CORK", level: tcpLevel, number: 3, on: tcp, phase: afterResume, hard: true, max: 1},
	{name: "F_SETOWN", level: fileLevel, kind: ownerKind, on: every, phase: afterResume, max: maxInt},
	{name: "F_SETSIG", level: fileLevel, kind: signalKind, on: every, phase: afterResume, ifSet: "F_SETOWN", min: 1, max: 64},
	{name: "O_ASYNC", level: fileLevel, number: 0x2000, kind: flagKind, on: every, phase: afterResume, min: 1, max: 1},

	// What keeps packets out; once the filter is locked, nobody can change it.
	{name: "IP_MINTTL", level: ipLevel, number: 21, on: speaking4, phase: atLast, hard: true, max: 255},
	{name: "IPV6_MINHOPCOUNT", level: ipv6Level, number: 73, on: speaking6, phase: atLast, hard: true, max: 255},
	{name: "SO_ATTACH_FILTER", number: 26, kind: filterKind, on: every, phase: atLast, hard: true, inMemory: true, min: filterSize, max: 4096 * filterSize},
	{name: "SO_ATTACH_BPF", number: 50, kind: goneKind, on: every, phase: atLast, ifSet: "SO_ATTACH_FILTER", min: 1, max: 1},
	{name: "SO_LOCK_FILTER", number: 44, on: every, phase: atLast, hard: true, max: 1},
}

// A chosen option is one that a socket is to have.
type chosen struct {
	row     *option
	order   int // the row's place in the table
	setting Setting
	refused error // why it is not even tried
	lost    bool
}

// memory is what of SO_MEMINFO (Linux 4.12) matters here, in bytes.
type memory struct {
	recvAlloc, recvBuffer, sendAlloc, sendBuffer uint32
	// sendQueue is what the send queue takes, with the structures that hold it.
	sendQueue uint32
	// options is what filters, keys of TCP-MD5 and headers of IPv6 take, each of
	// them some (sk_omem_alloc).
	options uint32
}

// early is what is read of a stopped program's socket while the connection goes on:
// the options, of a kind of sockets, which packets do not change, and the rest, which
// holds as long as none comes.
type early struct {
	options Options // without the buffers' sizes
	on      sockets

	segsIn uint32
	memory memory
	clamp  uint32 // of the window
	marked bool   // an urgent byte is next, be it that it has not come yet
}

// optionIndex finds an option's row by its name.
var optionIndex = func() map[string]int {
	index := make(map[string]int, len(options))
	for i := range options {
		index[options[i].name] = i
	}
	return index
}()

// row is the row of an option of that name, or nil.
func row(name string) *option {
	if i, ok := optionIndex[name]; ok {
		return &options[i]
	}
	return nil
}
