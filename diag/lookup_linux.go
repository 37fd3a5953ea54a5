package diag

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Lookup finds the socket of a connection, with all details, by a look into the
// kernel's hash table: it takes as long among a million connections as alone.
// It finds a connection in any state, SYN_RECV and TIME_WAIT too, and never a
// listening socket; if there is no such connection, the error is [ErrNotFound].
//
// An IPv4 connection is found by its IPv4 addresses and by the IPv4-mapped ones,
// whether it belongs to an IPv4 or to an IPv6 socket; the result has the
// addresses that the socket has. Link-local addresses need their zone, the name
// or index of the device in the namespace of the Conn. A socket that is bound to
// a device in another way (SO_BINDTODEVICE) is not found here, only by
// [Conn.Sockets].
func (c *Conn) Lookup(local, remote netip.AddrPort) (Socket, error) {
	s, err := c.lookup(local, remote)
	if err != nil {
		return Socket{}, &OpError{Op: "lookup", Local: local, Remote: remote, Err: because(err)}
	}
	return s, nil
}

func (c *Conn) lookup(local, remote netip.AddrPort) (Socket, error) {
	id := sockID{local: bare(local), remote: bare(remote), cookie: anyCookie}
	family := IPv4
	if id.local.Addr().Is6() {
		family = IPv6
	}
	if !local.IsValid() || !remote.IsValid() || id.local.Addr().Is6() != id.remote.Addr().Is6() {
		return Socket{}, fmt.Errorf("%w: not the addresses of a connection", ErrInvalid)
	}
	var err error
	if id.ifindex, err = deviceIndex(c.nl, cmp.Or(local.Addr().Zone(), remote.Addr().Zone())); err != nil {
		return Socket{}, err
	}
	s, err := c.exact(family, DetailAll, id)
	if err != nil {
		return Socket{}, err
	}
	// Without a connection, the kernel's lookup goes on to the socket that
	// listens for it (__inet_lookup).
	if s.State == StateListen || bare(s.Local) != id.local || bare(s.Remote) != id.remote {
		return Socket{}, ErrNotFound
	}
	return s, nil
}

// bare gives the addresses as they are on the wire.
func bare(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// exact asks for one socket.
func (c *Conn) exact(family Family, ask Details, id sockID) (Socket, error) {
	replies, err := c.execute(unix.SOCK_DIAG_BY_FAMILY, 0, request(family, 0, ask, id))
	if err != nil {
		return Socket{}, err
	}
	if len(replies) != 1 || replies[0].Header.Type != unix.SOCK_DIAG_BY_FAMILY {
		return Socket{}, fmt.Errorf("%w: %d answers to one question", ErrMalformed, len(replies))
	}
	return decode(replies[0].Data, func(ifindex uint32) string { return deviceName(c.nl, ifindex) })
}

// execute sends a request that is about one socket.
func (c *Conn) execute(typ netlink.HeaderType, flags netlink.HeaderFlags, request []byte) ([]netlink.Message, error) {
	replies, err := c.nl.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   request,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, unix.EBADF): // a closed netlink.Conn
		err = net.ErrClosed
	}
	return replies, err
}
