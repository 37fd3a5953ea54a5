//go:build !linux

package diag

import (
	"errors"
	"iter"
	"net/netip"
)

// A Conn asks the kernel about the sockets of one network namespace. It needs
// Linux.
type Conn struct{}

// Dial needs Linux.
func Dial(*Config) (*Conn, error) { return nil, unsupported("dial") }

// Close needs Linux.
func (*Conn) Close() error { return unsupported("close") }

// Sockets needs Linux.
func (*Conn) Sockets(Filter) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) { yield(Socket{}, unsupported("sockets")) }
}

// Lookup needs Linux.
func (*Conn) Lookup(local, remote netip.AddrPort) (Socket, error) {
	return Socket{}, unsupported("lookup")
}

// Destroy needs Linux.
func (*Conn) Destroy(Socket) error { return unsupported("destroy") }

// Holders needs Linux.
func Holders() iter.Seq2[Holder, error] {
	return func(yield func(Holder, error) bool) { yield(Holder{}, unsupported("holders")) }
}

// HeldBy needs Linux.
func HeldBy(pid int) iter.Seq2[Holder, error] {
	return func(yield func(Holder, error) bool) { yield(Holder{PID: pid}, unsupported("holders")) }
}

func unsupported(op string) error { return &OpError{Op: op, Err: errors.ErrUnsupported} }
