package soccr

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever a snapshot says, what is primed is bounded, and all dummies of a round
// are acknowledged in it: nothing is left that a timer could send.
func TestPlanPriming(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	now := time.UnixMilli(1_700_000_000_000)
	pick := func(of ...uint32) uint32 {
		if i := random.IntN(len(of) + 1); i < len(of) {
			return of[i]
		}
		return random.Uint32()
	}
	for range 20_000 {
		snap := Snapshot{State: StateEstablished, MSS: 1 + random.Uint32N(65535), Timestamp: Timestamp{Enabled: random.IntN(2) == 0}}
		snap.Options.Congestion = []string{"", "cubic", "bbr"}[random.IntN(3)]
		snap.SendQueue = make([]byte, random.IntN(20_000))
		snap.Path = Path{
			RTT: min(pick(0, 1, 50, 1000, 40_000, 200_000), maxRTT), MinRTT: pick(0, 1, 1000, 40_000), RTO: pick(0, 200_000, 244_000, 1_000_000),
			Cwnd: pick(0, 1, 10, 11, 20, 21, 45, 60, 400, 8192), Ssthresh: pick(0, 10, 400),
			PacingRate: random.Uint64(), Idle: pick(0, 999, 1000), Saved: now.UnixMilli() - int64(random.IntN(3000)),
		}
		behind := random.IntN(20_000)
		p := planPriming(&snap, behind, PathPolicy(random.IntN(4)), time.Duration(pick(0, maxRTT))*time.Microsecond, now)
		segments, _ := p.largest()
		if segments > maxPrimed+2*maxPrimed/100 || len(p.rounds) > 300 {
			t.Fatalf("%+v: %d segments at once in %d rounds", snap.Path, segments, len(p.rounds))
		}
		for _, round := range p.rounds {
			left := round.dummies
			for _, ack := range round.acks {
				if ack.dummies < 1 {
					t.Fatalf("%+v: an acknowledgement of %d dummies", snap.Path, ack.dummies)
				}
				left -= ack.dummies
			}
			if left != 0 || round.dummies < 1 {
				t.Fatalf("%+v: %d of %d dummies of a round are left", snap.Path, left, round.dummies)
			}
		}
		if p.rounds != nil && p.bytes() < behind {
			t.Fatalf("%+v: %d dummies, with segments %d bytes behind", snap.Path, p.bytes(), behind)
		}
	}
}

func TestPathPolicy(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	for _, test := range []struct {
		name            string
		policy          PathPolicy
		state           State
		queued, behind  int
		cwnd, idle      uint32
		age             int64
		primed, hasCwnd bool
	}{
		{"in use", PathAuto, StateEstablished, 0, 0, 100, 10, 50, true, true},
		{"in use, old", PathAuto, StateEstablished, 0, 0, 100, 10, 5000, true, false},
		{"in use, from a clock ahead", PathAuto, StateEstablished, 0, 0, 100, 10, -50, true, false},
		{"in use until a timeout ago", PathAuto, StateEstablished, 0, 0, 100, 244, 50, true, true},
		{"idle for longer than a timeout", PathAuto, StateEstablished, 0, 0, 100, 245, 50, false, false},
		{"idle with data in flight", PathAuto, StateEstablished, 1, 0, 100, 60_000, 50, true, true},
		{"idle with a FIN in flight", PathAuto, StateFinWait1, 0, 0, 100, 60_000, 50, true, true},
		{"idle, and the peer is behind", PathAuto, StateEstablished, 0, 1, 100, 60_000, 50, true, true},
		{"in use, but only begun", PathAuto, StateEstablished, 0, 0, 10, 10, 50, false, false},
		{"begun, with data in flight", PathAuto, StateEstablished, 1, 0, 10, 10, 50, true, false},
		{"idle", PathAuto, StateEstablished, 0, 0, 100, 60_000, 50, false, false},
		{"idle, same path", PathSame, StateEstablished, 0, 0, 100, 60_000, 5000, true, true},
		{"idle, round trip time", PathRTT, StateEstablished, 0, 0, 100, 60_000, 50, true, false},
		{"forget", PathForget, StateEstablished, 1, 0, 100, 10, 50, false, false},
	} {
		snap := Snapshot{State: test.state, MSS: 1460, Timestamp: Timestamp{Enabled: true}, Path: Path{
			RTT: 40_000, RTO: 244_000, Cwnd: test.cwnd, Idle: test.idle, Saved: now.UnixMilli() - test.age,
		}}
		snap.SendQueue = make([]byte, test.queued)
		p := planPriming(&snap, test.behind, test.policy, 0, now)
		if (p.rounds != nil) != test.primed || (p.cwnd != 0) != test.hasCwnd {
			t.Errorf("%s: %d rounds, congestion window %d", test.name, len(p.rounds), p.cwnd)
		}
	}
}

// Without timestamps it takes a wait, and the congestion window is left alone where
// its threshold would be missing.
func TestPathWait(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	for _, test := range []struct {
		name            string
		wait            time.Duration
		rtt, ssthresh   uint32
		policy          PathPolicy
		primed, hasCwnd bool
	}{
		{"no wait", 0, 40_000, 0, PathAuto, false, false},
		{"too short a wait", 39 * time.Millisecond, 40_000, 0, PathAuto, false, false},
		{"long enough", 40 * time.Millisecond, 40_000, 0, PathAuto, true, true},
		{"too long a round trip", time.Hour, 501_000, 0, PathAuto, false, false},
		{"no threshold to be had", time.Second, 40_000, 50, PathAuto, true, false},
		{"round trip time", time.Second, 40_000, 0, PathRTT, true, false},
		{"forget", time.Second, 40_000, 0, PathForget, false, false},
	} {
		snap := Snapshot{State: StateEstablished, MSS: 1460, SendQueue: make([]byte, 1), Path: Path{
			RTT: test.rtt, RTO: 244_000, Cwnd: 100, Ssthresh: test.ssthresh, Saved: now.UnixMilli() - 50,
		}}
		p := planPriming(&snap, 0, test.policy, test.wait, now)
		if (p.rounds != nil) != test.primed || (p.cwnd != 0) != test.hasCwnd {
			t.Errorf("%s: %d rounds, congestion window %d", test.name, len(p.rounds), p.cwnd)
		}
	}
}
