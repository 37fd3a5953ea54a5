package soccr_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A crowd is many connections of a host to itself, accepted by one listener.
type crowd struct {
	fds   []int // of the accepted ones
	peers []*net.TCPConn
}

func (n *network) crowd(tb testing.TB, f family, size int) *crowd {
	tb.Helper()
	c := &crowd{}
	listener := listen(tb, n.here, f.network, netip.AddrPortFrom(f.here, 0).String())
	defer listener.Close()
	hosttest.Do(tb, n.there, func() error {
		for range size {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				return err
			}
			c.peers = append(c.peers, conn.(*net.TCPConn))
			fd, err := acceptFD(listener)
			if err != nil {
				return err
			}
			c.fds = append(c.fds, fd)
		}
		return nil
	})
	tb.Cleanup(func() {
		for _, p := range c.peers {
			p.Close()
		}
		for _, fd := range c.fds {
			unix.Close(fd)
		}
	})
	return c
}

// acceptFD accepts without the options that Go sets on its conns.
func acceptFD(listener *net.TCPListener) (fd int, err error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return -1, err
	}
	for { // who has connected over the loopback device is there, or almost
		failed := raw.Control(func(l uintptr) {
			fd, _, err = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		})
		if failed != nil || !errors.Is(err, unix.EAGAIN) {
			return fd, errors.Join(err, failed)
		}
	}
}

// bothEnds is a crowd of which both ends are moved: size sockets of size/2
// connections, for what takes too many descriptors otherwise.
func (n *network) bothEnds(tb testing.TB, size int) *crowd {
	tb.Helper()
	const each = 10_000 // connections to a listener: there are not many more ports
	c := &crowd{}
	for left := size / 2; left > 0; left -= each {
		listener := listen(tb, n.here, loopback4.network, netip.AddrPortFrom(loopback4.here, 0).String())
		hosttest.Do(tb, n.here, func() error { return c.connect(listener, min(left, each)) })
		listener.Close()
	}
	tb.Cleanup(func() {
		for _, fd := range c.fds {
			unix.Close(fd)
		}
	})
	return c
}

// connect adds both ends of connections to a listener.
func (c *crowd) connect(listener *net.TCPListener, connections int) error {
	addr := sockaddr(ip4, netip.MustParseAddrPort(listener.Addr().String()))
	for range connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.fds = append(c.fds, fd)
		if err := unix.Connect(fd, addr); err != nil {
			return err
		}
		if fd, err = acceptFD(listener); err != nil {
			return err
		}
		c.fds = append(c.fds, fd)
	}
	return nil
}

// given away: they are closed, or others have their numbers.
func (c *crowd) forget() { c.fds = nil }

// talk has all connections of a batch say something and hear the answer.
func (c *crowd) talk(t *testing.T, g *soccr.Batch) {
	t.Helper()
	at := map[netip.AddrPort]int{}
	for i := range g.Len() {
		_, remote := g.Flow(i)
		at[remote] = i
	}
	for k, peer := range c.peers {
		i, ok := at[peer.LocalAddr().(*net.TCPAddr).AddrPort()]
		if !ok || g.Err(i) != nil {
			continue
		}
		word := fmt.Appendf(nil, "to the peer %d", k)
		if n, err := unix.Write(g.FD(i), word); err != nil || n != len(word) {
			t.Fatal(n, err)
		}
		expect(t, "the peer", peer, word)
		write(t, peer, fmt.Appendf(nil, "from the peer %d", k))
		expectFD(t, g.FD(i), fmt.Appendf(nil, "from the peer %d", k))
	}
}

func expectFD(t *testing.T, fd int, want []byte) {
	t.Helper()
	got := make([]byte, 0, len(want))
	eventually(t, fmt.Sprintf("%d bytes are read", len(want)), func() bool {
		b := make([]byte, len(want)-len(got))
		n, err := unix.Read(fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		got = append(got, b[:max(n, 0)]...)
		return len(got) == len(want)
	})
	if !bytes.Equal(got, want) {
		t.Fatalf("read %.80q, want %.80q", got, want)
	}
}

// A countingLock counts the transactions of a lock.
type countingLock struct {
	soccr.FlowsPreparer
	prepares, locks, unlocks, singles atomic.Int32
	fail                              error
}

func (l *countingLock) PrepareFlows(flows [][2]netip.AddrPort) error {
	l.prepares.Add(1)
	return l.FlowsPreparer.PrepareFlows(flows)
}

func (l *countingLock) LockFlows(flows [][2]netip.AddrPort) error {
	l.locks.Add(1)
	return errors.Join(l.fail, l.FlowsPreparer.LockFlows(flows))
}

func (l *countingLock) UnlockFlows(flows [][2]netip.AddrPort) error {
	l.unlocks.Add(1)
	return l.FlowsPreparer.UnlockFlows(flows)
}

func (l *countingLock) UnlockFlow(local, remote netip.AddrPort) error {
	l.singles.Add(1)
	return l.FlowsPreparer.UnlockFlow(local, remote)
}

func newBatchNetwork(tb testing.TB) (*network, *countingLock) {
	h := hosttest.New(tb)
	n := &network{here: h, there: h}
	n.makeLock(tb)
	return n, &countingLock{FlowsPreparer: n.lock}
}

// A thousand connections move at once; what their programs have not read comes
// with them.
func TestBatch(t *testing.T) {
	const size = 1000
	n, lock := newBatchNetwork(t)
	c := n.crowd(t, loopback4, size)
	queued := func(i int) []byte { // some have much, most have nothing
		switch {
		case i%100 == 7:
			return pattern(byte(i), 60_000)
		case i%10 == 3:
			return fmt.Appendf(nil, "unread %d", i)
		}
		return nil
	}
	unread := map[netip.AddrPort][]byte{}
	for i, p := range c.peers {
		write(t, p, queued(i))
		unread[p.LocalAddr().(*net.TCPAddr).AddrPort()] = queued(i)
		eventually(t, "the bytes are here", func() bool { return ioctl(t, p, unix.SIOCOUTQ) == 0 })
	}
	descriptors := openDescriptors(t)
	var image bytes.Buffer
	var restored *soccr.Batch
	hosttest.Do(t, n.here, func() error {
		saved, err := soccr.SaveAll(&image, c.fds, soccr.WithLock(lock), soccr.WithWorkers(3))
		if err != nil {
			return err
		}
		for i, err := range saved.Failed() {
			t.Errorf("connection %d: %v", i, err)
		}
		if saved.Len() != size || saved.FD(5) != c.fds[5] {
			t.Errorf("%d members", saved.Len())
		}
		saved.Disconnect()
		if err := saved.Close(); err != nil {
			return err
		}
		c.forget()
		restored, err = soccr.RestoreAll(iotest.HalfReader(&image), soccr.WithLock(lock), soccr.WithWorkers(3))
		if err != nil {
			return err
		}
		if lock.unlocks.Load() != 0 || lock.singles.Load() != 0 {
			t.Error("unlocked before Resume")
		}
		return restored.Resume()
	})
	defer closeAll(restored)
	if restored.Len() != size {
		t.Fatalf("%d connections are restored", restored.Len())
	}
	for i, p := range c.peers { // in the order of the descriptors
		if _, remote := restored.Flow(i); remote != p.LocalAddr().(*net.TCPAddr).AddrPort() {
			t.Fatalf("connection %d is %v", i, remote)
		}
	}
	for i, err := range restored.Failed() {
		t.Errorf("connection %d: %v", i, err)
	}
	if n := lock.prepares.Load(); n != 1 {
		t.Errorf("prepared %d times", n)
	}
	if lock.unlocks.Load() != 1 || lock.singles.Load() != 0 {
		t.Errorf("unlocked in %d and %d transactions", lock.unlocks.Load(), lock.singles.Load())
	}
	for i := range restored.Len() {
		_, remote := restored.Flow(i)
		expectFD(t, restored.FD(i), unread[remote])
	}
	c.talk(t, restored)
	if now := openDescriptors(t); now != descriptors {
		t.Errorf("%d descriptors, %d before", now, descriptors)
	}
}

func closeAll(g *soccr.Batch) {
	for i := range g.Len() {
		unix.Close(g.FD(i))
	}
}

// What cannot be saved goes on, and the others move.
func TestBatchMembersFail(t *testing.T) {
	n, lock := newBatchNetwork(t)
	c := n.crowd(t, loopback4, 40)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	// Urgent data cannot be moved; nor can a socket of another kind.
	control(t, c.peers[11], func(fd int) {
		if err := unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "it is here", func() bool { return ioctl(t, c.peers[11], unix.SIOCOUTQ) == 0 })
	fds := append(append([]int{}, c.fds...), pair[0])
	var image bytes.Buffer
	hosttest.Do(t, n.here, func() error {
		g, err := soccr.SaveAll(&image, fds, soccr.WithLock(lock))
		if err != nil {
			return err
		}
		if !errors.Is(g.Err(11), soccr.ErrUrgent) || !errors.Is(g.Err(40), soccr.ErrNotTCP) {
			t.Errorf("errors %v and %v", g.Err(11), g.Err(40))
		}
		failed := 0
		for _, err := range g.Failed() {
			if err != nil {
				failed++
			}
		}
		if failed != 2 {
			t.Errorf("%d failed", failed)
		}
		if _, err := unix.Write(fds[11], []byte("goes on")); err != nil {
			t.Error(err)
		}
		expect(t, "the peer of what cannot be moved", c.peers[11], []byte("goes on"))

		// One of them cannot be restored, for its connection is still there.
		g.Disconnect()
		for i, fd := range c.fds {
			if i != 11 {
				unix.Close(fd)
			}
		}
		c.fds = c.fds[11:12]
		image := image.Bytes()
		first, err := soccr.RestoreAll(bytes.NewReader(image[:len(image)-1]), soccr.WithLock(lock))
		if !errors.Is(err, soccr.ErrInvalidSnapshot) || first != nil {
			t.Errorf("a damaged image: %v", err)
		}
		var one soccr.Snapshot
		if _, err := one.ReadFrom(bytes.NewReader(image)); err != nil {
			return err
		}
		fd, err := benchRestore(&one)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		again, err := soccr.RestoreAll(bytes.NewReader(image), soccr.WithLock(lock))
		if err != nil {
			return err
		}
		if err := again.Resume(); err != nil {
			return err
		}
		defer closeAll(again)
		if again.Len() != 39 || !errors.Is(again.Err(0), soccr.ErrAddrInUse) || again.FD(0) != -1 {
			t.Errorf("%d members, the first: %v", again.Len(), again.Err(0))
		}
		for i, err := range again.Failed() {
			if i != 0 {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		c.talk(t, again)
		return nil
	})
}

// A writer or a lock that fails leaves all as it was; so does a change of mind.
func TestBatchGoesOn(t *testing.T) {
	n, lock := newBatchNetwork(t)
	broken := errors.New("broken")
	for _, test := range []struct {
		name string
		w    io.Writer
		lock error
		want error
	}{
		{"writer", &brokenWriter{left: 20_000, err: broken}, nil, broken},
		{"lock", io.Discard, broken, broken},
		{"change of mind", io.Discard, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			lock.fail = test.lock
			c := n.crowd(t, loopback4, 200)
			hosttest.Do(t, n.here, func() error {
				g, err := soccr.SaveAll(test.w, c.fds, soccr.WithLock(lock))
				if !errors.Is(err, test.want) {
					t.Errorf("got %v", err)
				}
				if err == nil {
					return g.Resume()
				}
				return nil
			})
			for i, p := range c.peers {
				write(t, p, []byte("still here"))
				expectFD(t, c.fds[i], []byte("still here"))
			}
		})
	}
}

type brokenWriter struct {
	mu   sync.Mutex
	left int
	err  error
}

func (w *brokenWriter) Write(b []byte) (int, error) {
	if !w.mu.TryLock() {
		panic("two writes at a time")
	}
	defer w.mu.Unlock()
	if w.left -= len(b); w.left < 0 {
		return 0, w.err
	}
	return len(b), nil
}

// What a batch of idle connections holds, image included, is at most 4 KiB for each
// at the worst moment: when they are restored, and what was saved is still there.
func TestBatchMemory(t *testing.T) {
	const size, each = 1000, 4 << 10
	n, lock := newBatchNetwork(t)
	c := n.bothEnds(t, size)
	options := []soccr.Option{soccr.WithLock(lock)}
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	hosttest.Do(t, n.here, func() error {
		before := held()
		var image bytes.Buffer
		saved, err := soccr.SaveAll(&image, c.fds, options...)
		if err != nil {
			return err
		}
		if err := saved.Close(); err != nil {
			return err
		}
		c.forget()
		restored, err := soccr.RestoreAll(bytes.NewReader(image.Bytes()), options...)
		if err != nil {
			return err
		}
		if took := held() - before; took > size*each {
			t.Errorf("%d bytes for each", took/size)
		} else {
			t.Logf("%d bytes for each", took/size)
		}
		runtime.KeepAlive(saved)
		runtime.KeepAlive(&image)
		err = restored.Resume()
		closeAll(restored)
		return err
	})
}
