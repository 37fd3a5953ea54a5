package soccr

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// SaveDatagram reads a whole UDP, UDP-Lite, ping or raw socket into a
// DatagramSnapshot. The socket stays as it is, its datagrams included; who takes it away afterwards
// closes it. Stop the program before: what is received or read meanwhile may be in
// the snapshot or not. Nothing announces to peers that a socket is gone, but the
// next datagram that arrives for it is answered with an ICMP message.
//
// It is refused with ErrCorked if a datagram is under construction, with ErrULP if
// the kernel itself uses the socket (UDP_ENCAP), and with ErrNotUDP. Errors come
// inside an *OpError.
//
// Not kept are errors that wait to be read, datagrams without data that were
// peeked at before, and what else came with a datagram than its addresses, hop
// limit and traffic class. Of ping and raw sockets, the kernel does not let one read
// without taking out what has been received, nor tell that writing alone is shut
// down: neither is kept.
func SaveDatagram(fd int) (*DatagramSnapshot, error) {
	d, err := saveDatagram(fd)
	if err != nil {
		return nil, failDatagram("save", fd, err)
	}
	return d, nil
}

// failDatagram wraps an error with the step and the socket.
func failDatagram(op string, fd int, err error) error {
	local, _ := localAddr(fd)
	remote, _ := remoteAddr(fd, local)
	return (&Socket{fd: fd, local: local, remote: remote}).fail(op, err)
}

func saveDatagram(fd int) (*DatagramSnapshot, error) {
	d := new(DatagramSnapshot)
	if err := d.readKind(fd); err != nil {
		return nil, err
	}
	if err := refuseDatagram(fd); err != nil {
		return nil, err
	}
	local, remote, err := d.ends(fd)
	if err != nil {
		return nil, err
	}
	d.Local, d.Remote = local, remote
	memory, err := (&Socket{fd: fd}).memory()
	if err != nil {
		return nil, err
	}
	if err := d.readOptions(fd, memory); err != nil {
		return nil, err
	}
	if memory.options > 0 {
		if d.Groups, err = readGroups(fd, !d.Local.Addr().Is4()); err != nil {
			return nil, fmt.Errorf("multicast groups: %w", err)
		}
	}
	if d.ReadShutdown, d.WriteShutdown, err = d.readShutdown(fd); err != nil {
		return nil, err
	}
	if memory.recvAlloc > 0 && d.isUDP() {
		if d.RecvQueue, err = d.readQueue(fd); err != nil {
			return nil, fmt.Errorf("RecvQueue: %w", err)
		}
	}
	return d, d.Validate()
}

func (d *DatagramSnapshot) readOptions(fd int, memory memory) error {
	o := &d.Options
	reuse, err := sockopt.GetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return err
	}
	flags, err := fileFlags(fd)
	if err != nil {
		return err
	}
	offset, err := peekOffset(fd)
	if err != nil {
		return err
	}
	lock, err := (&Socket{fd: fd}).bufferLock()
	if err != nil {
		return err
	}
	if offset >= 0 {
		o.PeekOffsetOn, o.PeekOffset = true, uint32(offset)
	}
	o.ReuseAddr, o.NonBlocking, o.BufferLock = reuse != 0, flags&unix.O_NONBLOCK != 0, lock
	o.RecvBuffer, o.SendBuffer = memory.recvBuffer, memory.sendBuffer
	if o.Settings, err = readSettings(nil, fd, known{flags: flags, noMemory: memory.options == 0}, d.sockets()); err != nil {
		return err
	}
	o.Foreign, err = isForeign(fd, d.Local, o)
	return err
}

// refuseDatagram finds what of a socket cannot be moved.
func refuseDatagram(fd int) error {
	const udpEncap = 100 // UDP_ENCAP
	encap, err := sockopt.GetInt(fd, unix.IPPROTO_UDP, udpEncap)
	if err != nil && !lacking(err) {
		return err
	}
	if encap != 0 {
		return fmt.Errorf("%w: UDP_ENCAP %d", ErrULP, encap)
	}
	// What is under construction takes memory; so does, for a moment, what a device
	// is sending.
	const patience = 100 * time.Millisecond
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		m, err := (&Socket{fd: fd}).memory()
		if err != nil || m.sendAlloc == 0 {
			return err
		}
		if time.Since(start) > patience {
			return ErrCorked
		}
	}
}

// readShutdown finds which directions the program has shut down. poll(2) tells of
// reading and of both, but not of writing alone.
func (d *DatagramSnapshot) readShutdown(fd int) (read, write bool, err error) {
	poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(poll[:], 0); err != nil && !errors.Is(err, unix.EINTR) {
		return false, false, err
	}
	if poll[0].Revents&unix.POLLHUP != 0 {
		return true, true, nil
	}
	if poll[0].Revents&unix.POLLRDHUP != 0 {
		return true, false, nil
	}
	write, err = d.askWriteShutdown(fd)
	return false, write, err
}

const (
	inetDiagShutdown = 8 // INET_DIAG_SHUTDOWN
	sendShutdown     = 2 // SEND_SHUTDOWN
)

// askWriteShutdown asks sock_diag, which knows sockets that are bound. A kernel
// without its module for UDP cannot tell.
func (d *DatagramSnapshot) askWriteShutdown(fd int) (shut bool, err error) {
	if d.Local.Port() == 0 || !d.isUDP() {
		return false, nil
	}
	socket := Socket{fd: fd, local: d.Local, remote: d.Remote}
	q, err := socket.question()
	if err != nil {
		return false, err
	}
	// Sockets that share a port are told apart by their cookies.
	q.dump, q.protocol, q.extensions = true, unix.IPPROTO_UDP, 0
	if d.Lite {
		q.protocol = unix.IPPROTO_UDPLITE
	}
	if !d.Local.Addr().Is4() {
		q.family = unix.AF_INET6
	}
	cookie := q.cookie
	err = inNetNS(fd, func() error {
		for message, err := range q.ask() {
			if err != nil {
				return err
			}
			if found(message).cookie != cookie {
				continue
			}
			for kind, value := range attributes(message[diagMessageSize:]) {
				if kind == inetDiagShutdown && len(value) > 0 {
					shut = value[0]&sendShutdown != 0
				}
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	return shut, err
}

// NewDatagramSocket makes the socket that a snapshot is restored into, in the
// network namespace of the calling thread: of its family and protocol,
// close-on-exec and non-blocking. The caller owns fd.
func NewDatagramSocket(d *DatagramSnapshot) (fd int, err error) {
	k := d.kind()
	if fd, err = unix.Socket(k.family, k.style|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, k.protocol); err != nil {
		return -1, &OpError{Op: "socket", Local: d.Local, Remote: d.Remote, Err: because(kindReasons.of(err), err)}
	}
	return fd, nil
}

// StartDatagram puts a saved socket into a fresh one: one that NewDatagramSocket
// made, and that is not bound. Afterwards it holds what the snapshot says, as read
// back from the kernel, and receives.
//
// The datagrams of the receive queue are put back by injecting them, with a raw
// socket, so that this takes CAP_NET_RAW; they arrive on the loopback device, with
// the time of now, and, if the socket shares its port, perhaps at another one.
// Those that cannot be put back are reported by WithLosses: those to multicast and
// broadcast addresses, and to addresses that are not on this host. So are options
// that this kernel lacks. Until the end, the socket receives nothing else.
//
// The snapshot is not changed and may be restored again. On error, an *OpError, the
// socket is of no further use.
func StartDatagram(fd int, d *DatagramSnapshot, options ...Option) error {
	if err := d.Validate(); err != nil {
		return &OpError{Op: "restore", Local: d.Local, Remote: d.Remote, Err: err}
	}
	s := &Socket{fd: fd, local: d.Local, remote: d.Remote, options: newSettings(options)}
	s.chosen = s.options.choose(d.Options.Settings, d.sockets())
	for _, step := range [...]struct {
		name string
		do   func(*DatagramSnapshot) error
	}{
		{"prepare", s.prepareDatagram},
		{"bind", func(*DatagramSnapshot) error { return s.bindDatagram(d) }},
		{"set options", func(*DatagramSnapshot) error { return s.apply(beforeConnect) }},
		{"join groups", func(*DatagramSnapshot) error { return joinGroups(fd, d.Groups) }},
		{"receive queue", s.fillDatagrams},
		{"connect", s.connectDatagram},
		{"set options", s.afterConnectDatagram},
		{"verify", s.verifyDatagram},
	} {
		if err := step.do(d); err != nil {
			return s.fail(step.name, err)
		}
	}
	return nil
}

func (s *Socket) prepareDatagram(d *DatagramSnapshot) error {
	now := new(DatagramSnapshot)
	if err := now.readKind(s.fd); err != nil {
		return err
	}
	if local, _, err := now.ends(s.fd); err != nil || !neverBound(local) {
		return errors.Join(err, ErrState)
	}
	if now.kind() != d.kind() {
		return ErrState
	}
	if err := s.tryFilter(); err != nil {
		return err
	}
	if err := s.closeGate(); err != nil {
		return err
	}
	if err := s.apply(beforeBind); err != nil {
		return err
	}
	reuse := 0
	if d.Options.ReuseAddr {
		reuse = 1
	}
	return sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse) // ping and raw sockets begin with it (INET_PROTOSW_REUSE)
}

func (s *Socket) bindDatagram(d *DatagramSnapshot) error {
	if neverBound(d.Local) {
		return nil
	}
	err := bindForeign(s.fd, d.Options.Foreign, func() error { return bindTo(s.fd, d.Local) })
	return because(bindReasons.of(err), err)
}

func (s *Socket) connectDatagram(d *DatagramSnapshot) error {
	if !d.Remote.IsValid() {
		return nil
	}
	sa, err := toSockaddr(s.fd, d.Remote)
	if err != nil {
		return because(ErrNoRoute, err)
	}
	err = unix.Connect(s.fd, sa)
	return because(reasons{
		unix.ENETUNREACH:  ErrNoRoute,
		unix.EHOSTUNREACH: ErrNoRoute,
		unix.EINVAL:       ErrNoRoute,
		unix.EPERM:        ErrNoPermission,
		unix.EACCES:       ErrNoPermission,
	}.of(err), err)
}

func (s *Socket) afterConnectDatagram(d *DatagramSnapshot) error {
	if err := s.apply(afterConnect); err != nil {
		return err
	}
	if err := s.setPeekOffset(&d.Options); err != nil {
		return err
	}
	if err := s.setBuffers(&d.Options); err != nil {
		return err
	}
	if err := shutDown(s.fd, d.ReadShutdown, d.WriteShutdown); err != nil {
		return err
	}
	if err := s.apply(afterResume); err != nil {
		return err
	}
	return s.leaveGate()
}

// shutDown wraps shutdown(2), which does what it is asked to also when it says that
// a socket is not connected (inet_shutdown).
func shutDown(fd int, read, write bool) error {
	how := -1
	switch {
	case read && write:
		how = unix.SHUT_RDWR
	case read:
		how = unix.SHUT_RD
	case write:
		how = unix.SHUT_WR
	}
	if how < 0 {
		return nil
	}
	if err := unix.Shutdown(fd, how); !errors.Is(err, unix.ENOTCONN) {
		return err
	}
	return nil
}

func (s *Socket) verifyDatagram(d *DatagramSnapshot) error {
	local, remote, err := d.ends(s.fd)
	if err != nil {
		return err
	}
	if !neverBound(d.Local) && local != d.Local { // a hook of a cgroup's BPF program
		return mismatch("Local", d.Local, local)
	}
	if remote != d.Remote {
		return mismatch("Remote", d.Remote, remote)
	}
	groups, err := readGroups(s.fd, !d.Local.Addr().Is4())
	if err != nil {
		return err
	}
	if !slices.EqualFunc(groups, sortedGroups(d.Groups), sameGroup) {
		return mismatch("Groups", d.Groups, groups)
	}
	if err := verifyChosen(s.chosen, s.fd, beforeBind, afterResume, s.lose); err != nil {
		return err
	}
	return s.setBlocking(d.Options.NonBlocking)
}
