package soccr

import "time"

// A sendPlan is how Restore and Resume put a send queue back.
//
// The plain way is the queue as it was: what was sent counts as sent. But
// segments that were in flight when the flow was locked may be lost, and the
// kernel, which knows no round trip time any more, would wait 1 to 3 s before it
// sends them again. Put back as if they had never been sent, they leave at once
// with Resume. To the peer that is an ordinary retransmission.
type sendPlan struct {
	sent   []byte // counts as sent
	unsent []byte // counts as never sent, and leaves with Resume

	// held is what truly was never sent; Resume writes it, because until then
	// anything behind unsent might have to be swept with it (see sweep).
	held []byte

	// unsentFIN: so does our FIN count as never sent.
	unsentFIN bool
	// again: unsent, or the FIN, was sent before.
	again bool
}

// planAgain plans to send again at once what was in flight.
func planAgain(snap *Snapshot) sendPlan {
	if snap.State.finPending() {
		return sendPlan{unsent: snap.SendQueue, unsentFIN: true, again: snap.Unacked() > 0 || !snap.UnsentFIN}
	}
	if snap.Unacked() == 0 {
		return sendPlan{unsent: snap.SendQueue}
	}
	return sendPlan{unsent: snap.sent(), held: snap.unsent(), again: true}
}

// planTail plans to send only the last segment of what was in flight again: where
// the acknowledgements of the rest are still on their way, they tell the true round
// trip time, which those of segments just sent would make far too short. Whatever
// is missing is found by way of the last segment (RFC 8985).
func planTail(snap *Snapshot) sendPlan {
	if snap.State.finPending() {
		if snap.UnsentFIN {
			return planPlain(snap)
		}
		return sendPlan{sent: snap.SendQueue, unsentFIN: true, again: true}
	}
	sent := snap.sent()
	head := max(len(sent)-int(snap.MSS), 0)
	return sendPlan{sent: sent[:head], unsent: sent[head:], held: snap.unsent(), again: true}
}

// acksAreDue reports whether the acknowledgement of what was sent last can only
// arrive later than now.
func (s *Snapshot) acksAreDue(now time.Time) bool {
	const margin = 2 // milliseconds, for what is left to do
	age := now.UnixMilli() - s.Path.Saved
	return age >= 0 && age+int64(s.Path.Idle)+margin < int64(s.Path.RTT/1000)
}

// planPlain plans to leave that to the kernel's timers.
func planPlain(snap *Snapshot) sendPlan {
	return sendPlan{sent: snap.sent(), unsent: snap.unsent(), unsentFIN: snap.UnsentFIN}
}
