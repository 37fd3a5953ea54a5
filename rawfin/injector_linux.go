package rawfin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/wire"
)

// An Injector delivers segments to sockets of one network namespace. Its
// methods may be called from several goroutines at once.
type Injector struct {
	mark   uint32
	device int

	mu        sync.Mutex
	closed    bool
	rtnetlink int
	v4, v6    int   // raw sockets
	noIPv6    error // why v6 is missing
	link      int   // packet socket, instead of the raw ones
}

// Open opens the sockets that injecting takes: raw ones for IPv4 and IPv6, or a
// packet socket ([WithLink]), and one to ask for routes. A kernel without IPv6 is
// no failure until an IPv6 segment is to be injected. The caller closes the
// Injector.
//
// Without the right to do this the error is a [*PermissionError].
func Open(opts ...Option) (*Injector, error) {
	c := config{mark: DefaultMark, for4: true, for6: true}
	for _, opt := range opts {
		opt(&c)
	}
	i := &Injector{mark: c.mark, device: c.device, rtnetlink: -1, v4: -1, v6: -1, link: -1}
	open := func() error { return i.openRaw(c.for4, c.for6) }
	if c.link {
		open = i.openLink
	}
	if c.netNS != nil {
		openHere := open
		open = func() error {
			err := netns.Do(*c.netNS, openHere)
			if setns, ok := errors.AsType[*os.SyscallError](err); ok && setns.Syscall == "setns" {
				return openError(setns.Syscall, setns.Err)
			}
			return err
		}
	}
	if err := open(); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

func (i *Injector) openRaw(for4, for6 bool) (err error) {
	// The protocol IPPROTO_RAW implies IP_HDRINCL (inet_create, inet6_create):
	// whole packets are sent, and none are received.
	if for4 {
		if i.v4, err = openSocket(unix.AF_INET, unix.IPPROTO_RAW); err != nil {
			return err
		}
	}
	if for6 {
		if i.v6, err = openSocket(unix.AF_INET6, unix.IPPROTO_RAW); errors.Is(err, unix.EAFNOSUPPORT) {
			i.noIPv6 = err
		} else if err != nil {
			return err
		}
	}
	return i.prepare()
}

func (i *Injector) openLink() (err error) {
	// The protocol 0 receives nothing.
	if i.link, err = openSocket(unix.AF_PACKET, 0); err != nil {
		return err
	}
	return i.prepare()
}

// prepare marks what the sockets send, and opens the one for routes.
func (i *Injector) prepare() (err error) {
	for _, fd := range []int{i.v4, i.v6, i.link} {
		if fd < 0 || i.mark == 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(i.mark)); err != nil {
			return openError("setsockopt SO_MARK", err)
		}
	}
	for _, fd := range []int{i.v4, i.v6} {
		if fd < 0 || i.device == 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, i.device); err != nil {
			return openError("setsockopt SO_BINDTOIFINDEX", err)
		}
	}
	i.rtnetlink, err = openSocket(unix.AF_NETLINK, unix.NETLINK_ROUTE)
	return err
}

func openSocket(family, protocol int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, openError("socket", err)
	}
	return fd, nil
}

func openError(call string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return &PermissionError{Call: call, Err: err}
	}
	return fmt.Errorf("rawfin: %w", os.NewSyscallError(call, err))
}

// Inject delivers one segment to the local socket it is for. It does not wait
// for anything, and nil does not say that the socket accepted the segment. If
// there is no such socket, the kernel answers the peer with a RST, as it does
// to any segment out of nowhere.
//
// A segment that is invalid, or whose Dst is not an address of this host, is a
// [*SegmentError]; one that this host's packet filter dropped on the way out,
// a [*DroppedError]. Other failures wrap what the kernel answered, such as
// ENETUNREACH where there is no route to Dst at all. After Close the error is
// [net.ErrClosed].
func (i *Injector) Inject(s Segment) error {
	packet, err := s.AppendTo(nil)
	if err != nil {
		return err
	}
	return i.deliver(packet, s)
}

// Deliver delivers a whole IP packet that its peer had sent to a local socket, and
// that was kept from it: unchanged, checksums included. It may be as long as
// packets get that a device has put together (65535 bytes). A link-local dst
// needs a zone. The packet must be a TCP segment to dst, else the error is a
// [*SegmentError]; the other errors, and what nil means, are those of Inject.
func (i *Injector) Deliver(packet []byte, dst netip.AddrPort) error {
	p, ok := wire.Parse(packet, len(packet))
	s := Segment{Src: p.Src, Dst: dst, Seq: p.Seq, Ack: p.Ack, Window: p.Window, Flags: Flags(p.Flags)}
	if !ok || p.ICMP || p.Dst != netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port()) {
		return &SegmentError{Segment: s, Reason: "packet is not a TCP segment to its destination"}
	}
	return i.deliver(packet, s)
}

// Send sends one segment of a local socket's to its peer, Dst, the way that the
// socket's own packets go: the route is chosen by both addresses, the mark and the
// device ([WithMark], [WithDevice]), which should be the socket's. It does not wait
// for anything, and the socket knows nothing of it. The errors are those of Inject,
// but for that about local addresses; what a namespace's lock or firewall dropped is
// a [*DroppedError].
func (i *Injector) Send(s Segment) error {
	packet, err := s.AppendTo(nil)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	dst, scope, err := i.destination(s)
	if err != nil {
		return err
	}
	// The header's source address does not choose the route (raw_sendmsg).
	src := s.Src.Addr().Unmap()
	switch {
	case i.link >= 0:
		err = errors.ErrUnsupported
	case dst.Is4():
		source := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: src.As4()})
		err = unix.Sendmsg(i.v4, packet, source, &unix.SockaddrInet4{Addr: dst.As4()}, unix.MSG_DONTWAIT)
	default:
		source := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: src.As16(), Ifindex: scope})
		err = unix.Sendmsg(i.v6, packet, source, &unix.SockaddrInet6{Addr: dst.As16(), ZoneId: scope}, unix.MSG_DONTWAIT)
	}
	return i.sent(s, "sendmsg", err)
}

// InjectDatagram delivers a datagram to the local socket that it is for, as
// [Injector.Inject] does with segments; what nil means is the same. If there is no
// such socket, the kernel tells Src so, by ICMP. The error is a [*DatagramError] if
// the datagram is invalid, its Dst is not an address of this host, or this host's
// packet filter dropped it.
func (i *Injector) InjectDatagram(d Datagram) error {
	packet, err := d.AppendTo(nil)
	if err != nil {
		return err
	}
	err = i.deliver(packet, Segment{Src: d.Src, Dst: d.Dst})
	if invalid, ok := errors.AsType[*SegmentError](err); ok {
		return d.fail(invalid.Reason, nil)
	}
	if dropped, ok := errors.AsType[*DroppedError](err); ok {
		return d.fail("a packet filter of this host dropped it in OUTPUT", dropped.Err)
	}
	return err
}

// deliver sends the packet of a segment to this host itself.
func (i *Injector) deliver(packet []byte, s Segment) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	dst, scope, err := i.destination(s)
	if err != nil {
		return err
	}
	local, err := isLocal(i.rtnetlink, dst, scope, i.mark)
	if err != nil {
		return fmt.Errorf("rawfin: inject %v: %w", s, err)
	}
	if !local {
		return &SegmentError{Segment: s, Reason: "destination is not an address of this host"}
	}
	return i.sent(s, "sendto", i.send(packet, dst, scope))
}

// destination is where a segment goes, unless it cannot.
func (i *Injector) destination(s Segment) (dst netip.Addr, scope uint32, err error) {
	dst = s.Dst.Addr().Unmap()
	switch {
	case i.closed:
		return dst, 0, net.ErrClosed
	case dst.Is6() && i.noIPv6 != nil:
		return dst, 0, i.noIPv6
	case i.link < 0 && (dst.Is4() && i.v4 < 0 || dst.Is6() && i.v6 < 0):
		return dst, 0, fmt.Errorf("rawfin: %v: %w: opened for the other family", s, errors.ErrUnsupported)
	}
	scope, err = i.scope(s)
	return dst, scope, err
}

// sent says what became of a segment.
func (i *Injector) sent(s Segment, call string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return &DroppedError{Segment: s, Mark: i.mark, Err: err}
	}
	if err != nil {
		return fmt.Errorf("rawfin: %v: %w", s, os.NewSyscallError(call, err))
	}
	return nil
}

func (i *Injector) send(packet []byte, dst netip.Addr, scope uint32) error {
	switch {
	case i.link >= 0:
		return i.sendLink(packet, dst)
	case dst.Is4():
		return unix.Sendto(i.v4, packet, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: dst.As4()})
	default:
		// No port: rawv6_sendmsg takes it for a protocol number.
		return unix.Sendto(i.v6, packet, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: dst.As16(), ZoneId: scope})
	}
}

// loopback is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopback = 1

// sendLink gives the packet to the loopback device, which receives it at once.
func (i *Injector) sendLink(packet []byte, dst netip.Addr) error {
	protocol := uint16(unix.ETH_P_IPV6)
	if dst.Is4() {
		protocol = unix.ETH_P_IP
	}
	// The header is Ethernet's; on this device all addresses are 0.
	frame := binary.BigEndian.AppendUint16(make([]byte, 2*6), protocol)
	frame = append(frame, packet...)
	return unix.Sendto(i.link, frame, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: loopback})
}

// scope is the index of the device that a link-local destination is on, or 0:
// other destinations are the same on all devices (rawv6_sendmsg).
func (i *Injector) scope(s Segment) (uint32, error) {
	if dst := s.Dst.Addr(); !dst.Is6() || dst.Is4In6() || !dst.IsLinkLocalUnicast() {
		return 0, nil
	}
	if i.link >= 0 {
		return 0, &SegmentError{Segment: s, Reason: "link-local destination is not on the loopback device"}
	}
	zone := s.zone()
	if zone == "" {
		return 0, &SegmentError{Segment: s, Reason: "link-local destination without a zone"}
	}
	// Asked through the socket, the kernel looks in the socket's network
	// namespace, where net.InterfaceByName would look in the caller's.
	device, err := unix.NewIfreq(zone)
	if err == nil {
		err = unix.IoctlIfreq(i.v6, unix.SIOCGIFINDEX, device)
	}
	if err == nil {
		return device.Uint32(), nil
	}
	if index, err := strconv.ParseUint(zone, 10, 31); err == nil {
		return uint32(index), nil
	}
	return 0, &SegmentError{Segment: s, Reason: fmt.Sprintf("zone %q: %v", zone, err)}
}

// Close closes the sockets. Later calls of Inject fail; closing again does
// nothing.
func (i *Injector) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	var errs []error
	for _, fd := range []int{i.rtnetlink, i.v4, i.v6, i.link} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
