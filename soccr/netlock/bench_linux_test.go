package netlock

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// BenchmarkLockUnlock is one Add and one Remove of so many flows, half of them
// IPv6.
func BenchmarkLockUnlock(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			l := newTestLock(b, hosttest.New(b))
			flows := manyFlows(n)
			b.ReportAllocs()
			for b.Loop() {
				must(b, l.Add(flows...))
				must(b, l.Remove(flows...))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/flow")
		})
	}
}

// BenchmarkNft is the same work done by the nft program, once for the lock and
// once to unlock.
func BenchmarkNft(b *testing.B) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		b.Skip(err)
	}
	for _, n := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			h := hosttest.New(b)
			run := func(script []byte) {
				hosttest.Do(b, h, func() error {
					cmd := exec.Command(nft, "-f", "-")
					cmd.Stdin = bytes.NewReader(script)
					if out, err := cmd.CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
			}
			run([]byte(`table inet lock {
				set flows4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
				set flows6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; }
			}`))
			var lock, unlock bytes.Buffer
			for _, f := range manyFlows(n) {
				set := "flows4"
				if f.Local.Addr().Is6() {
					set = "flows6"
				}
				element := fmt.Sprintf("element inet lock %s { %s . %d . %s . %d }\n", set,
					f.Local.Addr(), f.Local.Port(), f.Remote.Addr(), f.Remote.Port())
				lock.WriteString("add " + element)
				unlock.WriteString("delete " + element)
			}
			for b.Loop() {
				run(lock.Bytes())
				run(unlock.Bytes())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/flow")
		})
	}
}

// BenchmarkNewClose is the life of a lock without flows.
func BenchmarkNewClose(b *testing.B) {
	h := hosttest.New(b)
	for b.Loop() {
		l, err := New(WithNetNS(h.FD()))
		must(b, err)
		must(b, l.Close())
	}
}
