package soccr

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
)

// A DatagramSnapshot is all of a UDP or UDP-Lite socket, of a ping socket or of a
// raw one that the kernel lets one read and put into another. Like a [Snapshot] it
// is a plain value.
type DatagramSnapshot struct {
	// Lite: it is a UDP-Lite socket (RFC 3828).
	Lite bool
	// Ping: it sends ICMP echo requests (SOCK_DGRAM with IPPROTO_ICMP or, for
	// AF_INET6, IPPROTO_ICMPV6); its port is their identifier.
	Ping bool `json:",omitempty"`
	// Raw is the IP protocol of a raw socket (SOCK_RAW), or 0. It has no ports.
	Raw uint8 `json:",omitempty"`
	// Local is the address and port. The address may be unspecified (0.0.0.0 or ::)
	// or multicast; with port 0 the socket is not bound. On an AF_INET6 socket, IPv4
	// addresses are mapped. The zone of a link-local one is the name of its device.
	Local netip.AddrPort
	// Remote is whom the socket is connected to, or the zero AddrPort. Ping and raw
	// sockets may be connected to port 0.
	Remote netip.AddrPort
	// ReadShutdown and WriteShutdown: the program has shut down (shutdown(2)).
	ReadShutdown, WriteShutdown bool
	// Options are the socket options.
	Options Options
	// Groups are the multicast groups that the socket has joined.
	Groups []Group `json:",omitempty"`
	// RecvQueue holds the datagrams that were received and not read yet. Ping and raw
	// sockets have none here.
	RecvQueue []Datagram `json:",omitempty"`
}

// A Datagram is one that waits to be read.
type Datagram struct {
	From netip.AddrPort // whom it is from
	To   netip.Addr     // which of the host's addresses it was sent to
	// HopLimit and TrafficClass, for IPv4 TTL and TOS, are those of its IP header.
	HopLimit, TrafficClass uint8
	// Segment is the size of each of the datagrams of which the kernel has made
	// one (UDP_GRO), or 0; the last may be shorter.
	Segment uint16
	Data    []byte
}

// A Group is a multicast group that a socket has joined.
type Group struct {
	Addr   netip.Addr // IPv4 or IPv6, without a zone
	Device string     // on which it has joined
	// Only: the socket receives what Sources send, and not, as otherwise, what all
	// others send (MCAST_MSFILTER).
	Only    bool
	Sources []netip.Addr
}

// Limits of what a datagram socket may hold, beyond those of the encoding.
const (
	// MaxDatagrams is the most datagrams that a DatagramSnapshot can hold.
	MaxDatagrams = 1 << 18
	// maxDatagram is the most bytes of one, and of those of which the kernel has
	// made one (UDP_GRO).
	maxDatagram = 65535
	maxSegments = 128 // UDP_MAX_SEGMENTS
	maxGroups   = 256
	maxSources  = 64 // net.ipv4.igmp_max_msf is 10 by default
)

// Validate reports the first field that keeps the socket from being restored, as an
// ErrInvalidSnapshot inside a *FieldError, or nil.
func (d *DatagramSnapshot) Validate() error {
	o := &d.Options
	switch false { // each case is what has to hold
	case d.kinds() <= 1:
		return invalid("Raw", d.Raw, "0 if Lite or Ping, which exclude each other")
	case validDatagramEnd(d.Local.Addr()):
		return invalid("Local", d.Local, "an address, with a zone only if link-local")
	case d.Remote == (netip.AddrPort{}) || d.validRemote():
		return invalid("Remote", d.Remote, "none, or an address of Local's family, which is not unspecified then")
	case o.Congestion == "":
		return invalid("Options.Congestion", o.Congestion, "empty")
	case !o.ReadShutdown:
		return invalid("Options.ReadShutdown", o.ReadShutdown, "false")
	case d.validGroups():
		return invalid("Groups", len(d.Groups), "at most 256 different multicast groups, of the socket's family or, unless Raw, of IPv4, on devices, with at most 64 sources each")
	case d.validQueue():
		return invalid("RecvQueue", len(d.RecvQueue), "at most MaxDatagrams datagrams of 65535 bytes, in 128 segments, between addresses of one family, and only UDP's")
	}
	return o.validate(d.sockets())
}

// kinds counts what the socket is said to be.
func (d *DatagramSnapshot) kinds() (n int) {
	for _, is := range [...]bool{d.Lite, d.Ping, d.Raw != 0} {
		if is {
			n++
		}
	}
	return n
}

func (d *DatagramSnapshot) validRemote() bool {
	remote := d.Remote.Addr()
	return validDatagramEnd(remote) && !remote.Unmap().IsUnspecified() && family(remote) == family(d.Local.Addr()) &&
		(!d.isUDP() || d.Remote.Port() != 0 && d.Local.Port() != 0 && !d.Local.Addr().Unmap().IsUnspecified())
}

func (d *DatagramSnapshot) validGroups() bool {
	for i := range min(len(d.Groups), maxGroups) {
		g := &d.Groups[i]
		again := func(other Group) bool { return other.Addr == g.Addr && other.Device == g.Device }
		if !g.valid(d) || slices.ContainsFunc(d.Groups[:i], again) {
			return false
		}
	}
	return len(d.Groups) <= maxGroups
}

func (d *DatagramSnapshot) validQueue() bool {
	for i := range d.RecvQueue {
		if !d.RecvQueue[i].valid(d.Local.Addr()) {
			return false
		}
	}
	return len(d.RecvQueue) <= MaxDatagrams && (d.isUDP() || len(d.RecvQueue) == 0)
}

// validDatagramEnd reports whether a socket can be bound or connected to this.
func validDatagramEnd(addr netip.Addr) bool {
	linkLocal := addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast()
	return addr.IsValid() && validZone(addr, linkLocal)
}

func (g *Group) valid(d *DatagramSnapshot) bool {
	ofFamily := func(a netip.Addr) bool {
		return a.IsValid() && a.Zone() == "" && !a.Is4In6() && a.Is4() == g.Addr.Is4()
	}
	for _, source := range g.Sources {
		if !ofFamily(source) {
			return false
		}
	}
	// Raw sockets of IPv6 have no options of IPv4's (rawv6_setsockopt).
	joins := g.Addr.Is4() == d.Local.Addr().Is4() || g.Addr.Is4() && d.Raw == 0
	return ofFamily(g.Addr) && g.Addr.IsMulticast() && joins && validDevice(g.Device) && len(g.Sources) <= maxSources
}

func (d *Datagram) valid(local netip.Addr) bool {
	from := d.From.Addr()
	return from.IsValid() && d.To.IsValid() && validZone(from, true) && validZone(d.To, true) && family(from) == family(d.To) && from.Is4() == local.Is4() &&
		len(d.Data) <= maxDatagram && (d.Segment == 0 || len(d.Data) <= maxSegments*int(d.Segment))
}

// sockets is which options the socket can have. To AF_INET6 sockets it does not
// matter whether they are connected: they may still speak with both.
func (d *DatagramSnapshot) sockets() sockets {
	set := onUDP | onDual | whenUnconnected
	switch {
	case d.Lite:
		set ^= onUDP | onUDPLite
	case d.Ping: // and raw ones: of IPv6 alone
		set ^= onUDP | onPing | onDual | onIPv6
	case d.Raw != 0:
		set ^= onUDP | onRaw | onDual | onIPv6
	}
	if d.Local.Addr().Is4() {
		set = set&^(onDual|onIPv6) | onIPv4
	}
	if d.Remote.IsValid() {
		set ^= whenUnconnected | whenConnected
	}
	return set
}

// isUDP: it is a UDP or UDP-Lite socket.
func (d *DatagramSnapshot) isUDP() bool { return !d.Ping && d.Raw == 0 }

// A datagramRecord is a socket as it is encoded: with its datagrams one after the
// other.
type datagramRecord struct {
	DatagramSnapshot
	queue []byte
}

// datagramForm has tags of its own below 25, and those of the options.
var datagramForm = form[datagramRecord]{
	magic: "\x89SOCCD\r\n",
	fields: byTag([]codec[datagramRecord]{
		boolean(1, func(d *datagramRecord) *bool { return &d.Lite }),
		end(2, func(d *datagramRecord) *netip.AddrPort { return &d.Local }),
		end(3, func(d *datagramRecord) *netip.AddrPort { return &d.Remote }),
		boolean(4, func(d *datagramRecord) *bool { return &d.ReadShutdown }),
		boolean(5, func(d *datagramRecord) *bool { return &d.WriteShutdown }),
		{6,
			func(b []byte, d *datagramRecord) []byte {
				for i := range d.Groups {
					b = d.Groups[i].append(b)
				}
				return b
			},
			func(d *datagramRecord, b []byte) bool {
				r := &reader{left: b}
				for len(r.left) > 0 && !r.failed {
					d.Groups = append(d.Groups, r.group())
				}
				return len(d.Groups) > 0 && !r.failed
			}},
		boolean(7, func(d *datagramRecord) *bool { return &d.Ping }),
		number(8, func(d *datagramRecord) *uint8 { return &d.Raw }),
	}, optionFields(func(d *datagramRecord) *Options { return &d.Options })),
	parts: [2]part[datagramRecord]{
		{"receive queue", func(d *datagramRecord) *[]byte { return &d.queue }, MaxQueue},
	},
}

// append encodes a group: address, device, number of sources and sources, with
// their lengths before them.
func (g *Group) append(b []byte) []byte {
	b = appendSized(b, addrBytes(g.Addr))
	b = appendSized(b, g.Device)
	only := byte(0)
	if g.Only {
		only = 1
	}
	b = append(b, only)
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.Sources)))
	for _, source := range g.Sources {
		b = appendSized(b, addrBytes(source))
	}
	return b
}

// append encodes a datagram: both ends, what its header said, and data.
func (d *Datagram) append(b []byte) []byte {
	b = appendSized(b, addrBytes(d.From.Addr()))
	b = binary.BigEndian.AppendUint16(b, d.From.Port())
	b = appendSized(b, addrBytes(d.To))
	b = append(b, d.HopLimit, d.TrafficClass)
	b = binary.BigEndian.AppendUint16(b, d.Segment)
	b = binary.BigEndian.AppendUint32(b, uint32(len(d.Data)))
	return append(b, d.Data...)
}

// addrBytes is an address with its zone.
func addrBytes(a netip.Addr) []byte { return append(a.AsSlice(), a.Zone()...) }

// A reader takes apart what the append methods have put together. After what they
// would not have written, failed is true.
type reader struct {
	left   []byte
	failed bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.left) {
		r.left, r.failed = nil, true
		return make([]byte, min(n, 4)) // as much as a number has
	}
	b := r.left[:n]
	r.left = r.left[n:]
	return b
}

func (r *reader) uint8() uint8   { return r.bytes(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }

func (r *reader) data(n uint32) []byte {
	if int64(n) > int64(len(r.left)) {
		r.left, r.failed = nil, true
	}
	if r.failed || n == 0 {
		return nil
	}
	return bytes.Clone(r.bytes(int(n)))
}

func (r *reader) sized() []byte { return r.data(uint32(r.uint16())) }

func (r *reader) addr() (a netip.Addr) {
	if b := r.sized(); a.UnmarshalBinary(b) != nil || !bytes.Equal(addrBytes(a), b) {
		r.failed = true
	}
	return a
}

func (r *reader) group() (g Group) {
	g.Addr, g.Device = r.addr(), string(r.sized())
	only := r.uint8()
	g.Only = only == 1
	for range r.uint16() {
		if r.failed {
			break
		}
		g.Sources = append(g.Sources, r.addr())
	}
	r.failed = r.failed || only > 1
	return g
}

func (r *reader) datagram() (d Datagram) {
	addr := r.addr()
	d.From = netip.AddrPortFrom(addr, r.uint16())
	d.To = r.addr()
	d.HopLimit, d.TrafficClass, d.Segment = r.uint8(), r.uint8(), r.uint16()
	d.Data = r.data(r.uint32())
	return d
}

// record is the socket as it is encoded, or what has no place in the format.
func (d *DatagramSnapshot) record() (*datagramRecord, error) {
	r := &datagramRecord{DatagramSnapshot: *d}
	size := 0
	for i := range d.RecvQueue {
		size += len(d.RecvQueue[i].Data) + 64
	}
	for i := range d.Groups {
		if n := len(d.Groups[i].Sources); n > maxFields {
			return nil, &FieldError{Field: "Groups", Want: "at most 64 sources", Got: n, Err: ErrInvalidSnapshot}
		}
	}
	if size <= MaxQueue {
		r.queue = make([]byte, 0, size)
		for i := range d.RecvQueue {
			r.queue = d.RecvQueue[i].append(r.queue)
		}
	}
	if size > MaxQueue || len(r.queue) > MaxQueue {
		return nil, &FieldError{Field: "RecvQueue", Want: "at most MaxQueue bytes", Got: size, Err: ErrInvalidSnapshot}
	}
	return r, nil
}

// AppendBinary implements encoding.BinaryAppender, like that of [Snapshot].
func (d *DatagramSnapshot) AppendBinary(b []byte) ([]byte, error) {
	r, err := d.record()
	if err != nil {
		return b, err
	}
	return datagramForm.append(b, r)
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (d *DatagramSnapshot) MarshalBinary() ([]byte, error) { return d.AppendBinary(nil) }

// WriteTo implements io.WriterTo: it writes what MarshalBinary returns.
func (d *DatagramSnapshot) WriteTo(w io.Writer) (int64, error) {
	r, err := d.record()
	if err != nil {
		return 0, err
	}
	return datagramForm.write(w, r)
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler, like that of [Snapshot].
func (d *DatagramSnapshot) UnmarshalBinary(data []byte) error {
	var read DatagramSnapshot
	if err := unmarshal(data, &read); err != nil {
		return err
	}
	*d = read
	return nil
}

// ReadFrom reads one socket, and no further, like that of [Snapshot].
func (d *DatagramSnapshot) ReadFrom(r io.Reader) (int64, error) {
	var read datagramRecord
	count, err := datagramForm.read(r, &read)
	if err != nil {
		return count, err
	}
	for queue := (&reader{left: read.queue}); len(queue.left) > 0; {
		datagram := queue.datagram()
		if queue.failed || len(read.RecvQueue) == MaxDatagrams {
			return count, &FieldError{Field: "RecvQueue", Want: "datagrams", Got: "something else", Err: ErrInvalidSnapshot}
		}
		read.RecvQueue = append(read.RecvQueue, datagram)
	}
	*d = read.DatagramSnapshot
	return count, nil
}
