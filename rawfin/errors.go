package rawfin

import (
	"cmp"
	"fmt"
)

// A SegmentError says why a segment cannot be one of an open connection, or
// cannot be delivered here. Nothing was sent.
type SegmentError struct {
	Segment Segment
	Reason  string
}

func (e *SegmentError) Error() string {
	return fmt.Sprintf("rawfin: invalid segment %v: %s", e.Segment, e.Reason)
}

// A DroppedError says that this host dropped a segment on its way out to the
// loopback device, so that the socket did not get it: netfilter's OUTPUT hook
// did, or a BPF program of the caller's cgroup (systemd's IPAddressDeny= is
// one). A caller that goes on without noticing has a connection in the wrong
// state.
//
// The cure is a rule that accepts the mark, ahead of the one that drops; or
// another mark ([WithMark]) if the rule drops because of the mark, as
// Kubernetes does with bit 0x8000.
type DroppedError struct {
	Segment Segment
	Mark    uint32 // the packet mark that the segment had
	Err     error  // what the kernel answered: EPERM
}

func (e *DroppedError) Error() string {
	return fmt.Sprintf("rawfin: a packet filter of this host dropped %v in OUTPUT: %v (accept packets with mark %#x there, or use another mark)",
		e.Segment, e.Err, e.Mark)
}

func (e *DroppedError) Unwrap() error { return e.Err }

// A PermissionError says that the caller may not use raw sockets or marks, or
// may not enter a network namespace.
type PermissionError struct {
	Call string // the system call that was refused, and what it was for
	Err  error  // what the kernel answered: EPERM or EACCES
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("rawfin: %s: %v (needs %s in the user namespace that owns the network namespace)",
		e.Call, e.Err, cmp.Or(capabilities[e.Call], "more rights"))
}

func (e *PermissionError) Unwrap() error { return e.Err }

// capabilities are what the calls need.
var capabilities = map[string]string{
	"setns":              "CAP_SYS_ADMIN",
	"setsockopt SO_MARK": "CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17,",
	"socket":             "CAP_NET_RAW",
}
