package criuimg

import (
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"

	"github.com/gosoccr/gosoccr/soccr"
)

// A topic is a part of a connection that CRIU's entries and snapshots both have.
// decode writes to the fields of its topic only, and may look at the state;
// encode writes what CRIU itself would have written.
type topic struct {
	decode func(*Socket, *soccr.Snapshot) error
	encode func(*Socket, *soccr.Snapshot)
}

// topics: the state comes first, because what others mean depends on it.
var topics = [...]topic{
	{decodeState, encodeState},
	{decodeEnds, encodeEnds},
	{decodeQueues, encodeQueues},
	{decodeNegotiated, encodeNegotiated},
	{decodeTimestamp, encodeTimestamp},
	{decodeWindow, encodeWindow},
	{decodeOptions, encodeOptions},
}

// equal compares two snapshots that may share their queues.
func equal(a, b *soccr.Snapshot) bool { return len(lostFromSnapshot(a, b)) == 0 }

// A phase is what a state means for CRIU's numbers. They are the kernel's, which
// count FINs; a snapshot's do not.
type phase struct {
	connected bool   // options were negotiated
	recv      uint32 // 1 if inq_seq counts the peer's FIN
	send      uint32 // 1 if outq_seq counts ours
	pending   bool   // ours is not acknowledged
	shutdown  skopts.SkShutdown
}

var phases = map[soccr.State]phase{
	soccr.StateEstablished: {connected: true},
	soccr.StateFinWait1:    {connected: true, send: 1, pending: true, shutdown: skopts.SkShutdown_WRITE},
	soccr.StateFinWait2:    {connected: true, send: 1, shutdown: skopts.SkShutdown_WRITE},
	soccr.StateClosing:     {connected: true, recv: 1, send: 1, pending: true, shutdown: skopts.SkShutdown_BOTH},
	soccr.StateCloseWait:   {connected: true, recv: 1, shutdown: skopts.SkShutdown_READ},
	soccr.StateLastAck:     {connected: true, recv: 1, send: 1, pending: true, shutdown: skopts.SkShutdown_BOTH},
	// What CRIU tells of a closed socket is what poll(2) tells: end of file.
	soccr.StateClose: {recv: 1, send: 1, shutdown: skopts.SkShutdown_READ},
}

func decodeState(s *Socket, snap *soccr.Snapshot) error {
	snap.State = s.State()
	// In the other states the end of the file is the peer's doing.
	snap.Options.ReadShutdown = false
	if p := phases[snap.State]; p.connected && p.recv == 0 {
		snap.Options.ReadShutdown = s.Inet.GetShutdown()&skopts.SkShutdown_READ != 0
	}
	return nil
}

func encodeState(s *Socket, snap *soccr.Snapshot) {
	s.Inet.State = new(uint32(snap.State))
	shutdown := phases[snap.State].shutdown
	if snap.Options.ReadShutdown {
		shutdown |= skopts.SkShutdown_READ
	}
	s.Inet.Shutdown = nil
	if shutdown != skopts.SkShutdown_NONE && snap.Remote.IsValid() {
		s.Inet.Shutdown = &shutdown
	}
	s.setBacklog(snap)
}

func decodeEnds(s *Socket, snap *soccr.Snapshot) (err error) {
	if snap.Local, err = s.Local(); err != nil {
		return err
	}
	snap.Remote, err = s.Remote()
	return err
}

func encodeEnds(s *Socket, snap *soccr.Snapshot) {
	e := s.Inet
	e.Family = new(uint32(afInet6))
	if snap.Local.Addr().Is4() {
		e.Family, e.V6Only = new(uint32(afInet)), nil
	}
	e.SrcAddr, e.SrcPort = s.words(snap.Local.Addr()), new(uint32(snap.Local.Port()))
	e.DstAddr, e.DstPort = s.words(snap.Remote.Addr()), new(uint32(snap.Remote.Port()))

	// CRIU wants the device of the socket's own address only, as that of the peer's
	// is the one that the socket is bound to.
	e.Ifname = nil
	device, _ := snap.Options.Setting("SO_BINDTODEVICE")
	if zone := snap.Local.Addr().Zone(); zone != "" {
		e.Ifname = &zone
	} else if zone := snap.Remote.Addr().Zone(); zone != device.Text && zone != "" {
		e.Ifname = &zone
	}
}

func decodeQueues(s *Socket, snap *soccr.Snapshot) error {
	snap.RecvQueue, snap.SendQueue, snap.Unsent, snap.UnsentFIN = nil, nil, 0, false
	p := phases[snap.State]
	if s.Stream == nil {
		snap.RecvSeq, snap.SendSeq = -p.recv, -p.send // the kernel's are 0
		return nil
	}
	if err := s.Stream.check(); err != nil {
		return err
	}
	e := s.Stream.Entry
	snap.RecvQueue, snap.SendQueue = s.Stream.RecvQueue, s.Stream.SendQueue
	if unsent := e.GetUnsqLen(); uint64(unsent) > uint64(len(snap.SendQueue)) {
		return invalid("tcp_stream.unsq_len", "at most outq_len", unsent)
	}
	snap.Unsent = int(e.GetUnsqLen())
	snap.UnsentFIN = p.pending && snap.Unsent > 0 // it comes behind them
	snap.RecvSeq, snap.SendSeq = e.GetInqSeq()-p.recv, e.GetOutqSeq()-p.send
	return nil
}

func encodeQueues(s *Socket, snap *soccr.Snapshot) {
	s.setBacklog(snap)
	if s.Stream == nil {
		return
	}
	s.Stream.RecvQueue, s.Stream.SendQueue = snap.RecvQueue, snap.SendQueue
	e, p := s.Stream.Entry, phases[snap.State]
	e.InqLen, e.InqSeq = new(uint32(len(snap.RecvQueue))), new(snap.RecvSeq+p.recv)
	e.OutqLen, e.OutqSeq = new(uint32(len(snap.SendQueue))), new(snap.SendSeq+p.send)
	e.UnsqLen = new(uint32(snap.Unsent))
}

// setBacklog sets what sock_diag calls idiag_wqueue: of a connection, what is not
// acknowledged, with the FIN.
func (s *Socket) setBacklog(snap *soccr.Snapshot) {
	unacked := uint32(len(snap.SendQueue))
	if phases[snap.State].pending {
		unacked++
	}
	s.Inet.Backlog = &unacked
}

// What was negotiated, as TCP_INFO tells it (TCPI_OPT_*), is opt_mask.
const (
	optTimestamps = 1
	optSACK       = 2
	optWScale     = 4
	optECN        = 8
	optUsecTS     = 64 // Linux 6.7
)

// setMask sets the bits of opt_mask that are in which.
func (s *Socket) setMask(which uint32, bits map[uint32]bool) {
	mask := s.Stream.Entry.GetOptMask() &^ which
	for bit, on := range bits {
		if on {
			mask |= bit
		}
	}
	s.Stream.Entry.OptMask = &mask
}

func decodeNegotiated(s *Socket, snap *soccr.Snapshot) error {
	snap.MSS, snap.SACK, snap.ECN = 0, false, false
	snap.WindowScaling, snap.SendScale, snap.RecvScale = false, 0, 0
	if s.Stream == nil {
		return nil
	}
	e := s.Stream.Entry
	mask := e.GetOptMask()
	snap.MSS, snap.SACK, snap.ECN = e.GetMssClamp(), mask&optSACK != 0, mask&optECN != 0
	if snap.MSS == unknownMSS && !phases[snap.State].connected {
		snap.MSS = 0
	}
	if mask&optWScale == 0 {
		return nil // CRIU does not look at the scales then
	}
	snap.WindowScaling = true
	for _, scale := range [...]struct {
		field string
		value uint32
		into  *uint8
	}{
		{"tcp_stream.snd_wscale", e.GetSndWscale(), &snap.SendScale},
		{"tcp_stream.rcv_wscale", e.GetRcvWscale(), &snap.RecvScale},
	} {
		if scale.value > maxScale {
			return invalid(scale.field, "at most 14", scale.value)
		}
		*scale.into = uint8(scale.value)
	}
	return nil
}

const (
	maxScale = 14 // RFC 7323, 2.3
	// unknownMSS is that of a connection that is not open, which CRIU sets all the
	// same: RFC 9293, 3.7.1.
	unknownMSS = 536
)

func encodeNegotiated(s *Socket, snap *soccr.Snapshot) {
	if s.Stream == nil {
		return
	}
	e := s.Stream.Entry
	s.setMask(optSACK|optWScale|optECN, map[uint32]bool{optSACK: snap.SACK, optWScale: snap.WindowScaling, optECN: snap.ECN})
	e.MssClamp = &snap.MSS
	if snap.MSS == 0 {
		e.MssClamp = new(uint32(unknownMSS))
	}
	e.SndWscale, e.RcvWscale = new(uint32(snap.SendScale)), nil
	if snap.WindowScaling {
		e.RcvWscale = new(uint32(snap.RecvScale))
	}
}

// The kernel tells the clock's resolution by the lowest bit of TCP_TIMESTAMP, 1
// for microseconds, since Linux 6.7. The clock may have shown a tick more than
// what the kernel answered with the bit cleared; a peer drops what goes back.
func decodeTimestamp(s *Socket, snap *soccr.Snapshot) error {
	snap.Timestamp = soccr.Timestamp{}
	if s.Stream == nil || s.Stream.Entry.GetOptMask()&optTimestamps == 0 {
		return nil
	}
	e := s.Stream.Entry
	if e.Timestamp == nil {
		return invalid("tcp_stream.timestamp", "there, because opt_mask tells of timestamps", nil)
	}
	snap.Timestamp = soccr.Timestamp{
		Enabled:      true,
		Microseconds: e.GetOptMask()&optUsecTS != 0,
		Value:        e.GetTimestamp() | 1,
	}
	return nil
}

func encodeTimestamp(s *Socket, snap *soccr.Snapshot) {
	if s.Stream == nil {
		return
	}
	t := snap.Timestamp
	s.setMask(optTimestamps|optUsecTS, map[uint32]bool{optTimestamps: t.Enabled, optUsecTS: t.Enabled && t.Microseconds})
	s.Stream.Entry.Timestamp = nil
	if !t.Enabled {
		return
	}
	value := t.Value &^ 1
	if t.Microseconds {
		value |= 1
	}
	s.Stream.Entry.Timestamp = &value
}

// unknownWindow is our window where CRIU has none (Linux before 4.8): that of a
// fresh socket, as large as it can be without window scaling.
const unknownWindow = 65535

// decodeWindow fills what CRIU has not: the window grows on from what it is, as
// far as it can be told to the peer, and the queue takes the memory of its bytes.
// Where CRIU has no window at all, the peer's is closed until it answers the probe
// that ends the restore.
func decodeWindow(s *Socket, snap *soccr.Snapshot) error {
	snap.Window = soccr.Window{}
	if s.Stream == nil {
		return nil
	}
	e, p := s.Stream.Entry, phases[snap.State]
	w := &snap.Window
	switch {
	case e.SndWnd != nil: // which is what CRIU looks at
		*w = soccr.Window{
			SndWl1: e.GetSndWl1(), SndWnd: e.GetSndWnd(), MaxWindow: e.GetMaxWindow(),
			RcvWnd: e.GetRcvWnd(), RcvWup: e.GetRcvWup(),
		}
	case p.connected:
		*w = soccr.Window{SndWl1: e.GetInqSeq() - 1, RcvWnd: unknownWindow, RcvWup: e.GetInqSeq()}
	}
	if p.connected {
		w.RcvSsthresh = w.RcvWnd
		w.Clamp = unknownWindow
		if e.GetOptMask()&optWScale != 0 && e.GetRcvWscale() <= maxScale {
			w.Clamp <<= e.GetRcvWscale()
		}
		w.RecvMemory = e.GetInqLen()
	}
	return nil
}

func encodeWindow(s *Socket, snap *soccr.Snapshot) {
	if s.Stream == nil {
		return
	}
	e, w := s.Stream.Entry, snap.Window
	e.SndWl1, e.SndWnd, e.MaxWindow, e.RcvWnd, e.RcvWup = nil, nil, nil, nil, nil
	// Without a window, CRIU sets none. It could not set one of zeros.
	if (soccr.Window{RcvSsthresh: w.RcvSsthresh, Clamp: w.Clamp, RecvMemory: w.RecvMemory}) == w {
		return
	}
	e.SndWl1, e.SndWnd, e.MaxWindow, e.RcvWnd, e.RcvWup = &w.SndWl1, &w.SndWnd, &w.MaxWindow, &w.RcvWnd, &w.RcvWup
}
