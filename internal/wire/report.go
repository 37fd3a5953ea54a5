package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// A Flow is the connection to watch, seen from nowhere in particular.
type Flow struct {
	// The ends. A port of 0 means that of the first segment between the
	// addresses.
	A, B netip.AddrPort

	// By how many bits A and B shift the windows they announce, for a capture
	// that starts in the middle of a connection. SYNs on the wire override both.
	ScaleA, ScaleB uint8
}

// A Report is what a wire has seen of a connection.
type Report struct {
	A, B Sent // what each end sent

	ICMPErrors int    // messages that a segment could not be delivered
	Lost       uint64 // packets that the capture missed: all else is then uncertain

	// Faults are the first of what a peer must not see, in order.
	Faults []Fault

	// Latest are the last segments seen, the newest last.
	Latest []Segment
}

// Sent is what one end of a connection sent.
type Sent struct {
	Addr     netip.AddrPort
	Segments int
	SYNs     int
	FINs     int // each counted once, like Bytes
	RSTs     int

	// LateRSTs answer an acknowledgement of all that an end has sent, when both
	// FINs had been acknowledged, and are no fault: the kernel may acknowledge
	// the last FIN twice, and the first of the two has ended the connection that
	// would have taken the second.
	LateRSTs int

	Bytes   int64 // of the stream, each counted once
	Missing int64 // of the stream, never seen although later ones were

	RetransmittedSegments int // that had bytes, or a FIN alone, seen before
	RetransmittedBytes    int64

	// Overtaken segments came after others that the end had sent later, as
	// happens when several CPUs work for it. What they say is outdated and
	// no fault.
	Overtaken int

	WindowsTakenBack int    // times that the announced right edge went back
	LargestTakenBack uint32 // in bytes
	// WindowsClosed are those that were taken back to 0. The kernel does so when a
	// segment came for which the receive buffer has no memory (tcp_select_window,
	// ICSK_ACK_NOMEM): what a byte takes it only estimates, by a segment that it has
	// seen, and after a move by another one.
	WindowsClosed int
	AcksBack      int // acknowledgements of less than before
	AcksOfUnsent  int // acknowledgements of what the other end never sent
	ClockBack     int // timestamps below earlier ones
	OptionsAstray int // timestamps or SACKs where not agreed on, or timestamps missing

	// LongestSilence is the longest time between two pieces of the stream, and
	// SilentAt when it began.
	LongestSilence time.Duration
	SilentAt       time.Time
}

// A Fault is something in a segment that tells a peer that a connection was
// tampered with, or disturbs it.
type Fault struct {
	What    string
	Segment Segment
}

// Two kinds of faults.
const (
	Reset           = "RST"
	WindowTakenBack = "window taken back" // an end announces less than before
)

// maxFaults bounds the memory of a hopeless case; the counts go on.
const maxFaults = 16

// String gives the fault and the segment that shows it.
func (f Fault) String() string {
	return fmt.Sprintf("%s %s: %v", f.Segment.Time.Format("15:04:05.000000"), f.What, f.Segment)
}

// Err is nil if the ends of the connection could not notice anything, and
// otherwise says what they could notice. A capture that missed packets cannot
// say that all is well, so that is an error too.
func (r Report) Err() error {
	var all []error
	count := func(n int64, text string, args ...any) {
		if n > 0 {
			all = append(all, fmt.Errorf("%d "+text, append([]any{n}, args...)...))
		}
	}
	count(int64(r.Lost), "packets missed by the capture")
	count(int64(r.ICMPErrors), "ICMP errors")
	for _, s := range []*Sent{&r.A, &r.B} {
		count(int64(s.RSTs), "RSTs from %v", s.Addr)
		count(s.Missing, "bytes never sent by %v", s.Addr)
		count(int64(s.WindowsTakenBack), "windows taken back by %v, by up to %d bytes", s.Addr, s.LargestTakenBack)
		count(int64(s.AcksBack), "acknowledgements going back from %v", s.Addr)
		count(int64(s.AcksOfUnsent), "acknowledgements from %v of what was never sent", s.Addr)
		count(int64(s.ClockBack), "timestamps going back from %v", s.Addr)
		count(int64(s.OptionsAstray), "options from %v that are not as agreed on", s.Addr)
	}
	if len(all) == 0 {
		return nil
	}
	for _, f := range r.Faults {
		all = append(all, errors.New(f.String()))
	}
	return errors.Join(all...)
}

// String gives the report in a few lines.
func (r Report) String() string {
	var b strings.Builder
	for _, s := range []*Sent{&r.A, &r.B} {
		fmt.Fprintf(&b, "%v sent %d bytes in %d segments, %d bytes again in %d, %d overtaken; longest silence %v\n",
			s.Addr, s.Bytes, s.Segments, s.RetransmittedBytes, s.RetransmittedSegments, s.Overtaken, s.LongestSilence)
	}
	if err := r.Err(); err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}
