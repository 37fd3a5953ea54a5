package soccr

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A restored connection knows nothing of the round trip time, so its timers for
// retransmission and for probing a closed window would first wait 3 s
// (TCP_TIMEOUT_FALLBACK). What was in flight when the flow was locked may be
// lost, and so may the peer's word that its window is open again: the kernel's
// probe on leaving repair mode asks for it, but the peer answers only one in
// 500 ms (tcp_invalid_ratelimit). TCP_RTO_MAX_MS (Linux 6.15) bounds the timers;
// 1 s is the least it takes, and what RFC 6298 starts with.
const (
	tcpRTOMaxMS = 44
	firstRTO    = 1000 // milliseconds
)

// hasten bounds the timers that are started from now on, if the connection has
// something to send.
func (s *Socket) hasten(snap *Snapshot) error {
	if len(snap.SendQueue) == 0 && !snap.State.finPending() || len(s.priming.rounds) > 0 {
		return nil
	}
	bound, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, tcpRTOMaxMS)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	if err != nil {
		return err
	}
	s.rtoMax = bound
	return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, tcpRTOMaxMS, firstRTO)
}

// unhasten puts the bound back; timers that run keep theirs.
func (s *Socket) unhasten() error {
	return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, tcpRTOMaxMS, s.rtoMax)
}
