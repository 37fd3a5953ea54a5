package soccr_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

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
	s.Release()
	if err := unix.Close(fd); err != nil {
		return -1, err
	}
	return benchRestore(snap)
}

func benchRestore(snap *soccr.Snapshot, options ...soccr.Option) (int, error) {
	fd, err := soccr.NewSocket(snap)
	if err != nil {
		return -1, err
	}
	s, err := soccr.Pause(fd, options...)
	if err != nil {
		return fd, err
	}
	if err := s.Restore(snap); err != nil {
		return fd, err
	}
	return fd, s.Resume()
}

// BenchmarkFloor has an idle connection, and one with data that its program has
// not read yet, moved by the library and by the bare system calls of floorConn,
// in turns, so that whatever else the machine does befalls both. It reports the
// medians, and how many times the floor's cost the library's is; and beside what
// keeps the options, how many times the floor's cost is that of the floor and of
// reading the options, bare: no library that keeps them can cost less.
func BenchmarkFloor(b *testing.B) {
	const batch = 16 // moves between two looks at the clock
	for _, f := range []family{loopback4, loopback6} {
		for _, queue := range []struct {
			name string
			size int
		}{{"idle", 0}, {"64KiB", 64 << 10}} {
			for _, way := range []struct {
				name    string
				options []soccr.Option
			}{
				{"all", nil},
				{"plain", []soccr.Option{soccr.WithPlain()}},
				{"without options", []soccr.Option{soccr.WithoutOptions()}},
				{"bare", []soccr.Option{soccr.WithoutOptions(), soccr.WithoutVerifying()}},
			} {
				b.Run(f.name+"/"+queue.name+"/"+way.name, func(b *testing.B) {
					h := hosttest.New(b)
					n := &network{here: h, there: h}
					bare, err := newFloorConn(n.benchConn(b, f, queue.size))
					if err != nil {
						b.Fatal(err)
					}
					defer func() { unix.Close(bare.fd) }()
					conn, err := newFloorConn(n.benchConn(b, f, queue.size))
					if err != nil {
						b.Fatal(err)
					}
					fd := conn.fd
					defer func() { unix.Close(fd) }()

					if way.name == "bare" { // as the floor knows them
						way.options = append(way.options, conn.ends())
					}
					var floor, bound, library []time.Duration
					var socket soccr.Socket
					var snap soccr.Snapshot
					calls := f.optionCalls()
					var before, after runtime.MemStats
					hosttest.Do(b, h, func() error {
						runtime.ReadMemStats(&before)
						for b.Loop() {
							start := time.Now()
							for range batch {
								if err := bare.move(); err != nil {
									return err
								}
							}
							floor = append(floor, time.Since(start)/batch)
							start = time.Now()
							for range batch {
								if err := errors.Join(bare.readOptions(calls), bare.move()); err != nil {
									return err
								}
							}
							bound = append(bound, time.Since(start)/batch)
							start = time.Now()
							for range batch {
								if fd, err = benchClosingMove(fd, &socket, &snap, way.options); err != nil {
									return err
								}
							}
							library = append(library, time.Since(start)/batch)
						}
						runtime.ReadMemStats(&after)
						return nil
					})
					b.ReportMetric(float64(median(library)), "ns/op")
					b.ReportMetric(float64(median(floor)), "floor-ns/op")
					b.ReportMetric(float64(median(library))/float64(median(floor)), "library/floor")
					b.ReportMetric(float64(median(bound))/float64(median(floor)), "bound/floor")
					b.ReportAllocs() // of the library alone: the floor allocates nothing
					moves := float64(len(library) * batch)
					b.ReportMetric(float64(after.Mallocs-before.Mallocs)/moves, "allocs/op")
					b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/moves, "B/op")
				})
			}
		}
	}
}

// On loopback, nothing but the connection's own packets takes time.
var (
	loopback4 = family{name: "IPv4", here: netip.MustParseAddr("127.0.0.1"), network: "tcp4"}
	loopback6 = family{name: "IPv6", here: netip.IPv6Loopback(), network: "tcp6"}
)

// optionCalls are what reading the options of such a connection takes.
func (f family) optionCalls() []soccr.OptionCall {
	if f.here.Is4() {
		return soccr.OptionCalls(soccr.TCP | soccr.IPv4 | soccr.Connected)
	}
	return soccr.OptionCalls(soccr.TCP | soccr.IPv6 | soccr.Connected)
}

// benchConn makes a connection whose program has so much to read.
func (n *network) benchConn(tb testing.TB, f family, size int) *net.TCPConn {
	tb.Helper()
	conn, peer := n.connect(tb, f)
	if _, err := peer.Write(make([]byte, size)); err != nil {
		tb.Fatal(err)
	}
	eventually(tb, "the bytes are here and acknowledged", func() bool {
		return ioctl(tb, conn, unix.SIOCINQ) == size && ioctl(tb, peer, unix.SIOCOUTQ) == 0
	})
	return conn
}

// benchClosingMove moves a connection, with all that the library does for it, by
// way of a socket whose only descriptor this is.
func benchClosingMove(fd int, s *soccr.Socket, snap *soccr.Snapshot, options []soccr.Option) (int, error) {
	if err := s.Pause(fd, options...); err != nil {
		return fd, err
	}
	if err := s.SaveTo(snap); err != nil {
		return fd, err
	}
	s.Release()
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0); errno != 0 { // silent, it does not wait
		return -1, errno
	}
	fd, err := soccr.NewSocket(snap)
	if err != nil {
		return -1, err
	}
	if err := s.Pause(fd, options...); err != nil {
		return fd, err
	}
	if err := s.Restore(snap); err != nil {
		return fd, err
	}
	return fd, s.Resume()
}

func median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// BenchmarkBatch moves many idle connections at once, within a process: each
// operation is a whole move of all of them. frozen-ms is what passes from the lock
// to when it is open again, all else included.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{1000, 10_000} {
		for _, workers := range []int{1, 2} {
			for _, way := range batchWays {
				b.Run(fmt.Sprintf("%d/workers=%d/%s", size, workers, way.name), func(b *testing.B) {
					n, lock := newBatchNetwork(b)
					c := n.bothEnds(b, size)
					defer c.forget()
					timed := &timedLock{FlowsPreparer: lock}
					options := append(slices.Clone(way.options), soccr.WithLock(timed), soccr.WithWorkers(workers))
					var moves []batchMove
					hosttest.Do(b, n.here, func() error {
						for b.Loop() {
							m, err := c.move(timed, options)
							if err != nil {
								return err
							}
							moves = append(moves, m)
						}
						return nil
					})
					for _, fd := range c.fds {
						unix.Close(fd)
					}
					var frozen []time.Duration
					for _, m := range moves {
						frozen = append(frozen, m.frozen)
					}
					b.ReportMetric(float64(median(frozen))/1e6, "frozen-ms")
					b.ReportMetric(float64(median(frozen))/float64(size), "frozen-ns/conn")
				})
			}
		}
	}
}

var batchWays = []struct {
	name    string
	options []soccr.Option
}{
	{"all", nil},
	{"bare", []soccr.Option{soccr.WithoutOptions(), soccr.WithoutVerifying()}},
}

// A timedLock notes when flows are locked and unlocked.
type timedLock struct {
	soccr.FlowsPreparer
	locking, locked, unlocking, unlocked time.Time
}

func (l *timedLock) LockFlows(flows [][2]netip.AddrPort) error {
	start := time.Now()
	err := l.FlowsPreparer.LockFlows(flows)
	if l.locking.IsZero() { // RestoreAll finds them locked
		l.locking, l.locked = start, time.Now()
	}
	return err
}

func (l *timedLock) UnlockFlows(flows [][2]netip.AddrPort) error {
	l.unlocking = time.Now()
	defer func() { l.unlocked = time.Now() }()
	return l.FlowsPreparer.UnlockFlows(flows)
}

// A batchMove is how long the stages of a move took.
type batchMove struct {
	before, lock, save, close, restore, unlock, resume time.Duration

	frozen time.Duration // from lock to unlock, both included
}

// move moves all connections of a crowd to new sockets.
func (c *crowd) move(lock *timedLock, options []soccr.Option) (m batchMove, err error) {
	lock.locking = time.Time{}
	start := time.Now()
	var image bytes.Buffer
	saved, err := soccr.SaveAll(&image, c.fds, options...)
	if err != nil {
		return m, err
	}
	atSaved := time.Now()
	c.forget()
	if err := saved.Close(); err != nil {
		return m, err
	}
	atClosed := time.Now()
	restored, err := soccr.RestoreAll(&image, options...)
	if err != nil {
		return m, err
	}
	atRestored := time.Now()
	if err := restored.Resume(); err != nil {
		return m, err
	}
	for _, g := range []*soccr.Batch{saved, restored} {
		for _, err := range g.Failed() {
			return m, err
		}
	}
	for i := range restored.Len() {
		c.fds = append(c.fds, restored.FD(i))
	}
	return batchMove{
		before: lock.locking.Sub(start),
		lock:   lock.locked.Sub(lock.locking), save: atSaved.Sub(lock.locked), close: atClosed.Sub(atSaved),
		restore: atRestored.Sub(atClosed), unlock: lock.unlocked.Sub(lock.unlocking), resume: time.Since(lock.unlocked),
		frozen: lock.unlocked.Sub(lock.locking),
	}, nil
}
