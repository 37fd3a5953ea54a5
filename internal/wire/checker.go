package wire

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// A Checker judges the segments of one connection in the order in which they
// passed the wire. Its methods must not be called concurrently.
type Checker struct {
	flow   Flow
	pinned bool // the flow has both ports
	agreed bool // the handshake was seen, and this is what it has agreed on:
	stamps bool // timestamps
	sack   bool // selective acknowledgements
	ends   [2]end
	icmp   int
	faults []Fault
	latest ring[Segment]
}

// latestSegments are enough to see what led to a fault at a connection's end.
const latestSegments = 32

// NewChecker makes a checker that looks at the segments of the flow only.
func NewChecker(flow Flow) *Checker {
	c := &Checker{flow: flow, latest: newRing[Segment](latestSegments)}
	c.ends[0].scale, c.ends[1].scale = flow.ScaleA, flow.ScaleB
	c.pin(flow.A, flow.B)
	return c
}

// An end is one end of the connection and what it has sent so far. Positions
// count the stream, SYN and FIN included, from the first segment that told of it.
type end struct {
	Sent

	known bool   // position 0 is set
	zero  uint32 // the sequence number of position 0
	heard bool   // it has sent something itself
	fin   int64  // the position behind its FIN, when that was seen
	next  int64  // the position behind all that has been seen of its stream
	holes []span // what has not been seen of that
	// reached is how far its stream has come, by its own account: segments
	// without data say so too, and overtake those that they speak of.
	reached int64

	ack  mark // the highest acknowledgement, a position of the other end's
	edge mark // the highest right edge of its window, likewise
	back bool // the edge is below that
	tick mark // the newest timestamp; its position does not count

	syn   Segment // its SYN, with what it offered
	scale uint8

	lastBytes time.Time
}

// A span is the positions from start up to, not including, end.
type span struct{ start, end int64 }

// A mark is a position and the segment that set it.
type mark struct {
	set     bool
	at      int64
	segment Segment
}

// Limits of how late an overtaken segment can come: with timestamps, which say
// which of two is newer if they are not from the same tick, and without.
const (
	lateWithTimestamp    = 100 * time.Millisecond
	lateWithoutTimestamp = time.Millisecond
)

// overtakenBy reports whether s can have been sent before the segment of the
// mark, which came before it.
//
// A segment sent in the same tick of the clock counts as possibly overtaken.
// What was really taken back in that tick shows in the segments after it.
func (s Segment) overtakenBy(m mark) bool {
	late := s.Time.Sub(m.segment.Time)
	if s.HasTimestamp && m.segment.HasTimestamp {
		return int32(s.TSVal-m.segment.TSVal) <= 0 && late < lateWithTimestamp
	}
	return late < lateWithoutTimestamp
}

// position gives the position of a sequence number: the one nearest to the
// highest position known, since sequence numbers wrap around.
func (e *end) position(seq uint32) int64 {
	if !e.known {
		e.known, e.zero = true, seq
	}
	return e.next + int64(int32(seq-(e.zero+uint32(e.next))))
}

// Add takes the next segment.
func (c *Checker) Add(s Segment) {
	from, ok := c.direction(s)
	if !ok {
		return
	}
	*c.latest.next() = s
	if s.ICMP {
		c.icmp++
		c.fault("ICMP error", s)
		return
	}
	e, other := &c.ends[from], &c.ends[1-from]
	e.Segments++
	if s.Flags.Has(SYN) {
		e.SYNs++
		c.handshake(e, other, s)
	}
	if s.Flags.Has(RST) {
		// Its sequence number and window mean nothing to the stream.
		if e.over(other) && other.over(e) && !s.Flags.Has(ACK) && e.position(s.Seq) == e.fin {
			e.LateRSTs++
			return
		}
		e.RSTs++
		c.fault(Reset, s)
		return
	}
	c.options(e, s)
	start := e.position(s.Seq)
	var ack int64
	if s.Flags.Has(ACK) {
		ack = other.position(s.Ack)
	}
	if c.clock(e, s, start, ack) {
		c.acknowledges(e, other, s, start, ack)
	}
	c.stream(e, s, start)
	e.reached = max(e.reached, e.next, start)
}

// direction says which end sent the segment.
func (c *Checker) direction(s Segment) (int, bool) {
	if !c.pinned {
		for _, ends := range [][2]netip.AddrPort{{s.Src, s.Dst}, {s.Dst, s.Src}} {
			if matches(c.flow.A, ends[0]) && matches(c.flow.B, ends[1]) {
				c.pin(ends[0], ends[1])
				break
			}
		}
	}
	switch {
	case s.Src == c.flow.A && s.Dst == c.flow.B:
		return 0, true
	case s.Src == c.flow.B && s.Dst == c.flow.A:
		return 1, true
	}
	return 0, false
}

func (c *Checker) pin(a, b netip.AddrPort) {
	c.flow.A, c.flow.B = a, b
	c.ends[0].Addr, c.ends[1].Addr = a, b
	c.pinned = a.Port() != 0 && b.Port() != 0
}

func matches(want, got netip.AddrPort) bool {
	return want.Addr() == got.Addr() && (want.Port() == 0 || want.Port() == got.Port())
}

// handshake learns what is agreed on: what both ends offer (RFC 7323, sections 2.2
// and 3.2, RFC 2018, section 2). Window scales are at most 14 (section 2.3).
func (c *Checker) handshake(e, other *end, s Segment) {
	e.syn, e.scale = s, min(s.Scale, 14)
	if !s.Flags.Has(ACK) {
		return
	}
	if !s.HasScale || !other.syn.HasScale {
		e.scale, other.scale = 0, 0
	}
	c.agreed = other.syn.Flags.Has(SYN) // otherwise the capture began later
	c.stamps = s.HasTimestamp && other.syn.HasTimestamp
	c.sack = s.SACKPermitted && other.syn.SACKPermitted
}

// options compares what a segment carries with what was agreed on.
func (c *Checker) options(e *end, s Segment) {
	if !c.agreed || s.Flags.Has(SYN) {
		return
	}
	for _, f := range [...]struct {
		wrong bool
		what  string
	}{
		{c.stamps && !s.HasTimestamp, "timestamp missing"},
		{!c.stamps && s.HasTimestamp, "timestamp that was not agreed on"},
		{!c.sack && s.HasSACK, "selective acknowledgement that was not agreed on"},
	} {
		if f.wrong {
			e.OptionsAstray++
			c.fault(f.what, s)
		}
	}
}

// clock looks at the timestamp, and reports whether the segment is up to date.
func (c *Checker) clock(e *end, s Segment, start, ack int64) bool {
	if !s.HasTimestamp {
		return true
	}
	if e.tick.set && int32(s.TSVal-e.tick.segment.TSVal) < 0 {
		// Overtaken segments have nothing to say that is new.
		news := e.ack.set && ack > e.ack.at || start+int64(s.Len) > e.reached
		if !news && s.overtakenBy(e.tick) {
			e.Overtaken++
			return false
		}
		e.ClockBack++
		c.fault("timestamp goes back", s)
	}
	e.tick = mark{set: true, segment: s}
	return true
}

// acknowledges looks at the acknowledgement and the window. Those of a window probe, with
// nothing but a sequence number that is acknowledged already, count for nobody: who gets
// it discards it, and answers (RFC 9293, section 3.10.7.4).
func (c *Checker) acknowledges(e, other *end, s Segment, start, ack int64) {
	if !s.Flags.Has(ACK) {
		return
	}
	if other.heard && ack > other.reached {
		e.AcksOfUnsent++
		c.fault("acknowledges what was never sent", s)
		return
	}
	if s.Len == 0 && !s.Flags.Has(SYN) && !s.Flags.Has(FIN) && other.ack.set && start < other.ack.at {
		return
	}
	if e.ack.set && ack < e.ack.at {
		if s.overtakenBy(e.ack) {
			e.Overtaken++
			return
		}
		e.AcksBack++
		c.fault("acknowledges less than before", s)
	} else {
		e.ack = mark{set: true, at: ack, segment: s}
	}

	edge := ack + int64(s.Window)
	if !s.Flags.Has(SYN) { // the windows of SYNs are never scaled
		edge = ack + int64(s.Window)<<e.scale
	}
	switch {
	case !e.edge.set || edge >= e.edge.at:
		e.edge = mark{set: true, at: edge, segment: s}
		e.back = false
	case s.overtakenBy(e.edge):
		e.Overtaken++
	default:
		e.LargestTakenBack = max(e.LargestTakenBack, uint32(min(e.edge.at-edge, math.MaxUint32)))
		if !e.back { // once per time, however many segments say so
			e.back = true
			e.WindowsTakenBack++
			if s.Window == 0 {
				e.WindowsClosed++
			}
			c.fault(WindowTakenBack, s)
		}
	}
}

// stream follows the bytes.
func (c *Checker) stream(e *end, s Segment, start int64) {
	if !e.heard && start > e.next {
		e.next = start // what the end sent before the capture began
	}
	e.heard = true
	if s.Flags.Has(SYN) {
		start++
		e.next = max(e.next, start)
	}
	stop := start + int64(s.Len)
	if s.Len > 0 {
		if news := e.see(span{start, stop}); news > 0 {
			e.Bytes += news
			e.silence(s.Time)
			if again := int64(s.Len) - news; again > 0 {
				e.RetransmittedSegments++
				e.RetransmittedBytes += again
			}
		} else {
			e.RetransmittedSegments++
			e.RetransmittedBytes += int64(s.Len)
		}
	}
	if s.Flags.Has(FIN) {
		if stop+1 > e.next {
			e.FINs++
		} else if s.Len == 0 {
			e.RetransmittedSegments++ // the kernel sends a FIN again like data
		}
		e.fin = stop + 1
		e.next = max(e.next, e.fin)
	}
}

// over says that an end has sent its FIN and that the other has acknowledged it.
func (e *end) over(other *end) bool {
	return e.FINs > 0 && other.ack.set && other.ack.at >= e.fin
}

// see notes that a span of the stream has passed, and returns how much of it
// for the first time.
func (e *end) see(s span) int64 {
	var news int64
	if s.start > e.next {
		e.holes = append(e.holes, span{e.next, s.start})
		e.next = s.start
	}
	if s.end > e.next {
		news += s.end - e.next
		e.next = s.end
	}
	for i := 0; i < len(e.holes); {
		hole := e.holes[i]
		filled := span{max(hole.start, s.start), min(hole.end, s.end)}
		if filled.start >= filled.end {
			i++
			continue
		}
		news += filled.end - filled.start
		var rest []span
		for _, r := range []span{{hole.start, filled.start}, {filled.end, hole.end}} {
			if r.start < r.end {
				rest = append(rest, r)
			}
		}
		e.holes = slices.Replace(e.holes, i, i+1, rest...)
		i += len(rest)
	}
	return news
}

// silence measures the time since the last new bytes.
func (e *end) silence(now time.Time) {
	if !e.lastBytes.IsZero() {
		if d := now.Sub(e.lastBytes); d > e.LongestSilence {
			e.LongestSilence, e.SilentAt = d, e.lastBytes
		}
	}
	e.lastBytes = now
}

func (c *Checker) fault(what string, s Segment) {
	if len(c.faults) < maxFaults {
		c.faults = append(c.faults, Fault{what, s})
	}
}

// FaultCount is how much has been seen that a peer must not see, of what the report
// has room for.
func (c *Checker) FaultCount() int { return len(c.faults) }

// Report says what has been seen so far.
func (c *Checker) Report() Report {
	r := Report{ICMPErrors: c.icmp, Faults: slices.Clone(c.faults), Latest: slices.Collect(c.latest.all())}
	for i, sent := range []*Sent{&r.A, &r.B} {
		*sent = c.ends[i].Sent
		for _, hole := range c.ends[i].holes {
			sent.Missing += hole.end - hole.start
		}
		sent.Missing += c.ends[i].reached - c.ends[i].next
	}
	return r
}
