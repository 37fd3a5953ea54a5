package soccr

// beforeVerify lets a test change the socket before it is read back.
var beforeVerify = func(fd int) {}

// verify reads back what Restore has set and compares. The bytes in the queues
// are compared by their number and their place in the sequence space.
func (s *Socket) verify(snap *Snapshot, plan windowPlan) error {
	if s.options.noVerify {
		return s.noteReceived(snap)
	}
	if snap.State == StateSynSent || !snap.Remote.IsValid() {
		return s.verifyAddrs(snap) // the rest is up to Resume
	}
	beforeVerify(s.fd)
	var seen observation
	if err := s.observe(&seen); err != nil {
		return err
	}
	s.receivedBefore = seen.info.Bytes_received
	if got := State(seen.info.State); got != snap.State {
		return mismatch("State", snap.State, got)
	}
	if err := s.verifyAddrs(snap); err != nil {
		return err
	}
	reset, err := s.pendingError(snap)
	if err != nil {
		return err
	}
	if reset != snap.Reset {
		return mismatch("Reset", snap.Reset, reset)
	}
	rcvNxt, writeSeq, err := s.seqs()
	if err != nil {
		return err
	}
	unsent, queued := len(s.send.unsent), len(s.send.sent)+len(s.send.unsent)
	if s.send.unsentFIN {
		unsent++
	}
	type number struct {
		field     string
		want, got uint32
	}
	var room [16]number
	numbers := append(room[:0],
		number{"RecvSeq", snap.rcvNxt(), rcvNxt},
		number{"SendSeq", snap.writeSeq() - uint32(len(s.send.held)), writeSeq},
		number{"RecvQueue", uint32(len(snap.RecvQueue)), uint32(seen.received)},
	)
	if snap.State.row().connected {
		n, err := s.negotiated(&seen.info)
		if err != nil {
			return err
		}
		numbers = append(numbers,
			number{"SendQueue", uint32(queued), uint32(seen.unacked)},
			number{"Unsent", uint32(unsent), uint32(seen.unsent)},
			number{"MSS", snap.MSS, n.MSS},
			number{"SendScale", uint32(snap.SendScale), uint32(n.SendScale)},
			number{"RecvScale", uint32(snap.RecvScale), uint32(n.RecvScale)},
			number{"SACK", bit(snap.SACK), bit(n.SACK)},
			number{"Timestamp.Enabled", bit(snap.Timestamp.Enabled), bit(n.Timestamps)},
			number{"Timestamp.Microseconds", bit(snap.Timestamp.Microseconds && snap.Timestamp.Enabled), bit(n.Microseconds)},
			number{"Window.SndWl1", plan.SndWl1, seen.window.SndWl1},
			number{"Window.SndWnd", plan.SndWnd, seen.window.SndWnd},
			number{"Window.MaxWindow", plan.MaxWindow, seen.window.MaxWindow},
		)
	}
	for _, n := range numbers {
		if n.want != n.got {
			return mismatch(n.field, n.want, n.got)
		}
	}
	// An acknowledgement that was due may have moved the edge on since; never back.
	if moved := int32(seen.window.edge() - plan.edge()); moved < 0 && snap.State.row().connected {
		return mismatch("Window.RcvWnd", plan.RcvWnd, plan.RcvWnd-uint32(-moved))
	}
	if s.options.noOptions {
		return nil
	}
	return s.verifyOptions(&snap.Options)
}

// noteReceived is all of it that delivering caught packets needs, and the probe.
func (s *Socket) noteReceived(snap *Snapshot) error {
	if s.options.tap == nil && len(s.options.packets) == 0 && (snap.State == StateEstablished || !s.shut(snap)) {
		return nil
	}
	info, err := s.info()
	s.receivedBefore = info.Bytes_received
	return err
}

// verifyAddrs: hooks of the kernel (cgroup BPF) may have sent us elsewhere.
func (s *Socket) verifyAddrs(snap *Snapshot) error {
	local, err := localAddr(s.fd)
	if err != nil {
		return err
	}
	if !neverBound(snap.Local) && local != snap.Local {
		return mismatch("Local", snap.Local, local)
	}
	if snap.State == StateSynSent {
		return nil
	}
	remote, err := remoteAddr(s.fd, snap.Local)
	if err != nil {
		return err
	}
	if remote != snap.Remote {
		return mismatch("Remote", snap.Remote, remote)
	}
	return nil
}

// verifyOptions leaves out those that are set later and the buffers' sizes,
// which the window may have to exceed.
func (s *Socket) verifyOptions(want *Options) error {
	if err := verifyChosen(s.chosen, s.fd, beforeBind, afterConnect, s.lose); err != nil {
		return err
	}
	if want.Congestion != "" && s.postponed == "" {
		got, err := congestion(s.fd)
		if err != nil {
			return err
		}
		if got != want.Congestion {
			return mismatch("Options.Congestion", want.Congestion, got)
		}
	}
	if want.PeekOffsetOn {
		got, err := peekOffset(s.fd)
		if err != nil {
			return err
		}
		if got != int(want.PeekOffset) {
			return mismatch("Options.PeekOffset", want.PeekOffset, got)
		}
	}
	return nil
}

func bit(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
