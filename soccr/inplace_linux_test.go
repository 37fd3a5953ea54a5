package soccr_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A connection can be taken out of its socket and put back into the same one,
// again and again, whether the socket was accepted, or connected with or without
// bind(2): the kernel leaves some of them their port, and others not.
func TestInPlace(t *testing.T) {
	for _, f := range families {
		for _, test := range []struct {
			name string
			make func(*testing.T, *network) (conn, peer *net.TCPConn)
		}{
			{"accepted", func(t *testing.T, n *network) (conn, peer *net.TCPConn) { return n.connect(t, f) }},
			{"connected", func(t *testing.T, n *network) (conn, peer *net.TCPConn) { return n.dialOut(t, f, nil) }},
			{"bound and connected", func(t *testing.T, n *network) (conn, peer *net.TCPConn) {
				return n.dialOut(t, f, &net.TCPAddr{IP: f.here.AsSlice(), Port: 7777})
			}},
		} {
			t.Run(f.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				conn, peer := test.make(t, n)
				local := conn.LocalAddr().String()
				for range 3 {
					control(t, conn, func(fd int) { n.swap(t, fd) })
					write(t, conn, []byte("ping"))
					expect(t, "peer", peer, []byte("ping"))
					write(t, peer, []byte("pong"))
					expect(t, "conn", conn, []byte("pong"))
				}
				if err := peer.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				inState(t, conn, soccr.StateCloseWait)
				control(t, conn, func(fd int) { n.swap(t, fd) })
				expectEOF(t, "conn", conn)
				write(t, conn, []byte("last"))
				expect(t, "peer", peer, []byte("last"))
				control(t, conn, func(fd int) {
					var now net.TCPAddr
					switch a, _ := unix.Getsockname(fd); a := a.(type) {
					case *unix.SockaddrInet4:
						now = net.TCPAddr{IP: a.Addr[:], Port: a.Port}
					case *unix.SockaddrInet6:
						now = net.TCPAddr{IP: a.Addr[:], Port: a.Port}
					}
					if now.String() != local {
						t.Errorf("%s is %v now", local, &now)
					}
				})
			})
		}
	}
}

// dialOut makes a connection from here to a peer that accepts it there.
func (n *network) dialOut(tb testing.TB, f family, local *net.TCPAddr) (conn, peer *net.TCPConn) {
	tb.Helper()
	listener := listen(tb, n.there, "tcp", netip.AddrPortFrom(f.there, 0).String())
	hosttest.Do(tb, n.here, func() (err error) {
		conn, err = net.DialTCP("tcp", local, listener.Addr().(*net.TCPAddr))
		return err
	})
	peer, err := listener.AcceptTCP()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { abort(conn); abort(peer) })
	return conn, peer
}

// swap takes a connection out of its socket and puts it back.
func (n *network) swap(tb testing.TB, fd int) {
	tb.Helper()
	s, err := soccr.Pause(fd)
	if err != nil {
		tb.Fatal(err)
	}
	snap, err := s.Save()
	for range 5 { // there is no lock yet: an ACK may leave meanwhile
		if !errors.Is(err, soccr.ErrChanged) {
			break
		}
		snap, err = s.Save()
	}
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.CheckQueues(snap); err != nil {
		tb.Fatal(err)
	}
	if err := n.lock.LockFlow(snap.Local, snap.Remote); err != nil {
		tb.Fatal(err)
	}
	if err := s.Disconnect(); err != nil {
		tb.Fatal(err)
	}
	if err := s.Restore(snap, soccr.WithLock(n.lock)); err != nil {
		tb.Fatal(err)
	}
	if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
		tb.Fatal(err)
	}
	if err := s.Resume(); err != nil {
		tb.Fatal(err)
	}
}

// A receive buffer that the kernel has tuned far beyond what a user may set keeps its
// size: a connection goes back into its own socket with all that was in it. It goes
// into a new one, too, if CheckQueues says so.
func TestTunedBuffer(t *testing.T) {
	ways := map[string]func(*testing.T, *network, *net.TCPConn) *net.TCPConn{
		"in place": func(t *testing.T, n *network, conn *net.TCPConn) *net.TCPConn {
			control(t, conn, func(fd int) { n.swap(t, fd) })
			return conn
		},
		"new socket": func(t *testing.T, n *network, conn *net.TCPConn) *net.TCPConn {
			snap := n.checkpoint(t, conn)
			if err := soccr.CheckQueues(snap); errors.Is(err, soccr.ErrBuffer) {
				t.Skip(err) // tcp_rmem[2] has no room for the kernel's structures
			} else if err != nil {
				t.Fatal(err)
			}
			return n.restore(t, snap)
		},
	}
	for _, f := range families {
		for way, move := range ways {
			t.Run(f.name+"/"+way, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				conn, peer := n.connect(t, f)
				for _, low := range []int{1 << 30, 1} { // as far as tuning may bring it
					setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVLOWAT, low)
				}
				data, waiting := pattern(1, 40<<20), 0
				send(peer, data)
				eventually(t, "no more gets into the queue", func() bool {
					before := waiting
					time.Sleep(50 * time.Millisecond)
					control(t, conn, func(fd int) { waiting, _ = unix.IoctlGetInt(fd, unix.SIOCINQ) })
					return waiting > 0 && waiting == before
				})
				t.Logf("%d bytes in a buffer of %d", waiting, getInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF))
				conn = move(t, n, conn)
				expect(t, "conn", conn, data)
			})
		}
	}
}
