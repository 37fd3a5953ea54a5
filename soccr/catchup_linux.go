package soccr

import (
	"errors"
	"slices"

	"github.com/gosoccr/gosoccr/rawfin"
)

// deliverCaught delivers what the peer has sent since the flow was locked. That it
// cannot is no error: the peer sends it again when its timers say so.
func (s *Socket) deliverCaught(snap *Snapshot) error {
	packets := s.options.packets
	s.options.packets = nil
	var failure error
	if s.options.tap != nil {
		var caught [][]byte
		caught, failure = s.options.tap.Take(snap.Local, snap.Remote)
		packets = slices.Concat(packets, caught)
	}
	if len(packets) > 0 {
		injection := &injection{socket: s, injectors: map[door]*rawfin.Injector{}}
		failure = errors.Join(failure, s.deliverAll(injection, snap, packets), injection.close(false))
	}
	s.effects.Undelivered = errors.Join(s.effects.Undelivered, failure)
	return nil
}

// deliverAll delivers those packets that the connection has not had yet.
func (s *Socket) deliverAll(i *injection, snap *Snapshot, packets [][]byte) error {
	for _, packet := range packets {
		if !snap.missing(packet) {
			continue
		}
		injector, err := i.injector(door{})
		if err != nil {
			return err
		}
		if err := injector.Deliver(packet, snap.Local); err != nil {
			return err
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
	injection := &injection{socket: s, injectors: map[door]*rawfin.Injector{}}
	injector, err := injection.injector(door{})
	if err == nil {
		err = injector.Inject(rawfin.Segment{
			Src: snap.Remote, Dst: snap.Local, Flags: rawfin.ACK, Ack: snap.sndUna(), Seq: s.rcvWup - 1,
		})
	}
	s.effects.Nudged = err == nil
	s.effects.Undelivered = errors.Join(s.effects.Undelivered, err, injection.close(false))
	return nil
}
