package repair

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// SetRepair sets TCP_REPAIR of one socket.
func (c Client) SetRepair(fd, mode int) error { return c.Set(byte(mode), fd) }

// Set carries out a command on up to MaxFDs sockets, which stay the caller's: on
// all of them, or, with an error, on none.
func (c Client) Set(command byte, fds ...int) (err error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.Path, Net: "unix"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	return request(conn, command, fds)
}

func request(conn *net.UnixConn, command byte, fds []int) error {
	_, _, err := conn.WriteMsgUnix([]byte{command}, unix.UnixRights(fds...), nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrRefused // before it has read anything
	}
	if err != nil {
		return err
	}
	var answer [1]byte
	switch _, err := io.ReadFull(conn, answer[:]); {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return ErrRefused
	case err != nil:
		return err
	case answer[0] != command:
		return fmt.Errorf("the repair helper answers %d to %d", answer[0], command)
	}
	return nil
}
