package soccr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A local is a connection within a host.
type local struct {
	name         string
	network      string // that the server listens on
	server, from netip.Addr
}

var locals = []local{
	{"lo, IPv4", "tcp4", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")},
	{"lo, IPv6", "tcp6", netip.IPv6Loopback(), netip.IPv6Loopback()},
	{"lo, mapped", "tcp", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")},
	{"two addresses, IPv4", "tcp4", hosttest.A4, netip.MustParseAddr("10.77.9.1")},
	{"two addresses, IPv6", "tcp6", hosttest.A6, netip.MustParseAddr("fd77:9::1")},
	{"two addresses, mapped", "tcp", hosttest.A4, netip.MustParseAddr("10.77.9.1")},
}

// connect makes the connection: ends[0] was accepted, ends[1] dialed.
func (l local) connect(tb testing.TB, h *host.Host) (ends [2]*net.TCPConn) {
	tb.Helper()
	at := netip.AddrPortFrom(l.server, 0)
	if l.network == "tcp" {
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	listener := listen(tb, h, l.network, at.String())
	defer listener.Close()
	hosttest.Do(tb, h, func() error {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.from, 0))}
		c, err := dialer.DialContext(context.Background(), "tcp", netip.AddrPortFrom(l.server, portOf(listener)).String())
		if err == nil {
			ends[1] = c.(*net.TCPConn)
		}
		return err
	})
	ends[0] = accept(tb, listener)
	tb.Cleanup(func() { ends[1].Close() })
	return ends
}

// fillUp writes until nobody takes any more, and tells how much that was.
func fillUp(tb testing.TB, c *net.TCPConn, seed byte) (written int) {
	tb.Helper()
	const enough = 100_000
	for data := pattern(seed, 2<<20); ; {
		if err := c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			tb.Fatal(err)
		}
		n, err := c.Write(data[written:])
		written += n
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			tb.Fatalf("%d bytes were taken, %v", written, err)
		}
		if n == 0 && written > enough {
			return written
		}
	}
}

// A connection with both ends on this host, and both with full queues, is taken and
// put back in any order, one end at a time or both together.
func TestBothEndsHere(t *testing.T) {
	n := newNetwork(t)
	for _, prefix := range []string{"10.77.9.1/24", "fd77:9::1/64"} {
		if err := n.here.AddAddr("net0", netip.MustParsePrefix(prefix)); err != nil {
			t.Fatal(err)
		}
	}
	restorers := map[string]func(t *testing.T, snaps [2]*soccr.Snapshot, order [2]int) [2]*net.TCPConn{
		"one by one": n.oneByOne, "together": n.together,
	}
	for _, l := range locals {
		for how, restore := range restorers {
			for i := range 8 {
				taken, put, closed := i&1, i>>1&1, i>>2
				t.Run(fmt.Sprintf("%s/%s/%d%d%d", l.name, how, taken, put, closed), func(t *testing.T) {
					t.Parallel()
					ends := l.connect(t, n.here)
					var totals [2]int
					for i, end := range ends {
						for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
							setInt(t, end, unix.SOL_SOCKET, option, 100_000)
						}
						totals[i] = fillUp(t, end, byte(i))
					}
					if closed == 1 { // a FIN waits behind it all
						if err := ends[1].CloseWrite(); err != nil {
							t.Fatal(err)
						}
					}
					var snaps [2]*soccr.Snapshot
					for _, i := range [2]int{taken, 1 - taken} {
						snaps[i] = n.checkpoint(t, ends[i])
						if len(snaps[i].SendQueue) < 10_000 || len(snaps[i].RecvQueue) < 10_000 {
							t.Errorf("end %d has %d bytes to send and %d to read", i, len(snaps[i].SendQueue), len(snaps[i].RecvQueue))
						}
					}
					ends = restore(t, snaps, [2]int{put, 1 - put})
					var drained sync.WaitGroup
					for i, end := range ends {
						drained.Go(func() { readAll(t, end, byte(1-i), totals[1-i]) })
					}
					drained.Wait()
					if t.Failed() {
						return
					}
					write(t, ends[0], []byte("ping"))
					expect(t, "the end that dialed", ends[1], []byte("ping"))
					if closed == 1 {
						expectEOF(t, "the end that accepted", ends[0])
						return
					}
					write(t, ends[1], []byte("pong"))
					expect(t, "the end that accepted", ends[0], []byte("pong"))
				})
			}
		}
	}
}

// oneByOne has an end go on before the other is there.
func (n *network) oneByOne(t *testing.T, snaps [2]*soccr.Snapshot, order [2]int) (ends [2]*net.TCPConn) {
	for _, i := range order {
		ends[i] = n.restore(t, snaps[i])
	}
	return ends
}

// together has both ends go on when both are there.
func (n *network) together(t *testing.T, snaps [2]*soccr.Snapshot, order [2]int) (ends [2]*net.TCPConn) {
	var paused [2]*soccr.Socket
	var fds [2]int
	for _, i := range order {
		paused[i], fds[i] = n.paused(t, snaps[i])
	}
	for _, s := range snaps {
		if err := n.lock.UnlockFlow(s.Local, s.Remote); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range order {
		if err := paused[i].Resume(); err != nil {
			t.Fatal(err)
		}
		ends[i] = n.fileConn(t, fds[i])
	}
	return ends
}

// readAll reads what fillUp has written, and no more.
func readAll(t *testing.T, c *net.TCPConn, seed byte, total int) {
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Error(err)
	}
	got, want := make([]byte, total), pattern(seed, total)
	if n, err := io.ReadFull(c, got); err != nil {
		t.Errorf("%v has read %d of %d bytes: %v", c.LocalAddr(), n, total, err)
	} else if string(got) != string(want) {
		t.Errorf("%v has read other bytes than were written", c.LocalAddr())
	}
}
