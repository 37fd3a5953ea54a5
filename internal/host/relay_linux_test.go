package host_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

var addrsOfB = []netip.Addr{hosttest.B4, hosttest.B6}

// No packet comes earlier than the delay, and the quickest of several not much
// later, whatever else the machine does.
func TestRelayDelays(t *testing.T) {
	for _, delay := range []time.Duration{100 * time.Microsecond, time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			a, b, relay := hosttest.PairWithDelay(t, delay)
			// Only towards B, so that it is one way that is measured.
			relay.BtoA.Change(func(c *host.Conditions) { c.Delay = 0 })
			for _, addr := range addrsOfB {
				out, in := datagrams(t, a, b, addr)
				var late []time.Duration
				for i := range max(3, min(100, int(200*time.Millisecond/delay))) {
					start := time.Now()
					send(t, out, i)
					receive(t, in, i)
					late = append(late, time.Since(start)-delay)
				}
				slices.Sort(late)
				t.Logf("%v: late by %v at least, %v at the median, %v at most", addr, late[0], late[len(late)/2], late[len(late)-1])
				if late[0] < 0 {
					t.Errorf("a packet came %v too early", -late[0])
				}
				if late[0] > 20*time.Millisecond {
					t.Errorf("all packets came %v late", late[0])
				}
			}
		})
	}
}

// A TCP handshake takes a way there and a way back, and the quickest of several not
// much longer.
func TestRelayDelaysBothWays(t *testing.T) {
	const there, back = 20 * time.Millisecond, 40 * time.Millisecond
	a, b, relay := hosttest.PairWithDelay(t, there)
	relay.BtoA.Change(func(c *host.Conditions) { c.Delay = back })
	for _, addr := range addrsOfB {
		quickest := time.Hour
		for range 3 {
			start := time.Now()
			dial(t, a, b, addr)
			quickest = min(quickest, time.Since(start))
		}
		if quickest < there+back || quickest > 4*(there+back) {
			t.Errorf("%v: connecting took %v, want %v", addr, quickest, there+back)
		}
	}
}

// TCP fills the line, in packets of many segments.
func TestRelayCarriesMuch(t *testing.T) {
	if testing.Short() {
		t.Skip("moves much")
	}
	const size = 64 << 20
	a, b, relay := hosttest.PairWithDelay(t, time.Millisecond)
	for _, addr := range addrsOfB {
		carried := relay.AtoB.Counts().Carried
		start := time.Now()
		transfer(t, a, b, addr, size)
		took := time.Since(start)
		carried = relay.AtoB.Counts().Carried - carried
		t.Logf("%v: %.0f MB/s in %d packets", addr, size/took.Seconds()/1e6, carried)
		if carried > size/10000 {
			t.Errorf("%d packets carried %d bytes: they were cut into segments", carried, size)
		}
	}
	if counts := relay.AtoB.Counts(); counts.Lost+counts.Dropped+counts.Overflowed > 0 {
		t.Errorf("not every packet was carried: %+v", counts)
	}
}

// The same packets get lost with the same seed, and about as many as demanded.
func TestRelayLoses(t *testing.T) {
	const n, loss = 1000, 0.1
	lost := func(seed uint64) (lost []int) {
		a, b, relay := hosttest.PairWithRelay(t, host.RelayOptions{Seed: seed, Conditions: host.Conditions{Loss: loss}})
		out, in := datagrams(t, a, b, hosttest.B4)
		for i := range n {
			before := relay.AtoB.Counts()
			send(t, out, i)
			after := waitCounts(t, relay.AtoB, func(c host.Counts) bool { return c != before })
			if after.Lost > before.Lost {
				lost = append(lost, i)
				continue
			}
			receive(t, in, i)
		}
		return lost
	}
	first := lost(1)
	if got := len(first); got < n*loss/2 || got > n*loss*2 {
		t.Errorf("%d of %d packets were lost, want about %v", got, n, n*loss)
	}
	if again := lost(1); !slices.Equal(again, first) {
		t.Errorf("the same seed lost\n%v, then\n%v", first, again)
	}
	if other := lost(2); slices.Equal(other, first) {
		t.Errorf("another seed lost the same packets")
	}
}

// Some packets are overtaken, none is lost.
func TestRelayReorders(t *testing.T) {
	const n = 200
	a, b, relay := hosttest.PairWithRelay(t, host.RelayOptions{Conditions: host.Conditions{Reorder: 0.1, ReorderBy: 300 * time.Millisecond}})
	out, in := datagrams(t, a, b, hosttest.B6)
	greet(t, a, b, hosttest.B6)
	for i := range n {
		send(t, out, i)
	}
	var order []int
	for range n {
		order = append(order, next(t, in))
	}
	overtaken, sorted := 0, slices.Sorted(slices.Values(order))
	for i := range n {
		if sorted[i] != i {
			t.Fatalf("%d came %d times", i, count(order, i))
		}
		if i > 0 && order[i] < order[i-1] {
			overtaken++
		}
	}
	if overtaken == 0 {
		t.Errorf("all came in order")
	}
	// Without, and with a delay that becomes shorter, they stay in order.
	var entered atomic.Int32
	relay.AtoB.Change(func(c *host.Conditions) {
		*c = host.Conditions{Delay: 200 * time.Millisecond, Drop: func([]byte) bool {
			entered.Add(1)
			return false
		}}
	})
	for i := range n {
		if i == n/2 {
			waitCounts(t, relay.AtoB, func(host.Counts) bool { return entered.Load() == n/2 })
			relay.AtoB.Change(func(c *host.Conditions) { c.Delay = 0 })
		}
		send(t, out, i)
	}
	for i := range n {
		receive(t, in, i)
	}
}

// What Drop chooses does not arrive, in that direction and as long as it is set.
func TestRelayDrops(t *testing.T) {
	a, b, relay := hosttest.PairWithDelay(t, 0)
	for _, addr := range addrsOfB {
		out, in := datagrams(t, a, b, addr)
		greet(t, a, b, addr)
		before := relay.AtoB.Counts().Dropped
		relay.AtoB.Change(func(c *host.Conditions) {
			c.Drop = func(packet []byte) bool {
				if version := packet[0] >> 4; (version == 4) != addr.Is4() {
					t.Errorf("IP version %d", version)
				}
				return bytes.HasSuffix(packet, binary.BigEndian.AppendUint64(nil, 1))
			}
		})
		for i := range 3 {
			send(t, out, i)
		}
		receive(t, in, 0)
		receive(t, in, 2)
		relay.AtoB.Change(func(c *host.Conditions) { c.Drop = nil })
		send(t, out, 1)
		receive(t, in, 1)
		if got := relay.AtoB.Counts().Dropped - before; got != 1 {
			t.Errorf("%v: counted %d dropped packets", addr, got)
		}
	}
}

// A connection survives a blackhole, and hears of nothing meanwhile.
func TestRelayBlackhole(t *testing.T) {
	a, b, relay := hosttest.PairWithDelay(t, time.Millisecond)
	client, server := dial(t, a, b, hosttest.B4)
	for _, p := range []*host.Path{relay.AtoB, relay.BtoA} {
		p.Change(func(c *host.Conditions) { c.Blackhole = true })
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	waitCounts(t, relay.AtoB, func(c host.Counts) bool { return c.Dropped > 1 }) // sent again, too
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if n, err := server.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v through a blackhole", got[:n], err)
	}
	for _, p := range []*host.Path{relay.AtoB, relay.BtoA} {
		p.Change(func(c *host.Conditions) { c.Blackhole = false })
	}
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

// What does not fit on the line is dropped, the last first.
func TestRelayLimit(t *testing.T) {
	const n, fit = 10, 4
	a, b, relay := hosttest.PairWithRelay(t, host.RelayOptions{Limit: fit * 2 << 10, Conditions: host.Conditions{Delay: 300 * time.Millisecond}})
	out, in := datagrams(t, a, b, hosttest.B4)
	greet(t, a, b, hosttest.B4)
	for i := range n {
		send(t, out, i)
	}
	for i := range fit {
		receive(t, in, i)
	}
	if got := waitCounts(t, relay.AtoB, func(c host.Counts) bool { return c.Carried == fit+1 }); got.Overflowed != n-fit {
		t.Errorf("%d packets were carried and %d dropped, want %d and %d", got.Carried-1, got.Overflowed, fit, n-fit)
	}
}

// What comes in faster than the path takes it is lost, but counted.
func TestRelayCountsWhatItMisses(t *testing.T) {
	const n = 1000
	a, b, relay := hosttest.PairWithDelay(t, 0)
	out, in := datagrams(t, a, b, hosttest.B4)
	greet(t, a, b, hosttest.B4)
	taken := make(chan struct{})
	take := sync.OnceFunc(func() { close(taken) })
	defer take()
	relay.AtoB.Change(func(c *host.Conditions) {
		c.Drop = func([]byte) bool {
			<-taken
			return false
		}
	})
	for i := range n {
		send(t, out, i)
	}
	take()
	receive(t, in, 0)
	waitCounts(t, relay.AtoB, func(c host.Counts) bool { return c.Carried > 100 })
	send(t, out, n) // what was lost shows with the next packet
	waitCounts(t, relay.AtoB, func(c host.Counts) bool {
		return c.Overflowed > n/2 && c.Carried+c.Overflowed >= n+2
	})
}

// With one segment a packet, each is as small as the MTU demands.
func TestRelaySegments(t *testing.T) {
	const size, mtu = 1 << 20, 4000
	a, b, relay := hosttest.PairWithRelay(t, host.RelayOptions{Segments: 1, MTU: mtu})
	var longest atomic.Int64
	relay.AtoB.Change(func(c *host.Conditions) {
		c.Drop = func(packet []byte) bool {
			longest.Store(max(longest.Load(), int64(len(packet))))
			return false
		}
	})
	transfer(t, a, b, hosttest.B6, size)
	if got := longest.Load(); got != mtu {
		t.Errorf("the longest packet has %d bytes, want %d", got, mtu)
	}
}

// Close leaves nothing behind, whichever of the hosts is there still.
func TestRelayCloses(t *testing.T) {
	a, b := hosttest.New(t), hosttest.New(t)
	for i := range 3 {
		relay, err := host.NewRelay(a, b, "net0", host.RelayOptions{Conditions: host.Conditions{Delay: time.Hour}})
		if err != nil {
			t.Fatal(i, err)
		}
		if err := a.AddAddr("net0", netip.PrefixFrom(hosttest.A4, 24)); err != nil {
			t.Fatal(err)
		}
		hosttest.Do(t, a, func() error {
			conn, err := net.Dial("udp", netip.AddrPortFrom(hosttest.B4, 9).String())
			if err != nil {
				return err
			}
			_, err = conn.Write([]byte("never arrives"))
			return errors.Join(err, conn.Close())
		})
		if err := relay.Close(); err != nil {
			t.Fatal(err)
		}
		for _, h := range []*host.Host{a, b} {
			if _, err := h.Netlink().LinkByName("net0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
				t.Errorf("net0 is there still: %v", err)
			}
		}
	}
	if _, err := host.NewRelay(a, b, "a name that is too long", host.RelayOptions{}); err == nil {
		t.Error("no error for a bad name")
	}
}

// datagrams gives sockets for send and receive.
func datagrams(t *testing.T, from, to *host.Host, addr netip.Addr) (out net.Conn, in net.PacketConn) {
	t.Helper()
	hosttest.Do(t, to, func() (err error) {
		in, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	t.Cleanup(func() { in.Close() })
	hosttest.Do(t, from, func() (err error) {
		out, err = net.Dial("udp", in.LocalAddr().String())
		return err
	})
	t.Cleanup(func() { out.Close() })
	return out, in
}

func send(t *testing.T, out net.Conn, number int) {
	t.Helper()
	if _, err := out.Write(binary.BigEndian.AppendUint64(nil, uint64(number))); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, in net.PacketConn, number int) {
	t.Helper()
	if got := next(t, in); got != number {
		t.Fatalf("received %d, want %d", got, number)
	}
}

func next(t *testing.T, in net.PacketConn) int {
	t.Helper()
	if err := in.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	if _, _, err := in.ReadFrom(b); err != nil {
		t.Fatal(err)
	}
	return int(binary.BigEndian.Uint64(b))
}

func count(numbers []int, number int) (n int) {
	for _, i := range numbers {
		if i == number {
			n++
		}
	}
	return n
}

func waitCounts(t *testing.T, p *host.Path, done func(host.Counts) bool) host.Counts {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Microsecond) {
		c := p.Counts()
		if done(c) {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("the path stays at %+v", c)
		}
	}
}

// dial connects to a listener that is gone afterwards.
func dial(t *testing.T, from, to *host.Host, addr netip.Addr) (client, server net.Conn) {
	t.Helper()
	var listener net.Listener
	hosttest.Do(t, to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer listener.Close()
	hosttest.Do(t, from, func() (err error) {
		client, err = net.Dial("tcp", listener.Addr().String())
		return err
	})
	t.Cleanup(func() { client.Close() })
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// transfer sends that many bytes over a new connection and checks them.
func transfer(t *testing.T, from, to *host.Host, addr netip.Addr, size int) {
	t.Helper()
	client, server := dial(t, from, to, addr)
	block := bytes.Repeat([]byte("0123456789abcde"), 1<<12)
	sent := make(chan error, 1)
	go func() {
		for left := size; left > 0; left -= len(block) {
			if _, err := client.Write(block[:min(left, len(block))]); err != nil {
				sent <- err
				return
			}
		}
		sent <- client.(*net.TCPConn).CloseWrite()
	}()
	got, total := make([]byte, len(block)), 0
	for {
		n, err := io.ReadFull(server, got)
		if !bytes.Equal(got[:n], block[:n]) {
			t.Fatalf("other bytes came than were sent, after %d", total)
		}
		total += n
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			break
		}
	}
	if err := <-sent; err != nil || total != size {
		t.Fatal(fmt.Errorf("sent %d bytes (%w), %d came", size, err, total))
	}
}
