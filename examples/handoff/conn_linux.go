package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
)

// An httpConn is a connection of an HTTP server that can be handed over to another
// process, at a moment when no request is under way on it. What soccr cannot know is
// what the server has read and not answered, and what it remembers of the connection.
// For HTTP/1.1 that is nothing, between two requests. HTTP/2 has settings, windows and
// header compression: an httpConn keeps account of the former two, and hands them
// over as the frames with which a connection begins; the compression has no memory,
// because the server asks for tables in which nothing fits.
type httpConn struct {
	*net.TCPConn
	server *server

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

func (c *httpConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.kicked {
		return nil // until the reader has looked up
	}
	return c.TCPConn.SetReadDeadline(t)
}

func (c *httpConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// kick wakes the reader, if there is one. c.mu is held.
func (c *httpConn) kick() {
	c.kicked = true
	_ = c.TCPConn.SetReadDeadline(time.Unix(1, 0)) // it may be closed already
}

// want asks for the connection to be handed over as soon as it can be.
func (c *httpConn) want() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = true
	c.kick()
}

// stay takes that back. The connection has been handed over before, or stays.
func (c *httpConn) stay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = false
	if c.two != nil && len(c.two.Held) > 0 {
		held := c.two.Held
		c.two.Held, c.two.holding = nil, false
		c.raw = c.two.received(append(held, c.raw...), false, &c.ready)
	}
	c.kick() // for what was held
}

// idle is called by the server's goroutine between two requests of HTTP/1.1.
func (c *httpConn) idle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// What arrived after the answer had begun is the next request already, of which
	// the server has read ahead.
	c.inRequest = c.sinceWrite > 0
}

// movable: no request is under way. c.mu is held.
func (c *httpConn) movable() bool {
	return len(c.ready) == 0 && (c.two == nil && !c.inRequest || c.two != nil && c.two.idle())
}

func (c *httpConn) Read(p []byte) (int, error) {
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
func (c *httpConn) readMore(p []byte) (int, error) {
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
func (c *httpConn) delivered(n int) {
	if n > 0 {
		c.sinceWrite += n
		c.inRequest = true
	}
}

func (c *httpConn) Write(p []byte) (int, error) {
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

func (c *httpConn) Close() error {
	c.mu.Lock()
	over := c.over
	c.over = true
	c.mu.Unlock()
	if over {
		return nil
	}
	err := c.TCPConn.Close()
	c.server.gone(c, nil)
	return err
}

// handOver takes the connection out of its socket, which nobody else uses: all
// mutexes are held.
func (c *httpConn) handOver() {
	c.over = true
	snap, err := soccr.Checkpoint(c.TCPConn, soccr.WithLock(c.server.lock))
	if err != nil { // it is as it was
		c.over, c.wanted = false, false
		c.server.fail(err)
		return
	}
	c.server.gone(c, &handed{Kind: kindHTTP, Snapshot: snap, HTTP2: c.two, Left: c.raw})
}

// resume goes on with what another process has handed over.
func (c *httpConn) resume(h *handed) {
	if h.HTTP2 == nil {
		return
	}
	c.two = h.HTTP2
	c.ready = c.two.begin()
	held := c.two.Held
	c.two.Held = nil
	c.raw = c.two.received(append(held, h.Left...), false, &c.ready)
}
