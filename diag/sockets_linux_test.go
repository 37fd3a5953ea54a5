package diag_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// The kernel's filter is compared with the same filter in Go, over sockets that
// differ in everything that can be filtered by.
func TestFilter(t *testing.T) {
	a, b := hosttest.Pair(t)
	d := open(t, a)
	for _, f := range []setup{
		nil,
		func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x11) },
		func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x21) },
		func(fd int) error { return unix.BindToDevice(fd, "net0") },
	} {
		for _, addr := range []netip.Addr{hosttest.B4, hosttest.B6} {
			l := listen(t, b, "tcp", netip.AddrPortFrom(addr, 0).String(), nil)
			dial(t, a, l.Addr().String(), f)
		}
	}
	// Three IPv6 sockets: for both families, for its own, and an IPv4 connection.
	dual := listen(t, a, "tcp", "[::]:4000", nil)
	listen(t, a, "tcp6", "[fd77::1]:4001", nil)
	peer := local(dial(t, b, netip.AddrPortFrom(hosttest.A4, 4000).String(), nil))
	accept(t, dual)
	listen(t, a, "tcp", "127.0.0.1:4002", nil)

	all := collect(t, d, diag.Filter{Details: diag.DetailTOS})
	if len(all) != 12 {
		t.Fatalf("%d sockets in all, want 12: %+v", len(all), all)
	}
	link, err := a.Netlink().LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	device := link.Attrs().Index
	unmapped := func(a netip.AddrPort) netip.Addr { return a.Addr().Unmap() }
	cgroup := all[0].CgroupID
	for _, c := range []struct {
		name   string
		filter diag.Filter
		want   int
		match  func(diag.Socket) bool
	}{
		{"IPv4", diag.Filter{Family: diag.IPv4}, 5, func(s diag.Socket) bool { return s.Family == diag.IPv4 }},
		{"IPv6", diag.Filter{Family: diag.IPv6}, 7, func(s diag.Socket) bool { return s.Family == diag.IPv6 }},
		{"listening", diag.Filter{States: diag.SetOf(diag.StateListen)}, 3,
			func(s diag.Socket) bool { return s.State == diag.StateListen }},
		{"connected", diag.Filter{States: diag.Connected}, 9, func(s diag.Socket) bool { return diag.Connected.Has(s.State) }},
		{"local port", diag.Filter{LocalPort: 4000}, 2, func(s diag.Socket) bool { return s.Local.Port() == 4000 }},
		{"remote port", diag.Filter{RemotePort: peer.Port()}, 1, func(s diag.Socket) bool { return s.Remote.Port() == peer.Port() }},
		{"local address", diag.Filter{Local: netip.PrefixFrom(hosttest.A4, 32)}, 5,
			func(s diag.Socket) bool { return unmapped(s.Local) == hosttest.A4 }},
		{"mapped address", diag.Filter{Local: netip.PrefixFrom(netip.AddrFrom16(hosttest.A4.As16()), 128)}, 5,
			func(s diag.Socket) bool { return unmapped(s.Local) == hosttest.A4 }},
		{"mapped address of IPv6 sockets", diag.Filter{Family: diag.IPv6, Local: netip.PrefixFrom(hosttest.A4, 32)}, 1,
			func(s diag.Socket) bool { return s.Family == diag.IPv6 && unmapped(s.Local) == hosttest.A4 }},
		{"local prefix", diag.Filter{Local: netip.MustParsePrefix("fd77::/16")}, 5,
			func(s diag.Socket) bool { return netip.MustParsePrefix("fd77::/16").Contains(s.Local.Addr()) }},
		{"odd prefix", diag.Filter{Remote: netip.MustParsePrefix("10.64.0.0/11")}, 5,
			func(s diag.Socket) bool { return netip.MustParsePrefix("10.64.0.0/11").Contains(unmapped(s.Remote)) }},
		{"every IPv6 address", diag.Filter{Local: netip.MustParsePrefix("::/0")}, 7,
			func(s diag.Socket) bool { return s.Family == diag.IPv6 }},
		{"address and port", diag.Filter{Local: netip.PrefixFrom(hosttest.A4, 32), LocalPort: 4000}, 1,
			func(s diag.Socket) bool { return unmapped(s.Local) == hosttest.A4 && s.Local.Port() == 4000 }},
		{"device", diag.Filter{Interface: device}, 2, func(s diag.Socket) bool { return s.Interface == device }},
		{"mark", diag.Filter{Mark: 0x11, MarkMask: 0xff}, 2, func(s diag.Socket) bool { return s.Mark == 0x11 }},
		{"bit of the mark", diag.Filter{Mark: 0xff, MarkMask: 1}, 4, func(s diag.Socket) bool { return s.Mark&1 == 1 }},
		{"no mark", diag.Filter{MarkMask: ^uint32(0)}, 8, func(s diag.Socket) bool { return s.Mark == 0 }},
		{"cgroup", diag.Filter{CgroupID: cgroup}, 12, func(s diag.Socket) bool { return s.CgroupID == cgroup }},
		{"other cgroup", diag.Filter{CgroupID: cgroup + 1<<40}, 0, func(diag.Socket) bool { return false }},
		{"all at once", diag.Filter{
			States: diag.Connected, Family: diag.IPv4, RemotePort: 1, Remote: netip.MustParsePrefix("10.0.0.0/8"),
			Interface: device, MarkMask: 1, CgroupID: cgroup, Local: netip.PrefixFrom(hosttest.A4, 32),
		}, 0, func(diag.Socket) bool { return false }},
		{"most at once", diag.Filter{
			States: diag.Connected, Family: diag.IPv4, Remote: netip.MustParsePrefix("10.0.0.0/8"),
			Mark: 0x20, MarkMask: 0xf0, CgroupID: cgroup, Local: netip.PrefixFrom(hosttest.A4, 32),
		}, 1, func(s diag.Socket) bool { return s.Mark == 0x21 && s.Family == diag.IPv4 }},
	} {
		var want []uint64
		for _, s := range all {
			if c.match(s) {
				want = append(want, s.Cookie)
			}
		}
		if len(want) != c.want {
			t.Fatalf("%s: the test expects %d, Go's filter finds %d", c.name, c.want, len(want))
		}
		var got []uint64
		for _, s := range collect(t, d, c.filter) {
			got = append(got, s.Cookie)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: cookies %v, want %v", c.name, got, want)
		}
	}
}

func TestFilterInvalid(t *testing.T) {
	d := open(t, hosttest.New(t))
	for s, err := range d.Sockets(diag.Filter{Local: netip.PrefixFrom(hosttest.A4, 99)}) {
		if e, ok := errors.AsType[*diag.OpError](err); !ok || e.Op != "sockets" || !errors.Is(err, diag.ErrInvalid) {
			t.Errorf("%+v, %v", s, err)
		}
	}
	for s, err := range d.Sockets(diag.Filter{Family: 99}) {
		if !errors.Is(err, diag.ErrInvalid) {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

// populate makes n connections inside a host, 2n sockets and a listening one.
func populate(tb testing.TB, h *host.Host, n int) {
	tb.Helper()
	l := listen(tb, h, "tcp", "127.0.0.1:0", nil)
	var fds []int
	tb.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	to := l.Addr().(*net.TCPAddr).AddrPort()
	// Plain sockets: a thousand of package net's are slower, and registered
	// with the poller.
	hosttest.Do(tb, h, func() error {
		return control(l, func(listener int) error {
			for range n {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				fds = append(fds, fd)
				if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
					return err
				}
				peer, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
				if err != nil {
					return err
				}
				fds = append(fds, peer)
			}
			return nil
		})
	})
}

func TestManySockets(t *testing.T) {
	const n = 1000
	h := hosttest.New(t)
	d := open(t, h)
	populate(t, h, n)
	before := openFDs(t)

	t.Run("all", func(t *testing.T) {
		seen := make(map[uint64]bool)
		for _, s := range collect(t, d, diag.Filter{}) {
			if seen[s.Cookie] {
				t.Fatal("listed twice:", s)
			}
			seen[s.Cookie] = true
		}
		if len(seen) != 2*n+1 {
			t.Errorf("%d sockets, want %d", len(seen), 2*n+1)
		}
	})
	t.Run("memory", func(t *testing.T) {
		// 2001 sockets with all details are more than two megabytes.
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		start, i := heap(), 0
		for _, err := range d.Sockets(diag.Filter{Details: diag.DetailAll}) {
			if err != nil {
				t.Fatal(err)
			}
			if i%500 == 0 {
				if now := heap(); now > start+300<<10 {
					t.Errorf("%d bytes more at socket %d", now-start, i)
				}
			}
			i++
		}
		if i != 2*n+1 {
			t.Errorf("%d sockets, want %d", i, 2*n+1)
		}
	})
	t.Run("early break", func(t *testing.T) {
		for range 20 {
			i := 0
			var s diag.Socket
			var err error
			for s, err = range d.Sockets(diag.Filter{States: diag.Connected}) {
				if i++; i == 3 {
					break
				}
			}
			if err != nil || i != 3 {
				t.Fatal(i, err)
			}
			// The Conn goes on to answer, and answers this.
			if again, err := d.Lookup(s.Local, s.Remote); err != nil || again.Cookie != s.Cookie {
				t.Fatal(err)
			}
		}
		if got := len(collect(t, d, diag.Filter{States: diag.Connected})); got != 2*n {
			t.Errorf("%d sockets after breaks, want %d", got, 2*n)
		}
	})
	t.Run("inside itself", func(t *testing.T) {
		i := 0
		for s, err := range d.Sockets(diag.Filter{States: diag.Connected}) {
			if err != nil {
				t.Fatal(err)
			}
			if i++; i%200 != 0 {
				continue
			}
			peers := collect(t, d, diag.Filter{LocalPort: s.Remote.Port(), RemotePort: s.Local.Port()})
			if len(peers) != 1 {
				t.Errorf("%d peers of %v->%v", len(peers), s.Local, s.Remote)
			}
			if _, err := d.Lookup(s.Local, s.Remote); err != nil {
				t.Error(err)
			}
		}
		if i != 2*n {
			t.Errorf("%d sockets, want %d", i, 2*n)
		}
	})
	t.Run("at the same time", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				i := 0
				for s, err := range d.Sockets(diag.Filter{States: diag.Connected}) {
					if err != nil {
						t.Error(err)
						return
					}
					if i++; i%500 == 0 {
						if again, err := d.Lookup(s.Local, s.Remote); err != nil || again.Cookie != s.Cookie {
							t.Error(err)
						}
					}
				}
				if i != 2*n {
					t.Errorf("%d sockets, want %d", i, 2*n)
				}
			})
		}
		wg.Wait()
	})
	if after := openFDs(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}

func BenchmarkSockets(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		h := hosttest.New(b)
		d := open(b, h)
		populate(b, h, n)
		for _, c := range []struct {
			name    string
			details diag.Details
		}{{"brief", 0}, {"all", diag.DetailAll}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, 2*n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for _, err := range d.Sockets(diag.Filter{Details: c.details}) {
						if err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*n), "ns/socket")
			})
		}
	}
}

// The time does not depend on how many sockets there are.
// BenchmarkSs is the list that the ss program makes: the process included, as its
// users have it, and its output read.
func BenchmarkSs(b *testing.B) {
	ss, err := exec.LookPath("ss")
	if err != nil {
		b.Skip(err)
	}
	for _, n := range []int{100, 1000, 5000} {
		h := hosttest.New(b)
		populate(b, h, n)
		b.Run(fmt.Sprint(2*n), func(b *testing.B) {
			hosttest.Do(b, h, func() error {
				for b.Loop() {
					out, err := exec.Command(ss, "-tan").Output()
					if lines := bytes.Count(out, []byte("\n")); err == nil && lines < 2*n {
						err = fmt.Errorf("%d lines", lines)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*n), "ns/socket")
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 1000, 5000} {
		h := hosttest.New(b)
		d := open(b, h)
		populate(b, h, n)
		s := collect(b, d, diag.Filter{States: diag.Connected})[0]
		b.Run(fmt.Sprint(2*n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Lookup(s.Local, s.Remote); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
