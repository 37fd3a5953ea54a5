package soccr

import (
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
	"github.com/gosoccr/gosoccr/rawfin"
)

// shut reports whether nothing of what waits to be sent may leave, because the peer's
// window is closed, or too small for the next segment (tcp_snd_wnd_test).
func (s *Socket) shut(snap *Snapshot) bool {
	next := len(s.send.unsent) + len(s.send.held)
	if s.send.unsentFIN {
		next++
	}
	return next > 0 && len(s.send.sent)+min(next, int(snap.MSS)) > int(snap.Window.SndWnd)
}

// probe asks the peer for its window, as the kernel does on leaving repair mode, but in
// ESTABLISHED only (tcp_send_window_probe). In the other states it would ask when a
// timer expires, after up to a second, which each move starts anew. Like the kernel's
// own probe this is an acknowledgement whose sequence number is old: the peer discards
// it and says what it has got and what it has room for.
//
// Nothing has left since the window was restored, so the snapshot's numbers are true,
// unless the peer has said something already.
func (s *Socket) probe(snap *Snapshot) error {
	if snap.State == StateEstablished || len(snap.MD5Keys) > 0 || !s.shut(snap) {
		return nil
	}
	s.effects.Probed, s.effects.Unprobed = s.sendProbe(snap)
	return nil
}

func (s *Socket) sendProbe(snap *Snapshot) (sent bool, err error) {
	mark, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK)
	if err != nil {
		return false, err
	}
	device, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil {
		return false, err
	}
	injector, err := s.openInjector(rawfin.WithMark(uint32(mark)), rawfin.WithDevice(device))
	if err != nil {
		return false, err
	}
	defer func() { _ = injector.Close() }() // close(2) on a socket does not fail
	segment := rawfin.Segment{
		Src: snap.Local, Dst: snap.Remote, Flags: rawfin.ACK, Seq: snap.sndUna() - 1, Ack: snap.rcvNxt(),
		Window: s.plan.advertised(snap.rcvNxt(), snap.RecvScale), Timestamps: snap.Timestamp.Enabled,
	}
	if segment.Timestamps {
		// In milliseconds it is at most one too low, which a peer allows (TCP_PAWS_WINDOW).
		now, err := sockopt.GetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
		if err != nil {
			return false, err
		}
		segment.TSVal = uint32(now)
	}
	info, err := s.info()
	if err != nil || State(info.State) != snap.State || info.Bytes_received != s.receivedBefore {
		return false, err
	}
	err = injector.Send(segment)
	return err == nil, err
}
