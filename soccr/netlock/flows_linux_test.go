package netlock

import (
	"net/netip"
	"testing"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

var _ soccr.FlowsPreparer = (*Lock)(nil)

// Pairs are flows: all of them are locked, and unlocked.
func TestLockFlows(t *testing.T) {
	l := newTestLock(t, hosttest.New(t))
	flows := manyFlows(10)
	var ends [][2]netip.AddrPort
	for _, f := range flows {
		ends = append(ends, [2]netip.AddrPort{f.Local, f.Remote})
	}
	must(t, l.LockFlows(ends))
	for _, f := range flows {
		if _, locked := l.flows[f]; !locked {
			t.Errorf("%v is not locked", f)
		}
	}
	must(t, l.UnlockFlows(ends[:9]))
	if _, locked := l.flows[flows[9]]; !locked || len(l.flows) != 1 {
		t.Errorf("%d flows are locked", len(l.flows))
	}
}
