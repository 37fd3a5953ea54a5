package soccr_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// The tests of this file are of sockets that are not connected: not yet, not any
// more, or never.

// socket makes a socket here, of a family's own domain.
func (f family) socket(t *testing.T, n *network, flags int) int {
	t.Helper()
	domain := unix.AF_INET6
	if f == ip4 {
		domain = unix.AF_INET
	}
	return n.rawSocket(t, domain, unix.SOCK_STREAM|flags, 0)
}

// at is an address and port as a socket of the family has it.
func (f family) at(addr netip.Addr, port uint16) netip.AddrPort {
	if f == mapped {
		addr = netip.AddrFrom16(addr.As16())
	}
	return netip.AddrPortFrom(addr, port)
}

// saved takes what there is out of a socket, silently.
func saved(tb testing.TB, fd int) *soccr.Snapshot {
	tb.Helper()
	s, err := soccr.Pause(fd)
	if err != nil {
		tb.Fatal(err)
	}
	snap, err := s.Save()
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Disconnect(); err != nil {
		tb.Fatal(err)
	}
	unix.Close(fd)
	return snap
}

// A connection that is still being made sends its SYN again, the same one.
func TestSynSent(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			listener := listen(t, n.there, map[bool]string{true: "tcp6", false: "tcp4"}[f == ip6], netip.AddrPortFrom(f.there, 0).String())
			deafen(t, listener)
			to := f.at(f.there, portOf(listener))
			fd := f.socket(t, n, unix.SOCK_NONBLOCK)
			if err := unix.Connect(fd, sockaddr(f, to)); !errors.Is(err, unix.EINPROGRESS) {
				t.Fatal(err)
			}
			snap := saved(t, fd)
			if snap.State != soccr.StateSynSent || snap.Remote != to || !snap.Local.IsValid() {
				t.Fatalf("saved %v, %v->%v", snap.State, snap.Local, snap.Remote)
			}
			restored, fd := n.paused(t, snap)
			undeafen(t, listener)
			if err := restored.Resume(); err != nil {
				t.Fatal(err)
			}
			peer := accept(t, listener)
			conn := n.fileConn(t, fd)
			inState(t, conn, soccr.StateEstablished)
			again := n.checkpoint(t, conn)
			if again.SendSeq != snap.SendSeq || again.Local != snap.Local {
				t.Errorf("connected from %v with %d, want %v, %d", again.Local, again.SendSeq, snap.Local, snap.SendSeq)
			}
			conn = n.restore(t, again)
			write(t, conn, []byte("ping"))
			expect(t, "peer", peer, []byte("ping"))
		})
	}
}

// Sockets that never connected come back bound as they were, or not at all, and can
// still become connections.
func TestNeverConnected(t *testing.T) {
	n := newNetwork(t)
	const port = 4242
	for _, f := range families {
		for _, c := range []struct {
			name  string
			local netip.AddrPort
		}{
			{"never bound", netip.AddrPort{}},
			{"bound", f.at(f.here, port)},
			{"bound to a port", unspecified(f, port)},
		} {
			t.Run(f.name+"/"+c.name, func(t *testing.T) {
				fd := f.socket(t, n, 0)
				if c.local.IsValid() {
					if err := unix.Bind(fd, sockaddr(f, f.at(c.local.Addr(), port))); err != nil {
						t.Fatal(err)
					}
				}
				before := name(t, fd)
				snap := saved(t, fd)
				if snap.State != soccr.StateClose || snap.Remote.IsValid() || snap.Local != before {
					t.Errorf("saved %v, %v->%v", snap.State, snap.Local, snap.Remote)
				}
				restored, fd := n.paused(t, snap)
				if err := restored.Resume(); err != nil {
					t.Fatal(err)
				}
				if after := name(t, fd); after != before {
					t.Errorf("it was at %v, and is at %v", before, after)
				}
				if err := unix.SetNonblock(fd, true); err != nil {
					t.Fatal(err)
				}
				listener := listen(t, n.there, map[bool]string{true: "tcp6", false: "tcp4"}[f == ip6], netip.AddrPortFrom(f.there, 0).String())
				if err := unix.Connect(fd, sockaddr(f, f.at(f.there, portOf(listener)))); !errors.Is(err, unix.EINPROGRESS) {
					t.Fatal(err)
				}
				peer := accept(t, listener)
				if c.local.IsValid() && peerAddr(peer).Port() != port {
					t.Errorf("it has connected from %v", peer.RemoteAddr())
				}
				conn := n.fileConn(t, fd)
				write(t, conn, []byte("ping"))
				expect(t, "peer", peer, []byte("ping"))
				reset(t, peer) // which leaves no TIME_WAIT
				inState(t, conn, soccr.StateClose)
				unix.Close(fd)
				conn.Close()
			})
		}
	}
}

// name is a socket's own address and port.
func name(tb testing.TB, fd int) netip.AddrPort {
	tb.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		tb.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	tb.Fatalf("an address of type %T", sa)
	return netip.AddrPort{}
}

// A connection that the peer has reset keeps what was received before, and that it
// was reset, until the program knows.
func TestReset(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		for _, c := range []struct {
			name     string
			received string
			closed   bool // the peer had shut down writing before
		}{{"with data", "abc", false}, {"without", "", false}, {"after its FIN", "abc", true}} {
			t.Run(f.name+"/"+c.name, func(t *testing.T) {
				conn, peer := n.connect(t, f)
				write(t, peer, []byte(c.received))
				eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(c.received) })
				if c.closed {
					if err := peer.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					inState(t, conn, soccr.StateCloseWait)
				}
				reset(t, peer)
				inState(t, conn, soccr.StateClose)
				snap := n.checkpoint(t, conn)
				if !snap.Reset || string(snap.RecvQueue) != c.received {
					t.Fatalf("saved %q, reset: %v", snap.RecvQueue, snap.Reset)
				}
				s, fd := n.paused(t, snap)
				again, err := s.Save() // which must not tell the program's secret
				if err != nil {
					t.Fatal(err)
				}
				if diff := diffSnapshots(snap, again); diff != "" {
					t.Errorf("saved again (-first +second):\n%s", diff)
				}
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
				moved := n.fileConn(t, fd)
				expect(t, "conn", moved, []byte(c.received))
				if _, err := moved.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("read: %v", err)
				}
				moved = n.move(t, moved) // now that the program knows
				expectEOF(t, "conn", moved)
				if _, err := moved.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
					t.Errorf("write: %v", err)
				}
			})
		}
	}
}

// The error waits for whoever comes first: it may be a write.
func TestResetIsFoundByWriting(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	write(t, peer, []byte("abc"))
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 3 })
	reset(t, peer)
	inState(t, conn, soccr.StateClose)
	moved := n.move(t, conn)
	for _, want := range []error{unix.ECONNRESET, unix.EPIPE} {
		if _, err := moved.Write([]byte("x")); !errors.Is(err, want) {
			t.Errorf("write: %v, want %v", err, want)
		}
	}
	expect(t, "conn", moved, []byte("abc"))
	expectEOF(t, "conn", moved)
}

// A connect that was refused before the program has asked does not look like one
// that has succeeded.
func TestRefusedConnect(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		listener := listen(t, n.there, map[bool]string{true: "tcp6", false: "tcp4"}[f == ip6], netip.AddrPortFrom(f.there, 0).String())
		port := portOf(listener)
		listener.Close()
		fd := f.socket(t, n, unix.SOCK_NONBLOCK)
		if err := unix.Connect(fd, sockaddr(f, f.at(f.there, port))); !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
		eventually(t, "it is refused", func() bool { return soccr.State(fdInfo(t, fd).State) == soccr.StateClose })
		restored, fd := n.paused(t, saved(t, fd))
		if err := restored.Resume(); err != nil {
			t.Fatal(err)
		}
		errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || unix.Errno(errno) != unix.ECONNRESET {
			t.Errorf("%s: SO_ERROR is %v, %v", f.name, unix.Errno(errno), err)
		}
	}
}

// A connection that both have closed is still known by its names.
func TestClosedKeepsItsNames(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		conn, peer := n.connect(t, f)
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		inState(t, conn, soccr.StateCloseWait)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		inState(t, conn, soccr.StateClose)
		var before netip.AddrPort
		control(t, conn, func(fd int) { before = name(t, fd) })
		moved := n.move(t, conn)
		control(t, moved, func(fd int) {
			if after := name(t, fd); after != before {
				t.Errorf("it was at %v, and is at %v", before, after)
			}
			if _, err := unix.Getpeername(fd); !errors.Is(err, unix.ENOTCONN) { // as before
				t.Errorf("getpeername: %v", err)
			}
		})
		expectEOF(t, "conn", moved)
		if _, err := moved.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("write: %v", err)
		}
	}
}
