package soccr

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What sock_diag(7) knows of other sockets than ours: who listens on a port, how
// many handshakes are under way, whether a flow is in use. Package diag tells all
// of it, by a netlink library that this package does without.
const (
	sockDiagByFamily = 20
	diagRequestSize  = unix.SizeofNlMsghdr + 56 // struct inet_diag_req_v2
	diagMessageSize  = unix.SizeofNlMsghdr + 72 // struct inet_diag_msg

	inetDiagV6Only = 11 // INET_DIAG_SKV6ONLY

	// boundState is TCP_BOUND_INACTIVE (Linux 6.8), which asks for sockets that are
	// bound to a port, but neither listen nor are connected. They are shown in CLOSE.
	boundState State = 13
)

// A diagQuestion asks for the sockets of one family. What is zero does not matter,
// except that a question about one socket, without dump, has both ends.
type diagQuestion struct {
	dump          bool
	family        byte
	protocol      byte // 0: TCP
	extensions    byte // bits of INET_DIAG_*
	states        uint32
	local, remote netip.AddrPort
	device        uint32
	cookie        uint64 // 0: any
}

// A foundSocket is one that sock_diag has shown. Addresses have no zones.
type foundSocket struct {
	state         State
	local, remote netip.AddrPort
	device        uint32 // that it is bound to, or 0
	cookie        uint64
	uid           uint32
	v6only        bool
}

func (q diagQuestion) message() []byte {
	flags := unix.NLM_F_REQUEST
	if q.dump {
		flags |= unix.NLM_F_DUMP
	}
	if q.cookie == 0 {
		q.cookie = ^uint64(0) // INET_DIAG_NOCOOKIE
	}
	b := make([]byte, diagRequestSize)
	binary.NativeEndian.PutUint32(b[0:], diagRequestSize)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], uint16(flags))
	b[16], b[17], b[18] = q.family, cmp.Or(q.protocol, unix.IPPROTO_TCP), q.extensions
	binary.NativeEndian.PutUint32(b[20:], q.states)
	binary.BigEndian.PutUint16(b[24:], q.local.Port())
	binary.BigEndian.PutUint16(b[26:], q.remote.Port())
	copy(b[28:44], q.local.Addr().AsSlice())
	copy(b[44:60], q.remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[60:], q.device)
	// The cookie is two words, the lower one first.
	binary.NativeEndian.PutUint32(b[64:], uint32(q.cookie))
	binary.NativeEndian.PutUint32(b[68:], uint32(q.cookie>>32))
	return b
}

// ask yields the messages with which the kernel answers, in the network namespace
// of the calling thread. An error is the last thing that it yields.
func (q diagQuestion) ask() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			yield(nil, err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, q.message(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			yield(nil, err)
			return
		}
		buffer := make([]byte, 32<<10) // what the kernel fills at once
		for more := true; more; {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if more, err = messages(buffer[:n], q.dump, yield); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// messages takes a datagram apart and reports whether more are to come.
func messages(b []byte, dump bool, yield func([]byte, error) bool) (more bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr+4 {
			return false, errShortAnswer(len(b))
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr+4 || size > len(b) {
			return false, errShortAnswer(len(b))
		}
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_ERROR:
			return false, unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])))
		case unix.NLMSG_DONE:
			return false, nil
		}
		if size < diagMessageSize {
			return false, errShortAnswer(size)
		}
		if !yield(b[:size], nil) {
			return false, nil
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return dump, nil
}

func errShortAnswer(n int) error { return fmt.Errorf("short answer of %d bytes", n) }

// found reads a message: struct inet_diag_msg and what follows it.
func found(b []byte) foundSocket {
	m := b[unix.SizeofNlMsghdr:]
	end := func(port, addr int) netip.AddrPort {
		a := netip.AddrFrom16([16]byte(m[addr : addr+16]))
		if m[0] == unix.AF_INET {
			a = netip.AddrFrom4([4]byte(m[addr : addr+4]))
		}
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(m[port:]))
	}
	f := foundSocket{
		state:  State(m[1]),
		local:  end(4, 8),
		remote: end(6, 24),
		device: binary.NativeEndian.Uint32(m[40:]),
		cookie: uint64(binary.NativeEndian.Uint32(m[44:])) | uint64(binary.NativeEndian.Uint32(m[48:]))<<32,
		uid:    binary.NativeEndian.Uint32(m[64:]),
	}
	for kind, value := range attributes(b[diagMessageSize:]) {
		if kind == inetDiagV6Only && len(value) > 0 {
			f.v6only = value[0] != 0
		}
	}
	return f
}

// attributes yields the netlink attributes behind a message, as far as they are whole.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// socketsOn finds the sockets of both families that are bound to a port, in some
// states.
func socketsOn(port uint16, states ...State) ([]foundSocket, error) {
	var all []foundSocket
	q := diagQuestion{dump: true, local: netip.AddrPortFrom(netip.Addr{}, port)}
	for _, s := range states {
		q.states |= 1 << s
	}
	for _, q.family = range [...]byte{unix.AF_INET, unix.AF_INET6} {
		for message, err := range q.ask() {
			if err != nil {
				return nil, fmt.Errorf("sock_diag: %w", err)
			}
			// Of those that are only bound, all are shown.
			if f := found(message); f.local.Port() == port {
				all = append(all, f)
			}
		}
	}
	return all, nil
}
