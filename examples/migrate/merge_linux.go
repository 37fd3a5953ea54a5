package main

import (
	"errors"

	"github.com/gosoccr/gosoccr/soccr"
)

// errSpoilt is the error for a connection whose peer has got bytes out of turn.
var errSpoilt = errors.New("the program has written while what it had written earlier was not back, and the peer has it")

// merged is a connection that was being put into a socket when that was interrupted,
// while now is what the socket has. There, the program may have gone on: it has read
// what it does not have to get again, and written what comes after all that it had
// written before. Once the network could (went), the peer has gone on, too.
//
// If a queue was selected, it is that which got what the program has written.
func merged(saved, now *soccr.Snapshot, went bool, selected soccr.Queue) (*soccr.Snapshot, error) {
	m := *saved
	if went {
		m.State, m.Reset, m.Timestamp = now.State, now.Reset, now.Timestamp
		m.Window = now.Window
		m.Window.RcvSsthresh, m.Window.Clamp = saved.Window.RcvSsthresh, saved.Window.Clamp
		m.UnsentFIN = now.UnsentFIN
	}
	if selected == soccr.RecvQueue && !went {
		written := now.RecvQueue[common(saved.RecvQueue, now.RecvQueue):]
		m.SendQueue = append(append([]byte(nil), saved.SendQueue...), written...)
		m.Unsent += len(written)
		m.SendSeq += uint32(len(written))
		return &m, nil
	}
	if went || selected == soccr.NoQueue && now.RecvSeq == saved.RecvSeq { // or it was not there yet
		m.RecvQueue, m.RecvSeq = now.RecvQueue, now.RecvSeq
	}
	from := acknowledged(saved)
	if further := acknowledged(now); int32(further-from) > 0 {
		from = further
	}
	before, here := queueFrom(saved, from), queueFrom(now, from)
	same := common(before, here)
	if dummies := int32(from - acknowledged(now)); dummies > 0 && !went {
		here = now.SendQueue // as many zeros as there were yet, and what the program has written
		for n := int32(0); n < dummies && len(here) > 0 && here[0] == 0; n++ {
			here = here[1:]
		}
		same = 0
	}
	sent := max(sentFrom(saved, from), min(sentFrom(now, from), same))
	if same < len(before) && sentFrom(now, from) > same && went && selected != soccr.SendQueue {
		return nil, errSpoilt
	}
	if same == len(before) {
		sent = max(sent, sentFrom(now, from))
	}
	m.SendQueue = append(append([]byte(nil), before...), here[same:]...)
	m.SendSeq = from + uint32(len(m.SendQueue))
	m.Unsent = len(m.SendQueue) - sent
	return &m, nil
}

// acknowledged is the sequence number up to which the peer has acknowledged.
func acknowledged(s *soccr.Snapshot) uint32 { return s.SendSeq - uint32(len(s.SendQueue)) }

// common is how many bytes two queues have in common, from their first on.
func common(a, b []byte) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// queueFrom is the send queue from a sequence number on.
func queueFrom(s *soccr.Snapshot, seq uint32) []byte {
	skip := int(int32(seq - acknowledged(s)))
	return s.SendQueue[min(max(skip, 0), len(s.SendQueue)):]
}

// sentFrom is how many bytes of it were sent.
func sentFrom(s *soccr.Snapshot, seq uint32) int {
	return max(int(int32(s.SendSeq-uint32(s.Unsent)-seq)), 0)
}
