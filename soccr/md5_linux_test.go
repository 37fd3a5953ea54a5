package soccr_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// sign gives a socket a TCP-MD5 key for the peers with a prefix.
func sign(t *testing.T, c *net.TCPConn, peers netip.Prefix, key []byte) {
	t.Helper()
	control(t, c, func(fd int) { signFD(t, fd, !localEnd(c).Addr().Is4(), peers, key) })
}

func signFD(t *testing.T, fd int, inet6 bool, peers netip.Prefix, key []byte) {
	t.Helper()
	var sig struct {
		addr   [128]byte
		flags  uint8
		prefix uint8
		keyLen uint16
		ifidx  int32
		key    [80]byte
	}
	sig.flags, sig.prefix = unix.TCP_MD5SIG_FLAG_PREFIX, uint8(peers.Bits())
	if addr := peers.Addr(); !inet6 {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&sig.addr)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4()}
	} else {
		*(*unix.RawSockaddrInet6)(unsafe.Pointer(&sig.addr)) = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: addr.As16()}
	}
	sig.keyLen = uint16(copy(sig.key[:], key))
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT,
		uintptr(unsafe.Pointer(&sig)), unsafe.Sizeof(sig), 0)
	if errno == unix.ENOPROTOOPT {
		t.Skip("this kernel has no TCP-MD5")
	}
	if errno != 0 {
		t.Fatal(errno)
	}
}

// localEnd is the local address as the socket has it: mapped, if it is an AF_INET6
// socket of an IPv4 connection.
func localEnd(c *net.TCPConn) netip.AddrPort { return c.LocalAddr().(*net.TCPAddr).AddrPort() }

// Multipath TCP signs nothing: a snapshot of a listener that does is refused.
func TestSignedMultipathListener(t *testing.T) {
	n := newNetwork(t)
	l := &soccr.ListenerSnapshot{
		Local: netip.AddrPortFrom(ip4.here, 7777), Backlog: 1, Multipath: true,
		MD5Keys: []soccr.MD5Key{{Peers: netip.PrefixFrom(ip4.there, 32), Key: []byte("key")}},
	}
	err := n.here.Do(func() error {
		_, err := soccr.RestoreListener(l)
		return err
	})
	if !errors.Is(err, soccr.ErrOption) || !strings.Contains(err.Error(), "MD5Keys") {
		t.Errorf("got %v, want ErrOption", err)
	}
}

// A connection goes on to sign, and to take nothing that is not signed.
func TestSignedConnection(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			secret := bytes.Repeat([]byte("\x00key"), 20)
			bits := f.there.BitLen()
			sign(t, peer, netip.PrefixFrom(f.here, bits), secret)
			sign(t, conn, netip.PrefixFrom(f.there, bits), secret)
			other := netip.MustParsePrefix("10.99.0.0/16")
			if f == ip6 {
				other = netip.MustParsePrefix("fd99::/32")
			}
			sign(t, conn, other, []byte("other"))
			want := []soccr.MD5Key{{Peers: netip.PrefixFrom(f.there, bits), Key: secret}, {Peers: other, Key: []byte("other")}}

			for i := range 3 {
				question, answer := pattern(byte(i), 50_000), pattern(byte(i+9), 50_000)
				write(t, peer, question)
				write(t, conn, answer)
				eventually(t, "all is here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(question) })
				before := info(t, conn)
				snap := n.checkpoint(t, conn)
				if d := cmp.Diff(want, snap.MD5Keys, cmpopts.EquateComparable(netip.Prefix{}),
					cmpopts.SortSlices(func(a, b soccr.MD5Key) bool { return a.Peers.Bits() > b.Peers.Bits() })); d != "" {
					t.Fatalf("keys, -want +got:\n%s", d)
				}
				conn = n.restore(t, travelled(t, snap))
				// Linux 6.1 takes the signature off this number, and not off each segment, for a
				// connection that has its keys when it connects (tcp_connect_init).
				const signature = 20 // TCPOLEN_MD5SIG_ALIGNED
				if after := info(t, conn); before.Snd_mss != after.Snd_mss && (i > 0 || before.Snd_mss != after.Snd_mss+signature) {
					t.Errorf("segments of %d bytes, not %d", after.Snd_mss, before.Snd_mss)
				}
				expect(t, "conn", conn, question)
				expect(t, "peer", peer, answer)
			}

			// The states beyond ESTABLISHED are reached with segments that nobody signs.
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
			conn = n.move(t, conn)
			expectEOF(t, "conn", conn)
			write(t, conn, []byte("bye"))
			expect(t, "peer", peer, []byte("bye"))

			if got := n.checkpoint(t, conn); len(got.MD5Keys) != 2 {
				t.Errorf("saved %d keys", len(got.MD5Keys))
			}
		})
	}
}

// A listener goes on to ask for signatures, and so do the connections in its queue.
func TestSignedListener(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			key, bits := []byte("secret"), f.there.BitLen()
			listener := n.listen(t, listening{family: f})
			control(t, listener, func(fd int) { signFD(t, fd, f != ip4, netip.PrefixFrom(f.there, bits), key) })
			signed := func() *net.TCPConn {
				var peer net.Conn
				hosttest.Do(t, n.there, func() (err error) {
					dialer := net.Dialer{Timeout: 10 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
						return c.Control(func(fd uintptr) { signFD(t, int(fd), f == ip6, netip.PrefixFrom(f.here, bits), key) })
					}}
					peer, err = dialer.Dial("tcp", netip.AddrPortFrom(f.here, portOf(listener)).String())
					return err
				})
				t.Cleanup(func() { peer.Close() })
				return peer.(*net.TCPConn)
			}
			peers := []*net.TCPConn{signed()}
			waiting(t, listener, 1)
			snap := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))
			if len(snap.MD5Keys) != 1 || snap.MD5Keys[0].Peers.Addr() != f.there || !bytes.Equal(snap.MD5Keys[0].Key, key) || len(snap.Pending[0].MD5Keys) != 1 {
				t.Fatalf("saved %+v", snap)
			}
			restored := n.restoreListener(t, snap)
			peers = append(peers, signed())
			for _, peer := range peers {
				conn := accept(t, restored)
				write(t, conn, []byte("welcome"))
				expect(t, "peer", peer, []byte("welcome"))
			}
			stranger := &net.Dialer{Timeout: 50 * time.Millisecond}
			err := n.there.Do(func() error {
				_, err := stranger.Dial("tcp", netip.AddrPortFrom(f.here, portOf(restored)).String())
				return err
			})
			if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
				t.Errorf("without a signature, dial: %v", err)
			}
		})
	}
}
