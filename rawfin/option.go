package rawfin

import "net/netip"

// An Option changes what [Open] opens.
type Option func(*config)

type config struct {
	mark   uint32
	device int  // 0: none
	netNS  *int // nil: the caller's own
	link   bool
	for4   bool
	for6   bool
}

// WithFamily opens only what segments to destinations of an address's family
// take; an IPv4-mapped address is one of IPv4. Others cannot be injected then
// ([errors.ErrUnsupported]).
func WithFamily(addr netip.Addr) Option {
	return func(c *config) { c.for4 = addr.Unmap().Is4(); c.for6 = !c.for4 }
}

// WithMark gives the segments this packet mark instead of [DefaultMark]; 0
// means none.
func WithMark(mark uint32) Option {
	return func(c *config) { c.mark = mark }
}

// WithDevice has [Injector.Send] send by a device, given by its index; that of a
// socket bound to one (SO_BINDTODEVICE). Such an Injector is for nothing else.
func WithDevice(index int) Option {
	return func(c *config) { c.device = index }
}

// WithNetNS delivers to the sockets of another network namespace, given by a
// file descriptor of it (of /proc/PID/ns/net, for example). The descriptor
// stays the caller's, and is not used after Open. Entering the namespace needs
// CAP_SYS_ADMIN in it and in the caller's user namespace.
func WithNetNS(fd int) Option {
	return func(c *config) { c.netNS = &fd }
}

// WithLink has segments enter at the link layer of the loopback device (a packet
// socket), as if that had received them: they pass PREROUTING and INPUT, but not
// OUTPUT, for a firewall that drops the mark, or everything, there.
//
// This is for when the usual way fails, as more is in its way. The kernel drops
// the segment silently where reverse path filtering is strict on the loopback
// device (net.ipv4.conf.{all,lo}.rp_filter=1), and where the peer's address is
// local as well (unless net.ipv4.conf.lo.accept_local=1, for addresses in
// 127.0.0.0/8 with route_localnet=1). A socket bound to another device, as all
// those with link-local addresses are, does not get it, and worse: as to the
// kernel there is no such socket, it answers the peer with a RST. Link-local
// destinations are refused with a [*SegmentError].
func WithLink() Option {
	return func(c *config) { c.link = true }
}
