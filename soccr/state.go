package soccr

import (
	"fmt"
	"strings"
)

// A State is a TCP connection's state, numbered as in the kernel's tcp_states.h.
type State uint8

// The states of a TCP socket.
const (
	StateEstablished State = 1
	StateSynSent     State = 2
	StateSynRecv     State = 3
	StateFinWait1    State = 4
	StateFinWait2    State = 5
	StateTimeWait    State = 6
	StateClose       State = 7
	StateCloseWait   State = 8
	StateLastAck     State = 9
	StateListen      State = 10
	StateClosing     State = 11
)

// A stateRow says what has happened on a connection that is in a state, as far
// as its two sequence number spaces show it.
type stateRow struct {
	name string

	// movable: Save and Restore know this state.
	movable bool
	// connected: the handshake is over, so options were negotiated.
	connected bool
	// finSent: shutdown was called, so write_seq counts our FIN; finAcked: the
	// peer acknowledged it. finReceived: rcv_nxt counts the peer's FIN.
	finSent, finAcked, finReceived bool
}

// A closed connection is treated as one whose FINs were exchanged: that is how
// Restore gets a socket there, and its sequence numbers mean nothing any more.
var states = [...]stateRow{
	StateEstablished: {name: "ESTABLISHED", movable: true, connected: true},
	StateSynSent:     {name: "SYN_SENT", movable: true},
	StateSynRecv:     {name: "SYN_RECV"},
	StateFinWait1:    {name: "FIN_WAIT1", movable: true, connected: true, finSent: true},
	StateFinWait2:    {name: "FIN_WAIT2", movable: true, connected: true, finSent: true, finAcked: true},
	StateTimeWait:    {name: "TIME_WAIT"},
	StateClose:       {name: "CLOSE", movable: true, finSent: true, finAcked: true, finReceived: true},
	StateCloseWait:   {name: "CLOSE_WAIT", movable: true, connected: true, finReceived: true},
	StateLastAck:     {name: "LAST_ACK", movable: true, connected: true, finSent: true, finReceived: true},
	StateListen:      {name: "LISTEN"},
	StateClosing:     {name: "CLOSING", movable: true, connected: true, finSent: true, finReceived: true},
}

func (s State) row() stateRow {
	if int(s) < len(states) {
		return states[s]
	}
	return stateRow{}
}

// finPending reports whether our FIN is in the send queue, where the kernel
// counts it as one byte: sent or not, but not acknowledged.
func (s State) finPending() bool { return s.row().finSent && !s.row().finAcked }

// String gives the kernel's name of the state, as ss(8) and /proc/net/tcp do.
func (s State) String() string {
	if name := s.row().name; name != "" {
		return name
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler with the state's name.
func (s State) MarshalText() ([]byte, error) {
	if s.row().name == "" {
		return nil, fmt.Errorf("%w: no TCP state has the number %d", ErrInvalidSnapshot, uint8(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(text []byte) error {
	for i, row := range states {
		if row.name != "" && strings.EqualFold(row.name, string(text)) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("%w: no TCP state is called %q", ErrInvalidSnapshot, text)
}

// mayShutDownReading reports whether the program can have shut down reading, as no
// FIN of the peer's is there.
func (s State) mayShutDownReading() bool {
	row := s.row()
	return row.connected && !row.finReceived
}
