package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Relay joins two hosts as [Connect] does, but carries the packets between
// them itself, so that they can be late, lost or out of order: a long line,
// where the kernel has no netem.
//
// Neighbor discovery (ARP and its IPv6 counterpart) always passes at once: the
// neighbor is the near end of the line.
type Relay struct {
	AtoB, BtoA *Path

	middle  *Host // which has the other ends of the hosts' devices
	taps    [len(ports)]*tap
	fds     []int // the first is an eventfd: the paths end when it becomes readable
	running sync.WaitGroup
}

// RelayOptions say how a relay begins. The zero value is a line without delay.
type RelayOptions struct {
	Conditions Conditions // in both directions
	Seed       uint64     // of the random numbers that decide on loss and reordering
	Limit      int        // bytes under way per direction, in buffers; what exceeds it is dropped; 0: 256 MiB

	// MTU of the devices; 0: 1500.
	MTU int
	// Segments is the most segments in one packet of the relay. As between real
	// devices, TCP hands over many segments at once, up to 64 KiB, and they are
	// then late or lost together; 1 has every segment travel alone, which takes
	// far more CPU. 0: the kernel's own choice.
	Segments int
}

const defaultLimit = 256 << 20

// NewRelay joins two hosts; each end is called name in its host. It needs
// CAP_NET_ADMIN and CAP_NET_RAW.
func NewRelay(a, b *Host, name string, options RelayOptions) (_ *Relay, err error) {
	if options.Limit == 0 {
		options.Limit = defaultLimit
	}
	r := &Relay{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("relay %s: %w", name, err), r.release())
		}
	}()
	if r.middle, err = New(); err != nil {
		return nil, err
	}
	// The host in the middle says nothing of its own.
	if err := r.middle.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	stop, err := r.own(unix.Eventfd(0, unix.EFD_CLOEXEC))
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	for i, h := range []*Host{a, b} {
		if err := r.plug(i, h, name, options); err != nil {
			return nil, err
		}
	}
	for i, path := range []**Path{&r.AtoB, &r.BtoA} {
		timer, err := r.own(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC))
		if err != nil {
			return nil, os.NewSyscallError("timerfd_create", err)
		}
		*path = newPath(r.taps[i], r.taps[1-i].fd, timer, stop, uint64(i), options)
	}
	r.running.Go(r.AtoB.run)
	r.running.Go(r.BtoA.run)
	return r, nil
}

// own has release close a file descriptor.
func (r *Relay) own(fd int, err error) (int, error) {
	if err == nil {
		r.fds = append(r.fds, fd)
	}
	return fd, err
}

// ports are the devices in the middle.
var ports = [...]string{"a", "b"}

// plug connects one host to the middle.
func (r *Relay) plug(i int, h *Host, name string, options RelayOptions) error {
	port := ports[i]
	veth := &netlink.Veth{
		// The MTU of the host's end decides; this end takes everything.
		LinkAttrs:     netlink.LinkAttrs{Name: port, Namespace: netlink.NsFd(r.middle.FD()), MTU: 65535},
		PeerName:      name,
		PeerNamespace: netlink.NsFd(h.FD()),
		PeerMTU:       1500,
	}
	if options.MTU != 0 {
		veth.PeerMTU = uint32(options.MTU)
	}
	if err := r.middle.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", name, err)
	}
	if options.Segments != 0 {
		link, err := h.link.LinkByName(name)
		if err != nil {
			return err
		}
		if err := h.link.LinkSetGSOMaxSegs(link, options.Segments); err != nil {
			return fmt.Errorf("segments per packet: %w", err)
		}
	}
	return errors.Join(
		r.middle.up(port),
		r.middle.Do(func() (err error) { r.taps[i], err = openTap(veth.Index); return err }),
		h.up(name),
	)
}

// Close ends the relay and removes the devices, here and in both hosts. What is
// under way is lost. It returns the first thing that went wrong on each path.
func (r *Relay) Close() error {
	if _, err := unix.Write(r.fds[0], binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		return os.NewSyscallError("write to eventfd", err)
	}
	r.running.Wait()
	return errors.Join(r.AtoB.err, r.BtoA.err, r.release())
}

func (r *Relay) release() (err error) {
	for _, fd := range r.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	for _, t := range r.taps {
		if t != nil {
			err = errors.Join(err, t.close())
		}
	}
	if r.middle == nil {
		return err
	}
	for _, port := range ports {
		// It is not there if its other end went with its host, or if making it failed.
		if link, missing := r.middle.link.LinkByName(port); missing == nil {
			err = errors.Join(err, r.middle.link.LinkDel(link))
		}
	}
	return errors.Join(err, r.middle.Close())
}
