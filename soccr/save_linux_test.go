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
