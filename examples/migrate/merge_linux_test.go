package main

import (
	"errors"
	"testing"

	"github.com/gosoccr/gosoccr/soccr"
)

// What a program or a peer has done while a connection was half put back is kept, and
// what was not put back is added, also where sequence numbers wrap around.
func TestMerged(t *testing.T) {
	const una, rcv = uint32(1<<32 - 3), uint32(1<<32 - 2)  // of the first bytes of the queues
	after := func(seq, n uint32) uint32 { return seq + n } // which wraps around
	snap := func(recvSeq uint32, recv string, una uint32, send string, unsent int) *soccr.Snapshot {
		return &soccr.Snapshot{
			State: soccr.StateEstablished, RecvSeq: rcv + recvSeq, RecvQueue: []byte(recv),
			SendSeq: una + uint32(len(send)), SendQueue: []byte(send), Unsent: unsent,
		}
	}
	saved := snap(4, "read", una, "sent unsent", 7)
	closing := snap(4, "read", una, "sent unsent", 11)
	closing.State = soccr.StateCloseWait
	for _, test := range []struct {
		name      string
		now       *soccr.Snapshot
		went      bool
		want      *soccr.Snapshot
		wantSpoil bool
		selected  soccr.Queue
	}{
		{"nothing was there yet", snap(0, "", una, "", 0), false, saved, false, soccr.NoQueue},
		{"dummies were there", snap(0, "", una-100, "\x00\x00", 2), false, saved, false, soccr.NoQueue},
		{"the program has read", snap(4, "d", una, "sent", 0), false, snap(4, "d", una, "sent unsent", 7), false, soccr.NoQueue},
		{"the program has written", snap(4, "read", una, "sent more", 5), false, snap(4, "read", una, "sent unsentmore", 11), false, soccr.NoQueue},
		{"the peer has sent", snap(6, "read!!", una, "sent", 4), true, snap(6, "read!!", una, "sent unsent", 7), false, soccr.NoQueue},
		{"the peer has acknowledged", snap(4, "read", after(una, 2), "nt", 0), true, snap(4, "read", after(una, 2), "nt unsent", 7), false, soccr.NoQueue},
		{"all was there, and more", snap(4, "read", after(una, 8), "ent, and more", 4), true, snap(4, "read", after(una, 8), "ent, and more", 4), false, soccr.NoQueue},
		{"all is acknowledged", snap(4, "read", after(una, 11), "", 0), true, snap(4, "read", after(una, 11), "", 0), false, soccr.NoQueue},
		{"the peer has ended", func() *soccr.Snapshot { s := *closing; return &s }(), true, func() *soccr.Snapshot {
			s := *closing
			s.Unsent = 7
			return &s
		}(), false, soccr.NoQueue},
		{"written out of turn, unsent", snap(4, "read", una, "sent more", 5), true, snap(4, "read", una, "sent unsentmore", 11), false, soccr.NoQueue},
		{"written out of turn, sent", snap(4, "read", una, "sent more", 0), true, nil, true, soccr.NoQueue},
		{"written into the receive queue", snap(6, "reMORE", una, "", 0), false, snap(4, "read", una, "sent unsentMORE", 11), false, soccr.RecvQueue},
		{"written into the send queue", snap(4, "read", una, "sentMORE", 0), false, snap(4, "read", una, "sent unsentMORE", 11), false, soccr.SendQueue},
		{"written behind dummies", snap(0, "", una-100, "\x00\x00MORE", 0), false, snap(4, "read", una, "sent unsentMORE", 11), false, soccr.SendQueue},
	} {
		got, err := merged(saved, test.now, test.went, test.selected)
		if spoilt := errors.Is(err, errSpoilt); spoilt != test.wantSpoil || !spoilt && err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if test.wantSpoil {
			continue
		}
		w := test.want
		if got.State != w.State || got.RecvSeq != w.RecvSeq || string(got.RecvQueue) != string(w.RecvQueue) ||
			got.SendSeq != w.SendSeq || string(got.SendQueue) != string(w.SendQueue) || got.Unsent != w.Unsent {
			t.Errorf("%s:\ngot  %v %d %q, %d %q, %d unsent\nwant %v %d %q, %d %q, %d unsent", test.name,
				got.State, got.RecvSeq, got.RecvQueue, got.SendSeq, got.SendQueue, got.Unsent,
				w.State, w.RecvSeq, w.RecvQueue, w.SendSeq, w.SendQueue, w.Unsent)
		}
	}
	if string(saved.SendQueue) != "sent unsent" {
		t.Error("the snapshot was changed")
	}
}
