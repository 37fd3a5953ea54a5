package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A worker stops a program and takes its connections apart.
type worker struct {
	pid     int
	limit   time.Duration // to stop the program
	freezer *proc.Freezer
	thief   *proc.Thief
	lock    *netlock.Lock // or nil
	tap     *soccr.Tap    // or nil
	ns      *os.File      // the program's network namespace
	journal *journal

	// outside are the processes that hold a socket of the program and do not belong
	// to it, by inode: 0 for the sockets that only the program holds.
	outside map[uint32]int
	// callable are the processes that can be given other sockets.
	callable map[int]bool
}

// How connections are kept from the network, in CRIU's words.
const (
	lockFlows     = "nftables"
	lockNamespace = "namespace"
	lockNothing   = "skip"
)

// newWorker prepares all that can be while the program still runs.
func newWorker(pid int, flags stopFlags, how string, j *journal) (_ *worker, err error) {
	w := &worker{journal: j, pid: pid, limit: flags.limit, freezer: proc.NewFreezer(), thief: proc.NewThief(), callable: map[int]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	w.freezer.Cgroup = flags.cgroup
	if _, err := proc.Tree(pid); err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	if w.ns, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("look into process %d (%s): %w", pid, proc.Name(pid), err)
	}
	if how == lockFlows {
		if err := w.makeLock(netlock.New, flags.lockTimeout); err != nil {
			return nil, err
		}
	}
	// Without a tap, what arrives meanwhile is sent again when the peer's timer says so.
	openTap := func() (err error) {
		w.tap, err = soccr.OpenTap()
		return err
	}
	if err = w.inside(openTap); errors.Is(err, soccr.ErrNoPermission) {
		err = nil
	}
	return w, err
}

// makeLock makes a lock in the program's network namespace.
func (w *worker) makeLock(with func(...netlock.Option) (*netlock.Lock, error), timeout time.Duration) (err error) {
	options := []netlock.Option{netlock.WithTimeout(timeout)}
	if fd := int(w.ns.Fd()); !netns.Current(fd) { // to enter it takes a capability
		options = append(options, netlock.WithNetNS(fd))
	}
	if w.lock, err = with(options...); err != nil {
		return fmt.Errorf("in the network namespace of process %d: %w", w.pid, err)
	}
	return w.journal.share(w.lock)
}

func (w *worker) close() error {
	var err error
	if w.tap != nil {
		err = errors.Join(err, w.tap.Close())
	}
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
	}
	if w.ns != nil {
		err = errors.Join(err, w.ns.Close())
	}
	w.freezer.Close()
	return errors.Join(err, w.thief.Close())
}

// survey finds out which of the program's sockets others hold, too: they would see
// the connection disappear. That takes a look into all processes, so it comes
// before the program is stopped, and only when there are new sockets.
func (w *worker) survey() error {
	if err := proc.NotOwn(w.pid); err != nil { // before its relatives are looked into
		return err
	}
	pids, err := proc.Tree(w.pid)
	if err != nil {
		return err
	}
	inodes := map[uint32]int{}
	complete := w.outside != nil
	ours := map[int]bool{}
	for _, pid := range pids {
		ours[pid] = true
		for h, err := range diag.HeldBy(pid) {
			if errors.Is(err, fs.ErrNotExist) {
				break // it has ended
			}
			if err != nil {
				return fmt.Errorf("look into process %d (%s): %w", pid, proc.Name(pid), err)
			}
			holder, known := w.outside[h.Inode]
			inodes[h.Inode] = holder
			complete = complete && known
		}
		if proc.UsesIOUring(pid) {
			return fmt.Errorf("process %d (%s) uses io_uring, whose requests go on while it is stopped", pid, proc.Name(pid))
		}
	}
	if !complete {
		for h, err := range diag.Holders() {
			if err != nil {
				continue // not ours to look into; whoever has our sockets is, as a rule
			}
			if _, interesting := inodes[h.Inode]; interesting && !ours[h.PID] && h.PID != os.Getpid() {
				inodes[h.Inode] = h.PID
			}
		}
	}
	w.outside = inodes
	return nil
}

// A stopped program is one that is frozen, with the sockets it had then.
type stoppedProgram struct {
	worker *worker
	frozen *proc.Frozen
	*collection
	began time.Time // when it was stopped
}

// stop stops the program. Whoever calls it lets the program go on.
func (w *worker) stop() (*stoppedProgram, error) {
	s := &stoppedProgram{worker: w, began: time.Now()}
	var err error
	if s.frozen, err = w.freezer.Freeze(w.pid, w.limit); err != nil {
		return nil, err
	}
	if s.collection, err = openSockets(s.frozen.PIDs, w.thief); err != nil {
		return nil, errors.Join(err, s.frozen.Thaw())
	}
	return s, nil
}

// goOn lets the program go on, and says how long it was stopped.
func (s *stoppedProgram) goOn() (time.Duration, error) {
	err := s.frozen.Thaw()
	return time.Since(s.began), errors.Join(err, s.close())
}

// A connection is a socket that is being taken apart.
type connection struct {
	*socket
	flow   netlock.Flow
	paused *soccr.Socket
	snap   *soccr.Snapshot
	// apart: the connection is only in the snapshot.
	apart bool
	fresh *freshSocket // where it is now, if that is a new one
}

// errOutside: see worker.outside.
var errOutside = errors.New("a process that does not belong to the program has it, too")

// hindrance is why a connection of the stopped program must not be touched.
func (s *stoppedProgram) hindrance(c *socket) error {
	if !c.Dump {
		return errors.New(c.Why)
	}
	holder, known := s.worker.outside[c.Inode]
	switch {
	case !known:
		return errors.New("it was opened a moment ago")
	case holder != 0:
		return fmt.Errorf("%w: %d (%s)", errOutside, holder, proc.Name(holder))
	}
	ns, err := unix.IoctlRetInt(c.fd, unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("its network namespace: %w", err)
	}
	defer unix.Close(ns)
	var own, theirs unix.Stat_t
	if err := errors.Join(unix.Fstat(ns, &theirs), unix.Fstat(int(s.worker.ns.Fd()), &own)); err != nil {
		return err
	}
	if own.Ino != theirs.Ino || own.Dev != theirs.Dev {
		return fmt.Errorf("it belongs to another network namespace than process %d", s.worker.pid)
	}
	return nil
}

// flowOf asks a connected socket for its addresses.
func flowOf(fd int) (netlock.Flow, error) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return netlock.Flow{}, os.NewSyscallError("getsockname", err)
	}
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return netlock.Flow{}, os.NewSyscallError("getpeername", err)
	}
	return netlock.Flow{Local: addrPort(local), Remote: addrPort(remote)}, nil
}

// addrPort is the address as packets have it: without a zone.
func addrPort(addr unix.Sockaddr) netip.AddrPort {
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return netip.AddrPort{}
	}
}

// listensOn are the addresses of which a listening socket gets the SYNs: two, if it
// listens on all of both families.
func listensOn(fd int) []netip.AddrPort {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return nil
	}
	local := addrPort(addr)
	all := []netip.AddrPort{local}
	only6, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	if local.Addr() == netip.IPv6Unspecified() && err == nil && only6 == 0 {
		all = append(all, netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port()))
	}
	return all
}

// watch has the tap keep what comes for connections, and forget ends that.
func (w *worker) watch(flows []netlock.Flow) error {
	if w.tap == nil {
		return nil
	}
	for _, f := range flows {
		if err := w.tap.Watch(f.Local, f.Remote); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) forget(flows []netlock.Flow) {
	if w.tap == nil {
		return
	}
	for _, f := range flows {
		w.tap.Forget(f.Local, f.Remote)
	}
}

// readPaused reads a paused connection.
func readPaused(s *soccr.Socket) (snap *soccr.Snapshot, err error) {
	const attempts = 5 // packets that were past the lock when it closed may still arrive
	for range attempts {
		if snap, err = s.Save(); !errors.Is(err, soccr.ErrChanged) {
			break
		}
	}
	return snap, err
}

// save pauses a connection and reads it. If it fails, the connection is as it was.
func (c *connection) save() (err error) {
	if c.paused, err = soccr.Pause(c.fd); err != nil {
		return err
	}
	if c.snap, err = readPaused(c.paused); err != nil {
		return errors.Join(err, c.paused.Resume())
	}
	return nil
}

// rebuild puts the connection back into its socket. There is nothing else to be done
// with it, so it tries again, and at last without what makes it go on at once.
func (c *connection) rebuild(w *worker) error {
	var failure error
	for _, more := range [][]soccr.Option{nil, nil, {soccr.WithPlain()}} {
		err := c.paused.Restore(c.snap, append(w.options(), more...)...)
		if err == nil {
			c.apart = false
			return nil
		}
		failure = err
	}
	return fmt.Errorf("LOST: %w", failure)
}

// options are those with which connections are put back.
func (w *worker) options() []soccr.Option {
	var options []soccr.Option
	if w.lock != nil {
		options = append(options, soccr.WithLock(w.lock))
	}
	if w.tap != nil {
		options = append(options, soccr.WithTap(w.tap))
	}
	return options
}

// inside runs f in the program's network namespace.
func (w *worker) inside(f func() error) error {
	if fd := int(w.ns.Fd()); !netns.Current(fd) { // to enter it takes a capability
		return netns.Do(fd, f)
	}
	return f()
}
