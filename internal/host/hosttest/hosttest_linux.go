package hosttest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gosoccr/gosoccr/internal/host"
)

// Main is the TestMain of a package whose tests touch the kernel: the tests run
// as root of a network namespace of their own. Where the machine forbids that,
// such tests are skipped with the reason; with CI=true they fail.
func Main(m *testing.M) {
	if err := host.Isolate(); err != nil {
		forbidden = err
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	} else if err := errors.Join(loopbackUp(), host.LimitBuffers()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// loopbackUp lets examples talk to themselves in the tests' own namespace.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

var forbidden error

// Need skips a test that cannot run because Main could not isolate the process.
func Need(tb testing.TB) {
	tb.Helper()
	if forbidden != nil {
		tb.Skip(forbidden)
	}
}

// New makes a host that is closed when the test ends.
func New(tb testing.TB) *host.Host {
	tb.Helper()
	Need(tb)
	h, err := host.New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := h.Close(); err != nil {
			tb.Error(err)
		}
	})
	return h
}

// The addresses of the hosts that Pair makes, on their device "net0".
var (
	A4 = netip.MustParseAddr("10.77.0.1")
	B4 = netip.MustParseAddr("10.77.0.2")
	A6 = netip.MustParseAddr("fd77::1")
	B6 = netip.MustParseAddr("fd77::2")
)

// Pair makes two hosts joined by a veth pair, "net0" in both.
func Pair(tb testing.TB) (a, b *host.Host) {
	tb.Helper()
	a, b = New(tb), New(tb)
	if err := host.Connect(a, b, "net0"); err != nil {
		tb.Fatal(err)
	}
	addAddrs(tb, a, A4, A6)
	addAddrs(tb, b, B4, B6)
	return a, b
}

// PairWithDelay is Pair with a line between the hosts on which every packet is
// under way for a while.
func PairWithDelay(tb testing.TB, delay time.Duration) (a, b *host.Host, relay *host.Relay) {
	tb.Helper()
	return PairWithRelay(tb, host.RelayOptions{Conditions: host.Conditions{Delay: delay}})
}

// PairWithRelay is Pair with a relay between the hosts.
func PairWithRelay(tb testing.TB, options host.RelayOptions) (a, b *host.Host, relay *host.Relay) {
	tb.Helper()
	a, b = New(tb), New(tb)
	relay, err := host.NewRelay(a, b, "net0", options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := relay.Close(); err != nil {
			tb.Error(err)
		}
	})
	addAddrs(tb, a, A4, A6)
	addAddrs(tb, b, B4, B6)
	return a, b, relay
}

func addAddrs(tb testing.TB, h *host.Host, addrs ...netip.Addr) {
	tb.Helper()
	for _, addr := range addrs {
		bits := 24
		if addr.Is6() {
			bits = 64
		}
		if err := h.AddAddr("net0", netip.PrefixFrom(addr, bits)); err != nil {
			tb.Fatal(err)
		}
	}
}

// Do runs f inside the host and fails the test if it returns an error.
func Do(tb testing.TB, h *host.Host, f func() error) {
	tb.Helper()
	if err := h.Do(f); err != nil {
		tb.Fatal(err)
	}
}
