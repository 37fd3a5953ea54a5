package soccr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// TCP-MD5 keys cannot be asked of the socket; sock_diag shows them to who has
// CAP_NET_ADMIN.
const (
	inetDiagInfoBit = 1 << 1 // INET_DIAG_INFO: the keys come with it only
	inetDiagMD5Sig  = 18
	diagMD5Size     = 20 + maxMD5Key  // struct tcp_diag_md5sig
	md5SigSize      = 136 + maxMD5Key // struct tcp_md5sig
	md5KeySize      = 130             // where tcpm_keylen is in it
)

// hasMD5 tells whether this kernel knows TCP-MD5 at all. A key of length 0 means
// deletion, of one that a new socket does not have.
var hasMD5 = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var sig [md5SigSize]byte
	binary.NativeEndian.PutUint16(sig[:], unix.AF_INET)
	return !errors.Is(sockopt.Set(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, sig[:]), unix.ENOPROTOOPT)
})

// md5Keys reads the keys of a socket, which would not be found in CLOSE, where
// nothing will be signed any more.
func (s *Socket) md5Keys(state State) ([]MD5Key, error) {
	if state == StateClose || !hasMD5() {
		return nil, nil
	}
	keys, err := s.askMD5Keys()
	if errors.Is(err, unix.ENOENT) {
		// Not in this thread's network namespace: ask in the socket's own.
		err = s.inNetNS(func() (err error) {
			keys, err = s.askMD5Keys()
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("look for TCP-MD5 keys with sock_diag: %w", err)
	}
	return keys, nil
}

// askMD5Keys asks sock_diag about this very socket, found by its addresses and
// identified by its cookie.
func (s *Socket) askMD5Keys() (keys []MD5Key, err error) {
	q, err := s.question()
	if err != nil {
		return nil, err
	}
	for message, err := range q.ask() {
		if err != nil {
			return nil, err
		}
		if keys, err = md5KeysIn(message); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// listenerMD5Keys reads the keys of a listening socket, which may share its address
// with others.
func (s *Socket) listenerMD5Keys(local netip.AddrPort) (keys []MD5Key, err error) {
	if !hasMD5() {
		return nil, nil
	}
	cookie, err := s.cookie()
	if err != nil {
		return nil, err
	}
	q := diagQuestion{
		dump: true, family: unix.AF_INET6, extensions: inetDiagInfoBit, states: 1 << StateListen,
		local: netip.AddrPortFrom(netip.Addr{}, local.Port()),
	}
	if local.Addr().Is4() {
		q.family = unix.AF_INET
	}
	err = s.inNetNS(func() error {
		for message, err := range q.ask() {
			if err != nil {
				return err
			}
			if found(message).cookie == cookie {
				keys, err = md5KeysIn(message)
				return err
			}
		}
		return nil // not shown: Multipath TCP, which has no keys
	})
	if err != nil {
		return nil, fmt.Errorf("look for TCP-MD5 keys with sock_diag: %w", err)
	}
	return keys, nil
}

// md5KeysIn takes the keys out of a message of sock_diag.
func md5KeysIn(message []byte) (keys []MD5Key, err error) {
	for kind, value := range attributes(message[diagMessageSize:]) {
		if kind != inetDiagMD5Sig {
			continue
		}
		for ; len(value) >= diagMD5Size; value = value[diagMD5Size:] {
			key, err := parseMD5Key(value[:diagMD5Size])
			if err != nil {
				return nil, err
			}
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// cookie is by what sock_diag tells sockets apart.
func (s *Socket) cookie() (uint64, error) {
	var cookie [8]byte
	_, err := sockopt.Get(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE, cookie[:])
	return binary.NativeEndian.Uint64(cookie[:]), err
}

// question asks for this socket, and what its keys come with.
func (s *Socket) question() (diagQuestion, error) {
	q := diagQuestion{
		family: unix.AF_INET, extensions: inetDiagInfoBit, states: ^uint32(0),
		local:  netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port()),
		remote: netip.AddrPortFrom(s.remote.Addr().Unmap(), s.remote.Port()),
	}
	if q.local.Addr().Is6() {
		q.family = unix.AF_INET6
	}
	var err error
	if q.cookie, err = s.cookie(); err != nil {
		return q, err
	}
	// It is found by the device that it is bound to, if it is; a zone binds it.
	device, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if zone := s.local.Addr().Zone(); zone != "" && lacking(err) { // before Linux 5.1
		device, err = deviceIndex(s.fd, zone)
	}
	if err != nil && !lacking(err) {
		return q, err
	}
	q.device = uint32(device)
	return q, nil
}

// parseMD5Key reads struct tcp_diag_md5sig, which does not tell the device that
// a key may be limited to.
func parseMD5Key(b []byte) (MD5Key, error) {
	size := int(binary.NativeEndian.Uint16(b[2:]))
	if size > maxMD5Key {
		return MD5Key{}, fmt.Errorf("a key of %d bytes", size)
	}
	addr := netip.AddrFrom16([16]byte(b[4:20]))
	if b[0] == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(b[4:8]))
	}
	peers, err := addr.Prefix(int(b[1]))
	return MD5Key{Peers: peers, Key: bytes.Clone(b[20 : 20+size])}, err
}

// setMD5Keys has a socket sign what it sends and check what it gets. They are
// there when it connects, as its segments are computed to have room for the
// signature from then on (tcp_connect_init).
func (s *Socket) setMD5Keys(keys []MD5Key) error { return s.changeMD5Keys(keys, false) }

// clearMD5Keys takes the keys away until the state is restored: what is injected
// is not signed, and nothing of what is sent meanwhile gets out.
func (s *Socket) clearMD5Keys(snap *Snapshot) error {
	if snap.State == StateSynSent {
		return nil // nothing is injected
	}
	return s.changeMD5Keys(snap.MD5Keys, true)
}

func (s *Socket) changeMD5Keys(keys []MD5Key, remove bool) error {
	for i := range keys {
		sig := md5Sig(&keys[i], !s.local.Addr().Is4())
		if remove {
			binary.NativeEndian.PutUint16(sig[md5KeySize:], 0)
		}
		err := sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT, sig[:])
		if lacking(err) { // the kernel, or Multipath TCP, which never signs
			err = because(ErrOption, err)
		}
		if err != nil {
			return fmt.Errorf("MD5Keys: %w", err)
		}
	}
	return nil
}

// md5Sig is struct tcp_md5sig for a socket of AF_INET or AF_INET6.
func md5Sig(k *MD5Key, inet6 bool) (sig [md5SigSize]byte) {
	addr := k.Peers.Addr()
	if inet6 {
		binary.NativeEndian.PutUint16(sig[:], unix.AF_INET6)
		a := addr.As16() // IPv4 addresses mapped
		copy(sig[8:], a[:])
	} else {
		binary.NativeEndian.PutUint16(sig[:], unix.AF_INET)
		copy(sig[4:], addr.AsSlice())
	}
	sig[128], sig[129] = unix.TCP_MD5SIG_FLAG_PREFIX, uint8(k.Peers.Bits())
	binary.NativeEndian.PutUint16(sig[md5KeySize:], uint16(len(k.Key)))
	copy(sig[136:], k.Key)
	return sig
}
