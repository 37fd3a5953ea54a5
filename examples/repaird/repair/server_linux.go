package repair

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Server does what clients ask for. It needs CAP_NET_ADMIN in the user namespaces
// that own the sockets' network namespaces, and nothing else.
type Server struct {
	// UIDs are the users whose requests are carried out, as the kernel names them
	// (SO_PEERCRED); others are refused.
	UIDs []uint32
	// Log is told of refusals; nil is nobody.
	Log func(format string, args ...any)

	// Limits; 0 is the default.
	MaxConns int           // connections at a time, 16; more are refused
	MaxFDs   int           // descriptors in a request, MaxFDs
	Idle     time.Duration // how long a connection may wait between requests, 10 seconds; < 0: for ever
}

func (s *Server) limits() (conns, fds int, idle time.Duration) {
	conns, fds, idle = 16, MaxFDs, 10*time.Second
	if s.MaxConns > 0 {
		conns = s.MaxConns
	}
	if s.MaxFDs > 0 {
		fds = min(s.MaxFDs, MaxFDs)
	}
	if s.Idle != 0 {
		idle = s.Idle
	}
	return conns, fds, idle
}

// Serve serves the connections that a listener accepts until it is closed, and
// returns when the last of them has ended.
func (s *Server) Serve(listener *net.UnixListener) error {
	conns, _, _ := s.limits()
	slots := make(chan struct{}, conns)
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED):
			time.Sleep(10 * time.Millisecond)
			continue
		case err != nil:
			return err
		}
		select {
		case slots <- struct{}{}:
			all.Go(func() {
				defer func() { <-slots }()
				s.ServeConn(conn)
			})
		default:
			s.end(conn, fmt.Errorf("%d connections already", conns))
		}
	}
}

// ServeConn serves one connection, and closes it at its end.
func (s *Server) ServeConn(conn *net.UnixConn) {
	s.end(conn, s.serve(conn))
}

func (s *Server) end(conn *net.UnixConn, err error) {
	if err != nil && s.Log != nil {
		s.Log("refused: %v", err)
	}
	_ = conn.Close() // which the client sees, and nobody can help if it fails
}

func (s *Server) serve(conn *net.UnixConn) error {
	if err := s.admit(conn); err != nil {
		return err
	}
	_, most, idle := s.limits()
	for {
		if idle > 0 {
			if err := conn.SetDeadline(time.Now().Add(idle)); err != nil {
				return err
			}
		}
		command, fds, err := receive(conn, most)
		if err == nil {
			err = carryOut(command, fds)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte{command}); err != nil {
			return err
		}
	}
}

// admit checks who is at the other end.
func (s *Server) admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if !slices.Contains(s.UIDs, peer.Uid) {
		return fmt.Errorf("process %d of user %d", peer.Pid, peer.Uid)
	}
	return nil
}

// receive reads a request. The descriptors are the caller's to close, on error too.
func receive(conn *net.UnixConn, most int) (command byte, fds []int, err error) {
	var data [1]byte
	rights := make([]byte, unix.CmsgLen(4*most)) // CmsgSpace might have room for one more
	n, size, flags, _, err := conn.ReadMsgUnix(data[:], rights)
	if err != nil {
		return 0, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:size])
	if err != nil {
		return 0, nil, err
	}
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return 0, fds, err
		}
		fds = append(fds, some...)
	}
	switch {
	case n == 0:
		return 0, fds, io.EOF
	case flags&unix.MSG_CTRUNC != 0: // or this process has no descriptors left
		return 0, fds, fmt.Errorf("more than %d descriptors", len(fds))
	case len(fds) == 0:
		return 0, nil, errors.New("a request without descriptors")
	}
	return data[0], fds, nil
}

// A repaired socket is one as it was before the request.
type repaired struct {
	fd, mode, reuseAddr int
}

// carryOut does what is asked to all sockets, or to none.
func carryOut(command byte, fds []int) error {
	mode := int(int8(command))
	if mode < -1 || mode > 1 {
		return fmt.Errorf("command %d", mode)
	}
	before := make([]repaired, 0, len(fds))
	for _, fd := range fds {
		was, err := look(fd)
		if err != nil {
			return err
		}
		before = append(before, was)
	}
	for i, was := range before {
		if err := unix.SetsockoptInt(was.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode); err != nil {
			for _, done := range before[:i] {
				err = errors.Join(err, done.putBack())
			}
			return fmt.Errorf("TCP_REPAIR %d: %w", mode, err)
		}
	}
	return nil
}

// look reads what carryOut may have to put back. What is no TCP socket has no such
// option.
func look(fd int) (was repaired, err error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil && protocol != unix.IPPROTO_TCP {
		err = fmt.Errorf("a socket of protocol %d", protocol)
	}
	if err != nil {
		return was, fmt.Errorf("not a TCP socket: %w", err)
	}
	was.fd = fd
	if was.mode, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil {
		return was, err
	}
	was.reuseAddr, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	return was, err
}

// putBack undoes a command. Repair mode overwrites SO_REUSEADDR both ways.
func (r repaired) putBack() error {
	if r.mode == unix.TCP_REPAIR_ON {
		return unix.SetsockoptInt(r.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	}
	return errors.Join(unix.SetsockoptInt(r.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP),
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, r.reuseAddr))
}
