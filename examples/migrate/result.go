package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// A result is what became of the demo, and with --json what it prints. Whatever
// is sent or received is so from the client's point of view.
type result struct {
	Client  string `json:"client"`
	Service string `json:"service"`

	Moves         int         `json:"moves"`
	Intact        bool        `json:"intact"` // every byte arrived once and in order
	BytesSent     int64       `json:"bytes_sent"`
	BytesReceived int64       `json:"bytes_received"`
	Sent          bothDigests `json:"digests_sent"`
	Received      bothDigests `json:"digests_received"`

	// Of each move: how long the program was stopped, the pause in what the
	// client received, and how much went over.
	Frozen    []int64 `json:"frozen_us"`
	Pauses    []int64 `json:"pause_us"`
	Snapshots []int   `json:"snapshot_bytes"`
	// OtherPause is the longest pause without a move.
	OtherPause int64 `json:"other_pause_us"`

	// What the client's wire saw of both directions.
	RST                   int    `json:"rst"`
	WindowRetracted       int    `json:"window_retracted"`
	WindowsClosed         int    `json:"windows_closed"` // taken back to 0: no fault, see wire.Sent
	TimestampsBack        int    `json:"timestamps_back"`
	AcksBack              int    `json:"acks_back"`
	AcksOfUnsent          int    `json:"acks_of_unsent"`
	ICMPErrors            int    `json:"icmp_errors"`
	RetransmittedSegments int    `json:"retransmitted_segments"`
	RetransmittedBytes    int64  `json:"retransmitted_bytes"`
	CaptureLost           uint64 `json:"capture_lost"`

	// Bytes per sample, and in which samples the moves were.
	SampleMS        int64   `json:"sample_ms"`
	SamplesSent     []int64 `json:"samples_sent"`
	SamplesReceived []int64 `json:"samples_received"`
	MoveSamples     []int   `json:"move_samples"`

	DurationMS int64    `json:"duration_ms"`
	Error      string   `json:"error,omitempty"`  // why the demo has failed
	Faults     []string `json:"faults,omitempty"` // the segments that show it
}

// bothDigests are the SHA-256 of a stream, as each end has computed it.
type bothDigests struct {
	Client string `json:"client"`
	Server string `json:"server"`
}

// newResult puts together what the ends and the wire know.
func newResult(p *progress, both bothTotals, seen wire.Report) *result {
	client, server := both.client, both.server
	r := &result{
		Client:        p.client,
		Service:       p.service,
		Moves:         len(p.moves),
		Intact:        both.intact(),
		BytesSent:     client.Sent.Bytes,
		BytesReceived: client.Received.Bytes,
		Sent:          bothDigests{client.Sent.SHA256, server.Received.SHA256},
		Received:      bothDigests{client.Received.SHA256, server.Sent.SHA256},

		RST:                   seen.A.RSTs + seen.B.RSTs,
		WindowRetracted:       seen.A.WindowsTakenBack + seen.B.WindowsTakenBack - seen.A.WindowsClosed - seen.B.WindowsClosed,
		WindowsClosed:         seen.A.WindowsClosed + seen.B.WindowsClosed,
		TimestampsBack:        seen.A.ClockBack + seen.B.ClockBack,
		AcksBack:              seen.A.AcksBack + seen.B.AcksBack,
		AcksOfUnsent:          seen.A.AcksOfUnsent + seen.B.AcksOfUnsent,
		ICMPErrors:            seen.ICMPErrors,
		RetransmittedSegments: seen.A.RetransmittedSegments + seen.B.RetransmittedSegments,
		RetransmittedBytes:    seen.A.RetransmittedBytes + seen.B.RetransmittedBytes,
		CaptureLost:           seen.Lost,

		Frozen:    []int64{},
		Pauses:    []int64{},
		Snapshots: []int{},

		SampleMS:        sampleTime.Milliseconds(),
		SamplesSent:     append([]int64{}, p.sent...),
		SamplesReceived: append([]int64{}, p.received...),
		MoveSamples:     append([]int{}, p.sampledAtMove...),
		DurationMS:      p.elapsed.Milliseconds(),
	}
	if (both == bothTotals{}) { // it did not come to its end
		r.BytesSent, r.BytesReceived = p.totalSent, p.totalReceived
	}
	for _, m := range p.moves {
		r.Frozen = append(r.Frozen, m.frozen().Microseconds())
		r.Snapshots = append(r.Snapshots, m.luggage.Snapshot)
	}
	if err := r.verdict(); err != nil {
		r.Error = err.Error()
	}
	for _, f := range seen.Faults {
		r.Faults = append(r.Faults, f.String())
	}
	return r
}

// setPauses says what the client's wire has seen of the moves.
func (r *result) setPauses(at []time.Duration, other time.Duration) {
	for _, pause := range at {
		r.Pauses = append(r.Pauses, pause.Microseconds())
	}
	r.OtherPause = other.Microseconds()
}

// verdict is nil if all is as the demo promises.
func (r *result) verdict() error {
	var all []error
	for _, check := range []struct {
		bad  bool
		text string
	}{
		{!r.Intact, "the streams did not arrive as they were sent"},
		{r.RST > 0, fmt.Sprintf("%d RSTs", r.RST)},
		{r.WindowRetracted > 0, fmt.Sprintf("%d windows taken back", r.WindowRetracted)},
		{r.TimestampsBack > 0, fmt.Sprintf("%d timestamps going back", r.TimestampsBack)},
		{r.AcksBack > 0, fmt.Sprintf("%d acknowledgements going back", r.AcksBack)},
		{r.AcksOfUnsent > 0, fmt.Sprintf("%d acknowledgements of what was never sent", r.AcksOfUnsent)},
		{r.ICMPErrors > 0, fmt.Sprintf("%d ICMP errors", r.ICMPErrors)},
		{r.CaptureLost > 0, fmt.Sprintf("the capture missed %d packets, so nobody can tell whether all was well; try again when the machine has less to do", r.CaptureLost)},
	} {
		if check.bad {
			all = append(all, errors.New(check.text))
		}
	}
	return errors.Join(all...)
}

// print writes the result for people.
func (r *result) print(w io.Writer) error {
	b := &lines{}
	b.add("%d moves of %v, as %v saw them", r.Moves, r.Service, r.Client)
	if len(r.Frozen) > 0 {
		b.add("  program stopped     %s", spread(r.Frozen))
		b.add("  pause at the client %s", spread(r.Pauses))
		b.add("  longest other pause %s", short(r.OtherPause))
		sizes := slices.Sorted(slices.Values(r.Snapshots))
		b.add("  snapshot            %s … %s", size(int64(sizes[0])), size(int64(sizes[len(sizes)-1])))
	}
	b.add("  sent                %s, SHA-256 %s", size(r.BytesSent), digests(r.Sent))
	b.add("  received            %s, SHA-256 %s", size(r.BytesReceived), digests(r.Received))
	b.add("  on the wire         %d RST, %d windows taken back, %d timestamps back, %d ICMP errors",
		r.RST, r.WindowRetracted, r.TimestampsBack, r.ICMPErrors)
	b.add("                      %d segments (%s) sent again", r.RetransmittedSegments, size(r.RetransmittedBytes))
	if r.WindowsClosed > 0 {
		b.add("                      %d windows closed by a kernel whose receive buffer was full", r.WindowsClosed)
	}
	if err := r.verdict(); err != nil {
		b.add("FAILED: %v", err)
		for _, f := range r.Faults {
			b.add("  %s", f)
		}
	} else {
		b.add("Every byte arrived once and in order, both ways. The client noticed nothing.")
	}
	_, err := w.Write(b.text)
	return err
}

// lines collects lines of text.
type lines struct{ text []byte }

func (l *lines) add(format string, args ...any) {
	l.text = append(fmt.Appendf(l.text, format, args...), '\n')
}

// spread gives the least, the median and the greatest of some microseconds.
func spread(us []int64) string {
	sorted := slices.Sorted(slices.Values(us))
	return fmt.Sprintf("%s … %s, median %s", short(sorted[0]), short(sorted[len(sorted)-1]), short(sorted[len(sorted)/2]))
}

// short shows some microseconds as milliseconds.
func short(us int64) string { return fmt.Sprintf("%.2f ms", float64(us)/1000) }

// digests shows one digest if both ends agree.
func digests(d bothDigests) string {
	if d.Client == d.Server {
		return d.Client
	}
	return fmt.Sprintf("%s (client) and %s (server)", d.Client, d.Server)
}

// size gives a number of bytes with three digits.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	for value >= 999.5 {
		value /= 1000
		unit++
	}
	digits := 2
	switch {
	case value >= 99.95:
		digits = 0
	case value >= 9.995:
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, value, units[unit])
}
