package soccr

import (
	"slices"
	"time"
)

// A PathPolicy says how much of a snapshot's Path Restore carries over.
type PathPolicy int

// The policies. Whatever is carried over, is so only where the socket can be
// primed: see [WithPath].
const (
	// PathAuto carries over the round trip time of connections that are in use, and
	// the congestion window too if the snapshot is younger than a retransmission
	// timeout: so long a sender may keep it without word from its path (RFC 5681,
	// section 4.1). In use is what has something in its send queue, or has sent
	// within that timeout and opened its congestion window beyond the first one.
	// For the others, priming costs more than it gains.
	PathAuto PathPolicy = iota
	// PathSame carries over everything, also of idle connections: the caller knows
	// that the path is as it was.
	PathSame
	// PathRTT carries over the round trip time alone, also of idle connections.
	PathRTT
	// PathForget carries over nothing.
	PathForget
)

const (
	firstCwnd   = 10 // TCP_INIT_CWND, segments
	hystartLow  = 16 // segments; hystart_low_window, below which HyStart sleeps
	hystartMin  = 8  // HYSTART_MIN_SAMPLES, after which it looks at the next
	leastPrimed = hystartLow + hystartMin + 1
	maxPrimed   = 8192    // segments; a socket buffer of 10 MB
	leastRTO    = 200_000 // TCP_RTO_MIN, microseconds
	shortRTT    = 1000    // microseconds
	smallestMSS = 500     // that connect(2) leaves in repair mode, about
	bufferPer1  = 1280    // memory of a segment of one byte, bytes
	bbrStartup  = 289     // percent: BBR starts with this multiple of cwnd/RTT

	// longestWait is well before any timer would send a dummy that waits: after 1 s,
	// as long as no round trip time is known (tcp_schedule_loss_probe).
	longestWait = 500 * time.Millisecond
)

// infinite is the kernel's ssthresh of a connection that has seen no loss.
const infinite = 0x7fffffff

// A priming is what is done to a fresh socket so that it learns a path: rounds of
// dummy bytes that are never sent, and acknowledgements of them that are forged.
type priming struct {
	rounds []primingRound
	cwnd   int    // that the socket will have, about; 0 if that is as connect(2) leaves it
	rto    uint32 // likewise, microseconds; 0 if that follows from the round trip time

	// threshold: the socket will leave slow start there. It takes CUBIC.
	threshold bool
	// lenient: a smaller congestion window will do, and no threshold.
	lenient bool
}

// A primingRound queues dummy bytes, and then has them acknowledged.
type primingRound struct {
	dummies int           // bytes
	whole   bool          // in one write; otherwise each is a segment of its own
	wait    time.Duration // not 0: they are one segment, acknowledged after so long
	acks    []forgedAck
}

// A forgedAck acknowledges so many dummies, with a round trip time in
// microseconds.
type forgedAck struct {
	dummies int
	rtt     uint32
}

// bytes is how many dummies there are in all.
func (p *priming) bytes() (n int) {
	for i := range p.rounds {
		n += p.rounds[i].dummies
	}
	return n
}

// segments is how many segments the largest round has, and how many bytes.
func (p *priming) largest() (segments, bytes int) {
	for i := range p.rounds {
		r := &p.rounds[i]
		bytes = max(bytes, r.dummies)
		if !r.whole {
			segments = max(segments, r.dummies)
		}
	}
	return segments, bytes
}

// planPriming decides what to prime for; no rounds where there is nothing. Segments
// that the peer has sent may acknowledge so many bytes less than the snapshot does.
// Without timestamps it may take so long a wait.
func planPriming(snap *Snapshot, behind int, policy PathPolicy, wait time.Duration, now time.Time) priming {
	path := &snap.Path
	if policy == PathForget || policy == PathAuto && !snap.inUse(behind) || path.RTT == 0 || !snap.State.row().connected {
		return priming{}
	}
	if !snap.Timestamp.Enabled {
		return planWaiting(snap, behind, policy, wait, now)
	}
	var p priming
	if policy == PathSame || policy == PathAuto && path.young(now) {
		if p.rounds = primeCwnd(path, snap.targetCwnd()); p.rounds != nil {
			p.cwnd = snap.targetCwnd()
			p.threshold = path.Ssthresh != 0 && p.cwnd >= leastPrimed
		}
	}
	if p.rounds == nil {
		p.rounds = append(p.rounds, primingRound{dummies: 1, acks: repeat(1, path.RTT)})
	}
	p.reachBack(behind, path.RTT)
	// The first sample sets rttvar to twice itself, and each round trip with an
	// equal one takes a quarter off, down to TCP_RTO_MIN (tcp_rtt_estimator).
	v := max(2*uint64(path.RTT), leastRTO)
	decay := func() {
		p.rounds = append(p.rounds, primingRound{dummies: 1, acks: repeat(1, path.RTT)})
	}
	for ; v > leastRTO && uint64(path.RTT)+v > uint64(path.RTO)*11/10; v -= max((v-leastRTO)/4, 1000) {
		decay()
	}
	if v < 2*uint64(path.RTT) { // the first two do not count: mdev_max is still that of the first sample
		decay()
		decay()
	}
	if v > leastRTO {
		p.rto = path.RTO
	}
	return p
}

// planWaiting is for connections without timestamps: the kernel takes a sample from
// a segment that it has queued as any other, not in repair mode, and no other way.
func planWaiting(snap *Snapshot, behind int, policy PathPolicy, wait time.Duration, now time.Time) (p priming) {
	path := &snap.Path
	rtt := time.Duration(path.RTT) * time.Microsecond
	if rtt > min(wait, longestWait) {
		return p
	}
	const dummies = 2 // one makes the segment, the other moves it on, see queueReal
	p.rounds = []primingRound{{dummies: dummies, wait: rtt, acks: []forgedAck{{dummies, path.RTT}}}}
	// HyStart takes samples too; without a threshold the window would double.
	if path.Ssthresh == 0 && (policy == PathSame || policy == PathAuto && path.young(now)) {
		if rounds := primeCwnd(&Path{RTT: path.RTT}, snap.targetCwnd()); rounds != nil {
			p.rounds, p.cwnd = append(p.rounds, rounds...), snap.targetCwnd()
		}
	}
	p.reachBack(behind, path.RTT)
	return p
}

// reachBack makes room for segments that the peer sent so many bytes ago. One that
// acknowledges less than the last is discarded, with the data in it, unless so many
// bytes were acknowledged before (tcp_ack). Small parts leave the congestion window
// alone.
func (p *priming) reachBack(behind int, rtt uint32) {
	part := max(p.cwnd, firstCwnd) / 3 * smallestMSS
	for ; behind > 0; behind -= part {
		n := min(behind, part)
		p.rounds = append(p.rounds, primingRound{dummies: n, whole: true, acks: []forgedAck{{n, rtt}}})
	}
}

// inUse reports whether PathAuto carries the path over.
func (s *Snapshot) inUse(behind int) bool {
	return len(s.SendQueue) > 0 || behind > 0 || s.State.finPending() ||
		s.Path.Cwnd > firstCwnd && s.Path.Idle <= s.Path.timeout()
}

// young: a sender may rely on what it knew then.
func (p *Path) young(now time.Time) bool {
	age := now.UnixMilli() - p.Saved
	return 0 <= age && age <= int64(p.timeout())
}

// timeout is the retransmission timeout in milliseconds.
func (p *Path) timeout() uint32 { return max(p.RTO, leastRTO) / 1000 }

// targetCwnd is the congestion window to prime for.
func (s *Snapshot) targetCwnd() int {
	cwnd := uint64(min(s.Path.Cwnd, maxPrimed))
	if s.Options.Congestion == "bbr" && s.MSS > 0 {
		// BBR begins by pacing with a multiple of what cwnd and RTT give, and its
		// cwnd is a multiple of what the path holds. But what was in flight has to
		// have room.
		holds := s.Path.PacingRate * uint64(s.Path.RTT) / 1_000_000 * 100 / bbrStartup / uint64(s.MSS)
		cwnd = min(cwnd, max(holds, s.inFlight()))
	}
	if s.Path.RTT < shortRTT {
		cwnd = min(cwnd, s.inFlight()) // slow start takes less time than priming
	}
	return int(cwnd)
}

// inFlight is about how many segments are.
func (s *Snapshot) inFlight() uint64 { return uint64(s.Unacked())/uint64(max(s.MSS, 1)) + 2 }

// primeCwnd plans for a congestion window in slow start, where each dummy that is
// acknowledged adds a segment as long as the window is in use
// (tcp_is_cwnd_limited). Where the connection had left slow start, some come late,
// so that CUBIC's HyStart takes the window for the slow start threshold. What
// follows brings the round trip time back.
func primeCwnd(path *Path, cwnd int) []primingRound {
	grow := cwnd - firstCwnd
	switch {
	case grow <= 0:
		return nil
	case cwnd < leastPrimed:
		// In use means half of it in flight; as many acknowledgements make it about
		// as large as it is to be.
		round := primingRound{dummies: (cwnd + 1) / 2}
		round.acks = repeat(round.dummies, path.RTT)
		return []primingRound{round}
	}
	const settle = 36
	round := primingRound{dummies: grow}
	// Within one round trip rttvar does not decay: a first sample that is too long
	// makes it twice as much. It takes many equal ones to be forgotten: each takes an
	// eighth off. HyStart would then see no late ones (curr_rtt is the least).
	if v := path.variance(); path.Ssthresh == 0 && v > max(2*path.RTT, leastRTO)*11/10 {
		forget := 1
		for off := v/2 - path.RTT; off > 250; off -= off / 8 {
			forget++
		}
		if grow > 2*forget {
			round.acks = append(repeat(1, v/2), repeat(forget, path.RTT)...)
			grow -= forget + 1
		}
	}
	if path.Ssthresh == 0 {
		round.acks = append(round.acks, forgedAck{grow, path.RTT})
		return []primingRound{round}
	}
	// hystart_update: the delay is too large by an eighth, but by 4 to 16 ms.
	const samples = hystartMin + 1
	least := max(min(path.MinRTT, path.RTT), 1000)
	late := least + min(max(least/8, 4000), 16000) + 2000
	round.dummies += settle
	round.acks = append(round.acks, forgedAck{grow - samples, least})
	round.acks = append(round.acks, repeat(samples, late)...)
	round.acks = append(round.acks, repeat(settle, path.RTT)...)
	return []primingRound{round}
}

// repeat is so many acknowledgements of one dummy each.
func repeat(n int, rtt uint32) []forgedAck { return slices.Repeat([]forgedAck{{1, rtt}}, n) }

// variance is what the timeout has on top of the round trip time, microseconds.
func (p *Path) variance() uint32 { return max(min(p.RTO, maxRTT), p.RTT) - p.RTT }
