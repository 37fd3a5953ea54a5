package soccr

import (
	"net/netip"

	"github.com/gosoccr/gosoccr/rawfin"
)

// A Socket is a TCP socket in repair mode: paused. Its methods must not be
// called concurrently.
type Socket struct {
	fd int // the caller's; never closed here

	// claimedAs is the socket's cookie while it is claimed, see claim.
	claimedAs uint64

	// given are the options of Pause, options those and Restore's.
	given   []Option
	options settings

	// located: local and remote were read before the flow was locked, or given.
	// early are options that were, too.
	located bool
	early   *early

	// reuseAddr is the program's SO_REUSEADDR, which repair mode overwrites.
	reuseAddr bool
	// nonBlocking: the socket is known to be, as it is new.
	nonBlocking bool
	// local and remote are the connection's ends as far as known, for errors.
	local, remote netip.AddrPort
	// fresh, if not nil, is shared by who makes many sockets of one namespace.
	fresh *fresh
	// seen: Save has looked at the send queue, whose last seenUnsent bytes had
	// not been sent when seenLeft, a sum of counters of sent data, was read.
	seen       bool
	seenUnsent int
	seenLeft   uint64
	// restored is what Restore put into the socket, for Resume to finish.
	restored *Snapshot
	// over is the connection of which Restore has made a closed socket.
	over *Snapshot
	// snap and plan are what Restore is putting into the socket.
	snap *Snapshot
	plan windowPlan
	// selected is the queue that is, in repair mode.
	selected Queue
	// sized: a buffer was set, so that the kernel does not tune it.
	sized bool
	// bound: Disconnect may have left its port to it. gated: see closeGate.
	bound, gated bool
	// priming is what Restore primes it for; postponed is the congestion control
	// that takes over then.
	priming   priming
	postponed string
	effects   Effects
	// way is whether injected packets arrive: unknown, proven or barred.
	way int
	// trimmed is how many bytes fewer than in the snapshot are in flight.
	trimmed int
	// receivedBefore is the kernel's count of received bytes after Restore.
	receivedBefore uint64
	// rcvWup is what we had acknowledged, at the least.
	rcvWup uint32
	// send is how the send queue is put back.
	send sendPlan
	// rtoMax is the bound of the timers, in milliseconds, that Resume puts back.
	rtoMax int
	// injectors are open while one call injects, see closeInjectors.
	injectors map[door]*rawfin.Injector
	// chosen are the socket options that Restore sets, losses those that it could not.
	chosen []chosen
	losses []Loss
	// lastApplied: those of the phase atLast are set.
	lastApplied bool
}

// A fresh is what new sockets of a network namespace have, as one of them had it. If
// that has changed since, it is noticed: once the socket is connected, both are
// read.
type fresh struct {
	recvBuffer int
	congestion string
}

// Queue names one of a socket's two queues, as TCP_REPAIR_QUEUE does.
type Queue int

// The queues.
const (
	NoQueue   Queue = 0 // TCP_NO_QUEUE
	RecvQueue Queue = 1 // TCP_RECV_QUEUE
	SendQueue Queue = 2 // TCP_SEND_QUEUE
)

// String gives the queue's name.
func (q Queue) String() string {
	switch q {
	case RecvQueue:
		return "receive queue"
	case SendQueue:
		return "send queue"
	default:
		return "no queue"
	}
}

// Negotiated is what the two ends agreed on in the handshake.
type Negotiated struct {
	MSS                  uint32 // largest segment the peer accepts, bytes (mss_clamp)
	WindowScaling        bool
	SendScale, RecvScale uint8 // shifts of the peer's window and of ours
	SACK                 bool
	Timestamps           bool
	Microseconds         bool // timestamp resolution, see Timestamp
	ECN                  bool // read only: it cannot be restored
}
