package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A kind is what is spoken on a connection.
type kind string

const (
	kindHTTP  kind = "http"
	kindLines kind = "lines"
)

// A server serves both kinds, and can be taken apart and put together again.
type server struct {
	lock    *netlock.Lock
	handler http.Handler
	log     func(format string, args ...any)

	mu        sync.Mutex
	changed   *sync.Cond
	listeners map[kind]*listener
	conns     map[movable]bool
	stopping  bool // connections are wanted elsewhere
	handed    []handed
	failed    error

	serving sync.WaitGroup // of listeners
}

// A movable is a connection that can be handed over.
type movable interface {
	want()
	stay()
}

func newServer(lock *netlock.Lock, handler http.Handler, log func(string, ...any)) *server {
	s := &server{lock: lock, handler: handler, log: log, listeners: map[kind]*listener{}, conns: map[movable]bool{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// serve begins to serve what a listener accepts.
func (s *server) serve(k kind, l *listener) {
	s.mu.Lock()
	s.listeners[k] = l
	s.mu.Unlock()
	s.serving.Go(func() {
		var err error
		if k == kindHTTP {
			err = s.httpServer().Serve(l)
		} else {
			err = s.serveLines(l)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("%s: %w", k, err))
		}
	})
}

func (s *server) httpServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:   s.handler,
		Protocols: protocols,
		// Tables in which nothing fits: see httpConn.
		HTTP2: &http.HTTP2Config{MaxDecoderHeaderTableSize: 1, MaxEncoderHeaderTableSize: 1},
		ConnState: func(c net.Conn, state http.ConnState) {
			if c, ok := c.(*httpConn); ok && state == http.StateIdle {
				c.idle()
			}
		},
	}
}

func (s *server) serveLines(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go c.(*lineConn).serve()
	}
}

// wrap makes a movable connection of one that was accepted, or restored.
func (s *server) wrap(k kind, conn *net.TCPConn, h *handed) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k == kindLines {
		c := &lineConn{TCPConn: conn, server: s}
		if h != nil {
			c.Count, c.Left = h.Count, h.Left
		}
		s.conns[c] = true
		if s.stopping {
			c.want()
		}
		return c
	}
	c := &httpConn{TCPConn: conn, server: s, wanted: s.stopping}
	if h != nil {
		c.resume(h)
	}
	s.conns[c] = true
	return c
}

// gone is told when a connection was closed, or handed over.
func (s *server) gone(c movable, h *handed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if h != nil {
		s.handed = append(s.handed, *h)
	}
	s.changed.Broadcast()
}

// fail keeps what went wrong, for who hands over.
func (s *server) fail(err error) {
	s.log("%v", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = errors.Join(s.failed, err)
}

// A listener accepts for a server: first the connections that another process has
// handed over, then those that wait, then new ones.
type listener struct {
	*soccr.Listener
	server *server
	kind   kind
	taken  chan net.Conn
	// stop is closed when no more are to be accepted, quiet when none is.
	stop, quiet chan struct{}
}

func (s *server) listener(k kind, l *soccr.Listener) *listener {
	return &listener{
		Listener: l, server: s, kind: k,
		stop: make(chan struct{}), quiet: make(chan struct{}),
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.taken:
		return c, nil
	default:
	}
	c, err := l.AcceptTCP()
	if err == nil {
		return l.server.wrap(l.kind, c, nil), nil
	}
	select {
	case <-l.stop:
		close(l.quiet)
		return nil, http.ErrServerClosed
	default:
		return nil, err
	}
}

// Close does nothing: the HTTP server closes its listener when it ends, but the
// connections that wait are to be handed over.
func (l *listener) Close() error { return nil }

// rest makes the server let go of everything that is not under way: nobody accepts
// any more, so that new connections wait, and connections are handed over when they
// are idle.
func (s *server) rest(patience time.Duration) error {
	for _, l := range s.listeners {
		close(l.stop)
		if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
			return err
		}
		<-l.quiet
	}
	s.mu.Lock()
	s.stopping = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.want()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	late := time.AfterFunc(patience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.conns) > 0 {
			s.failed = errors.Join(s.failed, fmt.Errorf("%d connections are busy", len(s.conns)))
		}
		s.changed.Broadcast()
	})
	defer late.Stop()
	for len(s.conns) > 0 && s.failed == nil {
		s.changed.Wait()
	}
	return s.failed
}
