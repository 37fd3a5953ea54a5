package soccr_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// BenchmarkMove moves an idle connection from socket to socket, all in one
// thread: pause, save, disconnect, close, socket, pause, restore, resume.
func BenchmarkMove(b *testing.B) {
	n := newNetwork(b)
	for _, f := range families {
		b.Run(f.name, func(b *testing.B) {
			conn, _ := n.connect(b, f)
			hosttest.Do(b, n.here, func() error {
				snap, err := soccr.Checkpoint(conn)
				if err != nil {
					return err
				}
				fd, err := benchRestore(snap)
				b.ReportAllocs()
				for err == nil && b.Loop() {
					fd, err = benchMove(fd)
				}
				unix.Close(fd)
				return err
			})
		})
	}
}

func benchMove(fd int) (int, error) {
	s, err := soccr.Pause(fd)
	if err != nil {
		return fd, err
	}
	snap, err := s.Save()
	if err != nil {
		return fd, err
	}
	if err := s.Disconnect(); err != nil {
		return fd, err
	}
	if err := unix.Close(fd); err != nil {
		return -1, err
	}
	return benchRestore(snap)
}

func benchRestore(snap *soccr.Snapshot) (int, error) {
	fd, err := soccr.NewSocket(snap)
	if err != nil {
		return -1, err
	}
	s, err := soccr.Pause(fd)
	if err != nil {
		return fd, err
	}
	if err := s.Restore(snap); err != nil {
		return fd, err
	}
	return fd, s.Resume()
}
