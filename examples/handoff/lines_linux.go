package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
)

// A lineConn is a connection of a protocol of our own: each line is answered with
// its number and itself. What has to go with the connection is what the server knows
// of it: how many lines there were, and what has been read of the next one.
type lineConn struct {
	*net.TCPConn
	server *server

	Count int
	Left  []byte

	mu     sync.Mutex
	wanted bool // to be handed over
}

// maxLine is the longest line that is answered.
const maxLine = 64 << 10

// want asks for the connection to be handed over: its reader looks up.
func (c *lineConn) want() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = true
	_ = c.SetReadDeadline(time.Unix(1, 0)) // it may be closed already
}

// stay takes that back. The connection has been handed over before, or stays.
func (c *lineConn) stay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = false
	_ = c.SetReadDeadline(time.Time{})
}

// serve answers until the connection ends or is handed over.
func (c *lineConn) serve() {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		c.Left = append(c.Left, buf[:n]...)
		if answers := c.answers(); len(answers) > 0 {
			if _, err := c.Write(answers); err != nil {
				break
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if c.handOver() {
				return
			}
			continue
		}
		if err != nil || len(c.Left) > maxLine {
			break
		}
	}
	_ = c.Close() // the client knows why
	c.server.gone(c, nil)
}

// answers are those to the lines that are whole.
func (c *lineConn) answers() (b []byte) {
	for {
		line, rest, whole := bytes.Cut(c.Left, []byte("\n"))
		if !whole {
			return b
		}
		c.Count++
		b = fmt.Appendf(b, "%d %s\n", c.Count, line)
		c.Left = bytes.Clone(rest)
	}
}

// handOver reports whether the connection is gone.
func (c *lineConn) handOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.wanted {
		return false
	}
	snap, err := soccr.Checkpoint(c.TCPConn, soccr.WithLock(c.server.lock))
	if err != nil { // it is as it was
		c.server.fail(err)
		c.wanted = false
		_ = c.SetReadDeadline(time.Time{})
		return false
	}
	c.server.gone(c, &handed{Kind: kindLines, Snapshot: snap, Count: c.Count, Left: c.Left})
	return true
}
