package soccr

// Effects tells how a restored connection went on. Nothing of
// it is an error: where a way to go on at once cannot be had, the connection goes
// on when the kernel's timers say so.
type Effects struct {
	// Resent is how many bytes that had been in flight were sent again at once, and
	// Swept how many of them could not leave yet: the congestion window, the
	// peer's window or pacing did not let them.
	Resent, Swept int
	// Delivered is how many packets of the peer's were delivered that had arrived
	// while the flow was locked.
	Delivered int
	// Nudged: the peer was told at once where this end stands.
	Nudged bool
	// Probed: a half-closed connection, which the peer's window did not let send, has
	// asked for it. An established one always does.
	Probed bool
	// Unprobed is why it could not be asked. The kernel asks when its timer says so.
	Unprobed error
	// Unprimed is why nothing of the path was carried over although it was to be.
	Unprimed error
	// Undelivered is why packets could not be delivered, or the peer not be nudged.
	Undelivered error
}

// Effects tells how a restored connection went on, after Resume.
func (s *Socket) Effects() Effects { return s.effects }
