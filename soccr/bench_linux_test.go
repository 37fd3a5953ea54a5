package soccr_test

import (
	"cmp"
	"net"
	"net/netip"
	"runtime"
	"slices"
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
// medians, and how many times the floor's cost the library's is.
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

					var floor, library []time.Duration
					var snap soccr.Snapshot
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
								if fd, err = benchClosingMove(fd, &snap, way.options); err != nil {
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
func benchClosingMove(fd int, snap *soccr.Snapshot, options []soccr.Option) (int, error) {
	s, err := soccr.Pause(fd, options...)
	if err != nil {
		return fd, err
	}
	if err := s.SaveTo(snap); err != nil {
		return fd, err
	}
	s.Release()
	if err := unix.Close(fd); err != nil {
		return -1, err
	}
	return benchRestore(snap, options...)
}

func median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}
