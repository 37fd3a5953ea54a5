package soccr

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckpointDatagram takes a program's own socket, usually a *net.UDPConn, and
// closes it. No goroutine may use it meanwhile; one that waits in a read gets
// net.ErrClosed. Duplicates made by File go on to receive. Deadlines are not part of
// a snapshot.
//
// On error conn goes on as before. The reasons are those of [SaveDatagram].
func CheckpointDatagram(c syscall.Conn) (*DatagramSnapshot, error) {
	closer, ok := c.(io.Closer)
	if !ok {
		return nil, &OpError{Op: "checkpoint", Err: fmt.Errorf("%w: a %T cannot be closed", ErrNotUDP, c)}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, &OpError{Op: "checkpoint", Err: err}
	}
	var d *DatagramSnapshot
	var failure error
	if err := raw.Control(func(fd uintptr) { d, failure = SaveDatagram(int(fd)) }); err != nil {
		return nil, &OpError{Op: "checkpoint", Err: err}
	}
	if failure != nil {
		return nil, failure
	}
	_ = closer.Close() // close(2) on a socket does not fail
	return d, nil
}

// RestoreDatagram makes an ordinary *net.UDPConn of a snapshot, in the network
// namespace of the calling thread, by [StartDatagram]. The conn has no deadlines.
// Raw sockets are none: they are refused with ErrNotUDP.
func RestoreDatagram(d *DatagramSnapshot, options ...Option) (*net.UDPConn, error) {
	if err := d.Validate(); err != nil {
		return nil, &OpError{Op: "restore", Local: d.Local, Remote: d.Remote, Err: err}
	}
	if d.Raw != 0 {
		return nil, &OpError{Op: "restore", Local: d.Local, Remote: d.Remote, Err: fmt.Errorf("%w: a raw one is no *net.UDPConn", ErrNotUDP)}
	}
	fd, err := NewDatagramSocket(d)
	if err != nil {
		return nil, err
	}
	if err := StartDatagram(fd, d, options...); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "udp")
	conn, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, &OpError{Op: "make a conn", Local: d.Local, Remote: d.Remote, Err: err}
	}
	return conn.(*net.UDPConn), nil
}
