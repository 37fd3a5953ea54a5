package soccr

// sockets is a set of sockets: those of some transports, some families and some
// states. A single socket's has one bit of each.
type sockets uint16

const (
	onTCP sockets = 1 << iota
	onUDP
	onUDPLite

	onIPv4   // AF_INET
	onIPv6   // AF_INET6, connected to an IPv6 address
	onMapped // AF_INET6, connected to an IPv4-mapped address
	onDual   // AF_INET6 that may speak with both: not connected, or not TCP

	whenUnconnected // bound or not, or closed by both sides
	whenListening
	whenConnected // everything between: the kernel knows the peer

	onDatagram = onUDP | onUDPLite
	onAny      = onTCP | onDatagram
	speaking4  = onIPv4 | onMapped | onDual
	speaking6  = onIPv6 | onDual
	inet6      = speaking6 | onMapped
	everyIP    = onIPv4 | inet6
	everyState = whenUnconnected | whenListening | whenConnected
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
)

// A level is the protocol that an option belongs to.
type level uint8

const (
	socketLevel level = iota
	tcpLevel
	udpLevel
	ipLevel
	ipv6Level
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
	// What bind and connect depend on.
	{name: "SO_REUSEPORT", number: 15, on: onAny | everyIP | everyState, hard: true, max: 1},
	{name: "SO_MARK", number: 36, on: onAny | everyIP | everyState, hard: true, min: -1 << 31, max: maxInt},
	{name: "SO_BINDTODEVICE", number: 25, kind: bindKind, on: onAny | everyIP | everyState, hard: true},
	{name: "SO_DONTROUTE", number: 5, on: onAny | everyIP | everyState, hard: true, max: 1},
	{name: "IPV6_V6ONLY", level: ipv6Level, number: 26, on: onAny | inet6 | everyState, hard: true, max: 1},
	{name: "IP_FREEBIND", level: ipLevel, number: 15, on: onAny | speaking4 | everyState, hard: true, max: 1},
	{name: "IPV6_FREEBIND", level: ipv6Level, number: 78, on: onAny | onIPv6 | everyState, hard: true, max: 1},
	{name: "IP_TRANSPARENT", level: ipLevel, number: 19, on: onAny | speaking4 | everyState, hard: true, max: 1},
	{name: "IPV6_TRANSPARENT", level: ipv6Level, number: 75, on: onAny | onIPv6 | everyState, hard: true, max: 1},
	{name: "IP_BIND_ADDRESS_NO_PORT", level: ipLevel, number: 24, on: onAny | everyIP | everyState, max: 1},
	{name: "IP_LOCAL_PORT_RANGE", level: ipLevel, number: 51, on: onAny | everyIP | everyState, min: -1 << 31, max: maxInt},
	// The priority follows IP_TOS when that is set (ip_sock_set_tos).
	{name: "IP_TOS", level: ipLevel, number: 1, on: onAny | speaking4 | everyState, max: 255},
	{name: "SO_PRIORITY", number: 12, on: onAny | everyIP | everyState, with: "IP_TOS", max: maxInt},
	{name: "IPV6_TCLASS", level: ipv6Level, number: 67, on: onAny | speaking6 | everyState, max: 255},

	{name: "IP_TTL", level: ipLevel, number: 2, on: onAny | speaking4 | everyState, phase: beforeConnect, normal: 64, min: 1, max: 255},
	{name: "IPV6_UNICAST_HOPS", level: ipv6Level, number: 16, on: onAny | speaking6 | everyState, phase: beforeConnect, normal: 64, max: 255},
	{name: "IP_MTU_DISCOVER", level: ipLevel, number: 10, on: onAny | speaking4 | everyState, phase: beforeConnect, normal: 1, max: 5},
	{name: "IPV6_MTU_DISCOVER", level: ipv6Level, number: 23, on: onAny | speaking6 | everyState, phase: beforeConnect, normal: 1, max: 5},
	{name: "TCP_SYNCNT", level: tcpLevel, number: 7, on: onTCP | everyIP | everyState, phase: beforeConnect, normal: 6, min: 1, max: 127},
	{name: "TCP_USER_TIMEOUT", level: tcpLevel, number: 18, on: onTCP | everyIP | everyState, phase: beforeConnect, max: maxInt},

	{name: "SO_TIMESTAMPING", number: 37, kind: pairKind, on: onAny | everyIP | everyState, phase: afterConnect, max: maxInt},
	{name: "SO_LINGER", number: 13, kind: lingerKind, on: onAny | everyIP | everyState, phase: afterConnect, hard: true, max: maxInt},
	{name: "SO_OOBINLINE", number: 10, on: onAny | everyIP | everyState, phase: afterConnect, hard: true, max: 1},
	{name: "SO_RCVTIMEO", number: 20, kind: timeKind, on: onAny | everyIP | everyState, phase: afterConnect, max: maxTime, slack: tick},
	{name: "SO_SNDTIMEO", number: 21, kind: timeKind, on: onAny | everyIP | everyState, phase: afterConnect, max: maxTime, slack: tick},
	{name: "SO_RCVLOWAT", number: 18, on: onAny | everyIP | everyState, phase: afterConnect, normal: 1, min: 1, max: maxInt},
	{name: "SO_MAX_PACING_RATE", number: 47, kind: longKind, on: onAny | everyIP | everyState, phase: afterConnect, normal: -1, max: 1<<63 - 1},
	// The times come before the switch, which starts the timer.
	{name: "TCP_KEEPIDLE", level: tcpLevel, number: 4, on: onTCP | everyIP | everyState, phase: afterConnect, hard: true, normal: 7200, min: 1, max: 32767},
	{name: "TCP_KEEPINTVL", level: tcpLevel, number: 5, on: onTCP | everyIP | everyState, phase: afterConnect, hard: true, normal: 75, min: 1, max: 32767},
	{name: "TCP_KEEPCNT", level: tcpLevel, number: 6, on: onTCP | everyIP | everyState, phase: afterConnect, hard: true, normal: 9, min: 1, max: 127},
	{name: "SO_KEEPALIVE", number: 9, on: onAny | everyIP | everyState, phase: afterConnect, hard: true, max: 1},

	// A filter drops what Restore injects; once it is locked, nobody can change it.
	{name: "SO_ATTACH_FILTER", number: 26, kind: filterKind, on: onAny | everyIP | everyState, phase: afterConnect, hard: true, min: filterSize, max: 4096 * filterSize},
	{name: "SO_ATTACH_BPF", number: 50, kind: goneKind, on: onAny | everyIP | everyState, phase: afterConnect, ifSet: "SO_ATTACH_FILTER", min: 1, max: 1},
	{name: "SO_LOCK_FILTER", number: 44, on: onAny | everyIP | everyState, phase: afterConnect, hard: true, max: 1},

	// What makes the kernel send, or signals arrive.
	{name: "TCP_NODELAY", level: tcpLevel, number: 1, on: onTCP | everyIP | everyState, phase: afterResume, hard: true, max: 1},
	{name: "TCP_CORK", level: tcpLevel, number: 3, on: onTCP | everyIP | everyState, phase: afterResume, hard: true, max: 1},
	{name: "F_SETOWN", level: fileLevel, kind: ownerKind, on: onAny | everyIP | everyState, phase: afterResume, max: maxInt},
	{name: "F_SETSIG", level: fileLevel, kind: signalKind, on: onAny | everyIP | everyState, phase: afterResume, ifSet: "F_SETOWN", min: 1, max: 64},
	{name: "O_ASYNC", level: fileLevel, number: 0x2000, kind: flagKind, on: onAny | everyIP | everyState, phase: afterResume, min: 1, max: 1},
}

// A chosen option is one that a socket is to have.
type chosen struct {
	row     *option
	setting Setting
	lost    bool
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
