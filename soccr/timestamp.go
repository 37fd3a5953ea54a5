package soccr

// The kernel tells a timestamp clock's resolution by the lowest bit of
// TCP_TIMESTAMP: 1 for microseconds (since Linux 6.7; before, the bit belongs to
// the value). So a value in milliseconds is read one too low every other time.

// latest is the latest value that the clock can have shown when it read v.
func latest(v uint32) uint32 { return v | 1 }

// aheadOfClock is how many ticks timestamps may lead the clock. A paced socket
// stamps its segments, bare acknowledgements too, with the time at which they are
// due: that of the last burst and what it takes to send it (tcp_wstamp_ns).
func aheadOfClock(p pacing, microseconds bool) uint32 {
	if p.rate == 0 || p.rate >= 1<<40 {
		return 0 // not known yet, or not paced
	}
	// The largest burst: tcp_tso_autosize with the default settings.
	burst := p.rate >> 10
	if shift := p.minRTT >> 9; shift < 32 {
		burst += maxBurst >> shift
	}
	burst = max(min(burst, maxBurst), 2*uint64(p.mss))
	ahead := swing*burst*1_000_000/p.rate + young
	if !microseconds {
		ahead /= 1000
	}
	return uint32(min(ahead, maxAhead))
}

// pacing is what decides about bursts: bytes per second, microseconds, bytes.
type pacing struct {
	rate   uint64
	minRTT uint32
	mss    uint32
}

const (
	maxBurst = 64 << 10 // bytes, the default of a device's gso_max_size

	// The rate when the burst was sent is not known, only the present one. swing
	// is how many times slower it may have been, and young, in microseconds, what
	// comes on top for a connection that has just begun to find its rate.
	swing = 4
	young = 10_000

	maxAhead = 5_000_000 // ticks, far less than what would look like going back
)

// setting is what to set TCP_TIMESTAMP to so that the clock goes on at Value or
// just after it: a peer drops all segments whose timestamps go back (PAWS).
func (t Timestamp) setting() uint32 {
	if t.Microseconds {
		return t.Value | 1
	}
	return (t.Value + 1) &^ 1
}
