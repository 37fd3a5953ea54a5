package soccr

import "net/netip"

// A Snapshot is all of a TCP connection that the kernel lets one read and put
// into another socket. It is a plain value: Restore never changes it, and it can
// be restored many times. It reveals the bytes in the queues and the sequence
// numbers with which anybody on the path could forge segments: keep it as secret
// as the connection.
//
// MarshalBinary and WriteTo encode it to be kept or sent. encoding/json encodes it
// to be read: the state by name, addresses as text, queues in base64.
type Snapshot struct {
	// State is the connection's state.
	State State
	// Local and Remote are the two ends. An IPv4 connection of an AF_INET6
	// socket has IPv4-mapped addresses. The zone of a link-local address is the
	// name of its device. Of a socket that never connected, Remote is the zero
	// AddrPort; if it was never bound either, Local is its family's unspecified
	// address with port 0.
	Local, Remote netip.AddrPort

	// RecvQueue holds what was received and not read yet.
	RecvQueue []byte
	// SendQueue holds what was written and not acknowledged yet; its last Unsent
	// bytes were never sent. Neither queue contains FINs.
	SendQueue []byte
	Unsent    int
	// UnsentFIN: the program has shut down writing, and the FIN waits behind the
	// send queue without ever having been sent.
	UnsentFIN bool
	// Reset: the connection is closed because something went wrong, and the program
	// has not been told yet (SO_ERROR). Nobody but the program can read what it was;
	// a restored socket has ECONNRESET, as of a peer that has reset the connection.
	Reset bool `json:",omitempty"`

	// RecvSeq and SendSeq are the sequence numbers that follow the last byte of
	// each queue: the kernel's rcv_nxt and write_seq, less the FIN that they
	// count in some states.
	RecvSeq, SendSeq uint32

	// MSS is the largest segment that the peer accepts, in bytes (mss_clamp).
	MSS uint32
	// WindowScaling says whether window scaling was negotiated; if so, SendScale
	// and RecvScale are the shifts for the peer's window and for ours.
	WindowScaling        bool
	SendScale, RecvScale uint8
	// SACK says whether selective acknowledgements were negotiated.
	SACK bool
	// ECN says whether explicit congestion notification was negotiated. A
	// restored socket does without: the kernel has no way to switch it on.
	ECN bool
	// Timestamp is the state of RFC 7323 timestamps.
	Timestamp Timestamp

	// Window is the state of both windows.
	Window Window
	// Path is what the connection had learned of its path.
	Path Path
	// Options are the socket options that are kept.
	Options Options
	// MD5Keys are the keys that sign its segments (TCP-MD5).
	MD5Keys []MD5Key `json:",omitempty"`
}

// A Timestamp is a connection's RFC 7323 timestamp clock.
type Timestamp struct {
	// Enabled says whether timestamps were negotiated.
	Enabled bool
	// Microseconds tells the clock's resolution: milliseconds, or microseconds
	// on routes with the feature tcp_usec_ts (Linux 6.7).
	Microseconds bool
	// Value is what the clock showed when it was read, or what was sent last
	// where that is later (a paced socket stamps segments with the time at which
	// they are due). A clock set to it does not go back.
	Value uint32
}

// A Window is what TCP_REPAIR_WINDOW holds (Linux 4.8), and what bounds how the
// window may grow. Sizes are in bytes, not scaled.
type Window struct {
	SndWl1    uint32 // sequence number of the segment that last updated SndWnd
	SndWnd    uint32 // the peer's window
	MaxWindow uint32 // the largest window the peer ever offered
	RcvWnd    uint32 // our window, from RcvWup on
	RcvWup    uint32 // rcv_nxt when our window was last advertised

	RcvSsthresh uint32 // how far our window may grow at once (rcv_ssthresh)
	Clamp       uint32 // bound of our window (TCP_WINDOW_CLAMP)
	RecvMemory  uint32 // memory that the receive queue took, overhead included
}

// A Path is what a connection has learned of the way to its peer (TCP_INFO).
type Path struct {
	RTT, RTTVar uint32 // smoothed round trip time and its mean deviation, microseconds
	MinRTT      uint32 // the shortest round trip time lately, microseconds
	RTO         uint32 // retransmission timeout, microseconds
	Cwnd        uint32 // congestion window, segments
	Ssthresh    uint32 // slow start threshold, segments; 0 while there is none
	PacingRate  uint64 // bytes per second; 0 if not known
	Idle        uint32 // since data was sent last, milliseconds
	Saved       int64  // when all this was read, milliseconds since 1970 (UTC)
}

// Options are the socket options: those that the connection itself depends on by
// field, the rest as Settings. Buffer sizes are as getsockopt gives them: in bytes
// of memory, overhead included.
type Options struct {
	ReuseAddr   bool // SO_REUSEADDR
	NonBlocking bool // O_NONBLOCK
	// PeekOffset is SO_PEEK_OFF, where PeekOffsetOn says that the program uses it
	// (Linux 6.9 for TCP).
	PeekOffsetOn bool
	PeekOffset   uint32
	Congestion   string // TCP_CONGESTION
	RecvBuffer   uint32 // SO_RCVBUF
	SendBuffer   uint32 // SO_SNDBUF
	// BufferLock tells which buffers were set by the program, so that the kernel
	// does not tune them: bit 0 SO_SNDBUF, bit 1 SO_RCVBUF (SO_BUF_LOCK, Linux 5.15).
	BufferLock uint8
	// ReadShutdown: the program has shut down reading before the peer's FIN.
	ReadShutdown bool
	// Foreign: a socket that is not connected is bound to an address that its host
	// does not have, though nothing on it says so any more (IP_FREEBIND). So it may
	// be bound again.
	Foreign bool `json:",omitempty"`
	// Settings are all other options that do not have the kernel's default, by
	// rising name.
	Settings []Setting `json:",omitempty"`
}

// Mapped reports whether the snapshot is of an IPv4 connection on an AF_INET6
// socket.
func (s *Snapshot) Mapped() bool { return s.Local.Addr().Is4In6() }

// Unacked is how many of SendQueue's first bytes were sent but not acknowledged.
func (s *Snapshot) Unacked() int { return len(s.SendQueue) - s.Unsent }

// sent and unsent are the two parts of the send queue.
func (s *Snapshot) sent() []byte   { return s.SendQueue[:s.Unacked()] }
func (s *Snapshot) unsent() []byte { return s.SendQueue[s.Unacked():] }

// sndUna is the first sequence number that the peer has not acknowledged, while
// no FIN of ours is acknowledged; recvStart is the first byte not read.
func (s *Snapshot) sndUna() uint32    { return s.SendSeq - uint32(len(s.SendQueue)) }
func (s *Snapshot) recvStart() uint32 { return s.RecvSeq - uint32(len(s.RecvQueue)) }

// rcvNxt and writeSeq are the kernel's numbers, with the FINs they count.
func (s *Snapshot) rcvNxt() uint32 {
	if s.State.row().finReceived && !s.Reset {
		return s.RecvSeq + 1
	}
	return s.RecvSeq
}

func (s *Snapshot) writeSeq() uint32 {
	if s.State.row().finSent && !s.Reset {
		return s.SendSeq + 1
	}
	return s.SendSeq
}
