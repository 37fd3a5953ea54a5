package soccr_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
)

// A served conn is one of an HTTP server that can hand it over to another process,
// at a moment when no request is under way on it. What soccr cannot know is what the
// server has read and not answered, and what it remembers of the connection. For
// HTTP/1.1 that is nothing, between two requests. HTTP/2 has settings, windows and
// header compression: a served conn keeps account of the former two, and hands them
// over as the frames with which a connection begins; the compression has no memory,
// because the server asks for tables in which nothing fits.
type served struct {
	*net.TCPConn
	moved func(*served, *soccr.Snapshot, error) // called when it was handed over

	reading, writing sync.Mutex // held by Read and Write
	mu               sync.Mutex
	// deadline is what the server has set for reading; kicked: a reader is to look up.
	deadline time.Time
	kicked   bool
	wanted   bool // to be handed over
	over     bool // handed over, or closed

	ready []byte // for the server to read, before anything else

	// HTTP/1.1: what was read since the server has last begun to write, and whether
	// that is a part of a request.
	sinceWrite int
	inRequest  bool

	two *http2Conn // nil while it is not known to be HTTP/2
	raw []byte     // read and not yet understood, up to a preface or frame
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func (c *served) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.kicked {
		return nil // until the reader has looked up
	}
	return c.TCPConn.SetReadDeadline(t)
}

func (c *served) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// kick wakes the reader, if there is one. c.mu is held.
func (c *served) kick() {
	c.kicked = true
	_ = c.TCPConn.SetReadDeadline(time.Unix(1, 0)) // it may be closed already
}

// want asks for the conn to be handed over as soon as it can be.
func (c *served) want() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = true
	c.kick()
}

// idle is called by the server's goroutine between two requests of HTTP/1.1.
func (c *served) idle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// What arrived after the answer had begun is the next request already, of which
	// the server has read ahead.
	c.inRequest = c.sinceWrite > 0
}

// movable: no request is under way. c.mu is held.
func (c *served) movable() bool {
	return len(c.ready) == 0 && (c.two == nil && !c.inRequest || c.two != nil && c.two.idle())
}

func (c *served) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		c.mu.Lock()
		if c.wanted && !c.over && c.movable() && c.writing.TryLock() {
			c.handOver()
			c.writing.Unlock()
		}
		if c.over {
			c.mu.Unlock()
			return 0, io.EOF
		}
		if len(c.ready) > 0 {
			n := copy(p, c.ready)
			c.ready = c.ready[n:]
			c.delivered(n)
			c.mu.Unlock()
			return n, nil
		}
		c.mu.Unlock()

		n, err := c.readMore(p)
		if n > 0 {
			return n, nil
		}
		c.mu.Lock()
		looked := c.kicked && errors.Is(err, os.ErrDeadlineExceeded)
		if looked {
			c.kicked = false
			_ = c.TCPConn.SetReadDeadline(c.deadline)
		}
		c.mu.Unlock()
		if err != nil && !looked {
			return 0, err
		}
	}
}

// readMore reads from the connection: straight to the server, unless it is HTTP/2.
func (c *served) readMore(p []byte) (int, error) {
	if c.two == nil && c.inRequest && len(c.raw) == 0 {
		n, err := c.TCPConn.Read(p)
		c.mu.Lock()
		c.delivered(n)
		c.mu.Unlock()
		return n, err
	}
	buf := make([]byte, 16<<10)
	n, err := c.TCPConn.Read(buf)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, buf[:n]...)
	if c.two == nil {
		if n == 0 {
			return 0, err
		}
		if len(c.raw) < len(preface) && bytes.HasPrefix([]byte(preface), c.raw) {
			c.inRequest = true // whatever it will be
			return 0, err
		}
		if !bytes.HasPrefix(c.raw, []byte(preface)) {
			c.ready, c.raw = append(c.ready, c.raw...), nil
			return 0, nil
		}
		c.two = newHTTP2Conn()
		c.ready, c.raw = append(c.ready, preface...), c.raw[len(preface):]
	}
	c.raw = c.two.received(c.raw, c.wanted, &c.ready)
	return 0, err
}

// delivered counts what the server has got of HTTP/1.1.
func (c *served) delivered(n int) {
	if n > 0 {
		c.sinceWrite += n
		c.inRequest = true
	}
}

func (c *served) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	over, out := c.over, p
	c.sinceWrite = 0
	if !over && c.two != nil {
		out = c.two.sent(p)
	}
	c.mu.Unlock()
	if over {
		return 0, net.ErrClosed
	}
	if len(out) > 0 {
		if _, err := c.TCPConn.Write(out); err != nil {
			return 0, err
		}
	}
	c.mu.Lock()
	if c.wanted {
		c.kick() // it may be idle now
	}
	c.mu.Unlock()
	return len(p), nil
}

func (c *served) Close() error {
	c.mu.Lock()
	over := c.over
	c.over = true
	c.mu.Unlock()
	if over {
		return nil
	}
	err := c.TCPConn.Close()
	c.moved(c, nil, nil)
	return err
}

// handOver takes the connection out of its socket, which nobody else uses: all
// mutexes are held.
func (c *served) handOver() {
	c.over = true
	snap, err := soccr.Checkpoint(c.TCPConn, soccr.WithLock(handoverLock))
	c.moved(c, snap, err)
}

// forServer accepts conns for a server: first those that another process has handed
// over, then new ones.
type forServer struct {
	*soccr.Listener
	taken chan net.Conn
	wrap  func(*net.TCPConn) *served
	// stop is closed when no more are to be accepted, quiet when none is, and ended
	// when the server may know.
	stop, quiet, ended chan struct{}
}

func (l *forServer) Accept() (net.Conn, error) {
	select {
	case c := <-l.taken:
		return c, nil
	default:
	}
	c, err := l.AcceptTCP()
	if err == nil {
		return l.wrap(c), nil
	}
	select {
	case <-l.stop:
		close(l.quiet)
		<-l.ended
		return nil, http.ErrServerClosed
	default:
		return nil, err
	}
}

// HTTP/2 frames (RFC 9113), as far as they count.
const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameWindow, frameContinuation = 0, 1, 3, 4, 6, 8, 9

	flagEnd, flagAck = 1, 1
	flagEndHeaders   = 4
	frameHeader      = 9
	firstWindow      = 65535
)

type frame []byte

func (f frame) kind() byte     { return f[3] }
func (f frame) flags() byte    { return f[4] }
func (f frame) stream() uint32 { return binary.BigEndian.Uint32(f[5:]) &^ (1 << 31) }
func (f frame) payload() []byte {
	return f[frameHeader:]
}
func (f frame) is(kind, flag byte) bool { return f.kind() == kind && f.flags()&flag != 0 }

func makeFrame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))[1:]
	b = append(b, kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// cutFrame takes the first frame off, if it is whole.
func cutFrame(b []byte) (frame, []byte) {
	if len(b) < frameHeader {
		return nil, b
	}
	size := frameHeader + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
	if len(b) < size {
		return nil, b
	}
	return b[:size], b[size:]
}

// An http2Conn keeps account of a connection, to know when it is idle and how to
// begin it anew in the middle.
type http2Conn struct {
	// Settings are the client's; SendWindow and RecvWindow are the connection's.
	Settings               map[uint16]uint32
	SendWindow, RecvWindow int
	// Held are frames of requests that have to wait for the next process; Last is the
	// last stream that does not.
	Held []byte
	Last uint32

	open      map[uint32]int // streams, by how many sides have not ended them
	inHeaders bool           // a header block goes on in the next frame
	holding   bool           // and is held
	unacked   int            // settings and pings of the client's that are not answered
	acked     bool           // the client knows our settings
	partial   []byte         // of the server's next frame

	// begun anew: the server's first frames are for nobody.
	dropSettings, dropAck, firstUpdate bool
	// before are the streams of which it knows nothing, up to this one.
	before uint32
}

func newHTTP2Conn() *http2Conn {
	return &http2Conn{
		Settings: map[uint16]uint32{}, SendWindow: firstWindow, RecvWindow: firstWindow, open: map[uint32]int{},
	}
}

func (h *http2Conn) idle() bool {
	return len(h.open) == 0 && h.unacked == 0 && h.acked && !h.inHeaders && len(h.partial) == 0 && !h.dropAck
}

// begin makes the client's frames with which the server's side of the connection
// begins anew.
func (h *http2Conn) begin() []byte {
	var settings []byte
	for id, value := range h.Settings {
		settings = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(settings, id), value)
	}
	b := append([]byte(preface), makeFrame(frameSettings, 0, 0, settings)...)
	b = append(b, makeFrame(frameSettings, flagAck, 0, nil)...)
	if more := h.SendWindow - firstWindow; more > 0 {
		b = append(b, makeFrame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(more)))...)
	}
	h.open, h.before = map[uint32]int{}, h.Last
	h.acked, h.dropSettings, h.dropAck, h.firstUpdate = true, true, true, true
	return b
}

// received passes the client's frames on. When the conn is wanted elsewhere, new
// requests are held for there.
func (h *http2Conn) received(b []byte, wanted bool, ready *[]byte) (rest []byte) {
	for {
		f, more := cutFrame(b)
		if f == nil {
			return b
		}
		b = more
		if s := f.stream(); s != 0 && s <= h.before {
			continue // of a stream that is closed
		}
		if h.hold(f, wanted) {
			h.Held = append(h.Held, f...)
			continue
		}
		*ready = append(*ready, f...)
		h.count(f)
	}
}

// hold reports whether a frame is of a request that is not begun here any more.
func (h *http2Conn) hold(f frame, wanted bool) bool {
	switch f.kind() {
	case frameContinuation:
		if h.holding {
			h.holding = f.flags()&flagEndHeaders == 0
			return true
		}
		return false
	case frameHeaders:
		if f.stream() > h.Last && (wanted || len(h.Held) > 0) {
			h.holding = f.flags()&flagEndHeaders == 0
			return true
		}
		return false
	default:
		return len(h.Held) > 0 && f.stream() > h.Last
	}
}

func (h *http2Conn) count(f frame) {
	if f.kind() == frameHeaders || f.kind() == frameContinuation {
		h.inHeaders = f.flags()&flagEndHeaders == 0
	}
	switch {
	case f.kind() == frameHeaders && f.stream() > h.Last:
		h.Last = f.stream()
		h.open[f.stream()] = 2
	case f.kind() == frameData:
		h.RecvWindow -= len(f.payload())
	case f.kind() == frameReset:
		delete(h.open, f.stream())
	case f.is(frameSettings, flagAck):
		h.acked = true
	case f.kind() == frameSettings:
		for p := f.payload(); len(p) >= 6; p = p[6:] {
			h.Settings[binary.BigEndian.Uint16(p)] = binary.BigEndian.Uint32(p[2:])
		}
		h.unacked++
	case f.kind() == framePing && f.flags()&flagAck == 0:
		h.unacked++
	case f.kind() == frameWindow && f.stream() == 0:
		h.SendWindow += int(binary.BigEndian.Uint32(f.payload()))
	}
	if f.is(frameData, flagEnd) || f.is(frameHeaders, flagEnd) {
		h.ended(f.stream())
	}
}

func (h *http2Conn) ended(stream uint32) {
	if sides, ok := h.open[stream]; ok && sides > 1 {
		h.open[stream] = sides - 1
	} else {
		delete(h.open, stream)
	}
}

// sent gives the server's frames that are to be sent, as far as they are whole.
func (h *http2Conn) sent(p []byte) (out []byte) {
	h.partial = append(h.partial, p...)
	for {
		f, rest := cutFrame(h.partial)
		if f == nil {
			h.partial = bytes.Clone(rest)
			return out
		}
		h.partial = rest
		switch {
		case f.is(frameSettings, flagAck) && h.dropAck:
			h.dropAck = false
			continue
		case f.kind() == frameSettings && f.flags()&flagAck == 0 && h.dropSettings:
			h.dropSettings = false
			continue
		case f.kind() == frameWindow && f.stream() == 0 && h.firstUpdate:
			// It opens the window from where it is at the beginning, not from where the
			// client has it.
			h.firstUpdate = false
			more := firstWindow + int(binary.BigEndian.Uint32(f.payload())) - h.RecvWindow
			if more <= 0 {
				continue
			}
			f = makeFrame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(more)))
		}
		switch {
		case f.kind() == frameData:
			h.SendWindow -= len(f.payload())
		case f.kind() == frameReset:
			delete(h.open, f.stream())
		case f.is(frameSettings, flagAck), f.is(framePing, flagAck):
			h.unacked--
		case f.kind() == frameWindow && f.stream() == 0:
			h.RecvWindow += int(binary.BigEndian.Uint32(f.payload()))
		}
		if f.is(frameData, flagEnd) || f.is(frameHeaders, flagEnd) {
			h.ended(f.stream())
		}
		out = append(out, f...)
	}
}
