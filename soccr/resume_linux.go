package soccr

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// Resume switches repair mode off and lets the connection go on. The kernel
// sends a window probe from an established socket, whose answer tells where the
// peer stands; where a half-closed one finds the peer's window closed, Resume
// sends it. Unlock the flow before: the probe has to get out and its answer in.
// After Restore, Resume also does what could not be done while paused: it sends
// what was in flight and what was never sent, and the SYN of a connection in
// SYN_SENT; see [Effects].
//
// SO_REUSEADDR, which repair mode overwrites, is as it was before Pause. The
// Socket must not be used any more, unless Resume fails: then the socket is
// still paused, and Resume can be called again.
func (s *Socket) Resume() error {
	if s.restored == nil {
		err := errors.Join(s.setRepair(unix.TCP_REPAIR_OFF), s.setReuseAddr())
		if err != nil {
			return s.fail("resume", err)
		}
		s.disclaim()
		return nil
	}
	if err := s.resetOver(); err != nil {
		return s.fail("reset", err)
	}
	defer s.closeInjectors()
	if err := s.start(s.restored); err != nil {
		return s.fail("resume", errors.Join(err, s.setRepair(unix.TCP_REPAIR_ON)))
	}
	s.restored = nil
	s.disclaim()
	return nil
}

// start lets a restored connection go. What arrives between the gate's opening and
// the sweep may be discarded, for it may acknowledge what counts as never sent; a
// tap still catches it.
func (s *Socket) start(snap *Snapshot) error {
	connected := snap.State.row().connected
	for _, step := range [...]struct {
		needed bool
		do     func(*Socket, *Snapshot) error
	}{
		{true, (*Socket).leaveRepair},
		{s.gated || !s.lastApplied, func(s *Socket, _ *Snapshot) error { return s.leaveGate() }},
		{s.send.again, (*Socket).resend},
		{connected, (*Socket).probe},
		{s.postponed != "", func(s *Socket, _ *Snapshot) error { return s.setPostponedCongestion() }},
		{snap.State == StateSynSent, (*Socket).connectAgain},
		{len(s.send.held) > 0, (*Socket).writeHeld},
		{connected && (len(s.send.unsent) > 0 || s.send.unsentFIN), (*Socket).pushOnce},
		{connected && (s.options.tap != nil || s.options.packets != nil), (*Socket).deliverCaught},
		{s.reuseAddr, func(s *Socket, _ *Snapshot) error { return s.setReuseAddr() }},
		{s.rtoMax != 0, func(s *Socket, _ *Snapshot) error { return s.unhasten() }},
		{len(s.chosen) > 0, func(s *Socket, _ *Snapshot) error { return s.apply(afterResume) }},
		{s.way == proven, (*Socket).nudge},
		{!s.options.noOptions, func(s *Socket, snap *Snapshot) error { return s.setBlocking(snap.Options.NonBlocking) }},
	} {
		if !step.needed {
			continue
		}
		if err := step.do(s, snap); err != nil {
			return err
		}
	}
	return nil
}

func (s *Socket) leaveRepair(*Snapshot) error {
	if s.send.again { // which asks the peer as well as a probe does
		return s.setRepair(unix.TCP_REPAIR_OFF_NO_WP)
	}
	return s.setRepair(unix.TCP_REPAIR_OFF)
}

// connectAgain sends the SYN of a connection in SYN_SENT: the sequence number that
// is set already becomes that of the SYN.
func (s *Socket) connectAgain(snap *Snapshot) error {
	sa, err := toSockaddr(s.fd, snap.Remote)
	if err != nil {
		return because(ErrNoRoute, err)
	}
	if err := unix.Connect(s.fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect: %w", because(connectReasons.of(err), err))
	}
	return nil
}

// writeHeld queues what was never sent behind what was in flight.
func (s *Socket) writeHeld(snap *Snapshot) error {
	n, err := s.writeAll(SendQueue, s.send.held)
	s.send.held = s.send.held[n:]
	if err != nil {
		return err
	}
	now, err := s.bufferSize(sendBuffer)
	if err != nil {
		return err
	}
	return s.restoreSendBuffer(snap, uint32(now))
}

// pushOnce sends what waits and leaves TCP_NODELAY as the snapshot has it.
func (s *Socket) pushOnce(snap *Snapshot) error {
	if err := s.push(); err != nil || snap.Options.number("TCP_NODELAY") != 0 {
		return err
	}
	return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0)
}

// setReuseAddr puts SO_REUSEADDR back, which leaving repair mode sets to 0.
func (s *Socket) setReuseAddr() error {
	if !s.reuseAddr {
		return nil
	}
	return sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// planSend chooses how the send queue is put back.
func (s *Socket) planSend(snap *Snapshot) sendPlan {
	if !snap.State.row().connected || s.options.plain {
		return planPlain(snap)
	}
	if snap.Unacked() > 0 && snap.acksAreDue(time.Now()) && s.priming.cwnd > snap.Unacked()/int(snap.MSS)+1 {
		return planTail(snap)
	}
	return planAgain(snap)
}

func (s *Socket) planPriming(snap *Snapshot) priming {
	if s.options.plain || s.options.mark == 0 || s.options.path == PathAuto && !snap.inUse(s.trimmed) {
		return priming{}
	}
	return planPriming(snap, s.trimmed, s.options.path, s.options.pathWait, time.Now())
}
