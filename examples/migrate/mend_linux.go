package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A mender puts right what a guard has left that was killed, on behalf of the program
// that was started.
type mender struct {
	target    int
	flags     stopFlags
	how       string // connections are locked
	dumping   *dumpConfig
	restoring *restoreConfig

	began  uint64 // when the process did
	cgroup []byte // its freezer's state, before the guard began
}

// prepared is the function that does it.
func (m mender) prepared() func(*remains) error {
	m.began, _ = proc.StartTime(m.target) // 0 of none, which is found out later
	if m.flags.cgroup != "" {
		m.cgroup, _ = os.ReadFile(m.freezeFile()) // as above
	}
	return m.mend
}

func (m *mender) freezeFile() string { return filepath.Join(m.flags.cgroup, "cgroup.freeze") }

// A mending is one time that this happens.
type mending struct {
	*mender
	*worker
	left    *remains
	program *stoppedProgram
	todo    []*unfinished
	done    map[string]int
	kept    error // says where an image is
	failed  []error
}

// An unfinished socket is one of the program of which the journal says something.
type unfinished struct {
	note
	act    action
	spoilt bool // it cannot be saved
	*connection
}

// mend says what it has done, by a failure.
func (m mender) mend(left *remains) error {
	w := &mending{mender: &m, left: left, done: map[string]int{}}
	w.fail(w.all())
	keeps := w.ends() && m.how != lockNothing && !m.dumping.tcpClose
	if !keeps {
		w.unlock()
	}
	status, says := statusMended, w.report()
	if len(w.failed) > 0 {
		status, says = statusPartly, errors.Join(append([]error{says}, w.failed...)...)
	}
	if keeps {
		fmt.Fprintln(os.Stderr, "migrate: the guard was killed when all was saved; the connections stay locked for", m.flags.lockTimeout)
		enough := make(chan os.Signal, 1)
		catch(enough, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		select {
		case <-enough:
		case <-time.After(m.flags.lockTimeout):
		}
	}
	return &failure{status, says}
}

func (m *mending) fail(err error) {
	if err != nil {
		m.failed = append(m.failed, err)
	}
}

// unlock gives up the dead guard's locks.
func (m *mending) unlock() {
	for _, fd := range m.left.locks {
		_ = unix.Close(fd) // which does not fail with sockets
	}
	m.left.locks = nil
}

// report says what was done, in a line.
func (m *mending) report() error {
	var parts []string
	for what, n := range m.done {
		parts = append(parts, fmt.Sprintf("%d connections %s", n, what))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		parts = []string{"there was nothing to put right"}
	}
	if m.left.calling != 0 {
		parts = append(parts, fmt.Sprintf("process %d (%s) was making a system call for it, and may be damaged", m.left.calling, proc.Name(m.left.calling)))
	}
	if m.dumping != nil && m.dumping.dir == pipeDir && !m.left.committed && !m.dumping.leaveRunning {
		parts = append(parts, "what has gone into the pipe must not be restored")
	}
	if m.kept != nil {
		parts = append(parts, m.kept.Error())
	}
	return errors.New(strings.Join(parts, ", "))
}

// all does all that is to be done.
func (m *mending) all() error {
	if m.left.image != nil && (!m.left.committed || m.target == 0) {
		img, err := image.ReadStream(bytes.NewReader(m.left.image))
		if err != nil {
			return err
		}
		m.kept = keepImage(img)
	}
	var err error
	if m.target != 0 {
		err = m.mendProgram()
	}
	return errors.Join(err, m.moveAddresses()) // if that has not been done
}

// mendProgram mends a program that goes on.
func (m *mending) mendProgram() (err error) {
	defer func() {
		if len(m.cgroup) > 0 {
			err = errors.Join(err, os.WriteFile(m.freezeFile(), bytes.TrimSpace(m.cgroup), 0))
		}
	}()
	if len(m.left.notes) == 0 {
		return nil
	}
	began, err := proc.StartTime(m.target)
	if ended := proc.AwaitEnd(m.target, 0) == nil; err != nil || began != m.began || ended {
		if m.ends() {
			return nil
		}
		return fmt.Errorf("process %d has ended", m.target)
	}
	if m.worker, err = newWorker(m.target, m.flags, lockNothing, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.worker.close()) }()
	if m.program, err = m.stop(); err != nil {
		return err
	}
	defer func() {
		_, thawing := m.program.goOn()
		err = errors.Join(err, thawing)
		if m.ends() {
			err = errors.Join(err, proc.AwaitEnd(m.target, m.flags.limit))
		}
	}()
	m.find()
	if m.how != lockNothing { // after the program was stopped, which is more urgent
		if err := m.makeLock(netlock.New, m.flags.lockTimeout); err != nil {
			return err
		}
	}
	var flows []netlock.Flow
	for _, u := range m.todo {
		if actions[u.act].locked && u.snap != nil && u.snap.Remote.IsValid() {
			u.flow = netlock.Flow{Local: u.snap.Local, Remote: u.snap.Remote}
			flows = append(flows, u.flow)
		}
	}
	defer m.forget(flows)
	err = m.watch(flows)
	if err == nil && m.lock != nil {
		err = m.lock.Add(flows...)
	}
	if err != nil {
		return err
	}
	m.fail(m.moveAddresses())
	if !m.ends() {
		m.unlock()
	}
	for _, u := range m.todo {
		if err := actions[u.act].do(m, u); err != nil {
			m.fail(fmt.Errorf("%s -> %s: %w", u.Local, u.Peer, err))
		} else {
			m.done[actions[u.act].done]++
		}
	}
	m.fail(m.finishReplacing())
	m.fail(m.registerAgain())
	m.fail(m.closeFree())
	if m.lock != nil {
		m.fail(m.lock.Remove(flows...))
	}
	for _, u := range m.todo {
		if u.paused != nil {
			m.fail(u.paused.Resume())
		}
		if u.spoilt {
			m.fail(m.abort(u))
		}
	}
	if m.ends() {
		m.fail(kill(m.program.pids))
	}
	return nil
}

// ends reports whether the program is to be killed, as all of it is in the image.
func (m *mending) ends() bool { return m.dumping != nil && m.left.committed && !m.dumping.leaveClosed }

// find finds the sockets of which the journal says something among the program's.
func (m *mending) find() {
	here := map[uint64]*socket{}
	for _, s := range m.program.sockets {
		here[s.Cookie] = s
	}
	snaps, replaced := map[uint64]*soccr.Snapshot{}, map[uint64]bool{}
	for _, n := range m.left.notes {
		snaps[n.cookie] = n.kept
		replaced[n.instead] = replaced[n.instead] || here[n.cookie] != nil
	}
	for _, n := range m.left.notes {
		u := &unfinished{note: n, act: n.first, connection: &connection{socket: here[n.cookie]}}
		if m.left.committed {
			u.act = n.then
		}
		if n.instead != 0 {
			u.kept = snaps[n.instead]
		}
		u.snap = u.kept
		switch {
		case u.act == actNothing || replaced[n.cookie]:
		case u.socket != nil:
			m.todo = append(m.todo, u)
		case n.instead == 0 && actions[u.act].locked && u.act != actTakeAway: // new ones that it never got are gone with the guard
			m.fail(fmt.Errorf("%v -> %v is lost: the program has closed it, as it found it broken", n.kept.Local, n.kept.Remote))
		}
	}
}

// finishReplacing gives the program new sockets wherever it has still the old ones, if
// it has new ones anywhere.
func (m *mending) finishReplacing() error {
	var list []replacement
	for _, u := range m.todo {
		for _, s := range m.program.sockets {
			if u.instead != 0 && s.Cookie == u.instead {
				list = append(list, replacement{s, s.fd, u.fd})
			}
		}
	}
	return m.program.replace(list)
}

// registerAgain makes the registrations that got lost.
func (m *mending) registerAgain() error {
	for _, r := range m.left.epoll {
		target := m.program.byInode[uint32(r.Inodes[1])]
		if target == nil {
			target = m.program.byInode[uint32(r.Inodes[0])]
		}
		if target == nil || !slices.Contains(m.program.pids, r.PID) {
			continue
		}
		now, err := proc.Registrations(r.PID)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(now, func(n proc.Registration) bool {
			return n.Epoll == r.Epoll && n.Number == r.Number && n.Inode == uint64(target.Inode)
		}) {
			continue
		}
		epoll, err := m.thief.Duplicate(r.PID, r.Epoll)
		if err != nil {
			return err
		}
		_, err = proc.Register([]proc.Change{{Registration: r.Registration, Epoll: epoll, Old: -1, New: target.fd}})
		if err = errors.Join(err, unix.Close(epoll)); err != nil {
			return err
		}
	}
	return nil
}

// closeFree closes the descriptors that were free before.
func (m *mending) closeFree() error {
	if m.left.committed {
		return nil
	}
	var closing []proc.Descriptor
	for _, u := range m.todo {
		for _, h := range u.Holders {
			if u.act == actTakeAway && h.PID == m.target && slices.Contains(m.left.free, h.FD) {
				closing = append(closing, proc.Descriptor{Number: h.FD, FD: -1})
			}
		}
	}
	_, err := m.program.set(m.target, closing)
	return err
}

// moveAddresses undoes what was done with the host's addresses, if there is a way back.
func (m *mending) moveAddresses() error {
	if !m.left.addresses || m.left.committed {
		return nil
	}
	undo := func(h *host.Host) (err error) {
		for _, p := range m.places() {
			if m.dumping != nil {
				err = errors.Join(err, unless(takeOne(h, p), unix.EEXIST))
			} else {
				err = errors.Join(err, unless(h.RemoveAddr(p.device, p.prefix), unix.EADDRNOTAVAIL))
			}
		}
		return err
	}
	m.left.addresses = false
	path := "/proc/self/ns/net"
	if m.target != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", m.target)
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onHost(ns, undo)
}

// places are the addresses that the command is about.
func (m *mending) places() []place {
	switch {
	case m.dumping != nil:
		return m.dumping.give
	case m.restoring != nil:
		return m.restoring.take
	}
	return nil
}

// unless forgets an error that says that there was nothing to be done.
func unless(err error, nothing unix.Errno) error {
	if errors.Is(err, nothing) {
		return nil
	}
	return err
}
