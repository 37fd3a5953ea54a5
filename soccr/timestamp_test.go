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
