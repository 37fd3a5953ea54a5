package soccr

// largeSegment is the memory of a segment that a device has put together from
// many (GRO), in bytes, with its overhead.
const largeSegment = 72 << 10

// A windowPlan is what Restore sets for a snapshot's window. It is the saved
// one, save where the kernel would refuse it or the connection would hang.
type windowPlan struct {
	Window

	// room is the receive memory, in bytes, that the window promises to have.
	room int64
}

// edge is the first sequence number that our window does not allow the peer.
func (w Window) edge() uint32 { return w.RcvWup + w.RcvWnd }

// advertised is what the header of a segment that acknowledges rcvNxt says of our
// window: rounded up, so that the edge does not go back (tcp_select_window).
func (w Window) advertised(rcvNxt uint32, scale uint8) uint16 {
	left := uint64(max(int32(w.edge()-rcvNxt), 0))
	return uint16(min((left+1<<scale-1)>>scale, 65535))
}

// planWindow turns saved windows into ones that the kernel takes and that work.
func planWindow(s *Snapshot) windowPlan {
	w, rcvNxt := s.Window, s.rcvNxt()

	// The last window update may be as old as the connection; what lies 2³¹
	// back would count as the future. The kernel's own probe sets rcv_nxt−1.
	// One that lies ahead came with a segment out of order, whose data are not
	// in the snapshot: the peer will send it again.
	wl1 := w.SndWl1
	if age := rcvNxt - wl1; age == 0 || age > 1<<30 {
		wl1 = rcvNxt - 1
	}
	w.MaxWindow = max(w.MaxWindow, w.SndWnd)

	edge := int64(w.RcvWnd) - int64(rcvNxt-w.RcvWup) // what is left of our window
	left := uint32(max(edge, 0))
	// rcv_wnd can exceed what fits into a header; memory is not promised for it.
	promised := min(left, 65535<<s.RecvScale)
	// Since Linux 6.17 a segment is dropped, and the window taken back, if it does
	// not fit whole (tcp_can_ingest), so there is room for one large one more. Not
	// in proportion: the window can follow the buffer, and both would grow with
	// every move.
	plan := windowPlan{room: int64(promised) + int64(min(promised, largeSegment))}

	// The kernel takes its window back to 0 when memory ran out (tcp_select_window
	// with ICSK_ACK_NOMEM); the peer may have sent beyond it. Since Linux 6.17
	// such segments are dropped before their acknowledgement is read, so that
	// neither end gets on. Opening the window again ends that.
	ahead := w.SndWl1 - rcvNxt
	beyond := 0 < ahead && ahead < 1<<30 && int64(ahead) > edge
	full := w.RecvMemory > s.Options.RecvBuffer && s.Options.RecvBuffer > 0
	if beyond || full && promised < 2<<s.SendScale {
		const least = 64 << 10
		reopened := max(left, least, 2<<s.SendScale)
		if beyond {
			reopened = max(reopened, ahead+least)
		}
		if free := int64(s.Options.RecvBuffer) - int64(len(s.RecvQueue)); free > 0 {
			reopened = max(reopened, uint32(min(free, 1<<20)))
		}
		w.RcvWup, w.RcvWnd = rcvNxt, min(reopened, 65535<<s.RecvScale)
		plan.room = 2 * int64(w.RcvWnd)
	} else if edge < 0 {
		w.RcvWup, w.RcvWnd = rcvNxt, 0
	}
	w.SndWl1 = wl1
	plan.Window = w
	return plan
}

// beforeFIN is the window to have while the peer's FIN is on its way in: the
// same edge, at least one byte wide because the kernel drops what lies beyond
// (tcp_sequence), and with the peer's window closed so that nothing of ours is
// sent in answer.
func (p windowPlan) beforeFIN(rcvNxt uint32) Window {
	w := p.Window
	edge := max(w.RcvWnd-(rcvNxt-w.RcvWup), 1) // RcvWup is at most rcvNxt, or one more
	w.RcvWup, w.RcvWnd = rcvNxt, edge
	w.SndWnd = 0
	if int32(w.SndWl1-rcvNxt) >= 0 {
		w.SndWl1 = rcvNxt - 1
	}
	return w
}
