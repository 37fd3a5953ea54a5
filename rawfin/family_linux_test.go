package rawfin_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
)

// An injector for one family has a descriptor less, and refuses the other.
func TestWithFamily(t *testing.T) {
	v4 := segment(netip.AddrPortFrom(hosttest.A4, 1), netip.AddrPortFrom(hosttest.B4, 2), rawfin.ACK)
	v6 := segment(netip.AddrPortFrom(hosttest.A6, 1), netip.AddrPortFrom(hosttest.B6, 2), rawfin.ACK)
	for _, test := range []struct {
		name           string
		family         netip.Addr
		takes, refuses rawfin.Segment
	}{
		{"IPv4", hosttest.B4, v4, v6},
		{"IPv4-mapped", netip.AddrFrom16(hosttest.B4.As16()), v4, v6},
		{"IPv6", hosttest.B6, v6, v4},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, b := hosttest.Pair(t)
			before := len(descriptors(t))
			i := open(t, b, rawfin.WithFamily(test.family))
			if opened := len(descriptors(t)) - before; opened != 2 {
				t.Errorf("%d descriptors, want 2", opened)
			}
			if err := i.Inject(test.takes); err != nil {
				t.Error(err)
			}
			if err := i.Inject(test.refuses); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("got %v, want ErrUnsupported", err)
			}
		})
	}
}
