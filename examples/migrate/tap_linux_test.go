package main

import (
	"slices"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// Times in captures and times of moves are told by different clocks.
func TestPausesAt(t *testing.T) {
	wall := time.Unix(1e9, 0)
	const mono = int64(77 * time.Second)
	at := func(ms int) time.Time { return wall.Add(time.Duration(ms) * time.Millisecond) }
	moved := func(from, to int) move {
		return move{stopped: mono + int64(from)*1e6, resumed: mono + int64(to)*1e6}
	}
	a := &tap{wall: wall, mono: mono, checker: wire.NewChecker(wire.Flow{})}
	for _, ms := range []int{0, 10, 50, 52, 54, 90, 91} {
		a.see(wire.Segment{Time: at(ms), Len: 1})
	}
	a.see(wire.Segment{Time: at(200)}) // no data
	pauses, other := a.pausesAt([]move{moved(11, 15), moved(20, 22), moved(51, 53), moved(300, 301)})
	want := []time.Duration{40 * time.Millisecond, 40 * time.Millisecond, 2 * time.Millisecond, 0}
	if !slices.Equal(pauses, want) || other != 36*time.Millisecond {
		t.Errorf("pauses %v and %v, want %v and 36ms", pauses, other, want)
	}
}
