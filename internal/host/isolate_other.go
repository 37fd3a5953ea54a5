//go:build !linux

package host

import "errors"

// Isolated reports whether this process runs inside namespaces that Isolate made.
func Isolated() bool { return false }

// Isolate needs Linux.
func Isolate() error { return errors.ErrUnsupported }
