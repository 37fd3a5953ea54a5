package soccr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/rawfin"
)

// What comes with a datagram is read from the packet's header when it is asked for,
// so these options need not have been set when it arrived.
var (
	told4 = []string{"IP_PKTINFO", "IP_RECVTTL", "IP_RECVTOS"}
	told6 = []string{"IPV6_RECVPKTINFO", "IPV6_RECVHOPLIMIT", "IPV6_RECVTCLASS"}
)

// readQueue reads the datagrams without taking them out: with SO_PEEK_OFF, each
// peek begins where the last one has ended. That option, and those that make the
// kernel tell of a datagram's header, are the program's again afterwards.
func (d *DatagramSnapshot) readQueue(fd int) (queue []Datagram, err error) {
	told := told4
	if !d.Local.Addr().Is4() {
		told = slices.Concat(told4, told6)
	}
	told = slices.DeleteFunc(slices.Clone(told), func(name string) bool {
		_, set := d.Options.Setting(name)
		return set // by the program
	})
	offset := -1
	if d.Options.PeekOffsetOn {
		offset = int(d.Options.PeekOffset)
	}
	setAll := func(on, offset int) error {
		for _, name := range told {
			o := row(name)
			if err := sockopt.SetInt(fd, levels[o.level], o.number, on); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset)
	}
	defer func() { err = errors.Join(err, setAll(0, offset)) }()
	if err := setAll(1, 0); err != nil {
		return nil, err
	}
	for buffer := make([]byte, maxDatagram+1); len(queue) < MaxDatagrams; {
		n, datagram, err := d.peek(fd, buffer)
		if errors.Is(err, unix.EAGAIN) {
			return queue, nil
		}
		if err != nil {
			return nil, err
		}
		datagram.Data = bytes.Clone(buffer[:n])
		queue = append(queue, datagram)
	}
	return nil, fmt.Errorf("%w: more than %d datagrams", ErrBuffer, MaxDatagrams)
}

// peek wraps recvmsg(2): it reads a datagram, and what is told with it.
func (d *DatagramSnapshot) peek(fd int, buffer []byte) (n int, datagram Datagram, err error) {
	var from unix.RawSockaddrAny
	var told [512]byte
	iov := unix.Iovec{Base: unsafe.SliceData(buffer)}
	iov.SetLen(len(buffer))
	header := unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&from)), Namelen: unix.SizeofSockaddrAny,
		Iov: &iov, Control: &told[0],
	}
	header.SetIovlen(1)
	header.SetControllen(len(told))
	read, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&header)), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, datagram, errno
	}
	if datagram.From, err = fromSockaddr(fd, sockaddrBytes(&from)); err != nil {
		return 0, datagram, err
	}
	datagram.To, datagram.HopLimit = d.Local.Addr(), defaultHopLimit
	messages, err := unix.ParseSocketControlMessage(told[:header.Controllen])
	if err != nil {
		return 0, datagram, err
	}
	for _, m := range messages {
		datagram.take(m)
	}
	datagram.To = datagram.To.WithZone(datagram.From.Addr().Zone())
	return int(read), datagram, nil
}

const defaultHopLimit = 64

// take reads one control message.
func (d *Datagram) take(m unix.SocketControlMessage) {
	number := func() int { // most are an int, one is a byte
		if len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
		return int(m.Data[0])
	}
	if len(m.Data) == 0 {
		return
	}
	switch [2]int32{m.Header.Level, m.Header.Type} {
	case [2]int32{unix.IPPROTO_IP, unix.IP_PKTINFO}:
		if to := netip.AddrFrom4([4]byte(m.Data[8:12])); d.From.Addr().Is4() { // ipi_addr
			d.To = to
		}
	case [2]int32{unix.IPPROTO_IPV6, unix.IPV6_PKTINFO}:
		d.To = netip.AddrFrom16([16]byte(m.Data[:16]))
	case [2]int32{unix.IPPROTO_IP, unix.IP_TTL}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT}:
		d.HopLimit = uint8(number())
	case [2]int32{unix.IPPROTO_IP, unix.IP_TOS}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}:
		d.TrafficClass = uint8(number())
	case [2]int32{unix.IPPROTO_UDP, unix.UDP_GRO}:
		d.Segment = uint16(number())
	}
}

// fillDatagrams puts the datagrams back, as if they came from whom they came.
// Meanwhile nobody else's get in, and the buffer is as large as it may be.
func (s *Socket) fillDatagrams(d *DatagramSnapshot) (err error) {
	if len(d.RecvQueue) == 0 {
		return nil
	}
	if err := s.maximize(recvBuffer); err != nil {
		return err
	}
	rebind, err := s.unbindDevice()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rebind()) }()
	r := &refiller{socket: s, d: d}
	defer func() { err = errors.Join(err, r.close()) }()
	for i := range d.RecvQueue {
		datagram := &d.RecvQueue[i]
		for _, part := range datagram.parts() {
			if lost := r.put(part); lost != nil {
				s.lose(Loss{Datagram: datagram, Err: lost})
				break
			}
		}
	}
	return nil
}

// parts are the datagrams of which the kernel has made one.
func (d *Datagram) parts() (parts []Datagram) {
	rest := *d
	for d.Segment > 0 && len(rest.Data) > int(d.Segment) {
		part := rest
		part.Data, rest.Data = rest.Data[:d.Segment], rest.Data[d.Segment:]
		parts = append(parts, part)
	}
	return append(parts, rest)
}

// unbindDevice lets a socket that is bound to a device receive what arrives on lo.
func (s *Socket) unbindDevice() (rebind func() error, err error) {
	index, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil && !lacking(err) || index == 0 {
		return func() error { return nil }, nil
	}
	set := func(index int) error { return sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index) }
	return func() error { return set(index) }, set(0)
}

// A refiller puts datagrams into a socket.
type refiller struct {
	socket   *Socket
	d        *DatagramSnapshot
	injector *rawfin.Injector
	link     bool  // by way of the link layer of lo, as a firewall drops them elsewhere
	gaveUp   error // why none gets through
}

func (r *refiller) close() error {
	if r.injector == nil {
		return nil
	}
	return r.injector.Close()
}

// put delivers one datagram and waits until it is in the queue.
func (r *refiller) put(d Datagram) error {
	if r.gaveUp != nil {
		return r.gaveUp
	}
	for {
		memory, err := r.socket.memory()
		if err != nil {
			return err
		}
		err = r.inject(d)
		if invalid, ok := errors.AsType[*rawfin.DatagramError](err); ok && invalid.Err == nil {
			return err // this one, but perhaps not the next
		}
		if denied, ok := errors.AsType[*rawfin.PermissionError](err); ok {
			r.gaveUp = because(ErrNoPermission, denied)
			return r.gaveUp
		}
		if err == nil {
			if err = r.await(memory.recvAlloc); err == nil {
				return nil
			}
		}
		if r.link {
			r.gaveUp = err
			return err
		}
		if closed := r.close(); closed != nil {
			return closed
		}
		r.injector, r.link = nil, true
	}
}

func (r *refiller) inject(d Datagram) error {
	if r.injector == nil {
		options := []rawfin.Option{rawfin.WithMark(r.socket.options.mark)}
		if r.link {
			options = append(options, rawfin.WithLink())
		}
		ns, err := openNetNS(r.socket.fd)
		if err == nil {
			defer unix.Close(ns)
			if !netns.Current(ns) {
				options = append(options, rawfin.WithNetNS(ns))
			}
		} else if !errors.Is(err, unix.EPERM) { // who may not ask is there
			return err
		}
		if r.injector, err = rawfin.Open(options...); err != nil {
			return err
		}
	}
	return r.injector.InjectDatagram(rawfin.Datagram{
		Src: d.From, Dst: netip.AddrPortFrom(d.To, r.d.Local.Port()), Lite: r.d.Lite,
		HopLimit: d.HopLimit, TrafficClass: d.TrafficClass, Payload: d.Data,
	})
}

var errElsewhere = errors.New("it did not arrive at the socket: a packet filter dropped it, or another socket has the same port")

// await waits until the queue takes more memory than before: a peek would mark
// datagrams without data, which another peek would then skip. As a rule that is so
// when the datagram has been sent, unless another CPU processes what arrives on lo.
func (r *refiller) await(before uint32) error {
	const patience = 200 * time.Millisecond
	for start := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		memory, err := r.socket.memory()
		if err != nil || memory.recvAlloc > before {
			return err
		}
		if time.Since(start) > patience {
			return errElsewhere
		}
	}
}
