package main

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Stats are what a process has done and seen.
type Stats struct {
	Moves   map[string]int64 // by way
	Refused map[string]int64 // moves that were not to be, by reason
	Bytes   int64            // read, and found right
	Stalls  Histogram
	Frozen  Histogram // from when an end's program stops until it goes on
}

func newStats() Stats { return Stats{Moves: map[string]int64{}, Refused: map[string]int64{}} }

func (s *Stats) add(other *Stats) {
	for way, n := range other.Moves {
		s.Moves[way] += n
	}
	for reason, n := range other.Refused {
		s.Refused[reason] += n
	}
	s.Bytes += other.Bytes
	s.Stalls.add(&other.Stalls)
	s.Frozen.add(&other.Frozen)
}

func (s *Stats) moves() (n int64) {
	for _, k := range s.Moves {
		n += k
	}
	return n
}

// A Histogram counts durations by powers of two of a millisecond.
type Histogram struct {
	Counts [20]int64 // [0] is up to 1 ms, [1] up to 2 ms, …
	Max    time.Duration
	Where  string // the longest was
}

func (h *Histogram) note(d time.Duration, where func() string) {
	i := bits.Len64(uint64(max(d-1, 0) / time.Millisecond))
	h.Counts[min(i, len(h.Counts)-1)]++
	if d > h.Max {
		h.Max, h.Where = d, where()
	}
}

func (h *Histogram) add(other *Histogram) {
	for i, n := range other.Counts {
		h.Counts[i] += n
	}
	if other.Max > h.Max {
		h.Max, h.Where = other.Max, other.Where
	}
}

// String gives those that there are, and the longest.
func (h *Histogram) String() string {
	var b strings.Builder
	for i, n := range h.Counts {
		if n > 0 {
			fmt.Fprintf(&b, "≤ %v: %d, ", time.Duration(1<<i)*time.Millisecond, n)
		}
	}
	fmt.Fprintf(&b, "longest %v", h.Max.Round(100*time.Microsecond))
	if h.Where != "" {
		fmt.Fprintf(&b, " (%s)", h.Where)
	}
	return b.String()
}
