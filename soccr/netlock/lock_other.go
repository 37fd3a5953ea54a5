//go:build !linux

package netlock

import (
	"errors"
	"net/netip"
	"syscall"
)

// A Lock needs Linux.
type Lock struct{}

// New needs Linux.
func New(...Option) (*Lock, error) { return nil, opError("new", errors.ErrUnsupported) }

// Namespace needs Linux.
func Namespace(...Option) (*Lock, error) { return nil, opError("namespace", errors.ErrUnsupported) }

// Add needs Linux.
func (*Lock) Add(...Flow) error { return opError("add", errors.ErrUnsupported) }

// Prepare needs Linux.
func (*Lock) Prepare(...Flow) error { return opError("prepare", errors.ErrUnsupported) }

// Remove needs Linux.
func (*Lock) Remove(...Flow) error { return opError("remove", errors.ErrUnsupported) }

// LockFlow needs Linux.
func (*Lock) LockFlow(local, remote netip.AddrPort) error {
	return opError("add", errors.ErrUnsupported)
}

// UnlockFlow needs Linux.
func (*Lock) UnlockFlow(local, remote netip.AddrPort) error {
	return opError("remove", errors.ErrUnsupported)
}

// LockFlows needs Linux.
func (*Lock) LockFlows([][2]netip.AddrPort) error { return opError("add", errors.ErrUnsupported) }

// PrepareFlows needs Linux.
func (*Lock) PrepareFlows([][2]netip.AddrPort) error {
	return opError("prepare", errors.ErrUnsupported)
}

// UnlockFlows needs Linux.
func (*Lock) UnlockFlows([][2]netip.AddrPort) error {
	return opError("remove", errors.ErrUnsupported)
}

// LockListener needs Linux.
func (*Lock) LockListener(netip.AddrPort) error {
	return opError("lock listener", errors.ErrUnsupported)
}

// UnlockListener needs Linux.
func (*Lock) UnlockListener(netip.AddrPort) error {
	return opError("unlock listener", errors.ErrUnsupported)
}

// AllowMark needs Linux.
func (*Lock) AllowMark(uint32) error { return opError("allow mark", errors.ErrUnsupported) }

// Track needs Linux.
func (*Lock) Track(...Flow) error { return opError("track", errors.ErrUnsupported) }

// TrackFlow needs Linux.
func (*Lock) TrackFlow(local, remote netip.AddrPort) error {
	return opError("track", errors.ErrUnsupported)
}

// TrackInjected needs Linux.
func (*Lock) TrackInjected() (undo func() error, err error) {
	return nil, opError("track", errors.ErrUnsupported)
}

// TracksInjected needs Linux.
func (*Lock) TracksInjected() bool { return false }

// SyscallConn needs Linux.
func (*Lock) SyscallConn() (syscall.RawConn, error) {
	return nil, opError("access", errors.ErrUnsupported)
}

// Close has nothing to do.
func (*Lock) Close() error { return nil }

// ExplainInjected needs Linux.
func (*Lock) ExplainInjected(uint32, func()) ([]string, error) {
	return nil, opError("explain", errors.ErrUnsupported)
}

// Explain needs Linux.
func Explain(func() error, ...Option) ([]Drop, error) {
	return nil, opError("explain", errors.ErrUnsupported)
}
