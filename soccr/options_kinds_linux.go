package soccr

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// kinds are how the values that are no int are read and written. The flags are
// those of F_GETFL.
var kinds = [...]struct {
	read  func(o *option, fd, level, flags int, s *Setting) (changed bool, err error)
	write func(o *option, fd, level int, s *Setting) error
}{
	longKind:      {readLong, writeLong},
	timeKind:      {readTime, writeTime},
	lingerKind:    {readLinger, writeLinger},
	pairKind:      {readPair, writePair},
	bindKind:      {readBind, writeBind},
	deviceKind:    {readDevice, writeDevice},
	netDeviceKind: {readDevice, writeDevice},
	addressKind:   {readAddress, writeAddress},
	bytesKind:     {readBytes, writeBytes},
	filterKind:    {readFilter, writeFilter},
	flagKind:      {readFlag, writeFlag},
	signalKind:    {readSignal, writeSignal},
	ownerKind:     {readOwner, writeOwner},
	probeKind:     {readProbe, writeGone},
	goneKind:      {readGone, writeGone},
}

// unlimited is what the largest unsigned long means, and the number for it.
const unlimited = -1

func readLong(o *option, fd, level, _ int, s *Setting) (bool, error) {
	var b [8]byte
	n, err := sockopt.Get(fd, level, o.number, b[:])
	switch {
	case err != nil:
		return false, err
	case n == 8:
		s.Number = int64(binary.NativeEndian.Uint64(b[:]))
	default:
		s.Number = int64(binary.NativeEndian.Uint32(b[:]))
		if s.Number == maxUint32 {
			s.Number = unlimited
		}
	}
	return s.Number != o.normal, nil
}

func writeLong(o *option, fd, level int, s *Setting) error {
	v := uintptr(s.Number)
	if int64(v) != s.Number && s.Number != unlimited {
		return unix.ERANGE // of a long of 32 bits
	}
	return sockopt.Set(fd, level, o.number, unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)))
}

func timevalBytes(t *unix.Timeval) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(t)), unsafe.Sizeof(*t))
}

func readTime(o *option, fd, level, _ int, s *Setting) (bool, error) {
	var t unix.Timeval
	_, err := sockopt.Get(fd, level, o.number, timevalBytes(&t))
	s.Number = t.Nano() / 1000
	return s.Number != 0, err
}

func writeTime(o *option, fd, level int, s *Setting) error {
	t := unix.NsecToTimeval(s.Number * 1000)
	return sockopt.Set(fd, level, o.number, timevalBytes(&t))
}

// twoWords reads two 32-bit fields.
func twoWords(fd, level, number int) (first, second uint32, err error) {
	var b [8]byte
	_, err = sockopt.Get(fd, level, number, b[:])
	return binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:]), err
}

func setTwoWords(fd, level, number int, first, second uint32) error {
	var b [8]byte
	binary.NativeEndian.PutUint32(b[:], first)
	binary.NativeEndian.PutUint32(b[4:], second)
	return sockopt.Set(fd, level, number, b[:])
}

// readLinger: a time that is not used, because the option is off, does not count.
func readLinger(o *option, fd, level, _ int, s *Setting) (bool, error) {
	on, seconds, err := twoWords(fd, level, o.number)
	if on != 0 {
		s.Number = int64(seconds)
	}
	return on != 0, err
}

func writeLinger(o *option, fd, level int, s *Setting) error {
	return setTwoWords(fd, level, o.number, 1, uint32(s.Number))
}

func readPair(o *option, fd, level, _ int, s *Setting) (bool, error) {
	first, second, err := twoWords(fd, level, o.number)
	s.Number = int64(first) | int64(second)<<32
	return s.Number != 0, err
}

func writePair(o *option, fd, level int, s *Setting) error {
	return setTwoWords(fd, level, o.number, uint32(s.Number), uint32(s.Number>>32))
}

// setDevice makes a Setting of an index, in the socket's own namespace.
func setDevice(fd, index int, s *Setting) (bool, error) {
	if index == 0 {
		return false, nil
	}
	name, err := deviceName(fd, index)
	s.Text = name
	return true, err
}

// readBind reads the index, which costs less than the name.
func readBind(_ *option, fd, level, _ int, s *Setting) (bool, error) {
	index, err := sockopt.GetInt(fd, level, unix.SO_BINDTOIFINDEX)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.1
		var b [unix.IFNAMSIZ]byte
		n, err := sockopt.Get(fd, level, unix.SO_BINDTODEVICE, b[:])
		s.Text = unix.ByteSliceToString(b[:n])
		return n > 0, err
	}
	if err != nil {
		return false, err
	}
	return setDevice(fd, index, s)
}

func writeBind(o *option, fd, level int, s *Setting) error {
	return sockopt.Set(fd, level, o.number, []byte(s.Text))
}

func readDevice(o *option, fd, level, _ int, s *Setting) (bool, error) {
	index, err := sockopt.GetInt(fd, level, o.number)
	if err != nil {
		return false, err
	}
	return setDevice(fd, o.deviceOrder(index), s)
}

func writeDevice(o *option, fd, level int, s *Setting) error {
	index, err := deviceIndex(fd, s.Text)
	if err != nil {
		return err
	}
	return sockopt.SetInt(fd, level, o.number, o.deviceOrder(index))
}

// deviceOrder converts an index between the host's order and the option's.
func (o *option) deviceOrder(index int) int {
	if o.kind != netDeviceKind {
		return index
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(index))
	return int(int32(binary.NativeEndian.Uint32(b[:])))
}

func readAddress(o *option, fd, level, _ int, s *Setting) (bool, error) {
	var b [4]byte
	if _, err := sockopt.Get(fd, level, o.number, b[:]); err != nil || b == [4]byte{} {
		return false, err
	}
	s.Text = netip.AddrFrom4(b).String()
	return true, nil
}

func writeAddress(o *option, fd, level int, s *Setting) error {
	addr, err := netip.ParseAddr(s.Text)
	if err != nil {
		return err
	}
	return sockopt.Set(fd, level, o.number, addr.AsSlice())
}

func readBytes(o *option, fd, level, _ int, s *Setting) (bool, error) {
	var b [maxBytes]byte
	n, err := sockopt.Get(fd, level, o.number, b[:o.max])
	if n > 0 && err == nil {
		s.Bytes = append(s.Bytes, b[:n]...)
	}
	return n > 0, err
}

func writeBytes(o *option, fd, level int, s *Setting) error {
	return sockopt.Set(fd, level, o.number, s.Bytes)
}

// readFilter reads a classic BPF filter. If there is a program that is not
// classic, the filter is there, but has no bytes (sk_get_filter: EACCES).
func readFilter(o *option, fd, level, _ int, s *Setting) (bool, error) {
	n, err := sockopt.Get(fd, level, o.number, nil)
	if errors.Is(err, unix.EACCES) {
		return true, nil
	}
	if err != nil || n == 0 {
		return false, err
	}
	code := make([]unix.SockFilter, n)
	// This option counts instructions, not bytes.
	if n, err = sockopt.Get(fd, level, o.number, unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), n)); err != nil {
		return false, err
	}
	s.Bytes = make([]byte, 0, filterSize*n)
	for _, c := range code[:n] {
		s.Bytes = binary.BigEndian.AppendUint16(s.Bytes, c.Code)
		s.Bytes = append(s.Bytes, c.Jt, c.Jf)
		s.Bytes = binary.BigEndian.AppendUint32(s.Bytes, c.K)
	}
	return true, nil
}

func writeFilter(o *option, fd, level int, s *Setting) error {
	code := make([]unix.SockFilter, 0, len(s.Bytes)/filterSize)
	for b := s.Bytes; len(b) >= filterSize; b = b[filterSize:] {
		code = append(code, unix.SockFilter{
			Code: binary.BigEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.BigEndian.Uint32(b[4:]),
		})
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: unsafe.SliceData(code)}
	err := sockopt.Set(fd, level, o.number, unsafe.Slice((*byte)(unsafe.Pointer(&program)), unsafe.Sizeof(program)))
	runtime.KeepAlive(code)
	return err
}

func readFlag(o *option, _, _, flags int, s *Setting) (bool, error) {
	if flags&o.number != 0 {
		s.Number = 1
	}
	return s.Number != 0, nil
}

func writeFlag(o *option, fd, _ int, _ *Setting) error {
	flags, err := fileFlags(fd)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|o.number)
	}
	return err
}

func readSignal(_ *option, fd, _, _ int, s *Setting) (bool, error) {
	signal, err := fcntl(fd, unix.F_GETSIG, 0)
	s.Number = int64(signal)
	return signal != 0, err
}

func writeSignal(_ *option, fd, _ int, s *Setting) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(s.Number))
	return err
}

// ownerTypes are the values of F_GETOWN_EX.
var ownerTypes = [...]string{0: ownerThread, 1: ownerProcess, 2: ownerGroup}

// fownerEx is struct f_owner_ex.
type fownerEx struct{ kind, id int32 }

func fcntlOwner(fd, request int, owner *fownerEx) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(owner)))
	if errno != 0 {
		return errno
	}
	return nil
}

// readOwner: a process that owns its own socket is whichever process restores it.
func readOwner(_ *option, fd, _, _ int, s *Setting) (bool, error) {
	var owner fownerEx
	if err := fcntlOwner(fd, unix.F_GETOWN_EX, &owner); err != nil || owner.id == 0 {
		return false, err
	}
	if owner.kind < 0 || int(owner.kind) >= len(ownerTypes) {
		return false, unix.EINVAL
	}
	s.Text, s.Number = ownerTypes[owner.kind], int64(owner.id)
	if s.Text == ownerProcess && s.Number == int64(os.Getpid()) {
		s.Number = 0
	}
	return true, nil
}

func writeOwner(_ *option, fd, _ int, s *Setting) error {
	owner := fownerEx{id: int32(s.Number)}
	for kind, text := range ownerTypes {
		if text == s.Text {
			owner.kind = int32(kind)
		}
	}
	if owner.id == 0 {
		owner.id = int32(os.Getpid())
	}
	return fcntlOwner(fd, unix.F_SETOWN_EX, &owner)
}

// readProbe: what such an option answers is as long as what is set.
func readProbe(o *option, fd, level, _ int, _ *Setting) (bool, error) {
	var b [256]byte
	n, err := sockopt.Get(fd, level, o.number, b[:])
	return n > 0, err
}

// readGone is asked only where something is.
func readGone(_ *option, _, _, _ int, s *Setting) (bool, error) {
	s.Number = 1
	return true, nil
}

var errGone = errors.New("the kernel does not let it be read, so it is not in the snapshot: it has to be attached again")

func writeGone(*option, int, int, *Setting) error { return errGone }
