package soccr_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// A stream is one direction of a connection: bytes that follow from their
// offset, so that each can be checked wherever it arrives.
type stream struct {
	seed    byte
	written int          // bytes given to the kernel
	taken   atomic.Int64 // bytes read and found right

	last    time.Time     // when the reader was ready for more
	stall   time.Duration // the longest that it had to wait since
	stalled int           // and where
}

func (s *stream) at(offset int) byte { return byte(31*offset+offset/251) + s.seed }

// writeTo writes until the deadline of c; what was accepted is counted.
func (s *stream) writeTo(c net.Conn, random *rand.Rand) error {
	buf := make([]byte, 64<<10)
	for {
		part := buf[:1+random.IntN(len(buf))]
		for i := range part {
			part[i] = s.at(s.written + i)
		}
		n, err := c.Write(part)
		s.written += n
		if err != nil {
			return err
		}
	}
}

// readFrom reads and checks until the deadline of c, or up to an offset; slowly,
// so that queues fill.
func (s *stream) readFrom(c net.Conn, random *rand.Rand, slow time.Duration, end int) error {
	buf := make([]byte, 64<<10)
	if s.last.IsZero() {
		s.last = time.Now()
	}
	for {
		offset := int(s.taken.Load())
		if offset == end {
			return nil
		}
		n, err := c.Read(buf[:1+random.IntN(len(buf))])
		if wait := time.Since(s.last); n > 0 && wait > s.stall {
			s.stall, s.stalled = wait, offset
		}
		for i, b := range buf[:n] {
			if b != s.at(offset+i) {
				return fmt.Errorf("byte %d is %#x, want %#x", offset+i, b, s.at(offset+i))
			}
		}
		s.taken.Add(int64(n))
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(random.Int64N(int64(slow) + 1)))
		s.last = time.Now()
	}
}

const tcpRTOMaxMS = 44

const forever = -1 // an end that no offset reaches

// TestFullQueues moves a connection again and again while both its queues, and
// its peer's, are full or nearly so, and data flow in both directions.
func TestFullQueues(t *testing.T) {
	const moves = 500
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			if f.name == "mapped" { // a few segments of 64 KiB
				if err := n.here.Sysctl("net.ipv4.tcp_wmem", "4096 16384 300000"); err != nil {
					t.Fatal(err)
				}
			}
			n.testFullQueues(t, f, (moves+len(families)-1)/len(families), uint64(i))
		})
	}
}

func (n *network) testFullQueues(t *testing.T, f family, moves int, seed uint64) {
	conn, peer := n.connect(t, f)
	in, out := &stream{seed: 1}, &stream{seed: 2} // as the moved end sees them

	// The peer is an ordinary program and never stops.
	var wg sync.WaitGroup
	var peerErrs [2]error
	wg.Go(func() { peerErrs[0] = in.writeTo(peer, rand.New(rand.NewPCG(seed, 1))) })
	wg.Go(func() { peerErrs[1] = out.readFrom(peer, rand.New(rand.NewPCG(seed, 2)), 2*time.Millisecond, forever) })

	random := rand.New(rand.NewPCG(seed, 3))
	var sending, received, longest int
	for range moves {
		// Until the last move is behind both: a move restarts the kernel's timers.
		inBefore, outBefore := in.taken.Load(), out.taken.Load()
		for start, deadline := time.Now(), time.Now().Add(20*time.Second); ; {
			turn := time.Duration(random.IntN(10)) * time.Millisecond
			if time.Since(start) > time.Second { // on a slow processor, it may not even have begun to read by then
				turn = 500 * time.Millisecond
			}
			run(t, conn, in, out, random, turn)
			const enough = 32 << 10
			if in.taken.Load()-inBefore >= enough && out.taken.Load()-outBefore >= enough {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no progress: %d bytes in, %d out; here %s; there %s", in.taken.Load()-inBefore, out.taken.Load()-outBefore,
					howItStands(t, conn), howItStands(t, peer))
			}
		}
		snap := n.checkpoint(t, conn)
		sending, received = sending+len(snap.SendQueue), received+len(snap.RecvQueue)
		longest = max(longest, len(snap.SendQueue)-int(snap.Options.SendBuffer))
		conn = n.restore(t, snap)
	}
	t.Logf("%d moves, on average with %d bytes in the receive queue and %d in the send queue; %d bytes in, %d out",
		moves, received/moves, sending/moves, in.taken.Load(), out.taken.Load())
	if sending/moves < 10_000 || received/moves < 10_000 {
		t.Error("the queues were not full")
	}
	// A program may fill the last segment of 64 KiB beyond the buffer's size, and that
	// behind what was sent. If moves packed the queue in others, there would be one to be
	// filled after each of them.
	if longest > 128<<10 {
		t.Errorf("the send queue has grown with every move, to %d bytes more than its buffer", longest)
	}
	if size := getInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUF); size > 64<<20 {
		t.Errorf("the receive buffer has grown with every move, to %d bytes", size)
	}
	peer.SetDeadline(time.Now())
	wg.Wait()
	for _, err := range peerErrs {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("peer: ", err)
		}
	}

	// Let both directions run dry.
	var errs [2]error
	for i, end := range []struct {
		conn net.Conn
		s    *stream
	}{{conn, in}, {peer, out}} {
		end.conn.SetDeadline(time.Now().Add(20 * time.Second))
		wg.Go(func() { errs[i] = end.s.readFrom(end.conn, rand.New(rand.NewPCG(seed, 4)), 0, end.s.written) })
	}
	wg.Wait()
	for i, s := range []*stream{in, out} {
		name := [...]string{"in", "out"}[i]
		t.Logf("%s: longest stall %v, at byte %d", name, s.stall, s.stalled)
		if errs[i] != nil || s.taken.Load() != int64(s.written) {
			t.Errorf("%s: %d bytes were written, %d read: %v", name, s.written, s.taken.Load(), errs[i])
		}
		// What is lost when a flow is locked is sent again after 1 s, and without
		// TCP_RTO_MAX_MS (before Linux 6.15) after 3 s, or 6 s the second time.
		patience := 2 * time.Second
		if !knowsOption(t, unix.IPPROTO_TCP, tcpRTOMaxMS, 1000) {
			patience = 10 * time.Second
		}
		if s.stall > patience {
			t.Errorf("%s: stalled for %v at byte %d", name, s.stall, s.stalled)
		}
	}
}

// howItStands is what tells why a connection does not go on.
func howItStands(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	i := info(t, c)
	return fmt.Sprintf("%v, unread %d, unacknowledged %d, unsent %d; windows %d to send and %d to receive (threshold %d); "+
		"%d retransmissions, %d probes, backoff %d, timeout %d µs; %d ms since data came and %d since it went; %d out of order",
		soccr.State(i.State), ioctl(t, c, unix.SIOCINQ), ioctl(t, c, unix.SIOCOUTQ), ioctl(t, c, unix.SIOCOUTQNSD), i.Snd_wnd, i.Rcv_wnd,
		i.Rcv_ssthresh, i.Retransmits, i.Probes, i.Backoff, i.Rto, i.Last_data_recv, i.Last_data_sent, i.Rcv_ooopack)
}

// run lets the moved end write and read for a while.
func run(t *testing.T, conn net.Conn, in, out *stream, random *rand.Rand, d time.Duration) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	reader := rand.New(rand.NewPCG(random.Uint64(), 0))
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = out.writeTo(conn, random) })
	wg.Go(func() { errs[1] = in.readFrom(conn, reader, 3*time.Millisecond, forever) })
	wg.Wait()
	for _, err := range errs {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
}
