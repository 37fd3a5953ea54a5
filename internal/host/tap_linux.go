package host

import (
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A tap takes and puts whole frames of a device. In front of each is a
// virtio_net_hdr: with it, packets of many segments and packets with a checksum
// yet to be filled in pass as they are.
//
// Frames come in over a ring in memory, because a socket's receive buffer, which
// an ordinary user cannot enlarge beyond net.core.rmem_max, holds only a few.
type tap struct {
	fd   int
	ring []byte
	slot int // where the next frame comes in
}

// A slot is for one frame of any size; slotsPerBlock of them nearly fill a power
// of two, in which the kernel allocates.
const (
	slotSize      = 68 << 10
	slotsPerBlock = 15
	blocks        = 17
	slots         = slotsPerBlock * blocks
)

const vnetHeaderSize = 10 // struct virtio_net_hdr

// openTap opens a tap of a device of the calling thread's network namespace.
func openTap(index int) (t *tap, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("packet socket", err)
	}
	t = &tap{fd: fd}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	for _, o := range []struct {
		name          string
		option, value int
	}{
		{"PACKET_VERSION", unix.PACKET_VERSION, unix.TPACKET_V2},
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR, 1},
	} {
		if err := sockopt.SetInt(fd, unix.SOL_PACKET, o.option, o.value); err != nil {
			return nil, os.NewSyscallError(o.name, err)
		}
	}
	const blockSize = slotSize * slotsPerBlock
	req := unix.TpacketReq{Block_size: blockSize, Block_nr: blocks, Frame_size: slotSize, Frame_nr: slots}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, os.NewSyscallError("PACKET_RX_RING", err)
	}
	if t.ring, err = unix.Mmap(fd, 0, blockSize*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return t, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
}

// peek gives the next frame and the virtio_net_hdr before it, nil if none has
// come in; it stays valid until next. A frame cut short is empty.
func (t *tap) peek() []byte {
	if t.status().Load()&unix.TP_STATUS_USER == 0 {
		return nil
	}
	b := t.ring[t.slot*slotSize:][:slotSize]
	header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&b[0]))
	if header.Snaplen != header.Len {
		return []byte{}
	}
	return b[header.Mac-vnetHeaderSize:][:vnetHeaderSize+header.Len]
}

// next gives the frame's slot back to the kernel.
func (t *tap) next() {
	t.status().Store(unix.TP_STATUS_KERNEL)
	t.slot = (t.slot + 1) % slots
}

// status is the word by which the kernel and we hand a slot to each other.
func (t *tap) status() *atomic.Uint32 {
	const offset = int(unsafe.Offsetof(unix.Tpacket2Hdr{}.Status))
	return (*atomic.Uint32)(unsafe.Pointer(&t.ring[t.slot*slotSize+offset]))
}

// missed is how many frames found the ring full before the one that peek gave,
// as far as missed has not told yet.
func (t *tap) missed() (uint64, error) {
	if t.status().Load()&unix.TP_STATUS_LOSING == 0 {
		return 0, nil
	}
	stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, os.NewSyscallError("PACKET_STATISTICS", err)
	}
	return uint64(stats.Drops), nil
}

func (t *tap) close() (err error) {
	if t.ring != nil {
		err = unix.Munmap(t.ring)
	}
	return errors.Join(err, unix.Close(t.fd))
}
