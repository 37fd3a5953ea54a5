package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A talk is what an ordinary program does with its connection, and all that it
// knows of it: it writes one stream and checks another. The client's stays with
// one connection, as it believes; the server's is stopped, sent to the other
// process and goes on there.
type talk struct {
	out, in *stream
	rate    int64 // bytes to write per second; 0 is as fast as it goes
	// Both are counted for whoever watches.
	sent, received atomic.Int64

	conn   *net.TCPConn
	halt   chan struct{} // closed to wake a writer that waits for its time
	ending atomic.Bool   // write no more, and say so to the other end
	ended  chan error    // gets the end of each conn's talk: nil, or why
}

func newTalk(out, in *stream, rate int64) *talk {
	return &talk{out: out, in: in, rate: rate, ended: make(chan error, 1)}
}

// chunk is how much is written and read at once.
const chunk = 64 << 10

// begin lets the talk go on over a connection, until stop or the end.
func (t *talk) begin(conn *net.TCPConn) {
	t.conn, t.halt = conn, make(chan struct{})
	var both sync.WaitGroup
	var writeErr, readErr error
	both.Go(func() {
		writeErr = t.write(conn, t.halt)
	})
	both.Go(func() {
		readErr = t.read(conn)
		// The other end has finished, or something is wrong: stop writing too.
		if !errors.Is(readErr, os.ErrDeadlineExceeded) {
			t.end()
		}
	})
	go func() {
		both.Wait()
		t.ended <- errors.Join(writeErr, readErr)
	}()
}

// stop ends the talk where it is, with the connection as it is. It reports
// whether there is more to say.
func (t *talk) stop() (more bool, err error) {
	if err := t.conn.SetDeadline(past); err != nil {
		return false, err
	}
	close(t.halt)
	err = <-t.ended
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	return false, err
}

// past is a deadline that ends what waits for the connection now.
var past = time.Unix(1, 0)

// end says no more, and lets the other end know.
func (t *talk) end() {
	t.ending.Store(true)
	_ = t.conn.SetWriteDeadline(past) // fails if there is nothing to interrupt
}

func (t *talk) write(conn *net.TCPConn, halt <-chan struct{}) error {
	began, written := time.Now(), int64(0)
	for {
		data := t.out.next(chunk)
		n, err := conn.Write(data)
		t.out.advance(data[:n])
		t.sent.Add(int64(n))
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && t.ending.Load():
			return conn.CloseWrite()
		default:
			return err
		}
		if written += int64(n); t.rate > 0 {
			due := began.Add(time.Duration(float64(written) / float64(t.rate) * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-halt:
			}
		}
	}
}

func (t *talk) read(conn *net.TCPConn) error {
	buffer := make([]byte, chunk)
	for {
		n, err := conn.Read(buffer)
		if err := t.in.check(buffer[:n]); err != nil {
			return fmt.Errorf("received data is wrong: %w", err)
		}
		t.received.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// total says how far both streams went.
func (t *talk) total() totals { return totals{Sent: t.out.total(), Received: t.in.total()} }

// totals are the totals of one end's two streams.
type totals struct{ Sent, Received total }

// bothTotals are those of both ends.
type bothTotals struct{ client, server totals }

// intact reports whether what was sent is what was received, both ways. If the
// talk did not come to its end, nobody can tell.
func (b bothTotals) intact() bool {
	return b != bothTotals{} && b.client.Sent == b.server.Received && b.client.Received == b.server.Sent
}

// savedTalkSize is the length of a saved talk.
var savedTalkSize = 2 * savedSize

// AppendBinary saves a talk that was stopped, for another process to go on.
func (t *talk) AppendBinary(b []byte) ([]byte, error) {
	b, err := t.out.AppendBinary(b)
	if err != nil {
		return b, err
	}
	return t.in.AppendBinary(b)
}

// UnmarshalBinary makes the talk one that another process has saved.
func (t *talk) UnmarshalBinary(b []byte) error {
	if err := t.out.UnmarshalBinary(b[:savedSize]); err != nil {
		return err
	}
	return t.in.UnmarshalBinary(b[savedSize:])
}
