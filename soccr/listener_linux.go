package soccr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// SaveListener reads a listening socket, plain or Multipath TCP, which goes on as
// if nothing had been. Repair mode has no part in it (the kernel does not let
// listeners be paused), so it needs no rights.
//
// Connections that wait in its queue are the reason for an *InFlightError, unless
// WithInFlight says anything else: then they are left where they are. AcceptAll
// takes them out first. Other reasons are ErrState (the socket does not listen)
// and ErrNotTCP.
func SaveListener(fd int, options ...Option) (*ListenerSnapshot, error) {
	l, err := saveListener(fd, newSettings(options).inFlight)
	if err != nil {
		return nil, failListener("save listener", fd, err)
	}
	return l, nil
}

func saveListener(fd int, inFlight InFlight) (*ListenerSnapshot, error) {
	protocol, err := listenerProtocol(fd)
	if err != nil {
		return nil, err
	}
	l := &ListenerSnapshot{Multipath: protocol == ipprotoMPTCP}
	if l.Local, err = localAddr(fd); err != nil {
		return nil, err
	}
	queue, err := acceptQueue(fd)
	if err != nil {
		return nil, err
	}
	if queue.waiting > 0 && inFlight == RefuseInFlight {
		return nil, &InFlightError{Count: queue.waiting}
	}
	l.Backlog = uint32(queue.limit)
	if l.Options, err = listenerOptions(fd, l.Local); err != nil {
		return nil, err
	}
	if l.MD5Keys, err = (&Socket{fd: fd}).listenerMD5Keys(l.Local); err != nil {
		return nil, err
	}
	if l.HalfOpen, err = halfOpen(fd, l); err != nil {
		return nil, err
	}
	return l, l.Validate()
}

// listenerProtocol is the protocol of a listening socket.
func listenerProtocol(fd int) (int, error) {
	protocol, err := sockopt.GetInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return 0, because(notTCP(err), err)
	}
	if protocol != unix.IPPROTO_TCP && protocol != ipprotoMPTCP {
		return 0, ErrNotTCP
	}
	listening, err := sockopt.GetInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err == nil && listening == 0 {
		err = fmt.Errorf("%w: it does not listen", ErrState)
	}
	return protocol, err
}

// A queueLength is that of a listener's accept queue.
type queueLength struct{ waiting, limit int }

// acceptQueue reads the queue's length and limit, for which TCP_INFO uses two
// fields that mean nothing in this state (tcp_get_info).
func acceptQueue(fd int) (queueLength, error) {
	info, err := (&Socket{fd: fd}).info()
	return queueLength{int(info.Unacked), int(info.Sacked)}, err
}

// listenerOptions reads the options, none of which repair mode disturbs.
func listenerOptions(fd int, local netip.AddrPort) (Options, error) {
	snap := Snapshot{State: StateListen, Local: local}
	o := &snap.Options
	if err := (&Socket{fd: fd}).readOptions(&snap, known{}); err != nil {
		return *o, err
	}
	reuseAddr, err := sockopt.GetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return *o, fmt.Errorf("Options.ReuseAddr: %w", err)
	}
	o.ReuseAddr = reuseAddr != 0
	for _, b := range [...]struct {
		name string
		kind bufferKind
		size *uint32
	}{{"Options.RecvBuffer", recvBuffer, &o.RecvBuffer}, {"Options.SendBuffer", sendBuffer, &o.SendBuffer}} {
		size, err := sockopt.GetInt(fd, unix.SOL_SOCKET, b.kind.option)
		if err != nil {
			return *o, fmt.Errorf("%s: %w", b.name, err)
		}
		*b.size = uint32(size)
	}
	return *o, nil
}

// halfOpen counts the handshakes under way.
func halfOpen(fd int, l *ListenerSnapshot) (n uint32, err error) {
	err = inNetNS(fd, func() error {
		all, err := socketsOn(l.Local.Port(), StateSynRecv)
		for _, s := range all {
			if covers(l.Local.Addr(), l.v6only(), s.local.Addr()) {
				n++
			}
		}
		return err
	})
	return n, err
}

// covers reports whether a socket bound to an address gets what is sent to another.
func covers(bound netip.Addr, v6only bool, addr netip.Addr) bool {
	switch {
	case !bound.Unmap().IsUnspecified():
		return bound.WithZone("").Unmap() == addr.Unmap()
	case bound.Is6() && !bound.Is4In6():
		return addr.Unmap().Is6() || !v6only
	default: // 0.0.0.0, or that mapped
		return addr.Unmap().Is4()
	}
}

// NewListenerSocket makes the socket that a listener is restored into, in the
// network namespace of the calling thread: of its family and protocol,
// close-on-exec and non-blocking. The caller owns fd.
func NewListenerSocket(l *ListenerSnapshot) (fd int, err error) {
	family, protocol := unix.AF_INET6, unix.IPPROTO_TCP
	if l.Local.Addr().Is4() {
		family = unix.AF_INET
	}
	if l.Multipath {
		protocol = ipprotoMPTCP
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		// EINVAL: MPTCP is switched off (net.mptcp.enabled).
		return -1, &OpError{Op: "socket", Local: l.Local, Err: err}
	}
	return fd, nil
}

// StartListener makes a fresh socket of NewListenerSocket's listen as the snapshot
// says; its pending connections are the caller's to restore, in any order with
// this. It may listen beside established connections of the same port, whether or
// not they have SO_REUSEADDR, for which CAP_NET_ADMIN is needed where they do not.
// The queues are as long as net.core.somaxconn allows. Options that this kernel
// lacks are reported by WithLosses.
//
// On error, an *OpError, the socket does not listen and is of no further use. Its
// reasons include ErrInvalidSnapshot, ErrAddrInUse, ErrAddrNotAvailable and
// ErrNoPermission.
func StartListener(fd int, l *ListenerSnapshot, options ...Option) error {
	if err := l.Validate(); err != nil {
		return &OpError{Op: "restore listener", Local: l.Local, Err: err}
	}
	set := newSettings(options)
	s := &starter{fd: fd, snap: l, chosen: set.choose(l.Options.Settings, l.sockets()), lose: func(Loss) {}, shared: set.sharedPort, repairer: set.repairer}
	if set.onLoss != nil {
		s.lose = set.onLoss
	}
	for _, step := range [...]struct {
		name string
		do   func() error
	}{
		{"set options", s.beforeBind},
		{"listen", s.listen},
		{"set options", s.afterListen},
		{"verify", s.verify},
	} {
		if err := step.do(); err != nil {
			// It may listen already, for clients that nobody would serve.
			_ = unix.Shutdown(fd, unix.SHUT_RD)
			return &OpError{Op: step.name, Local: l.Local, Err: err}
		}
	}
	return nil
}

// A starter makes a socket listen.
type starter struct {
	fd     int
	snap   *ListenerSnapshot
	chosen []chosen
	lose   func(Loss)
	shared bool // others may listen there

	repairer Repairer
}

func (s *starter) beforeBind() error {
	o, socket := &s.snap.Options, &Socket{fd: s.fd}
	if err := apply(s.chosen, s.fd, beforeBind, s.lose); err != nil {
		return err
	}
	if o.ReuseAddr {
		if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("Options.ReuseAddr: %w", err)
		}
	}
	// The window scale of accepted connections comes from the buffer.
	if err := socket.setBuffers(o); err != nil {
		return err
	}
	if err := socket.setCongestion(o.Congestion); err != nil {
		return err
	}
	if err := (&Socket{fd: s.fd, local: s.snap.Local}).setMD5Keys(s.snap.MD5Keys); err != nil {
		return err
	}
	return apply(s.chosen, s.fd, beforeConnect, s.lose)
}

func (s *starter) afterListen() error {
	for _, p := range [...]phase{afterConnect, afterResume, atLast} {
		if err := apply(s.chosen, s.fd, p, s.lose); err != nil {
			return err
		}
	}
	socket := &Socket{fd: s.fd}
	if err := socket.setPeekOffset(&s.snap.Options); err != nil {
		return err
	}
	return socket.setBlocking(s.snap.Options.NonBlocking)
}

// listen binds the socket and makes it listen. To share a port with established
// connections, the kernel wants SO_REUSEADDR on all of them, which those accepted
// from a listener do not need: a listener that ends and comes back finds its own
// children in its way.
func (s *starter) listen() error {
	err := s.bindTo(s.fd)
	bound := err == nil
	if bound {
		err = unix.Listen(s.fd, int(s.snap.Backlog)) // before Linux 6.8, what is in the way shows only now
	}
	closePort := func() error { return nil }
	if errors.Is(err, unix.EADDRINUSE) {
		if !s.shared {
			if taken, found := s.portTaken(); found != nil || taken {
				return errors.Join(because(ErrAddrInUse, err), found)
			}
		}
		var refused error
		if closePort, refused = s.openPort(); refused != nil {
			return errors.Join(because(ErrAddrInUse, err), refused)
		}
		if err = nil; !bound {
			err = s.bindTo(s.fd)
		}
		if err == nil {
			err = unix.Listen(s.fd, int(s.snap.Backlog))
		}
	}
	return errors.Join(because(bindReasons.of(err), err), closePort())
}

// bindTo binds a socket to the listener's address.
func (s *starter) bindTo(fd int) error {
	return bindForeign(fd, s.snap.Options.Foreign, func() error { return bindTo(fd, s.snap.Local) })
}

func bindTo(fd int, addr netip.AddrPort) error {
	sa, err := toSockaddr(fd, addr)
	if err != nil {
		return because(ErrAddrNotAvailable, err)
	}
	return unix.Bind(fd, sa)
}

// portTaken reports whether another socket listens where this one shall, or is
// about to (Linux 6.8 shows those). If it does not, the sockets in the way are
// connections, which get what is sent to them before any listener does.
func (s *starter) portTaken() (taken bool, err error) {
	device, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil && !lacking(err) { // before Linux 5.1
		return false, err
	}
	l := s.snap
	err = inNetNS(s.fd, func() error {
		all, err := socketsOn(l.Local.Port(), StateListen, boundState)
		for _, other := range all {
			if other.state == StateClose && other.remote.Port() != 0 {
				continue // what is left of a connection
			}
			apart := device != 0 && other.device != 0 && uint32(device) != other.device
			if !apart && (covers(l.Local.Addr(), l.v6only(), other.local.Addr()) ||
				covers(other.local.Addr(), other.v6only, l.Local.Addr())) {
				taken = true
			}
		}
		return err
	})
	return taken, err
}

// openPort lets a socket bind to and listen on a port beside sockets that the
// kernel finds in its way. A paused socket may share any port; one with
// SO_REUSEPORT opens it for others of the same user with SO_REUSEPORT, as if all
// that are there had it (inet_csk_update_fastreuse, sk_reuseport_match). The
// returned function closes the port again, by the same means, and puts the
// socket's SO_REUSEPORT back.
func (s *starter) openPort() (closePort func() error, err error) {
	opener, err := s.sharePort(1)
	if err != nil {
		return nil, err
	}
	if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, errors.Join(err, unix.Close(opener))
	}
	return func() error {
		closer, err := s.sharePort(0)
		if err == nil {
			err = unix.Close(closer)
		}
		was := int(s.snap.Options.number("SO_REUSEPORT"))
		return errors.Join(err, unix.Close(opener), sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, was))
	}, nil
}

// sharePort makes a paused socket that is bound as the listener shall be.
func (s *starter) sharePort(reusePort int) (fd int, err error) {
	plain := ListenerSnapshot{Local: s.snap.Local}
	err = inNetNS(s.fd, func() error {
		fd, err = NewListenerSocket(&plain)
		return err
	})
	if err != nil {
		return -1, err
	}
	if err := s.bindShared(fd, reusePort); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (s *starter) bindShared(fd, reusePort int) error {
	if err := new(Socket).pauseNew(fd, []Option{WithRepairer(s.repairer)}); err != nil {
		return err
	}
	if err := apply(slices.Clone(s.chosen), fd, beforeBind, func(Loss) {}); err != nil {
		return err
	}
	if err := sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, reusePort); err != nil {
		return err
	}
	return s.bindTo(fd)
}

// verify reads back what the kernel may have changed.
func (s *starter) verify() error {
	local, err := localAddr(s.fd)
	if err != nil {
		return err
	}
	if local != s.snap.Local { // a hook of a cgroup's BPF program
		return mismatch("Local", s.snap.Local, local)
	}
	reuseAddr, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return err
	}
	if got := reuseAddr != 0; got != s.snap.Options.ReuseAddr {
		return mismatch("Options.ReuseAddr", s.snap.Options.ReuseAddr, got)
	}
	return verifyChosen(s.chosen, s.fd, beforeBind, atLast, s.lose)
}

// failListener wraps an error with the step and the listener, once.
func failListener(op string, fd int, err error) error {
	if done, ok := err.(*OpError); ok { //nolint:errorlint // which may not be all that err is
		return done
	}
	local, _ := localAddr(fd)
	return &OpError{Op: op, Local: local, Err: err}
}
