package soccr

import (
	"net/netip"
	"time"

	"github.com/gosoccr/gosoccr/rawfin"
)

// An Option changes how Pause and Save, Checkpoint, Restore and RestoreConn work.
type Option func(*settings)

type settings struct {
	mark     uint32
	lock     Locker
	repairer Repairer
	onLoss   func(Loss)
	owners   bool
	routes   bool

	plain    bool
	path     PathPolicy
	pathWait time.Duration

	noOptions, noVerify bool
	ends                *ends

	workers int

	effects *Effects

	drain   time.Duration
	tap     *Tap
	packets [][]byte

	closed, reset bool

	inFlight   InFlight
	patience   time.Duration
	sharedPort bool
}

func newSettings(options []Option) settings {
	s := new(settings)
	s.apply(options)
	return *s
}

// apply sets all of s: to what the lists of options say, or to the default.
func (s *settings) apply(lists ...[]Option) {
	*s = settings{mark: rawfin.DefaultMark, patience: defaultPatience}
	for _, options := range lists {
		for _, o := range options {
			o(s)
		}
	}
}

// WithMark sets the mark (SO_MARK) of the segments that Restore injects for
// half-closed connections; the default is rawfin.DefaultMark. The network lock
// must be made for the same mark, and the host's firewall should let packets
// with it through on the loopback device; see [InjectionError].
func WithMark(mark uint32) Option { return func(s *settings) { s.mark = mark } }

// WithLock makes Checkpoint lock the connection's flow before it is paused, and
// RestoreConn lock it before the socket exists and unlock it before it resumes.
// A *netlock.Lock is a Locker. Without one, the caller keeps the peer's packets
// away by other means: what arrives in between is lost or answered with a RST.
//
// Restore neither locks nor unlocks, but asks the lock for help if it is also a
// [Tracker], a [Marker] or an [Explainer].
func WithLock(lock Locker) Option { return func(s *settings) { s.lock = lock } }

// WithRepairer has Pause, Checkpoint and RestoreConn, and the Socket that Pause
// returns, leave it to somebody else to switch repair mode. It is all that takes
// CAP_NET_ADMIN for a connection that is open both ways; half-closed states take
// CAP_NET_RAW as well, and a lock is not the repairer's matter.
func WithRepairer(r Repairer) Option { return func(s *settings) { s.repairer = r } }

// WithLosses has Restore and RestoreConn call f for each of the snapshot's
// Settings that the new socket does not have. Without it they are found with
// [Socket.Losses] only.
func WithLosses(f func(Loss)) Option { return func(s *settings) { s.onLoss = f } }

// WithOwners lets other processes than this one be the owners of restored sockets
// (F_SETOWN): they get the signals of F_SETSIG and O_ASYNC, which may kill them. It
// is for who trusts the snapshot, and has made the processes it speaks of. Without
// it such an owner is a Loss.
func WithOwners() Option { return func(s *settings) { s.owners = true } }

// WithRoutes lets restored sockets have source routes (IP_OPTIONS, IPV6_RTHDR), which
// send their packets by way of other hosts than their peer. It is for who trusts the
// snapshot. Without it a snapshot with a route fails with ErrOption.
func WithRoutes() Option { return func(s *settings) { s.routes = true } }

// WithPath says how much of what the connection had learned of its path is carried
// over; the default is PathAuto. The kernel has no call for that: the socket is
// primed by dummy bytes and forged acknowledgements, neither of which leaves the
// host. This takes CAP_NET_RAW, timestamps on the connection (or [WithPathWait]),
// and a lock or firewall that lets the mark through; without, the connection starts
// anew, with an unknown round trip time and 10 segments. [Effects] tells.
func WithPath(policy PathPolicy) Option { return func(s *settings) { s.path = policy } }

// WithPathWait carries the path over also where the connection has no timestamps,
// if its round trip time is not longer than the limit, nor than half a second: for
// so long Restore then waits, while the connection is frozen. There the kernel measures the time from
// when a segment is queued to when it is acknowledged, so that the dummy has to be
// as old as the answer would be. One sample is all that it gets, which makes the
// timeout of round trip times beyond 100 ms longer than it was; and the congestion
// window is carried over only if nothing had got lost, for the threshold of slow
// start is not.
func WithPathWait(limit time.Duration) Option { return func(s *settings) { s.pathWait = limit } }

// WithEffects has RestoreConn tell how the connection went on.
func WithEffects(effects *Effects) Option { return func(s *settings) { s.effects = effects } }

// WithDrain has Checkpoint wait until the peer has acknowledged everything, before
// it locks and pauses, but no longer than the limit. A round trip time is enough
// if the program has stopped writing, and makes the move cheaper for both ends.
func WithDrain(limit time.Duration) Option { return func(s *settings) { s.drain = limit } }

// WithTap has Checkpoint watch the flow from before it is locked, and Resume, by
// itself or for RestoreConn, deliver what the peer has sent since, and forget the
// flow.
func WithTap(tap *Tap) Option { return func(s *settings) { s.tap = tap } }

// WithPackets has Resume deliver packets that the peer had sent and that were
// caught elsewhere, see [Tap.Take]. Those that are not of the connection are left
// out. They are kept until Resume, and not changed.
func WithPackets(packets [][]byte) Option { return func(s *settings) { s.packets = packets } }

// WithPlain restores the way CRIU does: what was in flight counts as sent, and is
// sent again only when the kernel's timers say so, after 1 to 3 s; nothing of the
// path is carried over. It is for those who leave repair mode by themselves, in
// another process for example, instead of calling Resume.
func WithPlain() Option { return func(s *settings) { s.plain = true } }

// WithoutOptions leaves the socket options to the caller, who knows them or keeps
// them himself: Save reads none, and Restore sets none. That goes for [Options], the
// bound of the window (TCP_WINDOW_CLAMP), and SO_REUSEADDR, which repair mode
// overwrites. Nor does Save look for TCP-MD5 keys, and for what cannot be moved
// because of an option: kernel TLS and TCP-AO. Only the buffers' sizes are kept, if
// there is much in the queues: with [WithoutVerifying], more than the 68 KiB that any
// receive buffer takes; whoever leaves that out, too, has the socket's buffer large
// enough for the window that the peer was promised. The options are half of what a
// move costs.
//
// It is given to Pause for Save and Resume, and to Restore.
func WithoutOptions() Option { return func(s *settings) { s.noOptions = true } }

// WithoutVerifying leaves out what only shows that all is well: Save does not read
// again whether the connection has moved while it was read, nor look for urgent
// data, and Restore does not read back what it has set, apart from the state of
// half-closed connections. It is for flows that are locked, and for callers who
// check by other means.
//
// It is given to Pause for Save, and to Restore.
func WithoutVerifying() Option { return func(s *settings) { s.noVerify = true } }

// WithEnds tells Pause the two ends of a connection, so that Save does not have to
// ask the socket for them: who has found it with sock_diag, or locked its flow,
// knows them. They are as in a Snapshot: IPv4-mapped on an AF_INET6 socket, with the
// zone of a link-local address.
func WithEnds(local, remote netip.AddrPort) Option {
	ends := &ends{local, remote}
	return func(s *settings) { s.ends = ends }
}

type ends struct{ local, remote netip.AddrPort }

// A Repairer switches a socket's repair mode for a program that may not do so
// itself: mode is the value of TCP_REPAIR, 1 for on, 0 for off with a window probe
// and -1 for off without. SetRepair returns when it is done, and an error if
// nothing was.
type Repairer interface {
	SetRepair(fd, mode int) error
}

// A Locker keeps all packets of a flow from the sockets of this host, in both
// directions, without an answer to anybody. Both calls are idempotent.
type Locker interface {
	LockFlow(local, remote netip.AddrPort) error
	UnlockFlow(local, remote netip.AddrPort) error
}

// A Tracker is a Locker that has to do with conntrack, which firewalls may rely
// on: Restore tells it of half-closed connections, and has it see what is
// injected if a firewall lets nothing else through.
type Tracker interface {
	Locker
	// TrackFlow tells conntrack of an established connection.
	TrackFlow(local, remote netip.AddrPort) error
	// TrackInjected lets conntrack see injected segments, until undo is called.
	// Restore calls undo if it fails, and otherwise does not, so that the next
	// Restore with this lock starts with what this one has found out.
	TrackInjected() (undo func() error, err error)
	// TracksInjected reports whether conntrack sees them.
	TracksInjected() bool
}

// A Marker is a Locker that can let injected segments with one more mark through:
// Restore tries another one if the host's firewall drops the first.
type Marker interface {
	Locker
	AllowMark(mark uint32) error
}

// An Explainer is a Locker that finds out which rules of the host's firewall drop
// packets with a mark, while inject sends such packets.
type Explainer interface {
	Locker
	ExplainInjected(mark uint32, inject func()) (drops []string, err error)
}
