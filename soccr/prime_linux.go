package soccr

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/rawfin"
)

// pathOf is what TCP_INFO tells of the path.
func pathOf(info *tcpinfo.Info) Path {
	p := Path{
		RTT: info.Rtt, RTTVar: info.Rttvar, MinRTT: info.Min_rtt, RTO: info.Rto,
		Cwnd: info.Snd_cwnd, Ssthresh: info.Snd_ssthresh,
		Idle: info.Last_data_sent, Saved: time.Now().UnixMilli(),
	}
	if p.Ssthresh >= infinite {
		p.Ssthresh = 0
	}
	const recovering, lost = 3, 4 // TCP_CA_Recovery, TCP_CA_Loss
	if info.Ca_state == recovering || info.Ca_state == lost {
		p.Cwnd = max(p.Cwnd, p.Ssthresh) // where it will be when that is over
	}
	if info.Min_rtt == ^uint32(0) {
		p.MinRTT = 0
	}
	if info.Pacing_rate < 1<<40 {
		p.PacingRate = info.Pacing_rate
	}
	return p
}

var (
	// errUnprimed: the connection is restored again without priming,
	errUnprimed = errors.New("the socket could not be primed")
	// errImprecise: after a few attempts.
	errImprecise = errors.New("not in time")
)

const primingAttempts = 3

// prime has the socket learn its path before its queues are filled. The dummies
// end where the connection's own bytes begin: when they are acknowledged, snd_una
// and snd_nxt are what they have to be, and nothing is acknowledged for the peer
// but our own dummies. They are queued in repair mode, which sends nothing, and
// acknowledged within milliseconds, or a round trip time, before any timer. What the kernel would
// have to say to the peer meanwhile cannot leave: the gate drops all packets but
// those with our mark, and pure acknowledgements are not answered.
func (s *Socket) prime(snap *Snapshot, p *priming) error {
	if len(p.rounds) == 0 {
		s.proveWay(snap)
		return nil
	}
	if err := s.closeGate(); err != nil {
		return errors.Join(errUnprimed, err)
	}
	injector, err := s.injector(door{})
	if err == nil {
		err = s.primeBy(injector, snap, p)
	}
	if err != nil {
		return errors.Join(errUnprimed, err)
	}
	s.way = proven
	return nil
}

// The way by which Resume delivers packets and nudges: a firewall may be in it that
// rejects what has our mark, with a RST to the peer. So it is tried while the flow
// is still locked, or not used.
const (
	unknown = iota
	proven
	barred
)

var errBarred = errors.New("marked packets do not reach the socket")

// proveWay tries the way, if packets are to be delivered, by an acknowledgement of
// nothing new, which is not answered.
func (s *Socket) proveWay(snap *Snapshot) {
	if s.options.tap == nil && s.options.packets == nil || s.options.mark == 0 || s.way != unknown || !snap.State.row().connected {
		return
	}
	s.way = barred
	injector, err := s.injector(door{})
	if err == nil {
		err = injector.Inject(rawfin.Segment{
			Src: snap.Remote, Dst: snap.Local, Seq: snap.recvStart(), Ack: snap.sndUna(), Flags: rawfin.ACK,
		})
	}
	if err == nil {
		err = patiently(func() (bool, error) {
			info, err := s.info()
			return info.Segs_in > 0, err
		}, errBarred)
	}
	if err == nil {
		s.way = proven
	}
	s.effects.Undelivered = errors.Join(s.effects.Undelivered, err)
}

func (s *Socket) primeBy(injector *rawfin.Injector, snap *Snapshot, p *priming) error {
	segments, bytes := p.largest()
	size := max(segments*bufferPer1, 2*bytes)
	if now, err := s.bufferSize(sendBuffer); err != nil || now < size {
		if err := errors.Join(err, s.setBuffer(sendBuffer, now, size)); err != nil {
			return err
		}
	}
	tick := uint32(1000) // microseconds
	if snap.Timestamp.Microseconds {
		tick = 1
	}
	segment := rawfin.Segment{
		Src: snap.Remote, Dst: snap.Local, Seq: snap.RecvSeq - uint32(len(snap.RecvQueue)),
		Ack: snap.sndUna() - uint32(p.bytes()), Flags: rawfin.ACK, Timestamps: snap.Timestamp.Enabled,
	}
	dummies := make([]byte, bytes)
	for i := range p.rounds {
		round := &p.rounds[i]
		if err := s.queueDummies(round, dummies[:round.dummies]); err != nil {
			return err
		}
		for _, ack := range round.acks {
			segment.Ack += uint32(ack.dummies)
			if segment.Timestamps {
				now, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
				if err != nil {
					return err
				}
				segment.TSEcr = uint32(now) - ack.rtt/tick // rounded up by the clock
				if segment.TSEcr == 0 {
					segment.TSEcr-- // 0 would count as none
				}
			}
			if err := injector.Inject(segment); err != nil {
				return err
			}
		}
	}
	return s.checkPrimed(p, time.Duration(snap.Path.RTT)*time.Microsecond)
}

// queueDummies queues those of one round, as sent.
func (s *Socket) queueDummies(round *primingRound, dummies []byte) error {
	if round.wait > 0 {
		return s.queueReal(dummies, round.wait)
	}
	return s.inQueue(SendQueue, func() error {
		each := 1
		if round.whole {
			each = len(dummies)
		}
		for ; len(dummies) > 0; dummies = dummies[each:] {
			if _, err := s.write(dummies[:each]); err != nil {
				return err
			}
		}
		return nil
	})
}

// queueReal queues a segment of which the kernel believes that it has just sent it,
// and waits. What is written in repair mode gives no round trip time (TCPCB_REPAIRED);
// what is written outside does, but stays unsent, because the peer's window is closed
// as connect(2) left it. The last byte, written in repair mode, joins that segment
// and has it marked as sent (tcp_write_xmit).
func (s *Socket) queueReal(dummies []byte, wait time.Duration) error {
	head, last := dummies[:len(dummies)-1], dummies[len(dummies)-1:]
	err := s.outOfRepair(func() error {
		_, err := s.write(head)
		return err
	})
	if err != nil {
		return err
	}
	sent := time.Now()
	err = s.inQueue(SendQueue, func() error {
		_, err := s.write(last)
		return err
	})
	time.Sleep(time.Until(sent.Add(wait)))
	return err
}

// checkPrimed waits until the last forged acknowledgement has arrived, and finds out
// whether the socket has learned what it was to. What is not so has the samples
// waited for a CPU, or HyStart is switched off.
func (s *Socket) checkPrimed(p *priming, rtt time.Duration) error {
	var info tcpinfo.Info
	err := patiently(func() (done bool, err error) {
		info, err = s.info()
		return info.Unacked == 0, err
	}, errBarred)
	if err != nil {
		return err
	}
	bound := max(rtt/8, 2*time.Millisecond)
	if got := time.Duration(info.Rtt) * time.Microsecond; got < rtt-bound || got > rtt+bound {
		return fmt.Errorf("%w: the round trip time has become %v, want %v", errImprecise, got, rtt)
	}
	const tick = 10_000 // microseconds
	if got := info.Rto; p.rto != 0 && got > p.rto+p.rto/5+tick {
		return fmt.Errorf("%w: the retransmission timeout has become %d µs, want %d", errImprecise, got, p.rto)
	}
	if got, bound := int(info.Snd_cwnd), p.cwnd/10; p.cwnd != 0 && (got < p.cwnd-bound && !p.lenient || got > p.cwnd+bound) {
		return fmt.Errorf("%w: the congestion window has become %d segments, want %d", errImprecise, got, p.cwnd)
	}
	if p.threshold && info.Snd_ssthresh >= infinite && !p.lenient {
		return fmt.Errorf("%w: slow start has got no threshold", errImprecise)
	}
	return nil
}

// patiently waits for what as a rule is so at once, but not as long as a timer
// takes.
func patiently(done func() (bool, error), failure error) error {
	const patience = 5 * time.Millisecond
	for start := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Since(start) > patience {
			return failure
		}
	}
}
