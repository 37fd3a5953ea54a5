package tcpinfo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// The bits of TCPInfo.Options: what the handshake negotiated (the first four),
// and what happened since.
const (
	OptTimestamps = 1 << iota // both ends send timestamps (RFC 7323)
	OptSACK                   // selective acknowledgements (RFC 2018)
	OptWScale                 // window scaling (RFC 7323), even by 0
	OptECN                    // explicit congestion notification (RFC 3168)
	OptECNSeen                // at least one packet with ECT arrived
	OptSynData                // the SYN carried data, and it was acknowledged (RFC 7413)
	OptUsecTS                 // timestamps count microseconds (Linux 6.7)
	OptTFOChild               // accepted by way of TCP Fast Open (Linux 6.14)
)

// An Info is struct tcp_info with the two fields that unix.TCPInfo leaves out
// because they are bit fields: by how many bits each end shifts the windows it
// announces. Fields that the kernel does not have yet are zero.
type Info struct {
	unix.TCPInfo
	SndWscale uint8 // the peer's: scales the windows we are given
	RcvWscale uint8 // ours: scales the windows we announce
}

// The bit fields are the byte between tcpi_options and a byte of flags.
const (
	scalesOffset = unsafe.Offsetof(unix.TCPInfo{}.Options) + 1
	minSize      = scalesOffset + 1
)

// ErrShort is the error for bytes that end before the window scales, which every
// kernel has.
var ErrShort = errors.New("tcp_info is too short")

// Parse decodes the bytes of a struct tcp_info. Bytes beyond the fields known
// here, from a newer kernel, are ignored.
func Parse(b []byte) (Info, error) {
	var info Info
	copy(info.bytes(), b)
	return info, info.decode(len(b))
}

// bytes are the struct tcp_info in it.
func (i *Info) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&i.TCPInfo)), unix.SizeofTCPInfo)
}

// decode fills in what is not among the n bytes that are there.
func (i *Info) decode(n int) error {
	if n < int(minSize) {
		return fmt.Errorf("%w: %d bytes", ErrShort, n)
	}
	i.SndWscale, i.RcvWscale = scales(i.bytes()[scalesOffset], bigEndian)
	return nil
}

// Get reads the TCP_INFO of a socket.
func Get(fd int) (Info, error) {
	var info Info
	err := Read(fd, &info)
	return info, err
}

// Read is Get into an Info that is zero, or was read from a socket of this kernel.
func Read(fd int, info *Info) error {
	n, err := sockopt.Get(fd, unix.IPPROTO_TCP, unix.TCP_INFO, info.bytes())
	if err != nil {
		return err
	}
	return info.decode(n)
}

var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// scales takes the byte "tcpi_snd_wscale : 4, tcpi_rcv_wscale : 4" apart.
// Compilers fill a byte's bit fields from its low end on little-endian machines
// and from its high end on the others.
func scales(b byte, bigEndian bool) (snd, rcv uint8) {
	low, high := b&0xf, b>>4
	if bigEndian {
		return high, low
	}
	return low, high
}
