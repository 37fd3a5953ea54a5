package soccr

import (
	"errors"
	"strings"
	"testing"
)

func TestStateNames(t *testing.T) {
	// The numbers are those of the kernel's include/net/tcp_states.h.
	names := []string{
		1: "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
		"CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING",
	}
	for i, name := range names[1:] {
		state := State(i + 1)
		if got := state.String(); got != name {
			t.Errorf("state %d is called %s, want %s", state, got, name)
		}
		text, err := state.MarshalText()
		if err != nil || string(text) != name {
			t.Errorf("%v marshals to %q, %v", state, text, err)
		}
		for _, spelling := range []string{name, strings.ToLower(name)} {
			var got State
			if err := got.UnmarshalText([]byte(spelling)); err != nil || got != state {
				t.Errorf("%s unmarshals to %v, %v", spelling, got, err)
			}
		}
	}
}

func TestNoSuchState(t *testing.T) {
	for state, name := range map[State]string{0: "State(0)", 12: "State(12)", 255: "State(255)"} {
		if got := state.String(); got != name {
			t.Errorf("got %q, want %q", got, name)
		}
		if text, err := state.MarshalText(); !errors.Is(err, ErrInvalidSnapshot) {
			t.Errorf("%v marshals to %q, %v", state, text, err)
		}
	}
	for _, text := range []string{"", "State(1)", "1", "ESTABLISHED "} {
		state := StateClosing
		if err := state.UnmarshalText([]byte(text)); !errors.Is(err, ErrInvalidSnapshot) || state != StateClosing {
			t.Errorf("%q unmarshals to %v, %v", text, state, err)
		}
	}
}

// What the sequence numbers count follows from the state.
func TestFINsInSequenceNumbers(t *testing.T) {
	for state, want := range map[State]struct{ rcvNxt, writeSeq uint32 }{
		StateEstablished: {100, 200},
		StateSynSent:     {100, 200},
		StateFinWait1:    {100, 201},
		StateFinWait2:    {100, 201},
		StateClosing:     {101, 201},
		StateCloseWait:   {101, 200},
		StateLastAck:     {101, 201},
		StateClose:       {101, 201},
	} {
		s := Snapshot{State: state, RecvSeq: 100, SendSeq: 200}
		if s.rcvNxt() != want.rcvNxt || s.writeSeq() != want.writeSeq {
			t.Errorf("%v: rcv_nxt %d and write_seq %d, want %d and %d",
				state, s.rcvNxt(), s.writeSeq(), want.rcvNxt, want.writeSeq)
		}
	}
}

func TestQueuesInSequenceSpace(t *testing.T) {
	s := Snapshot{
		State: StateEstablished, RecvSeq: 2, SendSeq: 3, // both wrapped
		RecvQueue: []byte("abcde"), SendQueue: []byte("sentunsent"), Unsent: 6,
	}
	if got := s.recvStart(); got != 0xfffffffd {
		t.Errorf("the receive queue starts at %#x", got)
	}
	if got := s.sndUna(); got != 0xfffffff9 {
		t.Errorf("the send queue starts at %#x", got)
	}
	if sent, unsent := string(s.sent()), string(s.unsent()); s.Unacked() != 4 || sent != "sent" || unsent != "unsent" {
		t.Errorf("%d bytes: %q, then %q", s.Unacked(), sent, unsent)
	}
}
