package soccr

import "time"

// A PathPolicy says how much of a snapshot's Path Restore carries over.
type PathPolicy int

// The policies. Whatever is carried over, is so only where the socket can be
// primed: see [WithPath].
const (
	// PathAuto carries over the round trip time of connections that are in use, and
	// the congestion window too if the snapshot is younger than a retransmission
	// timeout: so long a sender may keep it without word from its path (RFC 5681,
	// section 4.1).
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
	firstCwnd   = 10      // TCP_INIT_CWND, segments
	maxPrimed   = 8192    // segments; a socket buffer of 10 MB
	leastRTO    = 200_000 // TCP_RTO_MIN, microseconds
	inUse       = 1000    // milliseconds since data were sent last
	bufferPer1  = 1280    // memory of a segment of one byte, bytes
	bbr2Startup = 289     // percent: BBR starts with this multiple of cwnd/RTT
)

// infinite is the kernel's ssthresh of a connection that has seen no loss.
const infinite = 0x7fffffff

// A priming is what is done to a fresh socket so that it learns a path: rounds of
// dummy bytes that are never sent, and acknowledgements of them that are forged.
type priming struct {
	rounds []primingRound
	slow   bool // cwnd stays as connect(2) left it
}

// A primingRound queues one-byte segments, and then has them acknowledged.
type primingRound struct {
	dummies int
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

// planPriming decides what to prime for; no rounds where there is nothing.
func planPriming(snap *Snapshot, policy PathPolicy, now time.Time) priming {
	path := &snap.Path
	active := len(snap.SendQueue) > 0 || path.Idle < inUse
	if policy == PathForget || policy == PathAuto && !active || path.RTT == 0 || !snap.Timestamp.Enabled ||
		!snap.State.row().connected {
		return priming{}
	}
	var p priming
	age := now.UnixMilli() - path.Saved
	young := 0 <= age && age <= int64(max(path.RTO, leastRTO)/1000)
	if policy == PathSame || policy == PathAuto && young {
		p.rounds = append(p.rounds, primeCwnd(path, snap.targetCwnd())...)
	}
	p.slow = len(p.rounds) == 0
	if p.slow {
		p.rounds = append(p.rounds, primingRound{1, []forgedAck{{1, path.RTT}}})
	}
	// The first sample sets rttvar to twice itself, and each round trip with an
	// equal one takes a quarter off, down to TCP_RTO_MIN (tcp_rtt_estimator).
	rto := func(v uint64) uint64 { return uint64(path.RTT) + v }
	for v := max(2*uint64(path.RTT), leastRTO); v > leastRTO && rto(v) > uint64(path.RTO)*11/10; v -= max((v-leastRTO)/4, 1000) {
		p.rounds = append(p.rounds, primingRound{1, []forgedAck{{1, path.RTT}}})
	}
	return p
}

// targetCwnd is the congestion window to prime for.
func (s *Snapshot) targetCwnd() int {
	cwnd := uint64(min(s.Path.Cwnd, maxPrimed))
	if s.Options.Congestion == "bbr" && s.MSS > 0 {
		// BBR begins with pacing of its own, a multiple of what cwnd and RTT give,
		// and its cwnd is a multiple of what is in flight.
		cwnd = min(cwnd, s.Path.PacingRate*uint64(s.Path.RTT)/1_000_000*100/bbr2Startup/uint64(s.MSS))
	}
	return int(cwnd)
}

// primeCwnd plans for a congestion window in slow start, where each dummy that is
// acknowledged adds a segment as long as the window is in use
// (tcp_is_cwnd_limited). Where the connection had left slow start, the last but
// few come late, so that CUBIC's HyStart takes the window for the slow start
// threshold; and what follows brings the round trip time back.
func primeCwnd(path *Path, cwnd int) []primingRound {
	grow := cwnd - firstCwnd
	switch {
	case grow <= 0:
		return nil
	case grow <= firstCwnd:
		// In use means half of it in flight.
		round := primingRound{dummies: (cwnd + 1) / 2}
		for range round.dummies {
			round.acks = append(round.acks, forgedAck{1, path.RTT})
		}
		return []primingRound{round}
	case path.Ssthresh == 0:
		return []primingRound{{grow, []forgedAck{{grow, path.RTT}}}}
	}
	// hystart_update: eight samples, and the delay is too large by an eighth, but
	// by 4 to 16 ms.
	const samples, settle = 9, 24
	least := max(min(path.MinRTT, path.RTT), 1000)
	late := least + min(max(least/8, 4000), 16000) + 2000
	round := primingRound{dummies: grow + settle}
	round.acks = append(round.acks, forgedAck{grow - samples, least})
	for range samples {
		round.acks = append(round.acks, forgedAck{1, late})
	}
	for range settle {
		round.acks = append(round.acks, forgedAck{1, path.RTT})
	}
	return []primingRound{round}
}
