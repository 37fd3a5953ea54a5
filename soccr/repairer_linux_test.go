package soccr_test

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A helper switches repair mode for threads that may not, and fails if it is told to.
type helper struct {
	requests chan func()
	refuses  error
}

func newHelper(tb testing.TB) *helper {
	h := &helper{requests: make(chan func())}
	go func() { // with the rights that others give up
		for request := range h.requests {
			request()
		}
	}()
	tb.Cleanup(func() { close(h.requests) })
	return h
}

func (h *helper) SetRepair(fd, mode int) error {
	done := make(chan error)
	h.requests <- func() {
		if h.refuses != nil {
			done <- h.refuses
			return
		}
		done <- unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode)
	}
	return <-done
}

// withoutRights runs f here, on a thread without capabilities.
func (n *network) withoutRights(tb testing.TB, f func() error) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() error { // a thread that ends afterwards
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		return f()
	})
}

// With somebody to switch repair mode, a connection moves without any right.
func TestRepairer(t *testing.T) {
	n := newNetwork(t)
	h := newHelper(t)
	conn, peer := n.connect(t, ip4)
	deafen(t, peer)
	received, sent, last := pattern(1, 5000), pattern(2, 3000), pattern(3, 2000)
	write(t, peer, received)
	write(t, conn, sent)
	eventually(t, "the bytes have arrived", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(received) })

	h.refuses = errors.New("not today")
	n.withoutRights(t, func() error {
		if _, err := soccr.Checkpoint(conn, soccr.WithRepairer(h)); !errors.Is(err, h.refuses) {
			t.Errorf("refused: %v", err)
		}
		return nil
	})
	h.refuses = nil
	var moved *net.TCPConn
	n.withoutRights(t, func() error {
		if _, err := soccr.Checkpoint(conn); !errors.Is(err, soccr.ErrNoPermission) {
			t.Errorf("without help: %v", err)
		}
		snap, err := soccr.Checkpoint(conn, soccr.WithRepairer(h))
		if err != nil {
			return err
		}
		if err := soccr.Preflight([]*soccr.Snapshot{snap}, nil, soccr.WithRepairer(h)); err != nil {
			t.Errorf("Preflight: %v", err)
		}
		moved, err = soccr.RestoreConn(snap, soccr.WithRepairer(h))
		return err
	})
	t.Cleanup(func() { moved.Close() })
	undeafen(t, peer)
	write(t, moved, last)
	expect(t, "conn", moved, received)
	expect(t, "peer", peer, append(sent, last...))
}
