package diag

import (
	"errors"
	"fmt"
	"net/netip"
)

// The reasons for which an operation fails, to be compared with errors.Is. They
// come inside an [*OpError], beside the errno that the kernel answered with. A
// Conn that was closed gives net.ErrClosed, and what this kernel was built
// without gives errors.ErrUnsupported.
var (
	// ErrNotFound: there is no such socket in the namespace, or not any more.
	ErrNotFound = errors.New("no such socket")
	// ErrNoPermission: a capability is missing in the user namespace that owns
	// the network namespace: CAP_NET_ADMIN to destroy a socket or to filter by
	// mark, CAP_SYS_ADMIN to enter another network namespace.
	ErrNoPermission = errors.New("not permitted (destroying sockets and filtering by mark need CAP_NET_ADMIN, another network namespace needs CAP_SYS_ADMIN)")
	// ErrInterrupted: the kernel's tables changed during a listing so that some
	// sockets may be missing from it. Those that came are right; list again.
	ErrInterrupted = errors.New("sockets changed while they were listed")
	// ErrInvalid: the arguments contradict themselves or each other.
	ErrInvalid = errors.New("invalid argument")
	// ErrMalformed: the kernel's message is not understood.
	ErrMalformed = errors.New("malformed sock_diag message")
)

// An OpError says which operation failed, and on which connection.
type OpError struct {
	Op            string         // "dial", "sockets", "lookup" or "destroy"
	Local, Remote netip.AddrPort // of lookup and destroy
	Err           error          // why
}

// Error describes the failure.
func (e *OpError) Error() string {
	if e.Local.IsValid() || e.Remote.IsValid() {
		return fmt.Sprintf("diag: %s %v->%v: %v", e.Op, e.Local, e.Remote, e.Err)
	}
	return fmt.Sprintf("diag: %s: %v", e.Op, e.Err)
}

// Unwrap gives Err.
func (e *OpError) Unwrap() error { return e.Err }
