package main

import (
	"errors"
	"net/netip"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/wire"
)

// A tap is on the client's wire.
type tap struct {
	capture  *wire.Capture
	checker  *wire.Checker
	recorder *wire.Recorder // nil: nobody wants the packets
	pcap     string         // the file for them

	server netip.AddrPort
	last   time.Time // when the last bytes came from the server
	pauses []pause

	// The clock of captures may be set; ours must not. These are the same moment.
	wall time.Time
	mono int64
}

// A pause is a time without bytes from the server.
type pause struct{ from, to time.Time }

// leastPause is the shortest pause that counts as one.
const leastPause = 200 * time.Microsecond

// latestPackets is how many packets a file gets, at most.
const latestPackets = 200_000

func newTap(h *host.Host, flow wire.Flow, pcap string) (t *tap, err error) {
	t = &tap{checker: wire.NewChecker(flow), pcap: pcap, server: flow.B, wall: time.Now(), mono: monotonic()}
	if pcap != "" {
		t.recorder = wire.NewRecorder(latestPackets)
	}
	err = h.Do(func() error {
		t.capture, err = wire.WatchPackets(device, t.take)
		return err
	})
	return t, err
}

func (t *tap) take(p wire.Packet) {
	if t.recorder != nil {
		t.recorder.Add(p)
	}
	if s, ok := p.Segment(); ok {
		t.see(s)
	}
}

func (t *tap) see(s wire.Segment) {
	t.checker.Add(s)
	if s.Src == t.server && s.Len > 0 {
		if !t.last.IsZero() && s.Time.Sub(t.last) >= leastPause {
			t.pauses = append(t.pauses, pause{t.last, s.Time})
		}
		t.last = s.Time
	}
}

func (t *tap) stop() (wire.Report, error) {
	lost, err := t.capture.Stop()
	r := t.checker.Report()
	r.Lost = lost
	if t.recorder != nil {
		err = errors.Join(err, t.recorder.WriteFile(t.pcap))
	}
	return r, err
}

// pausesAt gives the pause into which each move fell, and the longest of the
// others, which there are for the usual reasons.
func (t *tap) pausesAt(moves []move) (at []time.Duration, other time.Duration) {
	at = make([]time.Duration, len(moves))
	for _, p := range t.pauses {
		length, moved := p.to.Sub(p.from), false
		for i, m := range moves {
			if p.from.Before(t.wallTime(m.resumed)) && p.to.After(t.wallTime(m.stopped)) {
				at[i], moved = max(at[i], length), true
			}
		}
		if !moved {
			other = max(other, length)
		}
	}
	return at, other
}

// wallTime translates the time of a move into that of captures.
func (t *tap) wallTime(mono int64) time.Time { return t.wall.Add(time.Duration(mono - t.mono)) }
