package soccr_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/soccr"
)

// Until Resume, nothing of a restored connection leaves its host: not what stands for
// the peer while it is restored, nor an answer to that, nor what waits in its queues.
// In the states that take segments of the peer's, whose answers the kernel sends at
// once, it is the lock that keeps them here.
func TestNothingLeavesBeforeResume(t *testing.T) {
	for _, stage := range stages {
		for _, f := range families {
			for _, primed := range []bool{false, true} {
				name := stage.state.String() + "/" + f.name
				if primed {
					name += "/primed"
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					n := newNetwork(t)
					load := load{received: 3000, sent: 2345, unsent: 1000}
					if stage.acked {
						load.sent, load.unsent = 0, 0
					}
					conn, _, _ := n.reach(t, f, stage, load)
					snap := n.checkpoint(t, conn)
					var left atomic.Int32
					var last atomic.Pointer[wire.Segment]
					var capture *wire.Capture
					hosttest.Do(t, n.there, func() (err error) {
						capture, err = wire.Watch("net0", func(s wire.Segment) {
							if s.Dst.Port() == snap.Remote.Port() {
								left.Add(1)
								last.Store(&s)
							}
						})
						return err
					})
					options := []soccr.Option{soccr.WithLock(n.lock)}
					if primed {
						options = append(options, soccr.WithPath(soccr.PathSame))
					}
					s, _ := n.pausedWith(t, snap, options...)
					time.Sleep(50 * time.Millisecond)
					if k := left.Load(); k > 0 {
						t.Errorf("%d packets left before Resume, the last is %v", k, last.Load())
					}
					if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
						t.Fatal(err)
					}
					if err := s.Resume(); err != nil {
						t.Fatal(err)
					}
					if stage.state == soccr.StateEstablished { // what would have been seen
						eventually(t, "something leaves", func() bool { return left.Load() > 0 })
					}
					if _, err := capture.Stop(); err != nil {
						t.Fatal(err)
					}
				})
			}
		}
	}
}
