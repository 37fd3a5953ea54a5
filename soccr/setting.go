package soccr

import (
	"cmp"
	"fmt"
	"slices"
)

// A Setting is a socket option whose value is not the kernel's default, under
// the name that the kernel's headers give it ("SO_PRIORITY", "TCP_USER_TIMEOUT",
// "IPV6_TCLASS"), and in a form that does not depend on the architecture. Which
// of the values an option has, and in what unit, is the option's own:
//
//   - Number for most, in the unit of setsockopt(2); microseconds for
//     SO_RCVTIMEO and SO_SNDTIMEO; seconds for SO_LINGER; the first field and,
//     shifted by 32 bits, the second one for SO_TXTIME (clock, flags) and
//     SO_TIMESTAMPING (flags, clock of the device).
//   - Text is the name of a device, for options that take an index or a name, and
//     an address for IP_MULTICAST_IF.
//   - Text "process", "group" or "thread" and Number for F_SETOWN: who gets the
//     socket's signals (F_SETSIG, O_ASYNC). The number is that which the saving
//     process sees, and has to mean the same to the restoring one ([WithOwners]);
//     0 stands for whichever process saves and restores.
//   - Bytes for what is a packet's header, a key or a filter: classic BPF has 8
//     bytes for each instruction, in network byte order.
type Setting struct {
	Name   string
	Number int64  `json:",omitempty"`
	Text   string `json:",omitempty"`
	Bytes  []byte `json:",omitempty"`
}

// Setting gives one of Settings, and whether it is there.
func (o *Options) Setting(name string) (Setting, bool) {
	if i, found := find(o.Settings, name); found {
		return o.Settings[i], true
	}
	return Setting{}, false
}

// number is an option's value, where that is a number; its default is 0.
func (o *Options) number(name string) int64 {
	s, _ := o.Setting(name)
	return s.Number
}

func find(settings []Setting, name string) (int, bool) {
	return slices.BinarySearchFunc(settings, name, func(s Setting, name string) int { return cmp.Compare(s.Name, name) })
}

// sortSettings puts settings into the order that a snapshot has them in.
func sortSettings(settings []Setting) {
	slices.SortFunc(settings, func(a, b Setting) int { return cmp.Compare(a.Name, b.Name) })
}

// A Loss is a setting that a restored socket does not have, because the kernel
// lacks the option or refuses the value, or because nothing can be set there: an
// eBPF program cannot be read out of a socket. Options on which the flow or who
// may use it depends are never lost: without them, Restore fails. Of datagram
// sockets, it may also be a datagram that could not be put back.
type Loss struct {
	Setting  Setting   // or, if its name is empty,
	Datagram *Datagram // this
	Err      error     // what the kernel answered
}

// Losses are the snapshot's settings that Restore, and then Resume, could not
// give to the socket.
func (s *Socket) Losses() []Loss { return s.losses }

// value is what a setting is, for people: of a secret, how long it is.
func (s *Setting) value() any {
	switch {
	case s.Name == "TCP_FASTOPEN_KEY":
		return fmt.Sprintf("%d bytes", len(s.Bytes))
	case s.Text != "" && s.Number != 0:
		return fmt.Sprintf("%s %d", s.Text, s.Number)
	case s.Text != "":
		return s.Text
	case s.Bytes != nil:
		return fmt.Sprintf("%x", s.Bytes)
	default:
		return s.Number
	}
}
