package soccr

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/rawfin"
)

// A closing is one step on the way from ESTABLISHED to a half-closed state.
type closing struct {
	do func(*replayer, State) error
	to State // where the kernel must be afterwards
}

// closings are the ways to the states beyond ESTABLISHED, RFC 9293 figure 5.
var closings = [...][]closing{
	StateCloseWait: {{(*replayer).peerFIN, StateCloseWait}},
	StateFinWait1:  {{(*replayer).ownFIN, StateFinWait1}},
	StateFinWait2:  {{(*replayer).ownFIN, StateFinWait1}, {(*replayer).peerACK, StateFinWait2}},
	StateClosing:   {{(*replayer).ownFIN, StateFinWait1}, {(*replayer).peerFIN, StateClosing}},
	StateLastAck:   {{(*replayer).peerFIN, StateCloseWait}, {(*replayer).ownFIN, StateLastAck}},
	StateClose: {{(*replayer).peerFIN, StateCloseWait}, {(*replayer).ownFIN, StateLastAck},
		{(*replayer).peerACK, StateClose}},
}

// closings are those of a state, none if it is none of these.
func (s State) closings() []closing {
	if int(s) < len(closings) {
		return closings[s]
	}
	return nil
}

// resetting is the way of a connection that the peer has reset.
var resetting = []closing{{(*replayer).peerRST, StateClose}}

// A replayer brings an established socket, its queues filled, to the snapshot's
// state. Meanwhile the peer's window is closed, so that nothing is sent that was
// not sent before.
type replayer struct {
	socket    *Socket
	snap      *Snapshot
	injection *injection
	rcvNxt    uint32 // grows with the peer's FIN
}

// replay puts unsent bytes into the send queue and exchanges the FINs.
func (s *Socket) replay(snap *Snapshot, plan windowPlan) (err error) {
	steps := snap.State.closings()
	if snap.Reset {
		steps = resetting
	}
	if !snap.Remote.IsValid() || len(steps) == 0 {
		return s.queueUnsent()
	}
	r := &replayer{socket: s, snap: snap, injection: s.newInjection(snap), rcvNxt: snap.RecvSeq}
	defer func() { err = errors.Join(err, r.injection.close(err != nil)) }()
	if snap.State.row().connected {
		if err := s.setRepairWindow(plan.beforeFIN(r.rcvNxt)); err != nil {
			return err
		}
	}
	if !snap.State.finPending() {
		if err := s.queueUnsent(); err != nil {
			return err
		}
	}
	for _, step := range steps {
		if err := step.do(r, step.to); err != nil {
			return err
		}
	}
	return nil
}

// queueUnsent appends the bytes that were never sent. What is written in repair
// mode counts as sent; outside, with the peer's window at 0 as connect(2) left
// it, it stays unsent.
func (s *Socket) queueUnsent() error {
	if len(s.send.unsent) == 0 {
		return nil
	}
	return s.outOfRepair(func() error {
		_, err := s.writeAll(SendQueue, s.send.unsent)
		return err
	})
}

// outOfRepair runs f with repair mode off. Nothing leaves meanwhile: no window
// probe is sent, and the peer's window is closed.
func (s *Socket) outOfRepair(f func() error) error {
	if err := s.setRepair(unix.TCP_REPAIR_OFF_NO_WP); err != nil {
		return err
	}
	return errors.Join(f(), s.setRepair(unix.TCP_REPAIR_ON))
}

// ownFIN shuts down writing. In repair mode with the send queue selected the FIN
// counts as sent, and so would all bytes before it; one that was never sent is
// queued like unsent bytes.
func (r *replayer) ownFIN(to State) error {
	if err := r.shutDown(); err != nil {
		return err
	}
	state, err := r.socket.State()
	if err == nil && state != to {
		err = &FieldError{Field: "State", Want: to, Got: state, Err: ErrMismatch}
	}
	return err
}

func (r *replayer) shutDown() error {
	s := r.socket
	shutdown := func() error { return unix.Shutdown(s.fd, unix.SHUT_WR) }
	if !s.send.unsentFIN {
		return s.inQueue(SendQueue, shutdown)
	}
	return s.outOfRepair(func() error {
		if _, err := s.writeAll(SendQueue, s.send.unsent); err != nil {
			return err
		}
		return shutdown()
	})
}

// peerFIN is the peer's FIN; it acknowledges nothing new.
func (r *replayer) peerFIN(to State) error {
	err := r.inject(rawfin.FIN|rawfin.ACK, r.snap.sndUna(), to)
	r.rcvNxt++
	return err
}

// peerACK is the peer's acknowledgement of our FIN, and so of everything.
func (r *replayer) peerACK(to State) error { return r.inject(rawfin.ACK, r.snap.SendSeq+1, to) }

// peerRST leaves ECONNRESET for the program to find (tcp_reset), and the receive
// queue as it is.
func (r *replayer) peerRST(to State) error {
	return r.inject(rawfin.RST|rawfin.ACK, r.snap.sndUna(), to)
}

// inject delivers a segment of the peer's. It carries a window of 0, as we have
// just told the socket; the true one is set in the end.
func (r *replayer) inject(flags rawfin.Flags, ack uint32, to State) error {
	return r.injection.deliver(rawfin.Segment{
		Src: r.snap.Remote, Dst: r.snap.Local, Seq: r.rcvNxt, Ack: ack, Flags: flags,
	}, to)
}
