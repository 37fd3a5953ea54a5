package main

import (
	"math"
	"math/rand/v2"
	"time"
)

// A plan is all that is decided about a connection before it begins. It follows from
// the seed.
type plan struct {
	Family  int
	Content [2]content // from the moved end to its peer, and back
	Total   [2]int64   // bytes
	Ends    [2]habits  // of the moved end and of its peer

	// Shifted: both ends begin, after a first move, with numbers close to where they
	// wrap around: so far before it.
	Shifted bool
	Before  [2]uint32 // sequence numbers of either stream, bytes
	Clock   [2]uint32 // timestamps of either end, milliseconds

	// What the peer's host offers in the handshake.
	Timestamps, SACK, Scaling bool
}

// Habits are how a program uses its end.
type habits struct {
	MostWrite, MostRead int
	IdleOne             int // one write in so many is followed by a rest
	Idle, Slow          time.Duration
	SendBuffer          int // 0: as the kernel has it
	RecvBuffer          int
	NoDelay             bool
	Congestion          string
}

func newPlan(r *rand.Rand) plan {
	p := plan{
		Family:     r.IntN(len(families)),
		Shifted:    r.IntN(3) == 0,
		Timestamps: r.IntN(8) > 0,
		SACK:       r.IntN(8) > 0,
		Scaling:    r.IntN(8) > 0,
	}
	for i := range 2 {
		p.Content[i] = content(r.Uint64())
		p.Total[i] = logUniform(r, 1, 4<<20) - 1
		p.Before[i] = uint32(logUniform(r, 1, 1<<20) - 1)
		p.Clock[i] = uint32(logUniform(r, 1, 20_000) - 1)
		p.Ends[i] = newHabits(r)
	}
	return p
}

func newHabits(r *rand.Rand) habits {
	h := habits{
		MostWrite:  int(logUniform(r, 1, 64<<10)),
		MostRead:   int(logUniform(r, 1, 64<<10)),
		IdleOne:    1 + r.IntN(8),
		Idle:       time.Duration(logUniform(r, int64(time.Millisecond), int64(300*time.Millisecond))),
		Slow:       time.Duration(logUniform(r, int64(time.Millisecond), int64(20*time.Millisecond))),
		NoDelay:    r.IntN(2) == 0,
		Congestion: [...]string{"", "", "reno", "cubic"}[r.IntN(4)],
	}
	if r.IntN(3) == 0 {
		h.SendBuffer = int(logUniform(r, 4<<10, 1<<20))
	}
	if r.IntN(3) == 0 {
		h.RecvBuffer = int(logUniform(r, 4<<10, 1<<20))
	}
	// Some always write as much as they can: full queues.
	if r.IntN(4) == 0 {
		h.Idle = 0
	}
	return h
}

// logUniform gives each order of magnitude the same chance.
func logUniform(r *rand.Rand, least, most int64) int64 {
	low, high := math.Log(float64(least)), math.Log(float64(most))
	return int64(math.Round(math.Exp(low + r.Float64()*(high-low))))
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
