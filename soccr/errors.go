package soccr

import (
	"errors"
	"fmt"
	"net/netip"
)

// The reasons for which an operation is refused or fails, to be compared with
// errors.Is. They come inside an [*OpError], most of them beside the errno that
// the kernel answered with, which errors.Is finds as well.
var (
	// ErrState: the socket's state does not allow the operation: a listening
	// socket cannot be paused, a used one cannot be restored into.
	ErrState = errors.New("socket state does not allow this")
	// ErrMultipath: the socket speaks MPTCP, or once did and fell back.
	ErrMultipath = errors.New("connection is Multipath TCP")
	// ErrUrgent: urgent (out-of-band) data waits in the receive queue.
	ErrUrgent = errors.New("urgent data in the receive queue cannot be moved")
	// ErrULP: an upper layer protocol such as kernel TLS is attached.
	ErrULP = errors.New("an upper layer protocol is attached to the socket")
	// ErrSigned: segments are signed with TCP-AO (RFC 5925).
	ErrSigned = errors.New("segments are signed with TCP-AO")
	// ErrInFlight: connections wait in the listener's queue to be accepted.
	ErrInFlight = errors.New("connections wait to be accepted")
	// ErrNotTCP: the file descriptor is not a TCP socket over IP.
	ErrNotTCP = errors.New("not a TCP socket")
	// ErrNotUDP: the file descriptor is not a UDP, UDP-Lite, ping or raw socket.
	ErrNotUDP = errors.New("not a UDP, ping or raw socket")
	// ErrCorked: a datagram waits for the program to complete it (UDP_CORK,
	// MSG_MORE), and cannot be read.
	ErrCorked = errors.New("an incomplete datagram waits to be sent")
	// ErrPaused: another checkpointer, in this process or in another, has paused the
	// socket and not let it go on.
	ErrPaused = errors.New("another checkpointer has paused the socket")
	// ErrNotPaused: the socket is not in repair mode (any more).
	ErrNotPaused = errors.New("socket is not paused")
	// ErrInvalidSnapshot: the snapshot cannot be that of a TCP socket.
	ErrInvalidSnapshot = errors.New("invalid snapshot")
	// ErrInvalidMapping: the rules of a mapping contradict themselves.
	ErrInvalidMapping = errors.New("invalid mapping")
	// ErrAddrInUse: another socket of this host has the same flow, or the port.
	ErrAddrInUse = errors.New("another socket uses these addresses and ports")
	// ErrAddrNotAvailable: the local address is not on this host.
	ErrAddrNotAvailable = errors.New("local address is not on this host")
	// ErrNoDevice: this host has no device of that name.
	ErrNoDevice = errors.New("no such device")
	// ErrOption: the kernel refuses a socket option without which the connection would
	// not be the same.
	ErrOption = errors.New("the kernel refuses a socket option")
	// ErrNoCongestion: this host does not have the congestion control, or not for this
	// caller.
	ErrNoCongestion = errors.New("congestion control is not available")
	// ErrNoRoute: this host has no route to the peer.
	ErrNoRoute = errors.New("no route to the peer")
	// ErrNoPermission: a capability is missing, CAP_NET_ADMIN or CAP_NET_RAW.
	ErrNoPermission = errors.New("not permitted")
	// ErrChanged: the connection went on while it was being saved.
	ErrChanged = errors.New("connection changed while it was saved")
	// ErrDamaged: the program was not stopped, and wrote while its receive queue was
	// being saved: what it wrote is there now, and what the peer sends next is lost.
	ErrDamaged = errors.New("program has written into its own receive queue")
	// ErrMismatch: the kernel does not hold what Restore put there.
	ErrMismatch = errors.New("restored socket differs from the snapshot")
	// ErrBuffer: a queue does not fit into the socket's buffers.
	ErrBuffer = errors.New("queue does not fit into the socket's buffer")
	// ErrInjection: the segment that stands for the peer's FIN or
	// acknowledgement did not reach the socket.
	ErrInjection = errors.New("injected segment did not reach the socket")
)

// hints are the cures that are known for a reason, whatever the operation.
var hints = [...]struct {
	reason error
	cure   string
}{
	{ErrMultipath, "Go programs listen with MPTCP by default: run them with GODEBUG=multipathtcp=0, or call net.ListenConfig.SetMultipathTCP(false)"},
	{ErrUrgent, "let the program read it, then save again"},
	{ErrULP, "kernel TLS state cannot be read back; let the program do its own TLS"},
	{ErrInFlight, "let the program accept them, or say with WithInFlight what shall become of them"},
	{ErrPaused, "wait until it has resumed the connection, or has taken it"},
	{ErrAddrInUse, "close or move the socket that has it, or wait for the end of its TIME_WAIT; ss -tan shows it"},
	{ErrAddrNotAvailable, "add the address to a device of this host first (ip address add)"},
	{ErrNoDevice, "map the device's name with a Mapping"},
	{ErrOption, "the message names it; remove it from the snapshot if the program can do without, or restore on a host whose kernel has it"},
	{ErrNoCongestion, "load its module (modprobe tcp_NAME), or clear Options.Congestion"},
	{ErrNoRoute, "add the route first (ip route add)"},
	{ErrNoPermission, "CAP_NET_ADMIN (half-closed states: CAP_NET_RAW too) is needed in the user namespace that owns the socket's network namespace"},
	{ErrChanged, "stop its program and lock the flow before the pause"},
	{ErrDamaged, "stop the program before the pause; this connection has to be given up"},
	{ErrBuffer, "raise net.core.wmem_max, or net.ipv4.tcp_rmem and net.core.rmem_max, or run with CAP_NET_ADMIN in the initial user namespace, which may exceed them"},
	{ErrInjection, "let packets with the mark through on the loopback device, in OUTPUT, PREROUTING and INPUT, or choose another mark with WithMark, for the lock too"},
}

// An OpError says which step of an operation failed, on which connection.
type OpError struct {
	Op            string         // the step: "pause", "save", "bind", "connect", "receive queue", …
	Local, Remote netip.AddrPort // the connection, as far as it was known
	Err           error          // why
}

// Error describes the failure and, where one is known, its cure.
func (e *OpError) Error() string {
	text := "soccr: " + e.Op
	if e.Local.IsValid() {
		text += " " + e.Local.String()
	}
	if e.Remote.IsValid() {
		text += "->" + e.Remote.String()
	}
	text += ": " + e.Err.Error()
	if hint := e.Hint(); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}

// Unwrap gives Err.
func (e *OpError) Unwrap() error { return e.Err }

// Hint is the known cure for the failure, or empty.
func (e *OpError) Hint() string {
	for _, hint := range hints {
		if errors.Is(e.Err, hint.reason) {
			return hint.cure
		}
	}
	return ""
}

// A FieldError names the field that is wrong: of a snapshot (ErrInvalidSnapshot),
// of a socket read back after Restore (ErrMismatch), or of one that moved during
// Save (ErrChanged).
type FieldError struct {
	Field     string // as in Snapshot: "SendSeq", "Window.RcvWnd", "Options.PeekOffset"
	Want, Got any    // what had to be there, if that is one value, and what is
	Err       error  // ErrInvalidSnapshot, ErrMismatch or ErrChanged
}

// Error names the field and its values.
func (e *FieldError) Error() string {
	if e.Want == nil {
		return fmt.Sprintf("%v: %s is %v", e.Err, e.Field, e.Got)
	}
	return fmt.Sprintf("%v: %s is %v, want %v", e.Err, e.Field, e.Got, e.Want)
}

// Unwrap gives Err.
func (e *FieldError) Unwrap() error { return e.Err }

// because joins a reason with what the kernel answered; errors.Is finds both.
func because(reason, answer error) error {
	if reason == nil {
		return answer
	}
	return fmt.Errorf("%w: %w", reason, answer)
}

func mismatch(field string, want, got any) error {
	return &FieldError{Field: field, Want: want, Got: got, Err: ErrMismatch}
}
