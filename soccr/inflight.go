package soccr

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// InFlight says what becomes of the connections that wait in a listener's queue,
// established but not accepted, when the listener is saved.
type InFlight int

// What can become of connections in flight.
const (
	// RefuseInFlight: they are the reason for an [*InFlightError]. The default.
	RefuseInFlight InFlight = iota
	// KeepInFlight: they are saved with the listener, in Pending, and handed out in
	// their order by the restored one.
	KeepInFlight
	// ResetInFlight: their peers get a RST from the kernel, as always when a listener
	// is closed, and know at once.
	ResetInFlight
	// DropInFlight: they are forgotten without a word. A peer that sends something
	// gets a RST then, from whoever has the address; one that waits, waits.
	DropInFlight
)

// WithInFlight chooses what becomes of connections in flight.
func WithInFlight(what InFlight) Option { return func(s *settings) { s.inFlight = what } }

// WithPatience sets for how long CheckpointListener waits for handshakes that are
// under way, when its lock keeps new ones away. The default is a second, after
// which the kernel has sent its part once more.
func WithPatience(patience time.Duration) Option {
	return func(s *settings) { s.patience = patience }
}

const defaultPatience = time.Second

// An InFlightError says that connections wait in a listener's queue, and that
// nobody has said what should become of them; or that it could not become of them.
// It is an ErrInFlight.
type InFlightError struct {
	// Count is how many wait, or waited.
	Count int
	// Conns are those that were accepted before something failed. They cannot be put
	// back, go on as if the program had accepted them, and are the caller's now.
	Conns []*net.TCPConn
	// Err is what failed, or nil.
	Err error
}

// Error says how many connections there are and what failed.
func (e *InFlightError) Error() string {
	text := fmt.Sprintf("%v: %d", ErrInFlight, e.Count)
	if e.Err != nil {
		text += fmt.Sprintf("; %d of them were accepted before an error: %v", len(e.Conns), e.Err)
	}
	return text
}

// Unwrap gives ErrInFlight and Err.
func (e *InFlightError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrInFlight}
	}
	return []error{ErrInFlight, e.Err}
}

// A ListenLocker is a Locker that can also keep new connections from a listener,
// by dropping each SYN to an address and port, or to a port if the address is
// unspecified; 0.0.0.0 stands for all of IPv4 and :: for all of IPv6.
type ListenLocker interface {
	Locker
	LockListener(local netip.AddrPort) error
	UnlockListener(local netip.AddrPort) error
}
