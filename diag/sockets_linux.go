package diag

import (
	"errors"
	"fmt"
	"iter"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Sockets lists the sockets that pass the filter, one by one as the kernel
// tells of them: IPv4 ones, then IPv6 ones, each in no particular order. Memory
// does not grow with their number, and whoever stops early is not kept waiting
// for the rest. An error is the last pair and has no socket.
//
// A listing is not a snapshot. The kernel goes through its tables while they
// change: a socket that comes, goes or changes its state meanwhile may be there,
// twice, or not, and may now and then hide another one of the same hash bucket.
// Whoever must know for sure of a connection uses [Conn.Lookup].
func (c *Conn) Sockets(filter Filter) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		if err := c.list(filter, yield); err != nil {
			yield(Socket{}, &OpError{Op: "sockets", Err: because(err)})
		}
	}
}

// list yields the sockets until it need not, which is no error.
func (c *Conn) list(filter Filter, yield func(Socket, error) bool) error {
	// One for all parts: to open one in another namespace takes a thread that is
	// thrown away, and a third of a millisecond.
	nl, err := c.open(batchSize)
	if err != nil {
		return err
	}
	defer nl.Close()
	for _, part := range filter.parts() {
		if more, err := c.dump(nl, part, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

// parts splits a filter into those that the kernel is asked with, one listing
// for each.
//
// There is one for each family of sockets. Only IPv6 sockets have IPv6
// addresses; IPv4 addresses are on both.
//
// Listening sockets are apart if their MD5 keys are wanted. A program such as a
// BGP speaker has hundreds of keys on one socket, and when a socket does not fit
// into a batch, the kernel takes it for the end of the listing and leaves it and
// all others out (inet_diag_dump). So they are asked for one by one.
func (f Filter) parts() []Filter {
	families := []Family{IPv4, IPv6}
	switch {
	case f.Family != 0:
		families = []Family{f.Family}
	case isIPv6(f.Local) || isIPv6(f.Remote):
		families = []Family{IPv6}
	}
	if f.States == 0 {
		f.States = ^States(0)
	}
	listening := f.States & SetOf(StateListen)
	var parts []Filter
	for _, f.Family = range families {
		if f.Details&DetailInfo == 0 || listening == 0 {
			parts = append(parts, f)
			continue
		}
		apart, others := f, f
		apart.States, others.States = listening, f.States&^listening
		parts = append(parts, apart)
		if others.States != 0 {
			parts = append(parts, others)
		}
	}
	return parts
}

// batchSize is how much of a listing the kernel sends at most at a time
// (netlink_dump).
const batchSize = 32 << 10

// dump yields the sockets of one part. It reports false if yield did.
func (c *Conn) dump(nl *netlink.Conn, part Filter, yield func(Socket, error) bool) (more bool, err error) {
	ask := part.Details
	oneByOne := ask&DetailInfo != 0 && part.States == SetOf(StateListen)
	if oneByOne {
		part.Details = 0
	}
	request, err := part.request()
	if err != nil {
		return false, err
	}
	return stream(nl, request, func(s Socket) (more bool, err error) {
		if oneByOne {
			s, err = c.detailed(s, ask)
		}
		return err == nil && yield(s, nil), err
	})
}

// detailed adds details to a socket that was listed without them, unless it
// cannot be found alone.
func (c *Conn) detailed(s Socket, ask Details) (Socket, error) {
	again, err := c.exact(s.Family, ask, s.id())
	if errors.Is(err, ErrNotFound) {
		return s, nil
	}
	return again, err
}

// stream sends a request and hands on the sockets of the answer, as long as they
// are wanted.
func stream(nl *netlink.Conn, request []byte, each func(Socket) (more bool, err error)) (more bool, err error) {
	sent, err := nl.Send(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	if err != nil {
		return false, err
	}
	interrupted := false
	zone := zones(nl)
	for m, err := range nl.ReceiveIter() {
		if err != nil {
			return false, err
		}
		interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		s, err := answer(sent, m, zone)
		if err == nil {
			more, err = each(s)
		}
		if err != nil || !more {
			_ = nl.Close() // or ReceiveIter would read on to the end
			return false, err
		}
	}
	if interrupted {
		return false, ErrInterrupted
	}
	return true, nil
}

// answer decodes a message that must answer a request.
func answer(request, m netlink.Message, zone zoner) (Socket, error) {
	if err := netlink.Validate(request, []netlink.Message{m}); err != nil {
		return Socket{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if m.Header.Type != unix.SOCK_DIAG_BY_FAMILY {
		return Socket{}, fmt.Errorf("%w: type %v", ErrMalformed, m.Header.Type)
	}
	return decode(m.Data, zone)
}
