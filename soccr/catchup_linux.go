package soccr

import (
	"errors"
	"slices"

	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/rawfin"
)

// trim leaves out of a snapshot what the peer has acknowledged since, as far as
// the tap knows already. To have those bytes in flight again, and acknowledged the
// moment after, would tell the kernel that the path is that short.
func (s *Socket) trim(snap *Snapshot) *Snapshot {
	s.trimmed = 0
	if s.options.tap != nil {
		caught, err := s.options.tap.Take(snap.Local, snap.Remote)
		s.effects.Undelivered = err
		s.options.packets = slices.Concat(s.options.packets, caught)
	}
	if s.options.plain || !snap.State.row().connected || snap.State.row().finAcked {
		return snap
	}
	for _, packet := range s.options.packets {
		p, ok := wire.Parse(packet, len(packet))
		if acked := int(int32(p.Ack - snap.sndUna())); ok && snap.missing(packet, 0) && p.Flags.Has(wire.ACK) && acked <= snap.Unacked() {
			s.trimmed = max(s.trimmed, acked)
		}
	}
	if s.trimmed == 0 {
		return snap
	}
	less := *snap
	less.SendQueue = snap.SendQueue[s.trimmed:]
	return &less
}

// deliverCaught delivers what the peer has sent while the flow was locked. That it
// cannot is no error: the peer sends it again when its timers say so. What comes
// now may overtake it: segments out of order wait in the socket, and do not make
// older timestamps look wrong (tcp_replace_ts_recent).
func (s *Socket) deliverCaught(snap *Snapshot) error {
	packets := s.options.packets
	s.options.packets = nil
	var failure error
	if s.options.tap != nil {
		var caught [][]byte
		caught, failure = s.options.tap.stop(snap.Local, snap.Remote)
		packets = slices.Concat(packets, caught)
	}
	if len(packets) > 0 && s.way != proven {
		failure = errors.Join(failure, errBarred)
	} else if len(packets) > 0 {
		failure = errors.Join(failure, s.deliverAll(snap, packets))
	}
	s.effects.Undelivered = errors.Join(s.effects.Undelivered, failure)
	return nil
}

// deliverAll delivers those packets that the connection has not had yet.
func (s *Socket) deliverAll(snap *Snapshot, packets [][]byte) error {
	info, err := s.info()
	if err != nil {
		return err
	}
	for _, packet := range packets {
		if s.mayHaveEnded(snap) {
			return nil
		}
		if !snap.missing(packet, info.Bytes_received-s.receivedBefore) {
			continue
		}
		injector, err := s.injector(door{})
		if err != nil {
			return err
		}
		for _, part := range split(packet) {
			if err := injector.Deliver(part, snap.Local); err != nil {
				return err
			}
		}
		s.effects.Delivered++
	}
	return nil
}

// nudge has the kernel tell the peer our acknowledgement and window, which it may
// not have heard: what this end said last may have met the closed lock. The probe
// on leaving repair mode does not say it, for the peer discards what it carries
// (its sequence number is old). So here comes, as from the peer, a bare segment
// that is as old, which the kernel answers with a true acknowledgement
// (tcp_send_dupack). It acknowledges nothing new.
func (s *Socket) nudge(snap *Snapshot) error {
	if s.mayHaveEnded(snap) {
		return nil
	}
	injector, err := s.injector(door{})
	if err == nil {
		err = injector.Inject(rawfin.Segment{
			Src: snap.Remote, Dst: snap.Local, Flags: rawfin.ACK, Ack: snap.sndUna(), Seq: s.rcvWup - 1,
		})
	}
	s.effects.Nudged = err == nil
	s.effects.Undelivered = errors.Join(s.effects.Undelivered, err)
	return nil
}

// mayHaveEnded reports whether the connection may be at its end since it goes on. Then
// nothing is injected any more: where there is no socket, the kernel answers the peer
// with a RST, and in TIME_WAIT with an acknowledgement, which is answered with a RST by
// a peer that has forgotten the connection. Our FIN is under way to it, or it has all.
func (s *Socket) mayHaveEnded(snap *Snapshot) bool {
	switch snap.State {
	case StateLastAck, StateClosing:
		return true
	case StateFinWait1, StateFinWait2:
		now, err := s.State()
		return err != nil || now.row().finReceived
	default:
		return false
	}
}
