package soccr_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var rounds = flag.Int("rounds", 1, "how often TestGoesOnAtOnce moves a connection each way; more than once, the plain way is measured too (-v)")

// A line is a network whose hosts are a long way apart.
type line struct {
	*network
	relay *host.Relay
	rtt   time.Duration
}

func newLine(tb testing.TB, delay time.Duration) *line {
	tb.Helper()
	n := &network{}
	var relay *host.Relay
	n.here, n.there, relay = hosttest.PairWithDelay(tb, delay)
	n.makeLock(tb)
	return &line{n, relay, 2 * delay}
}

// tap opens a tap here.
func (n *network) tap(tb testing.TB) (tap *soccr.Tap) {
	tb.Helper()
	hosttest.Do(tb, n.here, func() (err error) {
		tap, err = soccr.OpenTap()
		return err
	})
	tb.Cleanup(func() {
		if err := tap.Close(); err != nil {
			tb.Error(err)
		}
	})
	return tap
}

// congestion sets the congestion control.
func setCongestion(tb testing.TB, conn *net.TCPConn, name string) {
	tb.Helper()
	control(tb, conn, func(fd int) {
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err != nil {
			tb.Fatal(err)
		}
	})
}

// learn exchanges data until the connection knows its path.
func (l *line) learn(tb testing.TB, conn, peer *net.TCPConn, size, times int) {
	tb.Helper()
	data := pattern(9, size)
	for range times {
		send(conn, data)
		expect(tb, "peer", peer, data)
		send(peer, data)
		expect(tb, "conn", conn, data)
	}
	eventually(tb, "all is acknowledged", func() bool {
		return ioctl(tb, conn, unix.SIOCOUTQ) == 0 && ioctl(tb, peer, unix.SIOCOUTQ) == 0
	})
}

// lost checkpoints a connection when data that it has sent has got lost on the way,
// so that the peer has nothing to say meanwhile, to whoever is there.
func (l *line) lost(tb testing.TB, conn *net.TCPConn, data []byte) (*soccr.Snapshot, tcpinfo.Info) {
	tb.Helper()
	l.relay.AtoB.Change(func(c *host.Conditions) { c.Blackhole = true })
	defer l.relay.AtoB.Change(func(c *host.Conditions) { c.Blackhole = false })
	write(tb, conn, data)
	eventually(tb, "all is sent", func() bool { return ioctl(tb, conn, unix.SIOCOUTQNSD) == 0 })
	before := info(tb, conn)
	snap := l.checkpoint(tb, conn)
	l.fallSilent()
	return snap, before
}

// fallSilent waits until nothing is under way any more.
func (l *line) fallSilent() {
	carried := func() uint64 { return l.relay.AtoB.Counts().Carried + l.relay.BtoA.Counts().Carried }
	for before := carried(); ; before = carried() {
		time.Sleep(l.rtt + 50*time.Millisecond)
		if carried() == before {
			return
		}
	}
}

// A spy notes when a flow is unlocked.
type spy struct {
	*netlock.Lock
	unlocked time.Time
}

func (s *spy) UnlockFlow(local, remote netip.AddrPort) error {
	err := s.Lock.UnlockFlow(local, remote)
	s.unlocked = time.Now()
	return err
}

// An outcome is how a connection went on; times are since the flow was unlocked.
type outcome struct {
	conn     *net.TCPConn
	firstOut time.Duration // until the first byte left; 0: none did
	out, in  time.Duration // until all that was in flight was read, there and here
	restore  time.Duration // how long RestoreConn took
	effects  soccr.Effects
	rtt      time.Duration // before
	info     tcpinfo.Info  // after RestoreConn
}

// interrupted moves a connection with so many bytes in flight in both directions.
// Those on their way to here meet the lock, and so do acknowledgements. Those on
// their way to there get lost, or not.
func (l *line) interrupted(tb testing.TB, conn, peer *net.TCPConn, size int, lost bool, options ...soccr.Option) (o outcome) {
	tb.Helper()
	out, in := pattern(1, size), pattern(2, size)
	if lost {
		l.relay.AtoB.Change(func(c *host.Conditions) { c.Blackhole = true })
	}
	write(tb, peer, in)
	write(tb, conn, out)
	eventually(tb, "all is sent", func() bool { return ioctl(tb, conn, unix.SIOCOUTQNSD) == 0 })
	snap, err := soccr.Checkpoint(conn, append(options, soccr.WithLock(l.lock))...)
	if err != nil {
		tb.Fatal(err)
	}
	o.rtt = time.Duration(snap.Path.RTT) * time.Microsecond
	time.Sleep(l.rtt + 5*time.Millisecond) // until all that was in flight has arrived somewhere

	var firstOut atomic.Int64
	l.relay.AtoB.Change(func(c *host.Conditions) {
		c.Blackhole = false
		c.Drop = func(packet []byte) bool {
			if p, ok := wire.Parse(packet, len(packet)); ok && p.Len > 0 {
				firstOut.CompareAndSwap(0, time.Now().UnixNano())
			}
			return false
		}
	})
	lock := &spy{Lock: l.lock}
	options = append(options, soccr.WithLock(lock), soccr.WithEffects(&o.effects))
	hosttest.Do(tb, l.here, func() (err error) {
		begin := time.Now()
		o.conn, err = soccr.RestoreConn(snap, options...)
		o.restore = time.Since(begin)
		return err
	})
	tb.Cleanup(func() { abort(o.conn) })
	o.info = info(tb, o.conn)

	var wait sync.WaitGroup
	for _, end := range []struct {
		conn net.Conn
		want []byte
		took *time.Duration
	}{{o.conn, in, &o.in}, {peer, out, &o.out}} {
		wait.Go(func() {
			got := make([]byte, len(end.want))
			err := end.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			n := 0
			if err == nil {
				n, err = io.ReadFull(end.conn, got)
			}
			*end.took = time.Since(lock.unlocked)
			if err != nil || !bytes.Equal(got, end.want) {
				tb.Errorf("read %d of %d bytes: %v", n, len(end.want), err)
			}
		})
	}
	wait.Wait()
	if at := firstOut.Load(); at != 0 {
		o.firstOut = time.Unix(0, at).Sub(lock.unlocked)
	}
	l.relay.AtoB.Change(func(c *host.Conditions) { c.Drop = nil })
	return o
}

// With bytes in flight both ways, a moved connection goes on at once, and the peer
// sees nothing but an ordinary retransmission. The plain way is measured beside it.
func TestGoesOnAtOnce(t *testing.T) {
	const size = 10_000
	// Once: a part of the matrix, without the plain way.
	delays := []time.Duration{time.Millisecond, 20 * time.Millisecond}
	if *rounds > 1 {
		delays = []time.Duration{100 * time.Microsecond, time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond}
	}
	for _, delay := range delays {
		for i, f := range families {
			for j, sack := range []string{"1", "0"} {
				for k, lost := range []bool{false, true} {
					if *rounds == 1 && (i+j+k)%2 != 0 {
						continue
					}
					t.Run(fmt.Sprintf("%v/%s/sack=%s/lost=%v", delay, f.name, sack, lost), func(t *testing.T) {
						l := newLine(t, delay)
						for _, h := range []*host.Host{l.here, l.there} {
							if err := h.Sysctl("net.ipv4.tcp_sack", sack); err != nil {
								t.Fatal(err)
							}
						}
						l.testGoesOn(t, f, size, lost)
					})
				}
			}
		}
	}
}

func (l *line) testGoesOn(t *testing.T, f family, size int, lost bool) {
	for _, way := range []struct {
		name    string
		options []soccr.Option
	}{
		{"at once", []soccr.Option{soccr.WithTap(l.tap(t))}},
		{"plain", []soccr.Option{soccr.WithPlain()}},
	} {
		if *rounds == 1 && way.name == "plain" {
			continue
		}
		var first, out, in, restore []time.Duration
		retries := 0
		for measured := 0; measured < *rounds; {
			conn, peer := l.connect(t, f)
			setCongestion(t, conn, "cubic")
			setCongestion(t, peer, "cubic")
			l.learn(t, conn, peer, size, 2)
			var seen *wire.Observer
			hosttest.Do(t, l.there, func() (err error) {
				seen, err = wire.Observe("net0", wire.Flow{A: addrPort(peer.RemoteAddr()), B: addrPort(peer.LocalAddr())})
				return err
			})
			o := l.interrupted(t, conn, peer, size, lost, way.options...)
			report, err := seen.Stop()
			if err := errors.Join(err, report.Err()); err != nil {
				t.Errorf("%s, as the peer saw it: %v", way.name, err)
			}
			if way.name == "at once" && o.effects.Unprimed != nil && retries < 5 {
				retries++ // the kernel had no CPU for it in time
				t.Log(o.effects.Unprimed)
				abort(o.conn)
				abort(peer)
				continue
			}
			if measured++; way.name == "at once" {
				o.wantAtOnce(t, lost)
			}
			first, out, in, restore = append(first, o.firstOut), append(out, o.out), append(in, o.in), append(restore, o.restore)
			abort(o.conn)
			abort(peer)
		}
		t.Logf("%-8s medians: first byte out after %v; in flight to there read after %v, to here after %v; restored in %v",
			way.name, median(first), median(out), median(in), median(restore))
	}
}

// wantAtOnce checks that every way to go on at once was taken. Times are not
// checked, save that no timer of the kernel had to expire first.
func (o *outcome) wantAtOnce(t *testing.T, lost bool) {
	t.Helper()
	e := o.effects
	if e.Unprimed != nil || e.Undelivered != nil || !e.Nudged || e.Delivered == 0 || lost && e.Resent == 0 {
		t.Errorf("not everything took effect: %+v", e)
	}
	if got := time.Duration(o.info.Rtt) * time.Microsecond; got < o.rtt/2 || got > o.rtt*3/2+10*time.Millisecond {
		t.Errorf("round trip time %v, was %v", got, o.rtt)
	}
	const timer = 950 * time.Millisecond
	if o.out > timer || o.in > timer {
		t.Errorf("in flight to there was read after %v, to here after %v", o.out, o.in)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// The path is carried over: round trip time, congestion window and slow start
// threshold, and the timeout that follows from them.
func TestPathIsCarriedOver(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		for i, congestion := range []string{"cubic", "reno"} {
			for j, loss := range []bool{false, true} {
				f := families[(i+j)%len(families)]
				t.Run(fmt.Sprintf("%v/%s/%s/loss=%v", delay, f.name, congestion, loss), func(t *testing.T) {
					t.Parallel()
					l := newLine(t, delay)
					var conn, peer *net.TCPConn
					var before, after tcpinfo.Info
					for attempt := range 5 {
						conn, peer = l.connect(t, f)
						setCongestion(t, conn, congestion)
						l.learn(t, conn, peer, 100_000, 3)
						if loss {
							l.loseOne(t, conn, peer)
						}
						before = info(t, conn)
						var e soccr.Effects
						conn = l.restore(t, l.checkpoint(t, conn), soccr.WithPath(soccr.PathSame), soccr.WithEffects(&e))
						after = info(t, conn)
						if e.Unprimed == nil {
							break
						}
						// The kernel had no CPU for it in time.
						t.Logf("attempt %d: %v", attempt, e.Unprimed)
					}
					t.Logf("rtt %d → %d µs, rto %d → %d µs, cwnd %d → %d, ssthresh %d → %d", before.Rtt, after.Rtt,
						before.Rto, after.Rto, before.Snd_cwnd, after.Snd_cwnd, before.Snd_ssthresh, after.Snd_ssthresh)
					const noLoss = 0x7fffffff
					if loss && before.Snd_ssthresh == noLoss {
						t.Fatal("the loss has not been noticed")
					}
					if d := int(after.Rtt) - int(before.Rtt); d < -1500-int(before.Rtt)/10 || d > 2000+int(before.Rtt)/10 {
						t.Error("another round trip time")
					}
					if d := int(after.Rto) - int(before.Rto); d < -int(before.Rto)/5 || d > int(before.Rto)/5 {
						t.Error("another timeout")
					}
					if d := int(after.Snd_cwnd) - int(before.Snd_cwnd); before.Snd_cwnd >= 10 && (d < -int(before.Snd_cwnd)/10 || d > int(before.Snd_cwnd)/10) {
						t.Error("another congestion window")
					}
					if was, is := before.Snd_ssthresh == noLoss, after.Snd_ssthresh == noLoss; was != is && before.Snd_cwnd > 20 {
						t.Errorf("has slow start no end? was %v, is %v", was, is)
					}
					write(t, conn, []byte("ping"))
					expect(t, "peer", peer, []byte("ping"))
				})
			}
		}
	}
}

// So is any size of the window, and a timeout that is longer than the round trip time
// would have it.
func TestAnyPathIsCarriedOver(t *testing.T) {
	l := newLine(t, 5*time.Millisecond)
	conn, peer := l.connect(t, ip4)
	setCongestion(t, conn, "cubic")
	l.learn(t, conn, peer, 300_000, 3)
	snap := l.checkpoint(t, conn)
	for _, want := range []soccr.Path{
		{RTT: 10_000, RTO: 700_000, Cwnd: 250},
		{RTT: 10_000, RTO: 700_000, Cwnd: 250, Ssthresh: 100},
		{RTT: 10_000, RTO: 210_000, Cwnd: 11}, {RTT: 10_000, RTO: 210_000, Cwnd: 20}, {RTT: 10_000, RTO: 210_000, Cwnd: 24},
		{RTT: 10_000, RTO: 210_000, Cwnd: 21, Ssthresh: 15}, {RTT: 10_000, RTO: 210_000, Cwnd: 24, Ssthresh: 15},
		{RTT: 10_000, RTO: 210_000, Cwnd: 25, Ssthresh: 15}, {RTT: 10_000, RTO: 210_000, Cwnd: 26, Ssthresh: 15},
		{RTT: 200_000, RTO: 500_000, Cwnd: 60, Ssthresh: 30},
	} {
		snap.Path = want
		snap.Path.MinRTT = want.RTT
		for attempt := range 5 {
			s, fd := l.pausedWith(t, snap, soccr.WithPath(soccr.PathSame))
			i, e := fdInfo(t, fd), s.Effects()
			if err := s.Disconnect(); err != nil {
				t.Fatal(err)
			}
			if e.Unprimed != nil && attempt < 4 {
				t.Logf("%+v: %v", want, e.Unprimed) // the kernel had no CPU for it in time
				continue
			}
			near := func(got, want, bound uint32) bool { return got >= want-bound && got <= want+bound }
			// A threshold and such a timeout cannot be had both.
			sameTimeout := near(i.Rto, want.RTO, want.RTO/5) || want.Ssthresh != 0 && want.RTO > 2*want.RTT+200_000 && i.Rto < want.RTO
			if e.Unprimed != nil || !near(i.Rtt, want.RTT, max(want.RTT/8, 2000)) || !sameTimeout || !near(i.Snd_cwnd, want.Cwnd, want.Cwnd/10) {
				t.Errorf("round trip time %d µs, timeout %d µs, %d segments; want %+v: %v", i.Rtt, i.Rto, i.Snd_cwnd, want, e.Unprimed)
			}
			break
		}
	}
}

// Without timestamps the path is carried over too, by one who may wait. What lasts as
// long as that must not leave the host, even without a lock.
func TestPathIsCarriedOverWithoutTimestamps(t *testing.T) {
	for i, congestion := range []string{"cubic", "reno", "", "cubic"} {
		f, loss := families[i%len(families)], i == 3
		t.Run(fmt.Sprintf("%s/%s/loss=%v", f.name, congestion, loss), func(t *testing.T) {
			t.Parallel()
			l := newLine(t, 20*time.Millisecond)
			if err := l.there.Sysctl("net.ipv4.tcp_timestamps", "0"); err != nil {
				t.Fatal(err)
			}
			wait, data := l.rtt+l.rtt/2, pattern(1, 10_000)
			var peer *net.TCPConn
			var snap *soccr.Snapshot
			var before tcpinfo.Info
			for range 5 { // until the line has had a CPU in time
				var conn *net.TCPConn
				conn, peer = l.connect(t, f)
				if congestion != "" {
					setCongestion(t, conn, congestion)
				}
				l.learn(t, conn, peer, 100_000, 3)
				if loss {
					l.loseOne(t, conn, peer)
				}
				snap, before = l.lost(t, conn, data)
				if err := l.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
					t.Fatal(err)
				}
				if time.Duration(before.Rtt)*time.Microsecond < wait {
					break
				}
			}
			if snap.Timestamp.Enabled {
				t.Fatal("there are timestamps")
			}
			for attempt := range 5 {
				left := l.relay.AtoB.Counts().Carried
				fd := l.newSocket(t, snap)
				t.Cleanup(func() { unix.Close(fd) })
				s, err := soccr.Pause(fd, soccr.WithPath(soccr.PathSame), soccr.WithPathWait(wait))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Restore(snap); err != nil {
					t.Fatal(err)
				}
				if now := l.relay.AtoB.Counts().Carried; now != left {
					t.Errorf("%d packets left before Resume", now-left)
				}
				if unprimed := s.Effects().Unprimed; unprimed != nil && attempt < 4 {
					t.Logf("attempt %d: %v", attempt, unprimed) // the kernel had no CPU for it in time
					if err := s.Disconnect(); err != nil {
						t.Fatal(err)
					}
					continue
				}
				after := fdInfo(t, fd)
				t.Logf("rtt %d → %d µs, rto %d → %d µs, cwnd %d → %d", before.Rtt, after.Rtt, before.Rto, after.Rto, before.Snd_cwnd, after.Snd_cwnd)
				if d := int(after.Rtt) - int(before.Rtt); d < -1500-int(before.Rtt)/10 || d > 2000+int(before.Rtt)/10 {
					t.Error("another round trip time")
				}
				want := int(before.Snd_cwnd)
				if snap.Path.Ssthresh != 0 {
					want = 10
				}
				if d := int(after.Snd_cwnd) - want; congestion != "" && before.Snd_cwnd >= 10 && (d < -want/10 || d > want/10) {
					t.Errorf("the congestion window is %d, want %d", after.Snd_cwnd, want)
				}
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
				moved := l.fileConn(t, fd)
				expect(t, "peer", peer, data)
				write(t, peer, data)
				expect(t, "conn", moved, data)
				return
			}
		})
	}
}

// A connection that sends at the rate of its window does so again after a move.
func TestRateIsKept(t *testing.T) {
	const window = 1 << 20
	for _, congestion := range []string{"cubic", "reno", ""} {
		t.Run("congestion="+congestion, func(t *testing.T) {
			l := newLine(t, 20*time.Millisecond)
			for _, way := range []struct {
				name    string
				options []soccr.Option
			}{{"at once", []soccr.Option{soccr.WithTap(l.tap(t))}}, {"plain", []soccr.Option{soccr.WithPlain()}}} {
				if *rounds == 1 && way.name == "plain" {
					continue
				}
				conn, peer := l.connect(t, ip4)
				if congestion != "" {
					setCongestion(t, conn, congestion)
				}
				if err := peer.SetReadBuffer(2 * window); err != nil {
					t.Fatal(err)
				}
				var read atomic.Int64
				go func() {
					for buf := make([]byte, 64<<10); ; {
						n, err := peer.Read(buf)
						if read.Add(int64(n)); err != nil {
							return
						}
					}
				}()
				write := func(d time.Duration) {
					if err := conn.SetWriteDeadline(time.Now().Add(d)); err != nil {
						t.Fatal(err)
					}
					for buf := make([]byte, 64<<10); ; {
						if _, err := conn.Write(buf); err != nil {
							break
						}
					}
				}
				write(12 * l.rtt)
				before := read.Load()
				write(5 * l.rtt)
				rate := float64(read.Load()-before) / 5 // per round trip
				conn = l.restore(t, l.checkpointWith(t, conn, way.options...), way.options...)
				var per []float64
				for range 8 {
					before := read.Load()
					write(l.rtt)
					per = append(per, float64(read.Load()-before)/rate)
				}
				t.Logf("%-8s %.1f MB/s before; round trip by round trip after the move, of that: %.2f", way.name, rate/l.rtt.Seconds()/1e6, per)
				if rest := per[3:]; way.name == "at once" && slices.Max(rest) < 0.6 {
					t.Errorf("the rate does not come back: %.2f", per)
				}
				abort(conn)
				abort(peer)
			}
		})
	}
}

func (n *network) checkpointWith(tb testing.TB, conn *net.TCPConn, options ...soccr.Option) *soccr.Snapshot {
	tb.Helper()
	snap, err := soccr.Checkpoint(conn, append(options, soccr.WithLock(n.lock))...)
	if err != nil {
		tb.Fatal(err)
	}
	return snap
}

// loseOne loses one of the segments that conn sends.
func (l *line) loseOne(t *testing.T, conn, peer *net.TCPConn) {
	t.Helper()
	var count atomic.Int32
	l.relay.AtoB.Change(func(c *host.Conditions) {
		c.Drop = func(packet []byte) bool {
			p, ok := wire.Parse(packet, len(packet))
			return ok && p.Len > 0 && count.Add(1) == 3
		}
	})
	data := pattern(8, 200_000)
	send(conn, data)
	expect(t, "peer", peer, data)
	l.relay.AtoB.Change(func(c *host.Conditions) { c.Drop = nil })
	eventually(t, "all is acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == 0 })
	time.Sleep(l.rtt)
}

// What cannot be sent again at once is swept. Else this hangs: the peer has it all,
// and its acknowledgements would be of bytes that were never sent.
func TestSweep(t *testing.T) {
	l := newLine(t, 5*time.Millisecond)
	for _, congestion := range []string{"cubic", "bbr"} {
		conn, peer := l.connect(t, ip4)
		if congestion == "cubic" { // bbr may not be there
			setCongestion(t, conn, congestion)
		}
		out, in := pattern(1, 60_000), pattern(2, 5000)
		l.fly(t, conn, peer, out)
		snap := l.checkpoint(t, conn)
		expect(t, "peer", peer, out)
		l.relay.BtoA.Change(func(c *host.Conditions) { c.Blackhole = false })
		var e soccr.Effects
		conn = l.restore(t, snap, soccr.WithPath(soccr.PathForget), soccr.WithEffects(&e))
		if e.Swept == 0 {
			t.Errorf("nothing was swept: %+v", e)
		}
		write(t, peer, in)
		expect(t, "conn", conn, in)
		eventually(t, "all is acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == 0 })
	}
}

// fly has conn send data whose acknowledgements do not come back, nor does anything
// else from the peer's side: the path from there stays closed. That takes a congestion
// window that is large enough, which the kernel may have made smaller for want of CPU.
func (l *line) fly(tb testing.TB, conn, peer *net.TCPConn, data []byte) {
	tb.Helper()
	for range 10 {
		l.learn(tb, conn, peer, 300_000, 3)
		l.relay.BtoA.Change(func(c *host.Conditions) { c.Blackhole = true })
		write(tb, conn, data)
		for start := time.Now(); time.Since(start) < 20*l.rtt; time.Sleep(time.Millisecond) {
			if ioctl(tb, conn, unix.SIOCOUTQNSD) == 0 {
				return
			}
		}
		l.relay.BtoA.Change(func(c *host.Conditions) { c.Blackhole = false })
		expect(tb, "peer", peer, data)
	}
	tb.Fatal("the congestion window stays too small")
}

// Where the acknowledgements are still to come, only the last segment is sent
// again, and the round trip time stays true.
func TestShortFreeze(t *testing.T) {
	l := newLine(t, 100*time.Millisecond)
	conn, peer := l.connect(t, ip4)
	setCongestion(t, conn, "cubic")
	l.learn(t, conn, peer, 50_000, 3)
	data := pattern(1, 30_000)
	write(t, conn, data)
	eventually(t, "all is sent", func() bool { return ioctl(t, conn, unix.SIOCOUTQNSD) == 0 })
	var e soccr.Effects
	snap := l.checkpoint(t, conn)
	conn = l.restore(t, snap, soccr.WithEffects(&e))
	if e.Resent != int(snap.MSS)-12 && e.Resent != int(snap.MSS) {
		t.Errorf("%d bytes were sent again, want one segment: %+v", e.Resent, e)
	}
	expect(t, "peer", peer, data)
	eventually(t, "all is acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == 0 })
	if i := info(t, conn); i.Min_rtt < 190_000 {
		t.Errorf("the shortest round trip took %d µs", i.Min_rtt)
	}
}

// Priming that fails, at whatever step, leaves nothing behind, and the connection
// goes on plainly. Nothing is delivered by a way that was not proven: a firewall
// could answer the peer with a RST.
func TestUnprimed(t *testing.T) {
	for i, test := range []struct {
		name    string
		prepare func(testing.TB, *network, *soccr.Snapshot)
		options []soccr.Option
		noRaw   bool
		failed  bool
	}{
		{name: "no timestamps", prepare: func(_ testing.TB, _ *network, s *soccr.Snapshot) { s.Timestamp = soccr.Timestamp{} }},
		{name: "no round trip time", prepare: func(_ testing.TB, _ *network, s *soccr.Snapshot) { s.Path.RTT = 0 }},
		{name: "no mark", options: []soccr.Option{soccr.WithMark(0)}},
		{name: "forget", options: []soccr.Option{soccr.WithPath(soccr.PathForget)}},
		// The lock drops the forged acknowledgements, whose mark it does not know.
		{name: "another mark", options: []soccr.Option{soccr.WithMark(0x10)}, failed: true},
		{name: "dropped in OUTPUT", prepare: func(tb testing.TB, n *network, _ *soccr.Snapshot) { onlyNet0(tb, n.here) }, failed: true},
		{name: "dropped in INPUT", prepare: func(tb testing.TB, n *network, _ *soccr.Snapshot) { dropMark(tb, n.here) }, failed: true},
		{name: "rejected", prepare: func(tb testing.TB, n *network, _ *soccr.Snapshot) { rejectMark(tb, n.here) }, failed: true},
		{name: "no raw socket", noRaw: true, failed: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t)
			f := families[i%len(families)]
			conn, peer := n.connect(t, f)
			tap := n.tap(t)
			data := pattern(1, 10_000)
			write(t, conn, data) // so that there is a round trip time
			expect(t, "peer", peer, data)
			deafen(t, peer)
			write(t, conn, data)
			snap, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock), soccr.WithTap(tap))
			if err != nil {
				t.Fatal(err)
			}
			undeafen(t, peer)
			write(t, peer, data) // which the tap catches
			if test.prepare != nil {
				test.prepare(t, n, snap)
			}
			var e soccr.Effects
			var moved *net.TCPConn
			hosttest.Do(t, n.here, func() (err error) {
				restore := func() error {
					moved, err = soccr.RestoreConn(snap, append(test.options, soccr.WithLock(n.lock), soccr.WithTap(tap), soccr.WithEffects(&e))...)
					return err
				}
				if test.noRaw {
					return withoutRaw(restore)
				}
				return restore()
			})
			t.Cleanup(func() { abort(moved) })
			if (e.Unprimed != nil) != test.failed {
				t.Errorf("unprimed: %v", e.Unprimed)
			}
			if test.failed && (e.Delivered > 0 || e.Nudged || e.Undelivered == nil) {
				t.Errorf("%+v", e)
			}
			if i := info(t, moved); e.Unprimed != nil && i.Snd_cwnd > 20 {
				t.Errorf("congestion window %d", i.Snd_cwnd)
			}
			// Both ends send again what they have to.
			expect(t, "peer", peer, data)
			expect(t, "conn", moved, data)
			if err := getInt(t, peer, unix.SOL_SOCKET, unix.SO_ERROR); err != 0 {
				t.Errorf("the peer's socket has error %v", unix.Errno(err))
			}
		})
	}
}

// withoutRaw calls f without CAP_NET_RAW, which the calling thread, a host's, loses
// for good.
func withoutRaw(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	return f()
}

// While a socket is made to look like another, nothing leaves, even without a
// lock; and what leaves then is of the connection.
func TestNothingForgedLeaves(t *testing.T) {
	primed := 0
	for _, f := range families {
		l := newLine(t, time.Millisecond)
		conn, peer := l.connect(t, f)
		setCongestion(t, conn, "cubic")
		sent := pattern(9, 100_000)
		l.learn(t, conn, peer, len(sent), 2)
		data := pattern(1, 20_000)
		snap, _ := l.lost(t, conn, data)
		first := snap.SendSeq - uint32(len(snap.SendQueue))
		if err := l.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
			t.Fatal(err)
		}
		var packets atomic.Int32
		var strange atomic.Pointer[wire.Segment]
		l.relay.AtoB.Change(func(c *host.Conditions) {
			c.Drop = func(packet []byte) bool {
				p, ok := wire.Parse(packet, len(packet))
				if !ok || p.Dst != addrPort(peer.LocalAddr()) {
					return false
				}
				packets.Add(1)
				payload := packet[len(packet)-p.Len:]
				if at := p.Seq - first; p.Len > 0 && (at > uint32(len(data)) || !bytes.HasPrefix(data[at:], payload)) || p.Ack != snap.RecvSeq {
					strange.CompareAndSwap(nil, &p)
				}
				return false
			}
		})
		s, fd := l.paused(t, snap)
		if err := s.Effects().Unprimed; err != nil { // the kernel had no CPU for it in time
			t.Logf("%s: %v", f.name, err)
		} else if i := fdInfo(t, fd); i.Snd_cwnd < snap.Path.Cwnd*9/10 {
			t.Errorf("%s: the congestion window is %d, was %d", f.name, i.Snd_cwnd, snap.Path.Cwnd)
		} else {
			primed++
		}
		time.Sleep(20 * time.Millisecond)
		if n := packets.Load(); n != 0 {
			t.Errorf("%s: %d packets left before Resume", f.name, n)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		expect(t, "peer", peer, data)
		if p := strange.Load(); p != nil {
			t.Errorf("%s: %v left", f.name, *p)
		}
		if packets.Load() == 0 {
			t.Errorf("%s: the relay saw nothing", f.name)
		}
		l.relay.AtoB.Change(func(c *host.Conditions) { c.Drop = nil })
	}
	if primed == 0 {
		t.Error("no connection was primed")
	}
}

// A peer that did not hear that our window is open again, because the lock was closed,
// hears it at once. It does not ask: nothing of its own gets here.
func TestNudge(t *testing.T) {
	l := newLine(t, time.Millisecond)
	for _, f := range families {
		conn, peer := l.connect(t, f)
		if err := conn.SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		data := pattern(1, 1<<20)
		written := 0
		eventually(t, "the window is closed", func() bool { // and all that fits into it is acknowledged
			if err := peer.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, err := peer.Write(data[written:])
			written += n
			queued := ioctl(t, peer, unix.SIOCOUTQ)
			return err != nil && info(t, peer).Snd_wnd < 1<<10 && queued == ioctl(t, peer, unix.SIOCOUTQNSD)
		})
		tap := l.tap(t)
		l.lockFor(conn)(true)
		l.relay.BtoA.Change(func(c *host.Conditions) { c.Blackhole = true })
		first := ioctl(t, conn, unix.SIOCINQ)
		expect(t, "conn", conn, data[:first])
		snap, err := soccr.Checkpoint(conn, soccr.WithLock(l.lock), soccr.WithTap(tap))
		if err != nil {
			t.Fatal(err)
		}
		closed := info(t, peer).Snd_wnd
		var e soccr.Effects
		moved := l.restore(t, snap, soccr.WithTap(tap), soccr.WithEffects(&e))
		if !e.Nudged {
			t.Errorf("%s: %+v", f.name, e)
		}
		eventually(t, "the peer knows that the window is open", func() bool { return info(t, peer).Snd_wnd > closed+8<<10 })
		l.relay.BtoA.Change(func(c *host.Conditions) { c.Blackhole = false })
		expect(t, "conn", moved, data[first:written])
	}
}

// What a tap has caught can travel.
func TestPacketsTravel(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		conn, peer := n.connect(t, f)
		tap := n.tap(t)
		snap, err := soccr.Checkpoint(conn, soccr.WithLock(n.lock), soccr.WithTap(tap))
		if err != nil {
			t.Fatal(err)
		}
		data := pattern(3, 5000)
		write(t, peer, data)
		var packets [][]byte
		eventually(t, "the packets are caught", func() bool {
			more, err := tap.Take(snap.Local, snap.Remote)
			if err != nil {
				t.Fatal(err)
			}
			packets = append(packets, more...)
			size := 0
			for _, p := range packets {
				segment, _ := wire.Parse(p, len(p))
				size += segment.Len
			}
			return size >= len(data)
		})
		tap.Forget(snap.Local, snap.Remote)
		// What is no packet of the connection is left out.
		packets = append([][]byte{nil, {0x45}, []byte("no packet at all, but quite some bytes of it")}, packets...)
		var e soccr.Effects
		moved := n.restore(t, snap, soccr.WithPackets(packets), soccr.WithEffects(&e))
		if ioctl(t, moved, unix.SIOCINQ) != len(data) {
			t.Errorf("%d bytes are there, want %d: %+v", ioctl(t, moved, unix.SIOCINQ), len(data), e)
		}
		expect(t, "conn", moved, data)
	}
}

// A drained connection has nothing in flight.
func TestDrain(t *testing.T) {
	l := newLine(t, 10*time.Millisecond)
	conn, peer := l.connect(t, ip4)
	for _, test := range []struct {
		limit time.Duration
		empty bool
	}{{0, false}, {10 * time.Second, true}} {
		data := pattern(1, 5000)
		write(t, conn, data)
		snap, err := soccr.Checkpoint(conn, soccr.WithLock(l.lock), soccr.WithDrain(test.limit))
		if err != nil {
			t.Fatal(err)
		}
		if empty := len(snap.SendQueue) == 0; empty != test.empty {
			t.Errorf("drained for %v, %d bytes are in the send queue", test.limit, len(snap.SendQueue))
		}
		conn = l.restore(t, snap)
		expect(t, "peer", peer, data)
	}
}
