package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A front accepts connections and hands them over.
type front struct {
	lock     *netlock.Lock
	steering *steering
	backends map[string]string // control addresses, by the first part of the path
	log      func(format string, args ...any)
}

// patience is how long a client may take for its first request, and a backend for
// its answer to the front.
const patience = 5 * time.Second

// serve accepts until the listener is closed.
func (f *front) serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		go func() {
			if err := f.handle(conn.(*net.TCPConn)); err != nil {
				f.log("%v: %v", conn.RemoteAddr(), err)
			}
		}()
	}
}

// handle finds out where a connection belongs, and hands it over. It returns when the
// connection is over, wherever it is.
func (f *front) handle(conn *net.TCPConn) error {
	head, path, err := firstRequest(conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	control, ok := f.backends[firstPart(path)]
	if !ok {
		return f.refuse(conn, head, "404 Not Found", fmt.Errorf("nobody serves %q", path))
	}
	backend, err := net.DialTimeout("tcp", control, patience)
	if err != nil {
		return f.refuse(conn, head, "502 Bad Gateway", err)
	}
	defer backend.Close()
	return f.handOver(conn, head, backend)
}

// handOver moves a connection to a backend. Until the backend is ready, the front can
// have it back, to tell the client.
func (f *front) handOver(conn *net.TCPConn, head []byte, backend net.Conn) (err error) {
	snapshot, err := soccr.Checkpoint(conn, soccr.WithLock(f.lock))
	if err != nil { // the connection is as it was
		return f.refuse(conn, head, "502 Bad Gateway", err)
	}
	flow := netlock.Flow{Local: snapshot.Local, Remote: snapshot.Remote}
	if err := backend.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	err = (&parcel{head, snapshot}).writeTo(backend)
	if err == nil {
		err = await(backend, sayReady)
	}
	if err == nil {
		err = f.steering.add(flow, backend.RemoteAddr())
	}
	if err != nil {
		back, failed := soccr.RestoreConn(snapshot, soccr.WithLock(f.lock))
		if failed != nil {
			return errors.Join(err, failed, f.lock.Remove(flow))
		}
		return f.refuse(back, head, "502 Bad Gateway", err)
	}
	defer func() { err = errors.Join(err, f.steering.remove(flow)) }()
	if err := f.lock.Remove(flow); err != nil {
		return err
	}
	if _, err := backend.Write([]byte{sayGo}); err != nil {
		return err
	}
	if err := backend.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, backend) // until the connection is over
	return err
}

// refuse answers a client that no backend will answer.
func (f *front) refuse(conn *net.TCPConn, head []byte, status string, why error) error {
	if strings.Contains(string(head), " HTTP/1.") {
		_, err := fmt.Fprintf(conn, "HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", status)
		why = errors.Join(why, err)
	}
	return errors.Join(why, conn.Close())
}

// firstRequest reads until the path of the first request is there.
func firstRequest(conn net.Conn) (head []byte, path string, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, "", err
	}
	buf := make([]byte, 4096)
	for len(head) < maxHead {
		n, err := conn.Read(buf[:min(len(buf), maxHead-len(head))])
		head = append(head, buf[:n]...)
		if path, failed := pathOf(head); !errors.Is(failed, errMore) {
			return head, path, failed
		}
		if err != nil {
			return head, "", err
		}
	}
	return head, "", fmt.Errorf("no request in %d bytes", maxHead)
}

// firstPart is "/a" of "/a/b?c".
func firstPart(path string) string {
	path, _, _ = strings.Cut(path, "?")
	if i := strings.Index(strings.TrimPrefix(path, "/"), "/"); i >= 0 {
		return path[:i+1]
	}
	return path
}

// runFront serves until ctx is done. What has been handed over goes on.
func runFront(ctx context.Context, addr string, backends map[string]string, log func(string, ...any)) (err error) {
	lock, err := netlock.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	steering, err := newSteering()
	if err != nil {
		return err
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false) // which cannot be moved
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	log("process %d accepts on %v", os.Getpid(), listener.Addr())
	return (&front{lock, steering, backends, log}).serve(listener)
}
