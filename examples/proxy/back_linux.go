package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A back serves the connections that a front hands over.
type back struct {
	lock *netlock.Lock
	web  chan net.Conn // for the HTTP server
	log  func(format string, args ...any)
}

// take takes one connection over, and returns when it is over.
func (b *back) take(control net.Conn) (err error) {
	defer func() { err = errors.Join(err, control.Close()) }() // which tells the front
	if err := control.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	p, err := readParcel(control)
	if err != nil {
		return err
	}
	flow := netlock.Flow{Local: p.snapshot.Local, Remote: p.snapshot.Remote}
	if err := b.lock.Add(flow); err != nil {
		return err
	}
	_, err = control.Write([]byte{sayReady})
	if err == nil {
		err = await(control, sayGo)
	}
	if err != nil { // the front has it back, so nothing here must answer the client
		return errors.Join(err, b.lock.Remove(flow))
	}
	conn, err := soccr.RestoreConn(p.snapshot, soccr.WithLock(b.lock))
	if err != nil {
		return errors.Join(err, b.lock.Remove(flow))
	}
	taken := &takenConn{TCPConn: conn, head: p.head, over: make(chan struct{})}
	if isHTTP(p.head) {
		b.web <- taken
	} else {
		go echo(taken, b.log)
	}
	<-taken.over
	return nil
}

// A takenConn is a connection whose first bytes were read by the front.
type takenConn struct {
	*net.TCPConn
	head []byte
	over chan struct{}
	once sync.Once
}

func (c *takenConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.TCPConn.Read(b)
}

// WriteTo keeps io.Copy from going around Read.
func (c *takenConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

func (c *takenConn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { close(c.over) })
	return err
}

func isHTTP(head []byte) bool {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	return bytes.HasPrefix(head, []byte(http2Preface)) || bytes.Contains(line, []byte(" HTTP/1."))
}

// echo is what a backend does with a raw stream.
func echo(c net.Conn, log func(string, ...any)) {
	_, err := io.Copy(c, struct{ io.Reader }{c})
	if err = errors.Join(err, c.Close()); err != nil {
		log("%v: %v", c.RemoteAddr(), err)
	}
}

// A taker is a listener whose connections have been accepted by another host.
type taker struct {
	net.Listener // for its address
	conns        chan net.Conn
	done         <-chan struct{}
}

func (t *taker) Accept() (net.Conn, error) {
	select {
	case c := <-t.conns:
		return c, nil
	case <-t.done:
		return nil, net.ErrClosed
	}
}

// runBack serves until ctx is done.
func runBack(ctx context.Context, control string, handler http.Handler, log func(string, ...any)) (err error) {
	lock, err := netlock.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	listener, err := net.Listen("tcp", control)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	b := &back{lock: lock, web: make(chan net.Conn), log: log}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: protocols}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(&taker{listener, b.web, ctx.Done()}) }()
	log("process %d waits on %v", os.Getpid(), listener.Addr())
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			if err := b.take(conn); err != nil {
				log("%v: %v", conn.RemoteAddr(), err)
			}
		}()
	}
}

// hello is what a backend does with a request.
func hello(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	name, _ := os.Hostname() // empty, if nobody knows
	fmt.Fprintf(w, "%s by %s from process %d on %s: %s\n", r.URL.Path, r.Proto, os.Getpid(), name, body)
}
