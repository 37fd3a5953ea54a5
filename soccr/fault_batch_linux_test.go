//go:build amd64 || arm64

package soccr_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// alone has a batch do all on the calling thread, which is the one that is watched.
func (w *faultyWorld) alone() []soccr.Option {
	return []soccr.Option{soccr.WithLock(w.lock), soccr.WithWorkers(1)}
}

// talks are two connections, and descriptors of them for a batch to close.
func (w *faultyWorld) talks() (talks []*talk, fds []int) {
	for range 2 {
		t := w.talk()
		talks = append(talks, t)
		control(w.t, t.conn, func(fd int) {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			fds = append(fds, dup)
		})
	}
	return talks, fds
}

// trySaveAll takes connections out of their sockets. What is written can be restored,
// and what is not goes on.
func trySaveAll(w *faultyWorld) error {
	talks, fds := w.talks()
	var saved bytes.Buffer
	var b *soccr.Batch
	var err, result error
	w.do(func() {
		if b, err = soccr.SaveAll(&saved, fds, w.alone()...); err == nil {
			b.Disconnect()
			err = b.Close()
		}
	})
	result = said(err)
	for i, fd := range fds {
		if b != nil {
			result = errors.Join(result, said(b.Err(i)))
			fd = b.FD(i)
		}
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if b == nil {
		saved.Reset() // the error says that nothing was saved
	}
	snaps, failed := decode(saved.Bytes())
	for _, snap := range snaps {
		for _, t := range talks {
			if t.flow == [2]netip.AddrPort{snap.Local, snap.Remote} {
				t.conn.Close()
				t.conn, err = soccr.RestoreConn(snap, soccr.WithLock(w.lock))
				failed = errors.Join(failed, err)
			}
		}
	}
	return w.allGoOn(talks, result, failed)
}

// tryRestoreAll restores connections; those that fail can be restored again.
func tryRestoreAll(w *faultyWorld) error {
	talks, fds := w.talks()
	var saved bytes.Buffer
	b, err := soccr.SaveAll(&saved, fds, w.alone()...)
	if err != nil {
		w.t.Fatal(err)
	}
	b.Disconnect()
	if err := b.Close(); err != nil {
		w.t.Fatal(err)
	}
	for _, t := range talks {
		t.conn.Close()
	}
	snaps, err := decode(saved.Bytes())
	if err != nil || len(snaps) != len(talks) {
		w.t.Fatalf("%d snapshots, %v", len(snaps), err)
	}
	var resumed error
	w.do(func() {
		if b, err = soccr.RestoreAll(bytes.NewReader(saved.Bytes()), w.alone()...); err == nil {
			resumed = b.Resume()
		}
	})
	result := errors.Join(said(err), said(resumed))
	if err != nil { // nothing is restored
		if b, err = soccr.RestoreAll(bytes.NewReader(saved.Bytes()), w.alone()...); err == nil {
			err = b.Resume()
		}
		if err != nil {
			return errors.Join(result, fmt.Errorf("again: %w", err))
		}
	}
	var failed error
	for i, t := range talks {
		result = errors.Join(result, said(b.Err(i)))
		if resumed != nil || b.Err(i) != nil {
			failed = errors.Join(failed, b.Resume()) // those that are paused
		}
		if fd := b.FD(i); fd >= 0 {
			file := os.NewFile(uintptr(fd), "")
			conn, err := net.FileConn(file)
			if err != nil {
				w.t.Fatal(err)
			}
			file.Close()
			t.conn = conn.(*net.TCPConn)
		} else {
			t.conn, err = soccr.RestoreConn(snaps[i], soccr.WithLock(w.lock))
			failed = errors.Join(failed, err)
		}
	}
	return w.allGoOn(talks, result, failed)
}

func (w *faultyWorld) allGoOn(talks []*talk, errs ...error) error {
	for _, t := range talks {
		if t.conn != nil {
			errs = append(errs, t.goesOn())
		}
		errs = append(errs, t.close(w))
	}
	return errors.Join(errs...)
}

// decode reads snapshots one behind the other.
func decode(b []byte) (snaps []*soccr.Snapshot, err error) {
	for r := bytes.NewReader(b); ; {
		snap := new(soccr.Snapshot)
		if _, err := snap.ReadFrom(r); errors.Is(err, io.EOF) && r.Len() == 0 {
			return snaps, nil
		} else if err != nil {
			return snaps, err
		}
		snaps = append(snaps, snap)
	}
}
