package soccr

import (
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// resend sends again what was in flight. Setting TCP_NODELAY is one step as far
// as arriving segments are concerned, which wait for the socket: an answer to
// what it sends finds all of that marked as sent.
func (s *Socket) resend(*Snapshot) error {
	if err := s.push(); err != nil {
		return err
	}
	s.effects.Resent = len(s.send.unsent)
	waiting, err := count(s.fd, unix.SIOCOUTQNSD)
	if err != nil || waiting == 0 {
		return err
	}
	s.effects.Swept = waiting
	return s.sweep()
}

// push sends what waits, as far as it may (tcp_push_pending_frames).
func (s *Socket) push() error { return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// sweep marks as sent what was sent before, but cannot leave yet because the
// congestion window, the peer's or pacing does not let it. The peer may have it
// all: an acknowledgement beyond snd_nxt is discarded with the segment that
// carries it (tcp_ack), and so would be all that the peer sends, for ever.
//
// In repair mode, with the send queue selected, transmitting is only pretended
// (tcp_write_xmit). If those bytes are missing, the kernel finds that out as with
// any that were lost. The probe asks the peer what it has: what it said in answer
// to the push has been discarded.
func (s *Socket) sweep() error {
	if err := s.setRepair(unix.TCP_REPAIR_ON); err != nil {
		return err
	}
	if err := s.inQueue(SendQueue, s.push); err != nil {
		return err
	}
	return s.setRepair(unix.TCP_REPAIR_OFF)
}
