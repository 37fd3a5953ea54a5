package soccr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// The socket's own addresses, as the kernel has them. SO_PEERNAME, unlike
// getpeername(2), answers in SYN_SENT and CLOSE too.

func localAddr(fd int) (netip.AddrPort, error) {
	var raw unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}, errno
	}
	return fromSockaddr(fd, sockaddrBytes(&raw))
}

// remoteAddr is the zero AddrPort for a socket that never connected. SO_PEERNAME
// refuses to be asked for more bytes than the address of the socket's family has.
func remoteAddr(fd int, local netip.AddrPort) (netip.AddrPort, error) {
	var raw unix.RawSockaddrAny
	b := sockaddrBytes(&raw)[:unix.SizeofSockaddrInet6]
	if local.Addr().Is4() {
		b = b[:unix.SizeofSockaddrInet4]
	}
	if _, err := sockopt.Get(fd, unix.SOL_SOCKET, unix.SO_PEERNAME, b); err != nil {
		if errors.Is(err, unix.ENOTCONN) {
			return netip.AddrPort{}, nil
		}
		return netip.AddrPort{}, err
	}
	return fromSockaddr(fd, b)
}

func sockaddrBytes(raw *unix.RawSockaddrAny) []byte {
	return (*[unix.SizeofSockaddrAny]byte)(unsafe.Pointer(raw))[:]
}

// fromSockaddr reads struct sockaddr_in or sockaddr_in6.
func fromSockaddr(fd int, b []byte) (netip.AddrPort, error) {
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), nil
	case unix.AF_INET6:
		addr := netip.AddrFrom16([16]byte(b[8:24]))
		if scope := binary.NativeEndian.Uint32(b[24:]); scope != 0 {
			name, err := deviceName(fd, int(scope))
			if err != nil {
				return netip.AddrPort{}, err
			}
			addr = addr.WithZone(name)
		}
		return netip.AddrPortFrom(addr, port), nil
	default:
		return netip.AddrPort{}, ErrNotTCP
	}
}

// toSockaddr makes what bind(2) and connect(2) take. On an AF_INET6 socket, IPv4
// addresses are the mapped ones already.
func toSockaddr(fd int, addr netip.AddrPort) (unix.Sockaddr, error) {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if zone := addr.Addr().Zone(); zone != "" {
		index, err := deviceIndex(fd, zone)
		if err != nil {
			return nil, err
		}
		sa.ZoneId = uint32(index)
	}
	return sa, nil
}

// A rawSockaddr is struct sockaddr_in or sockaddr_in6.
type rawSockaddr struct {
	bytes [unix.SizeofSockaddrInet6]byte
	size  int
}

// toRawSockaddr is toSockaddr for calls that do not wait: binding and connecting a
// paused socket.
func toRawSockaddr(fd int, addr netip.AddrPort) (sa rawSockaddr, err error) {
	b := sa.bytes[:]
	binary.BigEndian.PutUint16(b[2:], addr.Port())
	if addr.Addr().Is4() {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		a := addr.Addr().As4()
		copy(b[4:], a[:])
		sa.size = unix.SizeofSockaddrInet4
		return sa, nil
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	a := addr.Addr().As16()
	copy(b[8:], a[:])
	sa.size = unix.SizeofSockaddrInet6
	if zone := addr.Addr().Zone(); zone != "" {
		index, err := deviceIndex(fd, zone)
		if err != nil {
			return sa, err
		}
		binary.NativeEndian.PutUint32(b[24:], uint32(index))
	}
	return sa, nil
}

func (a *rawSockaddr) bind(fd int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&a.bytes)), uintptr(a.size))
	if errno != 0 {
		return errno
	}
	return nil
}

func (a *rawSockaddr) connect(fd int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.bytes)), uintptr(a.size))
	if errno != 0 {
		return errno
	}
	return nil
}

// Devices are looked up through the socket itself, in its network namespace,
// which need not be that of the calling thread.

func deviceName(fd, index int) (string, error) {
	var req struct {
		name  [unix.IFNAMSIZ]byte
		index int32
		_     [20]byte
	}
	req.index = int32(index)
	if err := ioctl(fd, unix.SIOCGIFNAME, unsafe.Pointer(&req)); err != nil {
		return "", fmt.Errorf("device %d: %w", index, err)
	}
	return unix.ByteSliceToString(req.name[:]), nil
}

func deviceIndex(fd int, name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return 0, fmt.Errorf("device %q: %w", name, err)
	}
	return int(req.Uint32()), nil
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// connectRaw wraps connect(2) for addresses that x/sys/unix does not know.
func connectRaw(fd int, addr *unix.RawSockaddr) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(addr)), unsafe.Sizeof(*addr))
	if errno != 0 {
		return errno
	}
	return nil
}
