package soccr

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// ipprotoMPTCP is SO_PROTOCOL's value of Multipath TCP sockets.
const ipprotoMPTCP = 262

// Pause switches repair mode on (TCP_REPAIR): from now on the program can
// neither read nor write, and closing the socket is silent. The kernel goes on
// receiving, acknowledging and retransmitting, so stop the program and lock the
// flow first. (A thread that waits in a blocking write for room in the send buffer
// goes on writing when there is some, and one in a blocking read goes on reading:
// both are past the kernel's check. Calls that do not wait are wholly before or
// after Pause.) The caller keeps owning fd, which stays paused until Resume; a
// paused socket that is paused again stays as it is.
//
// Repair mode belongs to the socket, not to who switched it on. So that two do not
// work on one socket, whoever has it paused owns it until Resume or Release: to
// others, in this process or in another, Pause fails with ErrPaused, which names the
// process. A socket whose owner has died can be paused again. This rests on an
// advisory lock (F_SETLK) of the socket, which others than this library do not heed;
// which ends when the process closes any descriptor of the socket, so keep those open;
// and which a security module may not allow: then only those in one process are kept
// apart. With [WithoutVerifying] it is up to the callers.
//
// It needs CAP_NET_ADMIN in the user namespace that owns the socket's network
// namespace, or somebody who has it (WithRepairer), and fails with
// ErrNoPermission, ErrState (a listening socket), ErrMultipath, ErrPaused or ErrNotTCP
// inside an *OpError, with the socket untouched.
//
// The options that matter to Save and Resume are [WithoutOptions],
// [WithoutVerifying], [WithEnds] and [WithRepairer]; Restore has the first two and
// the last too, with its own.
func Pause(fd int, options ...Option) (*Socket, error) {
	s := new(Socket)
	if err := s.Pause(fd, options...); err != nil {
		return nil, err
	}
	return s, nil
}

// Pause is the function Pause for the zero Socket, or one that is not needed any
// more, whose memory it takes over. On error s is of no use but for another Pause.
func (s *Socket) Pause(fd int, options ...Option) error {
	s.disclaimHere()
	*s = Socket{}
	return s.pause(fd, options)
}

// pause pauses a socket, of which some may be known already (readEarly).
func (s *Socket) pause(fd int, options []Option) error {
	s.fd = fd
	s.options.apply(options)
	if ends := s.options.ends; ends != nil {
		s.local, s.remote, s.located = ends.local, ends.remote, true
	}
	if err := s.claim(); err != nil {
		return s.fail("pause", because(notTCP(err), err))
	}
	if err := s.pauseClaimed(options); err != nil {
		s.disclaim()
		return err
	}
	return nil
}

func (s *Socket) pauseClaimed(options []Option) error {
	if !s.options.noOptions && s.early == nil {
		if err := s.readReuseAddr(); err != nil {
			return s.fail("pause", because(notTCP(err), err))
		}
	}
	return s.enterRepair(options)
}

// readReuseAddr reads what reads as 2 once repair mode is on.
func (s *Socket) readReuseAddr() error {
	reuse, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	s.reuseAddr = reuse == 1
	return err
}

// pauseNew pauses a socket that NewSocket has made, of which nothing needs to be
// read.
func (s *Socket) pauseNew(fd int, options []Option) error {
	s.fd, s.nonBlocking = fd, true
	s.options.apply(options)
	return s.enterRepair(options)
}

func (s *Socket) enterRepair(options []Option) error {
	s.given = options
	if err := s.setRepair(unix.TCP_REPAIR_ON); err != nil {
		return s.fail("pause", because(s.whyNotPaused(err), err))
	}
	return nil
}

// whyNotPaused finds the reason behind the errno of TCP_REPAIR.
func (s *Socket) whyNotPaused(answer error) error {
	protocol, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return notTCP(err)
	case protocol == ipprotoMPTCP:
		return ErrMultipath
	case protocol != unix.IPPROTO_TCP:
		return ErrNotTCP
	}
	if listening, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listening != 0 {
		return ErrState // tcp_can_repair_sock answers EPERM here too
	}
	if errors.Is(answer, unix.EPERM) {
		return ErrNoPermission
	}
	return nil
}

// notTCP finds the reason behind the errno of the first call on an fd.
func notTCP(answer error) error {
	if errors.Is(answer, unix.ENOTSOCK) || errors.Is(answer, unix.ENOPROTOOPT) || errors.Is(answer, unix.EOPNOTSUPP) {
		return ErrNotTCP
	}
	return nil
}

// Release forgets the socket and leaves it paused, so that closing its last fd
// is silent: no FIN, no RST, no TIME_WAIT. The Socket must not be used any more. For
// other processes it is this one's until a descriptor of it is closed here.
func (s *Socket) Release() {
	s.disclaimHere()
	s.fd = -1
}

// Disconnect takes the connection out of the socket silently, as closing it
// would, but at once and for every process that has a descriptor of it: the
// kernel forgets the connection, and reads and writes answer as on a socket
// that never connected. The socket stays paused. Who wants to Restore into it asks
// Socket.CheckQueues before. ([connect(2)] to AF_UNSPEC.)
func (s *Socket) Disconnect() error {
	if err := s.disconnect(); err != nil {
		return s.fail("disconnect", err)
	}
	local, err := localAddr(s.fd)
	if err != nil {
		return s.fail("disconnect", err)
	}
	s.bound = local.Port() != 0
	return nil
}

func (s *Socket) disconnect() error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if err := connectRaw(s.fd, &unspec); err != nil {
		return err
	}
	s.restored, s.located = nil, false
	// tcp_disconnect leaves ECONNABORTED pending, for nobody to see.
	_, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err
}

// setRepair sets TCP_REPAIR to on, off or off without a window probe. No queue is
// selected afterwards.
func (s *Socket) setRepair(mode int) error {
	s.selected = NoQueue
	if s.options.repairer != nil {
		return s.options.repairer.SetRepair(s.fd, mode)
	}
	return sockopt.SetInt(s.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode)
}

// fail wraps an error with the step and the connection, once.
func (s *Socket) fail(op string, err error) error {
	if done, ok := errors.AsType[*OpError](err); ok {
		return done
	}
	return &OpError{Op: op, Local: s.local, Remote: s.remote, Err: err}
}
