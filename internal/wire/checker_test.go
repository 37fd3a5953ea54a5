package wire_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gosoccr/gosoccr/internal/wire"
)

var (
	client = netip.MustParseAddrPort("10.0.0.1:1000")
	server = netip.MustParseAddrPort("10.0.0.2:2000")
)

// A talk is a connection to be spoiled: each method is one segment, one
// millisecond after the one before.
type talk struct {
	now      time.Time
	tick     uint32 // 0: no timestamps
	segments []wire.Segment
}

func (c *talk) add(s wire.Segment) *talk {
	c.now = c.now.Add(time.Millisecond)
	s.Time = c.now
	if c.tick != 0 {
		if c.tick++; c.tick == 0 { // which stands for none
			c.tick++
		}
		s.HasTimestamp, s.TSVal = true, c.tick
	}
	c.segments = append(c.segments, s)
	return c
}

// last changes the segment added last.
func (c *talk) last(change func(*wire.Segment)) *talk {
	change(&c.segments[len(c.segments)-1])
	return c
}

func (c *talk) fromClient(seq uint32, size int, ack uint32, window uint16) *talk {
	return c.add(wire.Segment{Src: client, Dst: server, Flags: wire.ACK, Seq: seq, Len: size, Ack: ack, Window: window})
}

func (c *talk) fromServer(seq uint32, size int, ack uint32, window uint16) *talk {
	return c.add(wire.Segment{Src: server, Dst: client, Flags: wire.ACK, Seq: seq, Len: size, Ack: ack, Window: window})
}

// The sequence numbers of the streams' first bytes; both wrap around soon.
var (
	c0 uint32 = 0xffff_ff00
	s0 uint32 = 0xffff_fff0
)

// start is a handshake with window scales of 3 (client) and 1 (server).
func start(tick uint32) *talk {
	c := &talk{now: time.Unix(1e9, 0), tick: tick}
	return c.
		fromClient(c0-1, 0, 0, 1000).last(func(s *wire.Segment) { s.Flags, s.HasScale, s.Scale = wire.SYN, true, 3 }).
		fromServer(s0-1, 0, c0, 1000).last(func(s *wire.Segment) { s.Flags, s.HasScale, s.Scale = wire.SYN|wire.ACK, true, 1 }).
		fromClient(c0, 0, s0, 1000)
}

// ended is a connection that the server ended first, up to the client's FIN.
func ended() *talk {
	return start(7).fromServer(s0, 0, c0, 1000).last(fin).fromClient(c0, 0, s0+1, 1000).last(fin)
}

func reset(s *wire.Segment) { s.Flags = wire.RST }
func fin(s *wire.Segment)   { s.Flags |= wire.FIN }

func TestChecker(t *testing.T) {
	type counts struct {
		Bytes, Again, Missing                         int64
		RSTs, Windows, Acks, Unsent, Clock, Overtaken int
		Late, Closed                                  int
		TakenBack                                     uint32
	}
	for _, test := range []struct {
		name string
		talk *talk
		from netip.AddrPort // whose counts are wanted; the other's must be faultless
		want counts
		icmp int
	}{
		{
			name: "a handshake, data and the end",
			talk: start(7).
				fromServer(s0, 100, c0, 1000).fromClient(c0, 300, s0+100, 1000).fromServer(s0+100, 0, c0+300, 1000).
				fromServer(s0+100, 0, c0+300, 1000).last(fin).fromClient(c0+300, 0, s0+101, 1000).last(fin).
				fromServer(s0+101, 0, c0+301, 1000),
			from: client, want: counts{Bytes: 300},
		}, {
			name: "RST",
			talk: start(7).fromServer(s0+9, 0, 0, 0).last(reset),
			from: server, want: counts{RSTs: 1},
		}, {
			name: "a RST for the second acknowledgement of the last FIN",
			talk: ended().fromServer(s0+1, 0, c0+1, 1000).fromClient(c0+1, 0, 0, 0).last(reset),
			from: client, want: counts{Late: 1},
		}, {
			name: "a RST for the last FIN",
			talk: ended().fromClient(c0+1, 0, 0, 0).last(reset),
			from: client, want: counts{RSTs: 1},
		}, {
			name: "a RST for an old acknowledgement, after the last FIN",
			talk: ended().fromServer(s0+1, 0, c0+1, 1000).fromClient(c0, 0, 0, 0).last(reset),
			from: client, want: counts{RSTs: 1},
		}, {
			name: "retransmission, in part",
			talk: start(7).fromServer(s0, 100, c0, 1000).fromServer(s0+50, 100, c0, 1000).fromServer(s0, 10, c0, 1000),
			from: server, want: counts{Bytes: 150, Again: 60},
		}, {
			name: "a hole, filled from both sides and never quite",
			talk: start(7).fromServer(s0+100, 100, c0, 1000).fromServer(s0, 20, c0, 1000).fromServer(s0+90, 20, c0, 1000).fromServer(s0+40, 10, c0, 1000),
			from: server, want: counts{Bytes: 140, Again: 10, Missing: 60},
		}, {
			name: "windows that shrink as they fill, and open",
			talk: start(7).fromClient(c0, 200, s0, 1000).fromServer(s0, 0, c0+200, 900).fromClient(c0+200, 1800, s0, 1000).
				fromServer(s0, 0, c0+2000, 0).fromServer(s0, 0, c0+2000, 500),
			from: server, want: counts{},
		}, {
			name: "a window taken back, once, however often it is said",
			talk: start(7).fromServer(s0, 0, c0, 1000).fromServer(s0, 0, c0, 990).fromServer(s0, 0, c0, 995).fromServer(s0, 0, c0, 1000),
			from: server, want: counts{Windows: 1, TakenBack: 20},
		}, {
			name: "a window taken back twice",
			talk: start(7).fromServer(s0, 0, c0, 1000).fromServer(s0, 0, c0, 990).fromServer(s0, 0, c0, 1000).
				fromServer(s0, 0, c0, 900).fromServer(s0, 0, c0, 900),
			from: server, want: counts{Windows: 2, TakenBack: 200},
		}, {
			name: "a window taken back by a scale that was lost",
			talk: start(7).fromClient(c0, 0, s0, 1000).fromClient(c0, 0, s0, 125),
			from: client, want: counts{Windows: 1, TakenBack: 7000},
		}, {
			name: "a window taken back, without timestamps",
			talk: start(0).fromServer(s0, 0, c0, 1000).fromServer(s0, 0, c0, 0),
			from: server, want: counts{Windows: 1, Closed: 1, TakenBack: 2000},
		}, {
			name: "acknowledgements of other CPUs' making",
			talk: start(7).fromClient(c0, 100, s0, 1000).fromServer(s0, 0, c0+100, 1000).
				fromServer(s0, 0, c0, 1000).last(func(s *wire.Segment) { s.TSVal -= 2 }).
				fromServer(s0, 0, c0+100, 900).last(func(s *wire.Segment) { s.TSVal -= 2 }),
			from: server, want: counts{Overtaken: 2},
		}, {
			name: "data overtaken by an acknowledgement",
			talk: start(7).fromServer(s0+100, 0, c0, 1000).
				fromServer(s0, 100, c0, 1000).last(func(s *wire.Segment) { s.TSVal -= 2 }),
			from: server, want: counts{Bytes: 100, Overtaken: 1},
		}, {
			name: "data that never comes, though it was sent",
			talk: start(7).fromServer(s0+100, 0, c0, 1000),
			from: server, want: counts{Missing: 100},
		}, {
			name: "a window probe, that was long on its way",
			talk: start(7).fromClient(c0, 100, s0, 1000).fromServer(s0, 50, c0+100, 1000).fromClient(c0+100, 0, s0+50, 1000).
				fromClient(c0+99, 0, s0, 900),
			from: client, want: counts{Bytes: 100},
		}, {
			name: "a window probe for what was never sent",
			talk: start(7).fromClient(c0, 100, s0, 1000).fromServer(s0, 0, c0+100, 1000).fromClient(c0+99, 0, s0+1, 1000),
			from: client, want: counts{Bytes: 100, Unsent: 1},
		}, {
			name: "an acknowledgement going back",
			talk: start(7).fromClient(c0, 100, s0, 1000).fromServer(s0, 0, c0+100, 1000).fromServer(s0, 0, c0+50, 1025),
			from: server, want: counts{Acks: 1},
		}, {
			name: "an acknowledgement of bytes that were never sent",
			talk: start(7).fromClient(c0, 100, s0, 1000).fromServer(s0, 0, c0+101, 1000),
			from: server, want: counts{Unsent: 1},
		}, {
			name: "a timestamp going back, with new bytes",
			talk: start(7).fromServer(s0, 10, c0, 1000).fromServer(s0+10, 10, c0, 1000).last(func(s *wire.Segment) { s.TSVal -= 5 }),
			from: server, want: counts{Bytes: 20, Clock: 1},
		}, {
			name: "a timestamp far back, with nothing new",
			talk: start(7).fromServer(s0, 10, c0, 1000).fromServer(s0, 10, c0, 1000).last(func(s *wire.Segment) {
				s.TSVal -= 5
				s.Time = s.Time.Add(time.Second)
			}),
			from: server, want: counts{Bytes: 10, Again: 10, Clock: 1},
		}, {
			name: "timestamps that wrap around",
			talk: start(0xffff_fffc).fromServer(s0, 10, c0, 1000).fromServer(s0+10, 10, c0, 1000),
			from: server, want: counts{Bytes: 20},
		}, {
			name: "an ICMP error",
			talk: start(7).add(wire.Segment{Src: client, Dst: server, ICMP: true}),
			from: client, want: counts{}, icmp: 1,
		}, {
			name: "another connection",
			talk: start(7).fromServer(s0, 10, c0, 1000).last(func(s *wire.Segment) {
				s.Flags |= wire.RST
				s.Src = netip.AddrPortFrom(server.Addr(), 2001)
			}),
			from: server, want: counts{},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			check := wire.NewChecker(wire.Flow{A: netip.AddrPortFrom(client.Addr(), 0), B: server})
			for _, s := range test.talk.segments {
				check.Add(s)
			}
			r := check.Report()
			sent, other := r.A, r.B
			if test.from == server {
				sent, other = r.B, r.A
			}
			got := counts{
				Bytes: sent.Bytes, Again: sent.RetransmittedBytes, Missing: sent.Missing,
				RSTs: sent.RSTs, Windows: sent.WindowsTakenBack, Acks: sent.AcksBack, Unsent: sent.AcksOfUnsent,
				Clock: sent.ClockBack, Overtaken: sent.Overtaken, Late: sent.LateRSTs, Closed: sent.WindowsClosed, TakenBack: sent.LargestTakenBack,
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
			if r.ICMPErrors != test.icmp {
				t.Errorf("%d ICMP errors, want %d", r.ICMPErrors, test.icmp)
			}
			fine := test.want
			fine.Bytes, fine.Again, fine.Overtaken, fine.Late = 0, 0, 0, 0
			if err := r.Err(); (err == nil) != (fine == counts{} && test.icmp == 0) {
				t.Errorf("verdict %v", err)
			}
			if other.RSTs+other.WindowsTakenBack+other.AcksBack+other.AcksOfUnsent+other.ClockBack != 0 {
				t.Errorf("the other end is blamed: %+v", other)
			}
		})
	}
}

// A capture that starts in the middle knows nothing of what was before.
func TestCheckerFromTheMiddle(t *testing.T) {
	c := (&talk{now: time.Unix(1e9, 0), tick: 1}).
		fromClient(c0, 100, s0, 1000).
		fromServer(s0+5000, 100, c0, 1000).
		fromServer(s0+5100, 100, c0+100, 900).
		fromServer(s0+5200, 0, c0+100, 899)
	check := wire.NewChecker(wire.Flow{A: client, B: server, ScaleA: 2, ScaleB: 4})
	for _, s := range c.segments {
		check.Add(s)
	}
	r := check.Report()
	if r.B.Bytes != 200 || r.B.Missing != 0 || r.B.RetransmittedBytes != 0 {
		t.Errorf("%+v", r.B)
	}
	// The first edge was at 16000; 100+900*16 is below that.
	if r.B.WindowsTakenBack != 1 || r.B.LargestTakenBack != 16000-(100+899*16) {
		t.Errorf("%d windows taken back, by up to %d", r.B.WindowsTakenBack, r.B.LargestTakenBack)
	}
}

func TestLongestSilence(t *testing.T) {
	c := start(7).fromServer(s0, 10, c0, 1000)
	began := c.now
	c.now = c.now.Add(time.Second)
	c.fromServer(s0, 10, c0, 1000) // again is silence too
	c.now = c.now.Add(time.Second)
	c.fromServer(s0+10, 10, c0, 1000).fromServer(s0+20, 10, c0, 1000)
	check := wire.NewChecker(wire.Flow{A: client, B: server})
	for _, s := range c.segments {
		check.Add(s)
	}
	r := check.Report()
	if want := 2*time.Second + 2*time.Millisecond; r.B.LongestSilence != want || !r.B.SilentAt.Equal(began) {
		t.Errorf("silent for %v since %v, want %v since %v", r.B.LongestSilence, r.B.SilentAt, want, began)
	}
}

// However bad it is, the report stays short.
func TestFaultsAreBounded(t *testing.T) {
	c := start(7)
	for range 1000 {
		c.fromServer(s0, 0, 0, 0).last(reset)
	}
	check := wire.NewChecker(wire.Flow{A: client, B: server})
	for _, s := range c.segments {
		check.Add(s)
	}
	if r := check.Report(); r.B.RSTs != 1000 || len(r.Faults) > 16 {
		t.Errorf("%d RSTs, %d faults", r.B.RSTs, len(r.Faults))
	}
}

// A FIN that the kernel sends again is the same FIN.
func TestRetransmittedFIN(t *testing.T) {
	c := start(7).fromServer(s0, 100, c0, 1000).
		fromServer(s0+100, 0, c0, 1000).last(fin).
		fromServer(s0+100, 0, c0, 1000).last(fin)
	check := wire.NewChecker(wire.Flow{A: client, B: server})
	for _, s := range c.segments {
		check.Add(s)
	}
	if sent := check.Report().B; sent.FINs != 1 || sent.RetransmittedSegments != 1 || sent.Bytes != 100 {
		t.Errorf("%+v", sent)
	}
}

// What was agreed on in the handshake is there, and nothing else.
func TestOptionsAstray(t *testing.T) {
	plain := func(s *wire.Segment) { s.HasTimestamp = false }
	stamped := func(s *wire.Segment) { s.HasTimestamp, s.TSVal = true, 9 }
	sack := func(s *wire.Segment) { s.HasSACK = true }
	offer := func(c *talk, ends ...int) *talk {
		for _, i := range ends {
			c.segments[i].SACKPermitted = true
		}
		return c
	}
	for _, test := range []struct {
		name string
		talk *talk
		want int
	}{
		{"timestamps kept", start(7).fromServer(s0, 10, c0, 1000), 0},
		{"a timestamp missing", start(7).fromServer(s0, 10, c0, 1000).last(plain), 1},
		{"a RST has none", start(7).fromServer(s0, 0, c0, 1000).last(reset).last(plain), 0},
		{"a timestamp that was not agreed on", start(0).fromServer(s0, 10, c0, 1000).last(stamped), 1},
		{"a SACK", offer(start(7), 0, 1).fromServer(s0, 10, c0, 1000).last(sack), 0},
		{"a SACK that only one end has offered", offer(start(7), 0).fromServer(s0, 10, c0, 1000).last(sack), 1},
		{"no handshake was seen", (&talk{now: time.Unix(1e9, 0)}).fromServer(s0, 10, c0, 1000).last(stamped).last(sack), 0},
	} {
		check := wire.NewChecker(wire.Flow{A: client, B: server})
		for _, s := range test.talk.segments {
			check.Add(s)
		}
		r := check.Report()
		if r.B.OptionsAstray != test.want || r.A.OptionsAstray != 0 {
			t.Errorf("%s: %d of the server, %d of the client; want %d and none", test.name, r.B.OptionsAstray, r.A.OptionsAstray, test.want)
		}
		if (check.FaultCount() > 0) != (r.Err() != nil) {
			t.Errorf("%s: %d faults, but %v", test.name, check.FaultCount(), r.Err())
		}
	}
}
