package soccr

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// NewSocket makes the socket that a snapshot is restored into, in the network
// namespace of the calling thread: of the snapshot's family, close-on-exec and
// non-blocking. The caller owns fd.
func NewSocket(snap *Snapshot) (fd int, err error) { return newSocket(snap, unix.SOCK_NONBLOCK) }

func newSocket(snap *Snapshot, flags uintptr) (fd int, err error) {
	family := unix.AF_INET6
	if snap.Local.Addr().Is4() {
		family = unix.AF_INET
	}
	n, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, unix.IPPROTO_TCP)
	if errno != 0 {
		return -1, &OpError{Op: "socket", Local: snap.Local, Remote: snap.Remote, Err: errno}
	}
	return int(n), nil
}

// Restore puts a connection into a fresh socket: one that NewSocket made, not
// bound, and paused. Afterwards it holds what the snapshot says, as read back
// from the kernel, and is still paused. Lock the flow before, and unlock it
// between Restore and Resume.
//
// The snapshot is not changed and may be restored again. On error, an *OpError,
// the socket holds no connection and is of no further use; nothing was sent to
// the peer. Its reasons include ErrInvalidSnapshot, ErrState (the socket is not
// fresh or of another family), ErrAddrInUse, ErrAddrNotAvailable, ErrNoRoute,
// ErrNoPermission, ErrBuffer, ErrInjection and ErrMismatch.
//
// Half-closed states are reached by segments that stand for the peer's, injected
// with a raw socket: these need CAP_NET_RAW too.
func (s *Socket) Restore(snap *Snapshot, options ...Option) error {
	if err := snap.Validate(); err != nil {
		return s.fail("restore", err)
	}
	s.options.apply(s.given, options)
	s.local, s.remote = snap.Local, snap.Remote
	s.over, s.located = nil, false
	if s.options.closes(snap) {
		s.over, snap = snap, snap.remains()
	}
	s.chosen, s.losses, s.lastApplied = nil, nil, s.options.noOptions
	if !s.options.noOptions {
		s.chosen = s.options.choose(snap.Options.Settings, snap.sockets())
	}
	whole := snap
	snap = s.trim(snap)
	s.way = unknown
	if s.priming = s.planPriming(snap); s.priming.rounds == nil {
		snap, s.trimmed = whole, 0
	}
	defer s.closeInjectors()
	step, err := s.restore(snap)
	for attempt := 1; errors.Is(err, errUnprimed) && s.Disconnect() == nil; attempt++ {
		s.priming.lenient = attempt == primingAttempts-1
		if attempt == primingAttempts || !errors.Is(err, errImprecise) {
			s.priming, s.effects.Unprimed = priming{}, err
			snap, s.trimmed, s.way = whole, 0, barred
		}
		step, err = s.restore(snap)
	}
	if err != nil {
		// The reason matters, not whether the remains could be cleared: close
		// is silent in repair mode anyhow.
		_ = s.Disconnect()
		return s.fail(step, s.notPaused(err))
	}
	s.restored, s.bound = snap, false
	if !s.options.noOptions {
		s.reuseAddr = snap.Options.ReuseAddr
	}
	s.seen, s.seenUnsent, s.seenLeft = false, 0, 0
	return nil
}

// restoring are the steps of Restore, in the order that the kernel needs.
var restoring = [...]struct {
	name string
	do   func(*Socket) error
}{
	{"prepare", func(s *Socket) error { return s.beforeBind(s.snap) }},
	{"bind", func(s *Socket) error { return s.bind(s.snap) }},
	{"set options", func(s *Socket) error { return s.apply(beforeConnect) }},
	{"set sequence numbers", func(s *Socket) error { return s.setSeqs(s.snap) }},
	{"sign", func(s *Socket) error { return s.setMD5Keys(s.snap.MD5Keys) }},
	{"connect", func(s *Socket) error { return s.connect(s.snap) }},
	{"do not sign", func(s *Socket) error { return s.clearMD5Keys(s.snap) }},
	{"set negotiated options", func(s *Socket) error { return s.restoreNegotiated(s.snap) }},
	{"prime", func(s *Socket) error { return s.prime(s.snap, &s.priming) }},
	{"bound timers", func(s *Socket) error { return s.hasten(s.snap) }},
	{"receive queue", func(s *Socket) error { return s.fill(RecvQueue, s.snap.RecvQueue) }},
	{"send queue", func(s *Socket) error { return s.fillSent(s.snap) }},
	{"half-closed state", func(s *Socket) error { return s.replay(s.snap, s.plan) }},
	{"sign", func(s *Socket) error { return s.setMD5Keys(s.snap.MD5Keys) }},
	{"set window", func(s *Socket) error { return s.restoreWindow(s.snap, s.plan) }},
	{"set options", func(s *Socket) error { return s.afterConnect(s.snap) }},
	{"shut down", (*Socket).shutDown},
	{"verify", func(s *Socket) error { return s.verify(s.snap, s.plan) }},
}

// restore goes through the steps and names the one that failed.
func (s *Socket) restore(snap *Snapshot) (step string, err error) {
	s.snap, s.plan = snap, windowPlan{}
	defer func() { s.snap = nil }()
	if snap.State.row().connected {
		s.plan = planWindow(snap)
	}
	s.send = s.planSend(snap)
	for i := range restoring {
		if err := restoring[i].do(s); err != nil {
			return restoring[i].name, err
		}
	}
	return "", nil
}

// beforeBind sets what acts at bind(2) or connect(2).
func (s *Socket) beforeBind(snap *Snapshot) error {
	if !s.bound { // set already, and kept when it was disconnected
		if err := s.tryFilter(); err != nil {
			return err
		}
		if err := s.apply(beforeBind); err != nil {
			return err
		}
	}
	// The first window comes from the buffer at connect time.
	if size := snap.Options.RecvBuffer; size > 0 && snap.State.row().connected {
		now, err := s.freshRecvBuffer()
		if err == nil && now != int(size) {
			err = s.setBuffer(recvBuffer, now, int(size))
		}
		if err != nil {
			return err
		}
	}
	if name := snap.Options.Congestion; !s.options.noOptions && name != "" {
		now, err := s.freshCongestion()
		if err == nil && now != name {
			err = s.setCongestion(name)
		}
		if err != nil {
			return err
		}
	}
	if len(s.priming.rounds) == 0 && !s.send.again {
		return nil
	}
	return s.postponeCongestion(snap)
}

func (s *Socket) freshRecvBuffer() (size int, err error) {
	if s.fresh != nil && s.fresh.recvBuffer != 0 {
		return s.fresh.recvBuffer, nil
	}
	size, err = s.bufferSize(recvBuffer)
	if s.fresh != nil && err == nil {
		s.fresh.recvBuffer = size
	}
	return size, err
}

func (s *Socket) freshCongestion() (name string, err error) {
	shared := s.fresh != nil && !s.options.noVerify
	if shared && s.fresh.congestion != "" {
		return s.fresh.congestion, nil
	}
	name, err = congestion(s.fd)
	if shared && err == nil {
		s.fresh.congestion = name
	}
	return name, err
}

// bind needs no SO_REUSEADDR: a paused socket may share its port with anybody.
func (s *Socket) bind(snap *Snapshot) error {
	if neverBound(snap.Local) {
		return nil
	}
	sa, err := toRawSockaddr(s.fd, snap.Local)
	if err != nil {
		return because(ErrAddrNotAvailable, err)
	}
	err = bindForeign(s.fd, snap.Options.Foreign, func() error { return sa.bind(s.fd) })
	// Disconnect leaves their port only to sockets that were bound by bind(2), and
	// shows it on the others too (__inet_put_port does not clear inet_sport).
	if s.bound && errors.Is(err, unix.EINVAL) {
		return nil
	}
	return because(bindReasons.of(err), err)
}

var bindReasons = reasons{
	unix.EADDRNOTAVAIL: ErrAddrNotAvailable,
	unix.ENODEV:        ErrAddrNotAvailable,
	unix.EADDRINUSE:    ErrAddrInUse,
	unix.EINVAL:        ErrState, // bound already, or of the other family
	unix.EAFNOSUPPORT:  ErrState,
	unix.EACCES:        ErrNoPermission,
}

// setSeqs sets each queue's first sequence number: those of its first byte.
func (s *Socket) setSeqs(snap *Snapshot) error {
	if !snap.Remote.IsValid() {
		return nil
	}
	first := snap.sndUna()
	if snap.State == StateSynSent {
		first-- // the SYN, which connect(2) will send again
	}
	first -= uint32(s.priming.bytes())
	// The receive queue stays selected: until the queues are filled no harm is in it.
	for _, q := range [...]struct {
		queue Queue
		seq   uint32
	}{{SendQueue, first}, {RecvQueue, snap.recvStart()}} {
		err := s.selectQueue(q.queue)
		if err == nil {
			err = s.setSeq(q.seq)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", q.queue, err)
		}
	}
	return nil
}

// connect, in repair mode, sends nothing: the socket becomes established. That
// of a connection in SYN_SENT has to wait until Resume.
func (s *Socket) connect(snap *Snapshot) error {
	switch {
	case !snap.Remote.IsValid():
		return nil
	case snap.State == StateSynSent:
		// The other states have read back that they send from there.
		return s.inNetNS(func() error { return sendsFrom(snap.Local.Addr()) })
	}
	sa, err := toRawSockaddr(s.fd, snap.Remote)
	if err != nil {
		return because(ErrNoRoute, err)
	}
	err = sa.connect(s.fd)
	return because(connectReasons.of(err), err)
}

var connectReasons = reasons{
	unix.EADDRNOTAVAIL: ErrAddrInUse, // __inet_check_established
	unix.ENETUNREACH:   ErrNoRoute,
	unix.EHOSTUNREACH:  ErrNoRoute,
	unix.EINVAL:        ErrNoRoute, // a local address that cannot reach the peer
	unix.EISCONN:       ErrState,
	unix.EPERM:         ErrNoPermission, // a cgroup's or LSM's veto
	unix.EACCES:        ErrNoPermission,
}

// reasons tells what an errno means to one system call.
type reasons map[unix.Errno]error

func (r reasons) of(err error) error {
	if err == nil {
		return nil
	}
	errno, _ := errors.AsType[unix.Errno](err)
	return r[errno]
}

func (s *Socket) restoreNegotiated(snap *Snapshot) error {
	if !snap.State.row().connected {
		return nil
	}
	err := s.SetNegotiated(Negotiated{
		MSS:           snap.MSS,
		WindowScaling: snap.WindowScaling,
		SendScale:     snap.SendScale,
		RecvScale:     snap.RecvScale,
		SACK:          snap.SACK,
		Timestamps:    snap.Timestamp.Enabled,
	})
	if err != nil {
		return err
	}
	return s.SetTimestamp(snap.Timestamp)
}

// recvWrite is how much one write adds to a receive queue at the least
// (tcp_send_rcvq), however small the buffer.
const recvWrite = 17 * 4096

// fill appends to a queue what may be more than the socket's buffer holds.
func (s *Socket) fill(q Queue, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return s.inQueue(q, func() error {
		_, err := s.writeAll(q, data)
		return err
	})
}

// fillSent puts back what counts as sent. All that is in the queue has to be in
// segments of the right size: the kernel counts how many are in flight, and lets the
// program fill the last one even beyond the buffer's size, which would then be more
// with every move.
func (s *Socket) fillSent(snap *Snapshot) error {
	if len(s.send.sent)+len(s.send.unsent) == 0 {
		return nil
	}
	if err := s.syncMSS(snap.Local.Addr()); err != nil {
		return err
	}
	return s.fill(SendQueue, s.send.sent)
}

// writeAll writes to the selected queue; it enlarges the buffer if it must, and only
// then: in place, it may have been tuned beyond what a user can set.
// Receive buffers are enlarged before: one that overflows makes the kernel
// lower the window's growth (tcp_prune_queue).
func (s *Socket) writeAll(q Queue, data []byte) (int, error) {
	if q == RecvQueue && len(data) > recvWrite {
		size, err := s.bufferSize(recvBuffer)
		if err == nil && size < recvQueueMemory(len(data)) {
			err = s.setBuffer(recvBuffer, size, largest)
		}
		if err != nil {
			return 0, err
		}
	}
	n, err := s.write(data)
	if q == SendQueue && errors.Is(err, ErrBuffer) {
		if err := s.maximize(sendBuffer); err != nil {
			return n, err
		}
		var more int
		more, err = s.write(data[n:])
		n += more
	}
	return n, err
}

// restoreWindow sets both windows and what they depend on: memory and bounds.
func (s *Socket) restoreWindow(snap *Snapshot, plan windowPlan) error {
	if !snap.State.row().connected {
		return s.setBuffers(&snap.Options)
	}
	if err := s.setRepairWindow(plan.Window); err != nil {
		return err
	}
	s.rcvWup = plan.RcvWup
	// tcp_sync_mss takes the peer's largest window into account, set just now.
	if err := s.syncMSS(snap.Local.Addr()); err != nil {
		return err
	}
	if err := s.restoreBuffers(snap, plan); err != nil {
		return err
	}
	return s.setWindowBounds(plan.Window)
}

// restoreBuffers sets the buffers to their saved sizes, but leaves the receive
// buffer as much memory as the saved one had free, or as the window promises: a
// queue in fresh buffers takes other memory than it took before. Without
// options, what the window promises is enough.
func (s *Socket) restoreBuffers(snap *Snapshot, plan windowPlan) error {
	want := &snap.Options
	if want.RecvBuffer == 0 && want.SendBuffer == 0 {
		return s.setBufferLock(want.BufferLock)
	}
	memory, err := s.memory()
	if err != nil {
		return err
	}
	if want.RecvBuffer > 0 {
		free := plan.room
		if !s.options.noOptions {
			free = max(free, int64(want.RecvBuffer)-int64(plan.RecvMemory))
		}
		size := min(max(int64(want.RecvBuffer), int64(memory.recvAlloc)+free), largest)
		if int64(memory.recvBuffer) != size {
			if err := s.setBuffer(recvBuffer, int(memory.recvBuffer), int(size)); err != nil {
				return err
			}
		}
	}
	return s.restoreSendBuffer(snap, memory.sendBuffer)
}

// restoreSendBuffer sets the send buffer to its saved size, and whether the kernel
// tunes it and the receive buffer.
func (s *Socket) restoreSendBuffer(snap *Snapshot, now uint32) error {
	want := &snap.Options
	if want.SendBuffer > 0 && now != want.SendBuffer {
		if err := s.setBuffer(sendBuffer, int(now), int(want.SendBuffer)); err != nil {
			return err
		}
	}
	return s.setBufferLock(want.BufferLock)
}

// afterConnect sets the options that may not be set earlier.
func (s *Socket) afterConnect(snap *Snapshot) error {
	if s.options.noOptions {
		if s.send.again {
			return nil
		}
		return s.setPostponedCongestion()
	}
	if err := s.apply(afterConnect); err != nil {
		return err
	}
	if err := s.setPeekOffset(&snap.Options); err != nil {
		return err
	}
	if !s.send.again {
		if err := s.setPostponedCongestion(); err != nil {
			return err
		}
	}
	if snap.Options.ReadShutdown {
		if err := unix.Shutdown(s.fd, unix.SHUT_RD); err != nil {
			return err
		}
	}
	if s.gated || s.options.tap != nil { // the gate is a filter, and needed a while yet
		return nil
	}
	return s.applyLast()
}
