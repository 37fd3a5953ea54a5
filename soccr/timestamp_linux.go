package soccr

import (
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// Timestamp reads the timestamp clock; it is the zero Timestamp if none was
// negotiated.
func (s *Socket) Timestamp() (Timestamp, error) {
	info, err := s.info()
	if err != nil {
		return Timestamp{}, s.fail("read timestamp", err)
	}
	if info.Options&tcpinfo.OptTimestamps == 0 {
		return Timestamp{}, nil
	}
	t, err := s.timestamp(&info)
	if err != nil {
		return Timestamp{}, s.fail("read timestamp", err)
	}
	return t, nil
}

func (s *Socket) timestamp(info *tcpinfo.Info) (Timestamp, error) {
	v, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
	microseconds := info.Options&tcpinfo.OptUsecTS != 0
	ahead := aheadOfClock(pacing{rate: info.Pacing_rate, minRTT: info.Min_rtt, mss: info.Snd_mss}, microseconds)
	return Timestamp{Enabled: true, Microseconds: microseconds, Value: latest(uint32(v) + ahead)}, err
}

// SetTimestamp sets the timestamp clock of a connected socket; connect(2) would
// overwrite it. It does nothing if t is not enabled.
func (s *Socket) SetTimestamp(t Timestamp) error {
	if !t.Enabled {
		return nil
	}
	err := sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, int(int32(t.setting())))
	if err != nil {
		return s.fail("set timestamp", s.notPaused(err))
	}
	return nil
}
