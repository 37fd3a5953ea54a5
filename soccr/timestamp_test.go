package soccr

import "testing"

// Whatever the clock showed when it was read, it goes on from there or just after.
func TestTimestampNeverGoesBack(t *testing.T) {
	for _, shown := range []uint32{0, 1, 2, 3, 1000, 1001, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1} {
		// What the kernel answers, before Linux 6.7 and since.
		for name, read := range map[string]uint32{"old": shown, "milliseconds": shown &^ 1, "microseconds": shown | 1} {
			set := Timestamp{Microseconds: name == "microseconds", Value: latest(read)}.setting()
			if ahead := int32(set - shown); ahead < 0 || ahead > 2 {
				t.Errorf("%s: the clock showed %d, read as %d, and is set to %d", name, shown, read, set)
			}
			if set&1 == 1 != (name == "microseconds") {
				t.Errorf("%s: %d says the wrong resolution", name, set)
			}
		}
	}
}

// A value that others have saved says its resolution, too.
func TestTimestampSaysItsResolution(t *testing.T) {
	for _, value := range []uint32{6, 7, 1<<32 - 1} {
		for _, microseconds := range []bool{false, true} {
			set := Timestamp{Microseconds: microseconds, Value: value}.setting()
			if set&1 == 1 != microseconds || set-value > 1 {
				t.Errorf("%d (microseconds: %v) is set as %d", value, microseconds, set)
			}
		}
	}
}

// A paced socket may have stamped segments with a time that has yet to come.
func TestAheadOfClock(t *testing.T) {
	for _, row := range []struct {
		name         string
		pacing       pacing
		microseconds uint32
		milliseconds uint32
	}{
		{"no rate yet", pacing{mss: 1448}, 0, 0},
		{"not paced", pacing{rate: 1 << 40, mss: 1448}, 0, 0},
		{"two segments at 1 MB/s", pacing{rate: 1_000_000, minRTT: 100_000, mss: 1448}, 4*2896 + 10_000, 21},
		{"the largest burst at 100 MB/s", pacing{rate: 100_000_000, minRTT: 100_000, mss: 1448}, 4*65536/100 + 10_000, 12},
		{"slow", pacing{rate: 100, minRTT: 100_000, mss: 1448}, 5_000_000, 115_850},
	} {
		if got := aheadOfClock(row.pacing, true); got != row.microseconds {
			t.Errorf("%s: %d µs, want %d", row.name, got, row.microseconds)
		}
		if got := aheadOfClock(row.pacing, false); got != row.milliseconds {
			t.Errorf("%s: %d ms, want %d", row.name, got, row.milliseconds)
		}
	}
}
