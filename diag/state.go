package diag

import (
	"fmt"
	"iter"
	"strings"
)

// A State is a TCP connection's state, numbered as in the kernel's tcp_states.h
// (and as in package soccr).
type State uint8

// The states of a TCP socket.
const (
	StateEstablished State = 1
	StateSynSent     State = 2
	StateSynRecv     State = 3
	StateFinWait1    State = 4
	StateFinWait2    State = 5
	StateTimeWait    State = 6
	StateClose       State = 7 // neither connected nor listening, but bound
	StateCloseWait   State = 8
	StateLastAck     State = 9
	StateListen      State = 10
	StateClosing     State = 11
)

var stateNames = [...]string{
	StateEstablished: "ESTABLISHED",
	StateSynSent:     "SYN_SENT",
	StateSynRecv:     "SYN_RECV",
	StateFinWait1:    "FIN_WAIT1",
	StateFinWait2:    "FIN_WAIT2",
	StateTimeWait:    "TIME_WAIT",
	StateClose:       "CLOSE",
	StateCloseWait:   "CLOSE_WAIT",
	StateLastAck:     "LAST_ACK",
	StateListen:      "LISTEN",
	StateClosing:     "CLOSING",
}

// String gives the kernel's name of the state, as in "CLOSE_WAIT".
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// States is a set of states. The zero value stands for all of them.
type States uint32

// SetOf makes a set of states.
func SetOf(states ...State) States {
	var set States
	for _, s := range states {
		set |= 1 << s
	}
	return set
}

// Connected are the states between the handshake and the end: a socket in one of
// them has a connection that can be moved.
var Connected = SetOf(StateEstablished, StateFinWait1, StateFinWait2, StateCloseWait, StateLastAck, StateClosing)

// Has reports whether the set contains a state.
func (set States) Has(s State) bool { return set == 0 || set&(1<<s) != 0 }

// All gives the set's states in the order of their numbers.
func (set States) All() iter.Seq[State] {
	return func(yield func(State) bool) {
		for s, name := range stateNames {
			if name != "" && set.Has(State(s)) && !yield(State(s)) {
				return
			}
		}
	}
}

// String names the set's states, as in "ESTABLISHED|CLOSE_WAIT".
func (set States) String() string {
	if set == 0 {
		return "all"
	}
	var names []string
	for s := range set.All() {
		names = append(names, s.String())
	}
	return strings.Join(names, "|")
}
