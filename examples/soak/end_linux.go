package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/soccr"
)

// An end is one end of a connection and the program that uses it: a goroutine that
// writes what belongs there, and one that reads and checks. Neither knows of moves,
// except that each is stopped between two system calls.
type end struct {
	state
	engine *engine
	at     *site

	claimed atomic.Bool // somebody is about to move it
	// using is held for reading by the program while it is in a system call, and for
	// writing by who moves the connection.
	using sync.RWMutex
	conn  *net.TCPConn // nil once it has gone to another process, or is closed

	// aground: the connection was closed when it was taken, and is not put back; left
	// is what has come and was not read yet, which its program has from the snapshot.
	aground bool
	left    []byte

	moved     time.Time
	takenThen [2]int64 // of both streams, when it was moved
	hostMoved time.Time
	latest    *soccr.Snapshot
	snapshots []*soccr.Snapshot // the latest that are not large, for the evidence
}

// A state is what goes with an end from process to process, beside its connection.
type state struct {
	Slot, Life, Side int // Side is the index of its habits, and of the stream that it writes
	Plan             plan
	Local, Remote    netip.AddrPort
	Sent, Taken      int64
	Shut, Ended      bool  // its FIN is sent; the other's is read
	Ready            int64 // since when its reader waits; 0: it is busy
	History          []string
}

func (s *state) String() string {
	return fmt.Sprintf("slot %d life %d, %s end, %s, %v ⇄ %v", s.Slot, s.Life,
		[...]string{"moved", "peer's"}[s.Side], families[s.Plan.Family].name, s.Local, s.Remote)
}

// remember notes what was done to it.
func (s *state) remember(format string, args ...any) {
	const most = 40
	if len(s.History) == most {
		s.History = append(s.History[:0], s.History[1:]...)
	}
	s.History = append(s.History, time.Now().Format("15:04:05.000000 ")+fmt.Sprintf(format, args...))
}

func (e *end) out() *direction { return &e.engine.board.Slots[e.Slot][e.Side] }
func (e *end) in() *direction  { return &e.engine.board.Slots[e.Slot][1-e.Side] }

// rested reports whether the last move is behind both streams: whatever waits in one has
// been read from since, or had time for that. A move starts the kernel's timers anew:
// a connection that did nothing but move would never come to send again what was lost.
func (e *end) rested() bool {
	const enough = 2 * time.Second
	for i := range 2 {
		d := &e.engine.board.Slots[e.Slot][i]
		if taken := d.Taken.Load(); taken < d.Written.Load() && taken == e.takenThen[i] && time.Since(e.moved) < enough {
			return false
		}
	}
	return true
}

// start has the program go on.
func (e *end) start() {
	if !e.Shut {
		go e.program(e.write)
	}
	if !e.Ended {
		go e.program(e.read)
	}
}

// program does one step after the other, each of which says how long to rest.
func (e *end) program(step func(*rand.Rand) (time.Duration, error)) {
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for {
		e.using.RLock()
		if e.conn == nil && !e.aground {
			e.using.RUnlock()
			return
		}
		rest, err := step(random)
		e.using.RUnlock()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // it is to be moved
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			_ = e.engine.fail(e, err)
			return
		}
		if rest > 0 {
			time.Sleep(rest)
		}
	}
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// write writes a piece, or the end (io.EOF).
func (e *end) write(random *rand.Rand) (rest time.Duration, err error) {
	h, out := &e.Plan.Ends[e.Side], e.out()
	if out.Taken.Load() == e.Sent {
		out.Since.Store(monotonic())
	}
	left := e.Plan.Total[e.Side] - e.Sent
	if left == 0 || e.engine.board.Stop.Load() != 0 {
		out.Written.Store(e.Sent + 1)
		if err := e.conn.CloseWrite(); err != nil {
			return 0, err
		}
		e.Shut = true
		return 0, io.EOF
	}
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	piece := buf[:min(left, 1+random.Int64N(int64(h.MostWrite)))]
	e.Plan.Content[e.Side].fill(piece, e.Sent)
	n, err := e.conn.Write(piece)
	e.Sent += int64(n)
	out.Written.Store(e.Sent)
	if err == nil && h.Idle > 0 && random.IntN(h.IdleOne) == 0 {
		rest = upTo(random, h.Idle)
	}
	return rest, err
}

// read reads and checks a piece, or the end (io.EOF).
func (e *end) read(random *rand.Rand) (rest time.Duration, err error) {
	h, in := &e.Plan.Ends[e.Side], e.in()
	if e.Ready == 0 {
		e.Ready = monotonic()
	}
	buf, scratch := buffers.Get().(*[64 << 10]byte), buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	defer buffers.Put(scratch)
	size, hurry := 1+random.IntN(h.MostRead), e.engine.board.Stop.Load() != 0
	if hurry {
		size = len(buf)
	}
	n, err := e.receive(buf[:size])
	if n > 0 || errors.Is(err, io.EOF) {
		waited := time.Duration(monotonic() - max(e.Ready, in.Since.Load()))
		e.engine.noteStall(e, waited, int64(n))
		e.Ready = 0
	}
	total := e.Plan.Total[1-e.Side]
	if n > 0 {
		if err := e.Plan.Content[1-e.Side].check(buf[:n], scratch[:n], e.Taken, total); err != nil {
			return 0, err
		}
		e.Taken += int64(n)
		in.Taken.Store(e.Taken)
		if !hurry {
			rest = upTo(random, h.Slow)
		}
	}
	if errors.Is(err, io.EOF) {
		if written := in.Written.Load() - 1; e.Taken != written {
			return 0, fmt.Errorf("the stream ends after %d bytes of %d", e.Taken, written)
		}
		e.Ended = true
		in.Taken.Store(e.Taken + 1)
		in.Done.Store(1)
	}
	return rest, err
}

// receive is Read, of what is there to be read from.
func (e *end) receive(b []byte) (n int, err error) {
	if !e.aground {
		return e.conn.Read(b)
	}
	if len(e.left) == 0 {
		return 0, io.EOF
	}
	n = copy(b, e.left)
	e.left = e.left[n:]
	return n, nil
}

// strand ends the moves of an end that was found closed when it was taken. Put back on
// its host, it would end its TIME_WAIT there, or find that in its way.
func (e *end) strand(at *site) error {
	e.engine.refused("it was closed at the last moment")
	if e.conn != nil {
		_ = e.conn.Close()
	}
	e.conn, e.aground, e.left = nil, true, e.latest.RecvQueue
	return at.lock.UnlockFlow(e.Local, e.Remote)
}

// stop has the program wait, between two system calls, until goOn.
func (e *end) stop() {
	if e.conn != nil {
		_ = e.conn.SetDeadline(time.Unix(1, 0)) // a conn that is closed needs no deadline
	}
	e.using.Lock()
}

func (e *end) goOn() {
	if e.conn != nil {
		_ = e.conn.SetDeadline(time.Time{})
	}
	e.using.Unlock()
}

// control runs f on the conn's descriptor.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if outer := raw.Control(func(fd uintptr) { err = f(int(fd)) }); outer != nil {
		return outer
	}
	return err
}

func infoOf(c syscall.Conn) (i tcpinfo.Info, err error) {
	err = control(c, func(fd int) (err error) {
		i, err = tcpinfo.Get(fd)
		return err
	})
	return i, err
}

// adopt sets the options of a fresh conn that do not have to be set before.
func (h *habits) adopt(c *net.TCPConn) error {
	if err := c.SetNoDelay(h.NoDelay); err != nil {
		return err
	}
	if h.Congestion == "" {
		return nil
	}
	return control(c, func(fd int) error {
		return os.NewSyscallError("TCP_CONGESTION", unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, h.Congestion))
	})
}

// prepare sets those that act in the handshake.
func (h *habits) prepare(_, _ string, c syscall.RawConn) (err error) {
	outer := c.Control(func(fd uintptr) {
		if h.SendBuffer > 0 {
			err = setInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, h.SendBuffer)
		}
		if h.RecvBuffer > 0 && err == nil {
			err = setInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, h.RecvBuffer)
		}
	})
	return errors.Join(outer, err)
}
