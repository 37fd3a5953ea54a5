package soccr

import (
	"errors"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// Save reads the whole connection into a Snapshot. The socket stays paused, and
// loses nothing: after Resume it goes on as if nothing had been.
//
// A socket that could not be restored is refused here, while it is still alive:
// ErrState (LISTEN, SYN_RECV, TIME_WAIT), ErrUrgent, ErrULP, ErrSigned. If the
// connection moves while it is read, Save fails with ErrChanged; saving again is
// then fine. If the program was not stopped and has written meanwhile, the connection
// may be past saving: ErrDamaged. Errors come inside an *OpError.
func (s *Socket) Save() (*Snapshot, error) {
	snap := new(Snapshot)
	if err := s.SaveTo(snap); err != nil {
		return nil, err
	}
	return snap, nil
}

// SaveTo is Save into a snapshot that is not needed any more, whose memory it takes
// over as far as it is large enough; what else was in it is gone, even on error.
func (s *Socket) SaveTo(snap *Snapshot) error {
	*snap = Snapshot{
		RecvQueue: snap.RecvQueue[:0], SendQueue: snap.SendQueue[:0],
		Options: Options{Settings: snap.Options.Settings[:0]},
	}
	if err := s.save(snap); err != nil {
		return s.fail("save", err)
	}
	return nil
}

// betweenReads lets a test change the connection while it is being saved.
var betweenReads = func() {}

func (s *Socket) save(snap *Snapshot) error {
	var before observation
	if err := s.observe(&before); err != nil {
		return s.notPaused(err)
	}
	s.correctUnsent(&before)
	snap.State, snap.Unsent = State(before.info.State), before.unsent
	if !snap.State.row().movable {
		return &FieldError{Field: "State", Got: snap.State, Err: ErrState}
	}
	if err := s.saveAddrs(snap); err != nil {
		return err
	}
	var err error
	if snap.State == StateClose { // what is in its queues ends there, too
		if snap.Reset, err = s.pendingError(snap); err != nil {
			return err
		}
	}
	idle := s.early.holds(&before)
	if !s.options.noVerify && !idle {
		if err := s.refuseUrgent(before.received); err != nil {
			return err
		}
	}
	if snap.State.row().connected {
		if err := s.saveNegotiated(snap, &before); err != nil {
			return err
		}
		snap.Path, snap.Window = pathOf(&before.info), before.window
	}
	if err := s.saveMemory(snap, &before, idle); err != nil {
		return err
	}
	if err := s.saveQueues(snap, &before); err != nil {
		return err
	}
	if s.options.noVerify {
		s.undone(snap)
		return snap.Validate()
	}
	betweenReads()
	var after observation
	if err := s.observeAgain(&after, &before); err != nil {
		return err
	}
	s.correctUnsent(&after)
	if err := before.unchanged(&after); err != nil {
		return err
	}
	s.undone(snap)
	return snap.Validate() // what could not be restored is refused now
}

// saveBuffers saves the sizes of buffers that hold more than fits into a new
// socket's along with what the window promises. Whether they are locked, like all
// that the program has set, is up to the caller.
func (s *Socket) saveBuffers(snap *Snapshot, seen *observation) error {
	const little = 16 << 10
	received := little
	if s.options.noVerify { // that the window keeps its promise, too, is up to the caller
		received = recvWrite
	}
	if seen.received <= received && seen.unacked <= little {
		return nil
	}
	memory, err := s.memory()
	if err != nil {
		return err
	}
	o := &snap.Options
	if seen.received > received {
		o.RecvBuffer, snap.Window.RecvMemory = memory.recvBuffer, memory.recvAlloc
	}
	if seen.unacked > little {
		o.SendBuffer = memory.sendBuffer
	}
	return nil
}

// holds reports whether nothing has come since, nor waited then, which somebody may
// have read.
func (e *early) holds(now *observation) bool {
	return e != nil && !e.marked && e.memory.recvAlloc == 0 && e.segsIn == now.info.Segs_in
}

// saveMemory saves the socket options, and what else SO_MEMINFO tells of: now, or
// what was read early of a connection that has been idle since.
func (s *Socket) saveMemory(snap *Snapshot, seen *observation, idle bool) (err error) {
	if s.options.noOptions {
		return s.saveBuffers(snap, seen)
	}
	var memory memory
	if idle {
		memory = s.early.memory
	} else if memory, err = s.memory(); err != nil {
		return err
	}
	o := &snap.Options
	connected := snap.State.row().connected
	if connected {
		snap.Window.RecvMemory = memory.recvAlloc
	}
	if memory.options > 0 || !connected { // an unconnected socket can be ready for TCP-AO without a key
		if err := s.refuseAO(); err != nil {
			return err
		}
	}
	if memory.options > 0 {
		if snap.MD5Keys, err = s.md5Keys(snap.State); err != nil {
			return err
		}
	}
	if connected {
		snap.Window.RcvSsthresh = seen.info.Rcv_ssthresh
		if idle {
			snap.Window.Clamp = s.early.clamp
		} else if snap.Window.Clamp, err = s.windowClamp(); err != nil {
			return err
		}
	}
	if e := s.early; e != nil && e.on == snap.sockets() {
		*o = e.options
		o.ReadShutdown = o.ReadShutdown && snap.State.mayShutDownReading()
	} else if err := s.saveOptions(snap, &seen.info, &memory); err != nil {
		return err
	}
	o.RecvBuffer, o.SendBuffer = memory.recvBuffer, memory.sendBuffer
	return nil
}

// saveOptions saves what the program has set.
func (s *Socket) saveOptions(snap *Snapshot, info *tcpinfo.Info, memory *memory) error {
	err := s.refuseULP()
	if err == nil {
		err = s.readOptions(snap, known{noMemory: memory.options == 0, unpaced: info.Max_pacing_rate == math.MaxUint64})
	}
	if err == nil {
		snap.Options.ReuseAddr = s.reuseAddr
		snap.Options.ReadShutdown, err = s.readShutdown(snap.State)
	}
	return err
}

// readEarly reads the addresses and options of a stopped program's socket that is
// not paused yet, and what is likely to stay, so that this does not take time while
// the flow is locked. What cannot be read is left to pause and Save.
func (s *Socket) readEarly(fd int, noOptions bool) error {
	s.fd = fd
	var snap Snapshot
	if err := s.saveAddrs(&snap); err != nil {
		return err
	}
	if s.located = s.remote.IsValid(); noOptions || !s.located {
		return nil
	}
	info, failed := s.info()
	if snap.State = State(info.State); failed == nil && snap.State.row().movable && s.readReuseAddr() == nil {
		memory, err := s.memory()
		clamp, noClamp := s.windowClamp()
		mark, noMark := count(fd, unix.SIOCATMARK)
		if errors.Join(err, noClamp, noMark) == nil && s.saveOptions(&snap, &info, &memory) == nil {
			s.early = &early{
				options: snap.Options, on: snap.sockets(), segsIn: info.Segs_in,
				memory: memory, clamp: clamp, marked: mark != 0,
			}
		}
	}
	return nil
}

// correctUnsent undoes what reading the send queue does to the counters. While
// that queue is selected, anything that makes the kernel transmit (a pacing or
// probe timer is enough) marks all unsent bytes as sent without sending them
// (tcp_write_xmit). As long as no data has truly left, what was unsent still is.
// Restored as sent, such bytes would wait for a retransmission timer.
func (s *Socket) correctUnsent(o *observation) {
	if left := o.info.Bytes_sent + uint64(o.info.Data_segs_out); s.seen && s.seenLeft == left {
		o.unsent = max(o.unsent, s.seenUnsent)
	} else {
		s.seenLeft = left
	}
	s.seen, s.seenUnsent = true, o.unsent
}

// undone corrects what Restore has put into the socket in another way than it was
// saved, and Resume has not yet set right.
func (s *Socket) undone(snap *Snapshot) {
	if s.restored == nil {
		return
	}
	snap.Path = s.restored.Path
	if s.send.again {
		snap.SendQueue = append(snap.SendQueue, s.send.held...)
		snap.SendSeq += uint32(len(s.send.held))
		snap.Unsent, snap.UnsentFIN = s.restored.Unsent, s.restored.UnsentFIN
	}
	if s.postponed != "" {
		snap.Options.Congestion = s.postponed
	}
	if !s.options.noOptions { // the last of them are not set, and the filter may be ours
		snap.Options.Settings = slices.Clone(s.restored.Options.Settings)
	}
}

func (s *Socket) saveAddrs(snap *Snapshot) (err error) {
	if s.located {
		snap.Local, snap.Remote = s.local, s.remote
		return nil
	}
	if snap.Local, err = localAddr(s.fd); err != nil {
		return err
	}
	if snap.Remote, err = remoteAddr(s.fd, snap.Local); err != nil {
		return err
	}
	s.local, s.remote = snap.Local, snap.Remote
	return nil
}

func (s *Socket) saveQueues(snap *Snapshot, seen *observation) error {
	row := snap.State.row()
	if snap.State.finPending() && snap.Unsent > 0 {
		snap.Unsent-- // the kernel counts the FIN with the unsent bytes
		snap.UnsentFIN = true
	}
	if snap.State == StateClose {
		snap.Unsent = 0
	}
	if err := s.readQueues(snap, seen); err != nil {
		return err
	}
	if row.finReceived && !snap.Reset {
		snap.RecvSeq--
	}
	if row.finSent && !snap.Reset {
		snap.SendSeq--
	}
	return nil
}

// readQueues reads the bytes and the sequence numbers of both queues. The receive
// queue comes last: who does not verify leaves it selected, where it does no harm
// (see inQueue).
func (s *Socket) readQueues(snap *Snapshot, seen *observation) error {
	err := s.selectQueue(SendQueue)
	if err == nil {
		snap.SendQueue, err = s.peekSendQueue(snap.SendQueue, seen.unacked)
	}
	if err == nil {
		snap.SendSeq, err = s.seq(SendQueue)
	}
	if err == nil {
		err = s.selectQueue(RecvQueue)
	}
	if err == nil {
		snap.RecvQueue, err = s.peekRecvQueue(snap.RecvQueue, seen.received)
	}
	if err == nil {
		snap.RecvSeq, err = s.seq(RecvQueue)
	}
	if err == nil && s.options.noVerify {
		return nil
	}
	return errors.Join(err, s.selectQueue(NoQueue))
}

func (s *Socket) saveNegotiated(snap *Snapshot, seen *observation) error {
	n, err := s.negotiated(&seen.info)
	if err != nil {
		return err
	}
	snap.MSS, snap.SACK, snap.ECN = n.MSS, n.SACK, n.ECN
	snap.WindowScaling, snap.SendScale, snap.RecvScale = n.WindowScaling, n.SendScale, n.RecvScale
	if n.Timestamps {
		snap.Timestamp, err = s.timestamp(&seen.info)
	}
	return err
}

// readShutdown reports whether the program itself has shut down reading: end of
// file although the peer's FIN is not there.
func (s *Socket) readShutdown(state State) (bool, error) {
	if !state.mayShutDownReading() {
		return false, nil
	}
	events, err := s.poll(unix.POLLRDHUP)
	return events != 0, err
}

// pendingError reports whether a connection has ended with an error that the
// program has not got yet. To read it (SO_ERROR) would take it away.
func (s *Socket) pendingError(snap *Snapshot) (bool, error) {
	if snap.State != StateClose || !snap.Remote.IsValid() {
		return false, nil
	}
	events, err := s.poll(unix.POLLERR)
	return events != 0, err
}

// poll tells which of some events are there.
func (s *Socket) poll(events int16) (int16, error) {
	poll := [1]unix.PollFd{{Fd: int32(s.fd), Events: events}}
	if _, err := unix.Poll(poll[:], 0); err != nil && !errors.Is(err, unix.EINTR) {
		return 0, err
	}
	return poll[0].Revents & events, nil
}

// An observation is all that moves when a connection does: by a segment that
// arrives or leaves, or by what its program reads or writes.
type observation struct {
	info     tcpinfo.Info
	window   Window
	received int // bytes in the receive queue
	unacked  int // bytes in the send queue
	unsent   int // of these, and of the FIN, how much was never sent
}

// observe must run while no queue is selected: an ACK that arrives while the
// send queue is would mark unsent bytes as sent.
func (s *Socket) observe(o *observation) (err error) {
	if err = tcpinfo.Read(s.fd, &o.info); err != nil || !State(o.info.State).row().movable {
		return err
	}
	return s.observeRest(o)
}

func (s *Socket) observeRest(o *observation) (err error) {
	if o.window, err = s.repairWindow(); err != nil {
		return err
	}
	return s.observeQueues(o)
}

func (s *Socket) observeQueues(o *observation) (err error) {
	if o.received, err = s.queueLen(RecvQueue, &o.info); err != nil {
		return err
	}
	o.unacked, err = s.queueLen(SendQueue, &o.info)
	o.unsent = int(o.info.Notsent_bytes)
	return err
}

// observeAgain reads what can have changed since before. The windows do not when
// no segment has come or gone.
func (s *Socket) observeAgain(o, before *observation) (err error) {
	if err = tcpinfo.Read(s.fd, &o.info); err != nil || !State(o.info.State).row().movable {
		return err
	}
	if o.info.Segs_in != before.info.Segs_in || o.info.Segs_out != before.info.Segs_out {
		return s.observeRest(o)
	}
	o.window = before.window
	return s.observeQueues(o)
}

// unchanged compares two observations of a connection and names what moved.
func (o *observation) unchanged(now *observation) error {
	// What a program writes while its receive queue is selected is appended to that
	// (tcp_send_rcvq), and came in no segment of data. A FIN counts as a byte received,
	// before the state tells of it, but is none in the queue.
	came := now.info.Bytes_received != o.info.Bytes_received && now.received > o.received
	if came && now.info.Data_segs_in == o.info.Data_segs_in {
		return &FieldError{Field: "RecvQueue", Want: o.received, Got: now.received, Err: ErrDamaged}
	}
	for _, f := range [...]struct {
		field      string
		then, here uint64
	}{
		{"State", uint64(o.info.State), uint64(now.info.State)},
		{"RecvSeq", o.info.Bytes_received, now.info.Bytes_received},
		{"RecvQueue", uint64(o.received), uint64(now.received)},
		{"SendQueue", uint64(o.unacked), uint64(now.unacked)},
		{"SendSeq", o.info.Bytes_acked, now.info.Bytes_acked},
		{"Unsent", uint64(o.unsent), uint64(now.unsent)},
		{"Unsent", o.info.Bytes_sent, now.info.Bytes_sent},
		{"Window.SndWl1", uint64(o.window.SndWl1), uint64(now.window.SndWl1)},
		{"Window.SndWnd", uint64(o.window.SndWnd), uint64(now.window.SndWnd)},
		{"Window.MaxWindow", uint64(o.window.MaxWindow), uint64(now.window.MaxWindow)},
		{"Window.RcvWnd", uint64(o.window.RcvWnd), uint64(now.window.RcvWnd)},
		{"Window.RcvWup", uint64(o.window.RcvWup), uint64(now.window.RcvWup)},
	} {
		if f.then != f.here {
			return &FieldError{Field: f.field, Want: f.then, Got: f.here, Err: ErrChanged}
		}
	}
	return nil
}
