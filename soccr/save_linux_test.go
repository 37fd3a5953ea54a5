package soccr

import (
	"errors"
	"testing"
)

// What moves a connection between two looks at it is told apart: segments, which the
// program may have as before, and what it has written into its own receive queue.
func TestUnchanged(t *testing.T) {
	for _, test := range []struct {
		name string
		move func(*observation)
		want error
	}{
		{"nothing", func(*observation) {}, nil},
		{"data came", func(o *observation) { o.info.Bytes_received, o.info.Data_segs_in, o.received = 105, 3, 105 }, ErrChanged},
		{"data came after TCP_INFO", func(o *observation) { o.received = 105 }, ErrChanged},
		{"a FIN came", func(o *observation) { o.info.Bytes_received, o.info.State = 101, uint8(StateCloseWait) }, ErrChanged},
		// TCP_INFO reads the state first, and the rest under the socket's lock.
		{"a FIN came within TCP_INFO", func(o *observation) { o.info.Bytes_received = 101 }, ErrChanged},
		{"the program wrote", func(o *observation) { o.info.Bytes_received, o.received = 105, 105 }, ErrDamaged},
		{"the program wrote, and a FIN came", func(o *observation) {
			o.info.Bytes_received, o.received, o.info.State = 106, 105, uint8(StateCloseWait)
		}, ErrDamaged},
	} {
		var then observation
		then.info.State, then.info.Bytes_received, then.info.Data_segs_in, then.received = uint8(StateEstablished), 100, 2, 100
		now := then
		test.move(&now)
		if err := then.unchanged(&now); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

// What was read early does not hold if something has come since, may have been read
// since, or if the byte that comes next is urgent.
func TestEarlyHolds(t *testing.T) {
	var now observation
	now.info.Segs_in = 7
	for _, test := range []struct {
		name  string
		early *early
		holds bool
	}{
		{"nothing read", nil, false},
		{"idle", &early{segsIn: 7}, true},
		{"a segment has come", &early{segsIn: 6}, false},
		{"bytes were there", &early{segsIn: 7, memory: memory{recvAlloc: 1}}, false},
		{"urgent", &early{segsIn: 7, marked: true}, false},
	} {
		if got := test.early.holds(&now); got != test.holds {
			t.Errorf("%s: %v, want %v", test.name, got, test.holds)
		}
	}
}
