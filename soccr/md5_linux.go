package soccr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// TCP-MD5 keys cannot be asked of the socket; sock_diag shows them to who has
// CAP_NET_ADMIN. One question, one answer: the messages are put together here.
const (
	sockDiagByFamily = 20
	inetDiagInfoBit  = 1 << 1 // INET_DIAG_INFO: the keys come with it only
	inetDiagMD5Sig   = 18
	diagRequestSize  = unix.SizeofNlMsghdr + 56 // struct inet_diag_req_v2
	diagMessageSize  = unix.SizeofNlMsghdr + 72 // struct inet_diag_msg
)

// hasMD5 tells whether this kernel knows TCP-MD5 at all. A key of length 0 means
// deletion, of one that a new socket does not have.
var hasMD5 = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	sig := make([]byte, 128+88) // struct tcp_md5sig
	binary.NativeEndian.PutUint16(sig, unix.AF_INET)
	return !errors.Is(sockopt.Set(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, sig), unix.ENOPROTOOPT)
})

func (s *Socket) refuseMD5(state State) error {
	if state == StateClose || !hasMD5() {
		return nil // nothing will be signed any more
	}
	signed, err := s.signed()
	if errors.Is(err, unix.ENOENT) {
		// Not in this thread's network namespace: ask in the socket's own.
		err = s.inNetNS(func() (err error) {
			signed, err = s.signed()
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("look for TCP-MD5 keys with sock_diag: %w", err)
	}
	if signed {
		return fmt.Errorf("%w: TCP-MD5", ErrSigned)
	}
	return nil
}

// signed asks sock_diag about this very socket, found by its addresses and
// identified by its cookie.
func (s *Socket) signed() (bool, error) {
	request, err := s.diagRequest()
	if err != nil {
		return false, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, err
	}
	answer := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return false, err
	}
	return diagShowsMD5(answer[:n])
}

func (s *Socket) diagRequest() ([]byte, error) {
	var cookie [8]byte
	if _, err := sockopt.Get(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE, cookie[:]); err != nil {
		return nil, err
	}
	b := make([]byte, diagRequestSize)
	binary.NativeEndian.PutUint32(b[0:], diagRequestSize)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b[16] = unix.AF_INET
	b[17] = unix.IPPROTO_TCP
	b[18] = inetDiagInfoBit
	binary.NativeEndian.PutUint32(b[20:], ^uint32(0)) // any state
	binary.BigEndian.PutUint16(b[24:], s.local.Port())
	binary.BigEndian.PutUint16(b[26:], s.remote.Port())
	for i, addr := range [...]netip.Addr{s.local.Addr().Unmap(), s.remote.Addr().Unmap()} {
		if addr.Is6() {
			b[16] = unix.AF_INET6
		}
		copy(b[28+16*i:], addr.AsSlice())
	}
	if zone := s.local.Addr().Zone(); zone != "" {
		index, err := deviceIndex(s.fd, zone)
		if err != nil {
			return nil, err
		}
		binary.NativeEndian.PutUint32(b[60:], uint32(index))
	}
	// The cookie is two words, the lower one first.
	value := binary.NativeEndian.Uint64(cookie[:])
	binary.NativeEndian.PutUint32(b[64:], uint32(value))
	binary.NativeEndian.PutUint32(b[68:], uint32(value>>32))
	return b, nil
}

// diagShowsMD5 looks for keys among the attributes of the answer.
func diagShowsMD5(b []byte) (bool, error) {
	const short = "short answer of %d bytes"
	if len(b) < unix.SizeofNlMsghdr+4 {
		return false, fmt.Errorf(short, len(b))
	}
	if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
		return false, unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])))
	}
	size := int(binary.NativeEndian.Uint32(b))
	if size < diagMessageSize || size > len(b) {
		return false, fmt.Errorf(short, len(b))
	}
	for b = b[diagMessageSize:size]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return false, fmt.Errorf(short, len(b))
		}
		if binary.NativeEndian.Uint16(b[2:]) == inetDiagMD5Sig {
			return true, nil
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}
