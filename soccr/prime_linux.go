package soccr

import (
	"errors"
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

// errUnprimed: the connection is restored again without priming.
var errUnprimed = errors.New("the socket could not be primed")

// prime has the socket learn its path before its queues are filled. The dummies
// end where the connection's own bytes begin: when they are acknowledged, snd_una
// and snd_nxt are what they have to be, and nothing is acknowledged for the peer
// but our own dummies. They are queued in repair mode, which sends nothing, and
// acknowledged within milliseconds, long before any timer. What the kernel would
// have to say to the peer meanwhile cannot leave: the gate drops all packets but
// those with our mark, and pure acknowledgements are not answered.
func (s *Socket) prime(snap *Snapshot, p *priming) error {
	if len(p.rounds) == 0 {
		return nil
	}
	if err := s.closeGate(); err != nil {
		return errors.Join(errUnprimed, err)
	}
	injection := &injection{socket: s, injectors: map[door]*rawfin.Injector{}}
	injector, err := injection.injector(door{})
	if err == nil {
		err = s.primeBy(injector, snap, p)
	}
	if err := errors.Join(err, injection.close(false)); err != nil {
		return errors.Join(errUnprimed, err)
	}
	return nil
}

func (s *Socket) primeBy(injector *rawfin.Injector, snap *Snapshot, p *priming) error {
	most := 0
	for i := range p.rounds {
		most = max(most, p.rounds[i].dummies)
	}
	if size, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || size < most*bufferPer1 {
		if err := errors.Join(err, s.setBuffer(sendBuffer, most*bufferPer1)); err != nil {
			return err
		}
	}
	tick := uint32(1000) // microseconds
	if snap.Timestamp.Microseconds {
		tick = 1
	}
	segment := rawfin.Segment{
		Src: snap.Remote, Dst: snap.Local, Seq: snap.RecvSeq - uint32(len(snap.RecvQueue)),
		Ack: snap.sndUna() - uint32(p.bytes()), Flags: rawfin.ACK, Timestamps: true,
	}
	dummies := make([]byte, most)
	for i := range p.rounds {
		round := &p.rounds[i]
		err := s.inQueue(SendQueue, func() error {
			for j := range round.dummies {
				if n, err := s.write(dummies[j : j+1]); n != 1 {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, ack := range round.acks {
			now, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
			if err != nil {
				return err
			}
			segment.Ack += uint32(ack.dummies)
			segment.TSEcr = uint32(now) - ack.rtt/tick // rounded up by the clock
			if segment.TSEcr == 0 {
				segment.TSEcr-- // 0 would count as none
			}
			if err := injector.Inject(segment); err != nil {
				return err
			}
		}
	}
	return s.awaitPrimed()
}

// awaitPrimed waits until the last forged acknowledgement has arrived. As a rule
// that is so at once.
func (s *Socket) awaitPrimed() error {
	const patience = 5 * time.Millisecond // less than a timer takes
	for start := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		left, err := count(s.fd, unix.SIOCOUTQ)
		if err != nil || left == 0 {
			return err
		}
		if time.Since(start) > patience {
			return errors.New("forged acknowledgements do not arrive")
		}
	}
}
