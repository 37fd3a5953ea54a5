package netlock

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// What is prepared is locked, and unlocked, by one small transaction, in whatever
// order and however often it is named; until then its packets pass. The kernel
// keeps nothing of it.
func TestPrepare(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l := newTestLock(t, a)
	flows := append(manyFlows(5000), c.Flow)
	for range 2 {
		must(t, l.Prepare(flows...))
		must(t, l.Prepare(flows[:100]...)) // they are already
		if n := elementsIn(t, a, l); n != len(flows) {
			t.Errorf("%d flows in the kernel, want %d", n, len(flows))
		}
		c.wantFree()
		slices.Reverse(flows)
		named := slices.Concat(flows, flows[:7])
		must(t, l.Add(named...))
		wantSmall(t, l)
		c.wantLocked(other)
		must(t, l.Add(flows[:100]...)) // they are already
		must(t, l.Remove(named...))
		wantSmall(t, l)
		c.wantFree()
		wantInKernel(t, a, l, 0)
	}
	if n := len(l.groups); n != 2 {
		t.Errorf("%d groups", n)
	}
}

// wantInKernel waits until the kernel has so many flows, and so the lock.
func wantInKernel(t *testing.T, h *host.Host, l *Lock, want int) {
	t.Helper()
	for end := time.Now().Add(soon); elementsIn(t, h, l) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d flows in the kernel, want %d", elementsIn(t, h, l), want)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.flows) != want {
		t.Errorf("%d flows are known, want %d", len(l.flows), want)
	}
}

// wantSmall looks at the last transaction with flows or leases.
func wantSmall(t *testing.T, l *Lock) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if size := len(l.table.batch); size > 1000 {
		t.Errorf("a transaction of %d bytes", size)
	}
}

// Some of what is prepared can be locked alone, and others with all of it.
func TestPreparedInPart(t *testing.T) {
	t.Parallel()
	a, b, c, other := pair(t)
	third := connect(t, a, b, hosttest.A4, false)
	for _, test := range []struct {
		name           string
		prepared       [][]Flow
		removed, added []Flow
		locked, free   []*conn
		left           int // that are prepared still
	}{
		{"a part", [][]Flow{{c.Flow, other.Flow}}, nil, []Flow{c.Flow}, []*conn{c}, []*conn{other}, 0},
		{"a part twice", [][]Flow{{c.Flow, other.Flow}}, nil, []Flow{c.Flow, c.Flow}, []*conn{c}, []*conn{other}, 0},
		{"a part of one of two", [][]Flow{{c.Flow}, {other.Flow, third.Flow}}, nil, []Flow{c.Flow, other.Flow}, []*conn{c, other}, []*conn{third}, 0},
		{"more", [][]Flow{{c.Flow}}, nil, []Flow{c.Flow, other.Flow}, []*conn{c, other}, []*conn{third}, 0},
		{"all of two", [][]Flow{{c.Flow}, {other.Flow}}, nil, []Flow{other.Flow, c.Flow}, []*conn{c, other}, []*conn{third}, 0},
		{"others", [][]Flow{{c.Flow}}, nil, []Flow{other.Flow}, []*conn{other}, []*conn{c}, 1},
		{"what was removed", [][]Flow{{c.Flow, other.Flow}}, []Flow{c.Flow}, []Flow{other.Flow}, []*conn{other}, []*conn{c}, 0},
		{"what was removed whole", [][]Flow{{c.Flow, other.Flow}}, []Flow{other.Flow, c.Flow}, []Flow{c.Flow}, []*conn{c}, []*conn{other}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newTestLock(t, a)
			for _, flows := range test.prepared {
				must(t, l.Prepare(flows...))
			}
			if must(t, l.Remove(test.removed...)); test.removed != nil {
				wantInKernel(t, a, l, 0)
			}
			must(t, l.Add(test.added...))
			for _, c := range test.locked {
				c.wantLocked(test.free[0])
			}
			must(t, l.Remove(test.locked[0].Flow))
			test.locked[0].wantFree()
			must(t, l.Remove(test.added...))
			for _, c := range slices.Concat(test.locked, test.free) {
				c.wantFree()
			}
			wantInKernel(t, a, l, test.left)
			// What is left does no harm.
			must(t, l.Prepare(c.Flow))
			must(t, l.Add(c.Flow))
			must(t, l.Prepare(other.Flow))
			must(t, l.Add(c.Flow, other.Flow))
			c.wantLocked(third)
			other.wantLocked(third)
			must(t, l.Close())
			c.wantFree()
			other.wantFree()
		})
	}
}

// What the kernel refuses is not prepared.
func TestNotPrepared(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l := newTestLock(t, a)
	g, err := l.emptyGroup()
	must(t, err)
	must(t, l.table.change(unix.NFT_MSG_NEWSETELEM, []placed{{c.Flow, g}}, nil))
	if err := l.Prepare(other.Flow, c.Flow); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a flow that is there: %v, want EEXIST", err)
	}
	if len(l.flows) != 0 || elementsIn(t, a, l) != 0 {
		t.Errorf("%d flows are known and %d in the kernel", len(l.flows), elementsIn(t, a, l))
	}
	must(t, l.Prepare(other.Flow, c.Flow))
	must(t, l.Add(c.Flow, other.Flow))
	must(t, l.Remove(other.Flow))
	if !l.renew() {
		t.Error("the lock is lost")
	}
	c.wantLocked(other)

	// What could not be taken out of the kernel is, when the lease is renewed.
	must(t, l.Remove(c.Flow))
	wantInKernel(t, a, l, 0)
	must(t, l.table.change(unix.NFT_MSG_NEWSETELEM, []placed{{c.Flow, g}}, nil))
	l.mu.Lock()
	l.groups[g].stale = true
	l.mu.Unlock()
	if !l.renew() {
		t.Error("the lock is lost")
	}
	wantInKernel(t, a, l, 0)
}
