package soccr

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A kept option is one that Save reads and Restore sets and reads back.
type keptOption struct {
	field       string // in Options
	level, name int
	value       func(*Options) optionValue
	// resumed: set after repair mode is off, because setting it makes the kernel
	// send what is queued.
	resumed bool
}

// An optionValue is a field of Options as the kernel's int; 0 is the default,
// which is not set.
type optionValue interface {
	int() int
	set(int)
}

type boolValue struct{ p *bool }
type uintValue struct{ p *uint32 }

func (v boolValue) set(i int) { *v.p = i != 0 }
func (v uintValue) set(i int) { *v.p = uint32(i) }
func (v uintValue) int() int  { return int(*v.p) }
func (v boolValue) int() int {
	if *v.p {
		return 1
	}
	return 0
}

// The keep-alive times come before the switch, which starts the timer.
var keptOptions = [...]keptOption{
	{"Options.KeepIdle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE,
		func(o *Options) optionValue { return uintValue{&o.KeepIdle} }, false},
	{"Options.KeepInterval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL,
		func(o *Options) optionValue { return uintValue{&o.KeepInterval} }, false},
	{"Options.KeepCount", unix.IPPROTO_TCP, unix.TCP_KEEPCNT,
		func(o *Options) optionValue { return uintValue{&o.KeepCount} }, false},
	{"Options.KeepAlive", unix.SOL_SOCKET, unix.SO_KEEPALIVE,
		func(o *Options) optionValue { return boolValue{&o.KeepAlive} }, false},
	{"Options.NoDelay", unix.IPPROTO_TCP, unix.TCP_NODELAY,
		func(o *Options) optionValue { return boolValue{&o.NoDelay} }, true},
	{"Options.Cork", unix.IPPROTO_TCP, unix.TCP_CORK,
		func(o *Options) optionValue { return boolValue{&o.Cork} }, true},
}

// readOptions reads all but SO_REUSEADDR, which Pause has read, and the sizes of
// the buffers, which come with their use.
func (s *Socket) readOptions(o *Options) error {
	for i := range keptOptions {
		k := &keptOptions[i]
		v, err := sockopt.GetInt(s.fd, k.level, k.name)
		if err != nil {
			return fmt.Errorf("%s: %w", k.field, err)
		}
		k.value(o).set(v)
	}
	offset, err := peekOffset(s.fd)
	if err != nil {
		return fmt.Errorf("Options.PeekOffset: %w", err)
	}
	if offset >= 0 {
		o.PeekOffsetOn, o.PeekOffset = true, uint32(offset)
	}
	flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("Options.NonBlocking: %w", err)
	}
	o.NonBlocking = flags&unix.O_NONBLOCK != 0
	if o.Congestion, err = congestion(s.fd); err != nil {
		return fmt.Errorf("Options.Congestion: %w", err)
	}
	lock, err := s.bufferLock()
	o.BufferLock = uint8(lock)
	return err
}

// setOptions sets the options for which it is not too early.
func (s *Socket) setOptions(o *Options, resumed bool) error {
	for i := range keptOptions {
		k := &keptOptions[i]
		v := k.value(o).int()
		if k.resumed != resumed || v == 0 {
			continue
		}
		if err := sockopt.SetInt(s.fd, k.level, k.name, v); err != nil {
			return fmt.Errorf("%s: %w", k.field, err)
		}
	}
	return nil
}

// overwriteOptions sets the options again after somebody else has: unlike
// setOptions also those that are off.
func (s *Socket) overwriteOptions(o *Options) error {
	for i := range keptOptions {
		k := &keptOptions[i]
		v := k.value(o)
		if _, isNumber := v.(uintValue); isNumber && v.int() == 0 {
			continue // a number's default is not in the snapshot
		}
		if err := sockopt.SetInt(s.fd, k.level, k.name, v.int()); err != nil {
			return fmt.Errorf("%s: %w", k.field, err)
		}
	}
	return nil
}

// setPeekOffset makes the program's peeks go on where they were.
func (s *Socket) setPeekOffset(o *Options) error {
	if !o.PeekOffsetOn {
		return nil
	}
	if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(o.PeekOffset)); err != nil {
		return fmt.Errorf("Options.PeekOffset: %w", err)
	}
	return nil
}

func congestion(fd int) (string, error) {
	var b [maxName + 1]byte
	n, err := sockopt.Get(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	return unix.ByteSliceToString(b[:n]), err
}

// setCongestion chooses the congestion control, before connect(2) starts it.
func (s *Socket) setCongestion(name string) error {
	if name == "" {
		return nil
	}
	if now, err := congestion(s.fd); err != nil || now == name {
		return err
	}
	err := sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, []byte(name))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("congestion control %q is not available (modprobe tcp_%s, or clear Options.Congestion): %w", name, name, err)
	}
	return err
}

// setBlocking sets O_NONBLOCK as the program had it.
func (s *Socket) setBlocking(nonBlocking bool) error { return unix.SetNonblock(s.fd, nonBlocking) }
