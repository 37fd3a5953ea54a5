package soccr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Preflight looks for what on this host, in the network namespace of the calling
// thread, would keep connections and listeners from being restored, before anything
// is touched: no packet leaves, and no socket is there that one could reach. It
// returns nil, or a *PreflightError with all that it has found:
//
//	ErrInvalidSnapshot   a snapshot is not valid
//	ErrNoPermission      a capability is missing, also for an option
//	ErrNoDevice          a device that an address or an option names
//	ErrAddrNotAvailable  the local address, also one that is not usable yet
//	ErrNoRoute           the way to the peer
//	ErrAddrInUse         the flow or the listener's port is in use, by a socket of this
//	                     host in whatever state or by another snapshot
//	ErrNoCongestion      the congestion control
//	ErrBuffer            the queues, which this user's buffers cannot hold
//
// Of the options, WithClosed and WithRepairer count. What has passed may yet fail: others use the
// host, and firewalls, memory and the kernel's version are not looked at.
func Preflight(connections []*Snapshot, listeners []*ListenerSnapshot, options ...Option) error {
	p := &preflight{set: newSettings(options), flows: map[[2]netip.AddrPort]bool{}}
	for i, l := range listeners {
		p.listener(l, listeners[:i])
		for _, s := range l.Pending {
			if s != nil { // or Validate has complained
				p.connection(s)
			}
		}
	}
	for _, s := range connections {
		p.connection(s)
	}
	p.permissions()
	if len(p.problems) == 0 {
		return nil
	}
	return &PreflightError{p.problems}
}

type preflight struct {
	set      settings
	problems []*OpError
	flows    map[[2]netip.AddrPort]bool // seen
	// pauses: something has to be paused; injects: a state is reached by segments.
	pauses, injects bool
}

func (p *preflight) found(op string, local, remote netip.AddrPort, err error) {
	if failure, ok := errors.AsType[*OpError](err); ok {
		op, err = failure.Op, failure.Err
	}
	if err != nil {
		p.problems = append(p.problems, &OpError{Op: op, Local: local, Remote: remote, Err: err})
	}
}

func (p *preflight) connection(s *Snapshot) {
	if err := s.Validate(); err != nil {
		p.found("validate", s.Local, s.Remote, err)
		return
	}
	p.pauses = true
	if p.set.closes(s) {
		return
	}
	p.injects = p.injects || len(s.State.closings()) > 0 && s.Remote.IsValid()
	fd, err := NewSocket(s)
	if err != nil {
		p.found("socket", s.Local, s.Remote, err)
		return
	}
	defer unix.Close(fd)
	all := p.set.choose(s.Options.Settings, s.sockets())
	if !p.local(fd, s.Local, s.Remote, &s.Options, all) || !s.Remote.IsValid() {
		return
	}
	p.found("route", s.Local, s.Remote, probeRoute(s, all))
	p.found("buffers", s.Local, s.Remote, CheckQueues(s))
	p.found("flow", s.Local, s.Remote, p.flowInUse(fd, s))
}

// local checks what a socket needs on its own side, and reports whether it makes
// sense to look further.
func (p *preflight) local(fd int, local, remote netip.AddrPort, o *Options, all []chosen) bool {
	before := len(p.problems)
	for _, name := range devicesOf(local, o) {
		if _, err := deviceIndex(fd, name); err != nil {
			p.found("device", local, remote, because(ErrNoDevice, err))
		}
	}
	if len(p.problems) > before {
		return false
	}
	p.found("congestion control", local, remote, (&Socket{fd: fd}).setCongestion(o.Congestion))
	if err := apply(all, fd, beforeBind, func(Loss) {}); err != nil {
		p.found("set options", local, remote, err)
		return false
	}
	if local.Addr().Unmap().IsUnspecified() || o.Foreign {
		return true
	}
	err := probeBind(fd, local)
	if err == nil && remote.IsValid() {
		err = sendsFrom(local.Addr())
	}
	p.found("address", local, remote, err)
	return err == nil
}

// devicesOf are the devices that a socket names.
func devicesOf(local netip.AddrPort, o *Options) []string {
	var names []string
	if zone := local.Addr().Zone(); zone != "" {
		names = append(names, zone)
	}
	for i := range o.Settings {
		switch s := &o.Settings[i]; row(s.Name).kind {
		case bindKind, deviceKind, netDeviceKind:
			names = append(names, s.Text)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// probeBind binds to an address, without a port.
func probeBind(fd int, addr netip.AddrPort) error {
	// Before Linux 6.8, Multipath TCP lacks it: then a port is taken for a moment.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil && !lacking(err) {
		return err
	}
	err := bindTo(fd, netip.AddrPortFrom(addr.Addr(), 0))
	return because(bindReasons.of(err), err)
}

// probeRoute connects a socket of UDP, which sends nothing.
func probeRoute(s *Snapshot, all []chosen) error {
	family := unix.AF_INET6
	if s.Local.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ofIP := slices.DeleteFunc(slices.Clone(all), func(c chosen) bool { return !c.row.on.has(onUDP) })
	if err := apply(ofIP, fd, beforeBind, func(Loss) {}); err != nil {
		return err
	}
	if err := probeBind(fd, s.Local); err != nil {
		return err
	}
	sa, err := toSockaddr(fd, s.Remote)
	if err != nil {
		return because(ErrNoRoute, err)
	}
	err = unix.Connect(fd, sa)
	return because(connectReasons.of(err), err)
}

// flowInUse looks for another socket with the same addresses and ports.
func (p *preflight) flowInUse(fd int, s *Snapshot) error {
	flow := [2]netip.AddrPort{s.Local, s.Remote}
	if p.flows[flow] {
		return fmt.Errorf("%w: by another snapshot", ErrAddrInUse)
	}
	p.flows[flow] = true
	q, err := (&Socket{fd: fd, local: s.Local, remote: s.Remote}).question()
	if err != nil {
		return err
	}
	q.cookie, q.extensions = 0, 0
	for message, err := range q.ask() {
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("sock_diag: %w", err)
		}
		// Without a connection, the kernel answers with a listener.
		if f := found(message); f.state != StateListen {
			return fmt.Errorf("%w: it is in %v", ErrAddrInUse, f.state)
		}
	}
	return nil
}

func (p *preflight) listener(l *ListenerSnapshot, others []*ListenerSnapshot) {
	none := netip.AddrPort{}
	if err := l.Validate(); err != nil {
		p.found("validate", l.Local, none, err)
		return
	}
	for _, other := range others {
		if l.excludes(other) {
			p.found("port", l.Local, none, fmt.Errorf("%w: by another snapshot", ErrAddrInUse))
		}
	}
	fd, err := NewListenerSocket(l)
	if err != nil {
		p.found("socket", l.Local, none, err)
		return
	}
	defer unix.Close(fd)
	all := p.set.choose(l.Options.Settings, l.sockets())
	if !p.local(fd, l.Local, none, &l.Options, all) {
		return
	}
	p.found("port", l.Local, none, p.portInUse(l))
}

// portInUse binds as the listener would, and does not listen.
func (p *preflight) portInUse(l *ListenerSnapshot) error {
	fd, err := NewListenerSocket(l)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s := &starter{fd: fd, snap: l, chosen: p.set.choose(l.Options.Settings, l.sockets()), lose: func(Loss) {}}
	if err := s.beforeBind(); err != nil {
		return err
	}
	err = bindForeign(fd, l.Options.Foreign, func() error { return bindTo(fd, l.Local) })
	if !errors.Is(err, unix.EADDRINUSE) {
		return because(bindReasons.of(err), err)
	}
	p.pauses = true // to listen beside connections
	taken, failed := s.portTaken()
	if taken {
		return because(ErrAddrInUse, err)
	}
	return failed
}

// excludes reports whether two listeners cannot both be.
func (l *ListenerSnapshot) excludes(other *ListenerSnapshot) bool {
	const share = "SO_REUSEPORT"
	if l.Local.Port() != other.Local.Port() || l.Options.number(share) != 0 && other.Options.number(share) != 0 {
		return false
	}
	here, _ := l.Options.Setting("SO_BINDTODEVICE")
	there, _ := other.Options.Setting("SO_BINDTODEVICE")
	if here.Text != "" && there.Text != "" && here.Text != there.Text {
		return false
	}
	return covers(l.Local.Addr(), l.v6only(), other.Local.Addr()) || covers(other.Local.Addr(), other.v6only(), l.Local.Addr())
}

// permissions tries what only some may do.
func (p *preflight) permissions() {
	none := netip.AddrPort{}
	if p.pauses {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err == nil {
			err = new(Socket).pauseNew(fd, []Option{WithRepairer(p.set.repairer)})
			unix.Close(fd)
		}
		p.found("pause", none, none, err)
	}
	if p.injects {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err == nil {
			unix.Close(fd)
		}
		p.found("raw socket", none, none, because(reasons{unix.EPERM: ErrNoPermission}.of(err), err))
	}
}

// sendsFrom reports ErrAddrNotAvailable for a broadcast address: a socket may be bound
// to one, but sends from another (__inet_bind). Without SO_BROADCAST nobody may connect
// to one.
func sendsFrom(addr netip.Addr) error {
	if !addr.Unmap().Is4() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.Unmap().As4(), Port: 9}); errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: it is a broadcast address", ErrAddrNotAvailable)
	}
	return nil
}
