package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// What one process hands over to the next one is said on a stream between them:
//
//	old → new   luggage, then all handed connections (gob; snapshots in soccr's encoding)
//	new → old   ready: the flows are locked by the new process as well
//	old → new   go: the old one has given its addresses up
//	new → old   done: everything is restored, or failed: and why
//
// Until the new one is ready, the old one can have everything back.
const (
	sayReady = "ready"
	sayGo    = "go"
	sayDone  = "done"
)

// A luggage is what a server is without its connections.
type luggage struct {
	Listeners map[kind]*soccr.ListenerSnapshot
	Count     int // of connections
}

// A handed connection is a snapshot, and what the server knows of it beyond.
type handed struct {
	Kind     kind
	Snapshot *soccr.Snapshot
	HTTP2    *http2Conn // nil for HTTP/1.1
	Count    int        // of lines
	Left     []byte     // read, and not understood yet
}

// All is what is handed over.
type all struct {
	luggage
	conns []handed
}

// flows are those that have to be locked.
func (a *all) flows() (flows []netlock.Flow) {
	for _, l := range a.Listeners {
		for _, s := range l.Pending {
			flows = append(flows, netlock.Flow{Local: s.Local, Remote: s.Remote})
		}
	}
	for _, h := range a.conns {
		flows = append(flows, netlock.Flow{Local: h.Snapshot.Local, Remote: h.Snapshot.Remote})
	}
	return flows
}

func (a *all) ports() (ports []netip.AddrPort) {
	for _, l := range a.Listeners {
		ports = append(ports, l.Local)
	}
	return ports
}

// pack takes a server apart, which keeps what it is asked for in its lock.
func (s *server) pack(patience time.Duration) (*all, error) {
	a := &all{luggage: luggage{Listeners: map[kind]*soccr.ListenerSnapshot{}}}
	err := s.rest(patience)
	for k, l := range s.listeners {
		if err != nil {
			break
		}
		a.Listeners[k], err = soccr.CheckpointListener(l.TCPListener, soccr.WithInFlight(soccr.KeepInFlight), soccr.WithLock(s.lock))
		if err == nil {
			delete(s.listeners, k)
		}
	}
	if err != nil {
		return s.stay(a), err
	}
	s.serving.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	a.conns, a.Count, s.handed = s.handed, len(s.handed), nil
	return a, nil
}

// stay ends what rest began. It gives what was handed over before that.
func (s *server) stay(a *all) *all {
	s.mu.Lock()
	s.stopping = false
	busy := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range busy {
		c.stay()
	}
	s.serving.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	a.conns, a.Count, s.handed, s.failed = s.handed, len(s.handed), nil, nil
	return a
}

// unpack puts a server together: of what another process has handed over, or of what
// this one has and the other one would not have.
func (s *server) unpack(a *all) error {
	s.mu.Lock()
	s.stopping = false
	s.mu.Unlock()
	for k, snap := range a.Listeners {
		l, err := soccr.RestoreListener(snap, soccr.WithLock(s.lock))
		if err != nil {
			return err
		}
		s.listeners[k] = s.listener(k, l)
	}
	for k, l := range s.listeners {
		if _, restored := a.Listeners[k]; !restored { // it was not taken apart
			if err := l.SetDeadline(time.Time{}); err != nil {
				return err
			}
			l = s.listener(k, l.Listener)
			s.listeners[k] = l
		}
		l.taken = make(chan net.Conn, len(a.conns))
	}
	for i := range a.conns {
		h := &a.conns[i]
		conn, err := soccr.RestoreConn(h.Snapshot, soccr.WithLock(s.lock))
		if err != nil {
			return err
		}
		s.listeners[h.Kind].taken <- s.wrap(h.Kind, conn, h)
	}
	for k, l := range s.listeners {
		s.serve(k, l)
	}
	return nil
}

// A talk is the stream between two processes.
type talk struct {
	stream io.ReadWriter
	in     *bufio.Reader
}

func newTalk(stream io.ReadWriter) *talk { return &talk{stream, bufio.NewReader(stream)} }

func (t *talk) say(word string) error {
	_, err := fmt.Fprintln(t.stream, word)
	return err
}

func (t *talk) await(word string) error {
	line, err := t.in.ReadString('\n')
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the other process ended before it was %s", word)
	case err != nil:
		return err
	case line != word+"\n":
		return fmt.Errorf("the other process says %q", line)
	}
	return nil
}

// send sends everything.
func (t *talk) send(a *all) error {
	out := bufio.NewWriter(t.stream)
	encoder := gob.NewEncoder(out)
	err := encoder.Encode(&a.luggage)
	for i := range a.conns {
		if err == nil {
			err = encoder.Encode(&a.conns[i])
		}
	}
	return errors.Join(err, out.Flush())
}

// receive is the other end of send. What comes is checked as it is decoded, and by
// soccr when it is restored; who may send is up to who has made the stream.
func (t *talk) receive() (*all, error) {
	a := &all{}
	decoder := gob.NewDecoder(t.in) // which reads no further, as t.in is an io.ByteReader
	if err := decoder.Decode(&a.luggage); err != nil {
		return nil, err
	}
	for range a.Count {
		var h handed
		if err := decoder.Decode(&h); err != nil {
			return nil, err
		}
		if h.Snapshot == nil || a.Listeners[h.Kind] == nil {
			return nil, fmt.Errorf("a connection of kind %q", h.Kind)
		}
		a.conns = append(a.conns, h)
	}
	return a, nil
}

// give hands a server over. leave is called when the new process has the lock. On
// error before that, this process goes on.
func (s *server) give(stream io.ReadWriter, patience time.Duration, leave func() error) (left bool, err error) {
	a, err := s.pack(patience)
	t := newTalk(stream)
	if err == nil {
		err = t.send(a)
	}
	if err == nil {
		err = t.await(sayReady)
	}
	if err == nil {
		err = leave()
	}
	if err != nil {
		return false, errors.Join(err, s.unpack(a))
	}
	s.log("handed over: %d connections", len(a.conns))
	return true, errors.Join(t.say(sayGo), t.await(sayDone))
}

// take makes a server of what another process hands over. arrive is called when the
// other one has left.
func (s *server) take(stream io.ReadWriter, arrive func() error) error {
	t := newTalk(stream)
	a, err := t.receive()
	if err != nil {
		return err
	}
	if err := s.lock.Add(a.flows()...); err != nil {
		return err
	}
	for _, port := range a.ports() {
		if err := s.lock.LockListener(port); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		func() error { return t.say(sayReady) },
		func() error { return t.await(sayGo) },
		arrive,
		func() error { return s.unpack(a) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return t.say(sayDone)
}
