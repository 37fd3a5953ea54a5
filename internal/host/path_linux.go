package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Path is one direction of a [Relay].
type Path struct {
	in               *tap
	out, timer, stop int // file descriptors
	limit            int // of bytes

	conditions atomic.Pointer[Conditions]
	counts     struct{ carried, lost, refused, overflowed atomic.Uint64 }

	// The rest is its goroutine's.
	random *rand.Rand
	line   []frame   // under way, by due
	latest time.Time // the last due time of a packet that was not reordered
	bytes  int       // the size of their buffers
	spare  [len(bufferSizes)][][]byte
	armed  time.Time // when the timer expires; zero: never
	err    error
}

// Conditions are what a path does to the packets that enter it. They can be
// changed at any time, which does not concern the packets already under way.
type Conditions struct {
	// Delay is how long a packet is under way: never less, and as little more
	// as the CPUs allow. Packets stay in order when it becomes shorter.
	Delay time.Duration
	// Loss is how many of the packets get lost: 0.01 is one in a hundred.
	Loss float64
	// Reorder is how many of the packets are under way for ReorderBy longer, so
	// that those behind overtake them.
	Reorder   float64
	ReorderBy time.Duration
	// Drop, if not nil, says which packets get lost beyond that. It is given
	// the packet from its IP header on, which it may not keep or change. It is
	// called by one goroutine at a time, but not by the test's.
	Drop func(packet []byte) bool
	// Blackhole swallows every packet.
	Blackhole bool
}

// Counts are the packets of a path so far; neighbor discovery is not counted.
type Counts struct {
	Carried    uint64 // put out at the far end
	Lost       uint64 // by Loss
	Dropped    uint64 // by Drop and Blackhole
	Overflowed uint64 // beyond RelayOptions.Limit, or come in faster than they could be taken
}

// Change changes some of the conditions from the next packet on. Only one
// goroutine may do so at a time.
func (p *Path) Change(change func(*Conditions)) {
	c := *p.conditions.Load()
	change(&c)
	p.conditions.Store(&c)
}

// Counts tells what has become of the packets.
func (p *Path) Counts() Counts {
	c := &p.counts
	return Counts{
		Carried:    c.carried.Load(),
		Lost:       c.lost.Load(),
		Dropped:    c.refused.Load(),
		Overflowed: c.overflowed.Load(),
	}
}

// A frame is under way.
type frame struct {
	due    time.Time
	buffer []byte // a virtio_net_hdr and the Ethernet frame
	local  bool   // stays on the link, which a line does not lengthen
}

const ethernetHeaderSize = 14

// Buffers have one of two sizes: enough for one segment, or for any packet.
var bufferSizes = [...]int{2 << 10, slotSize}

func newPath(in *tap, out, timer, stop int, stream uint64, options RelayOptions) *Path {
	p := &Path{in: in, out: out, timer: timer, stop: stop, limit: options.Limit}
	p.conditions.Store(&options.Conditions)
	p.random = rand.New(rand.NewPCG(options.Seed, stream))
	return p
}

// run carries packets until the relay is closed.
func (p *Path) run() {
	runtime.LockOSThread() // a thread of its own gets its CPU sooner
	events := poll(p.stop, p.in.fd, p.timer)
	for {
		p.arm()
		if _, err := unix.Ppoll(events, nil, nil); err != nil {
			if err != unix.EINTR {
				p.note(os.NewSyscallError("ppoll", err))
			}
			continue // the events are those of an earlier call
		}
		if events[0].Revents != 0 {
			return
		}
		if events[1].Revents != 0 {
			for range 32 { // what is due must not wait for long
				if !p.receive() {
					break
				}
			}
		}
		p.deliver()
	}
}

// poll is what to wait for to read from any of the files.
func poll(fds ...int) []unix.PollFd {
	var events []unix.PollFd
	for _, fd := range fds {
		events = append(events, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return events
}

// arm sets the timer to when the next packet is due. The timeout of ppoll would
// not do: it may be late by a thousandth (select_estimate_accuracy).
func (p *Path) arm() {
	var due time.Time
	if len(p.line) > 0 {
		due = p.line[0].due
	}
	if due.Equal(p.armed) {
		return
	}
	p.armed = due
	var setting unix.ItimerSpec // zero: never
	if !due.IsZero() {
		setting.Value = unix.NsecToTimespec(int64(max(1, time.Until(due))))
	}
	p.note(os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(p.timer, 0, &setting, nil)))
}

// receive takes one packet in, if there is one.
func (p *Path) receive() bool {
	packet := p.in.peek()
	if packet == nil {
		return false
	}
	missed, err := p.in.missed()
	p.note(err)
	p.counts.overflowed.Add(missed)
	f := frame{due: time.Now()}
	switch {
	case len(packet) < vnetHeaderSize+ethernetHeaderSize:
		p.counts.overflowed.Add(1)
	case p.admit(&f, packet):
		f.buffer = append(p.buffer(len(packet)), packet...)
		p.bytes += cap(f.buffer)
		p.enqueue(f)
	}
	p.in.next()
	return true
}

// admit decides whether a packet gets through and when.
func (p *Path) admit(f *frame, packet []byte) bool {
	if f.local = local(packet[vnetHeaderSize:]); f.local {
		return true
	}
	c := p.conditions.Load()
	f.due = f.due.Add(c.Delay)
	switch {
	case c.Blackhole, c.Drop != nil && c.Drop(packet[vnetHeaderSize+ethernetHeaderSize:]):
		p.counts.refused.Add(1)
		return false
	case c.Loss > 0 && p.random.Float64() < c.Loss:
		p.counts.lost.Add(1)
		return false
	case p.bytes >= p.limit:
		p.counts.overflowed.Add(1)
		return false
	}
	if f.due.Before(p.latest) {
		f.due = p.latest
	}
	p.latest = f.due
	if c.Reorder > 0 && p.random.Float64() < c.Reorder {
		f.due = f.due.Add(c.ReorderBy)
	}
	return true
}

func (p *Path) enqueue(f frame) {
	i := len(p.line)
	for i > 0 && p.line[i-1].due.After(f.due) {
		i--
	}
	p.line = slices.Insert(p.line, i, f)
}

// deliver puts out what is due.
func (p *Path) deliver() {
	for len(p.line) > 0 && time.Until(p.line[0].due) <= 0 {
		f := p.line[0]
		p.line = p.line[1:]
		if p.write(f.buffer) && !f.local {
			p.counts.carried.Add(1)
		}
		p.bytes -= cap(f.buffer)
		p.recycle(f.buffer)
	}
}

func (p *Path) write(packet []byte) bool {
	for {
		_, err := unix.Write(p.out, packet)
		switch err {
		case nil:
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			full := append(poll(p.stop), unix.PollFd{Fd: int32(p.out), Events: unix.POLLOUT})
			if _, err := unix.Ppoll(full, nil, nil); err == nil && full[0].Revents != 0 {
				return false
			}
		default:
			p.note(fmt.Errorf("write packet: %w", err))
			return false
		}
	}
}

// note keeps the first error, unless it only says that a host was closed before
// the relay.
func (p *Path) note(err error) {
	if p.err == nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENXIO) {
		p.err = err
	}
}

// local tells neighbor discovery and multicast.
func local(ethernet []byte) bool {
	if ethernet[0]&1 != 0 { // a group address
		return true
	}
	packet := ethernet[ethernetHeaderSize:]
	switch binary.BigEndian.Uint16(ethernet[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		const nextHeader, message = 6, 40
		return len(packet) > message && packet[nextHeader] == unix.IPPROTO_ICMPV6 &&
			packet[message] >= routerSolicitation && packet[message] <= redirect
	}
	return false
}

// The first and the last ICMPv6 message type of neighbor discovery (RFC 4861).
const (
	routerSolicitation = 133
	redirect           = 137
)

// buffer gives an empty buffer that has room for so much.
func (p *Path) buffer(size int) []byte {
	i, _ := slices.BinarySearch(bufferSizes[:], size)
	last := len(p.spare[i]) - 1
	if last < 0 {
		return make([]byte, 0, bufferSizes[i])
	}
	b := p.spare[i][last]
	p.spare[i] = p.spare[i][:last]
	return b
}

func (p *Path) recycle(b []byte) {
	i, _ := slices.BinarySearch(bufferSizes[:], cap(b))
	p.spare[i] = append(p.spare[i], b[:0])
}
