package main

import (
	"errors"
	"fmt"

	gocriu "github.com/checkpoint-restore/go-criu/v8"

	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// criuMark is the mark of the segments that CRIU injects (SOCCR_MARK), which the lock
// has to let in.
const criuMark = 0xc114

// A locker does what CRIU's notifications ask for: it locks a container's network, and
// unlocks it. CRIU waits for each of its answers, and gives up, with everything as it
// was, if one is an error.
type locker struct {
	gocriu.NoNotify
	// netns is the path of the container's network namespace, "" if CRIU makes it.
	netns string
	log   func(format string, args ...any)

	lock *netlock.Lock
	// pid is that of the restored container's first process.
	pid int32
}

// NetworkLock is called when the processes are frozen, and before CRIU looks at a
// connection.
func (l *locker) NetworkLock() error { return l.close(l.netns) }

// PreRestore is called before anything is restored. A namespace that is there is
// locked by then: the connections come into it one by one.
func (l *locker) PreRestore() error {
	if l.netns == "" {
		return nil
	}
	return l.close(l.netns)
}

// SetupNamespaces is called when CRIU has made the namespaces, and nothing is in them
// yet.
func (l *locker) SetupNamespaces(pid int32) error {
	if l.netns != "" {
		return nil
	}
	return l.close(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// NetworkUnlock is called when the processes are to go on: restored, or after a dump
// that leaves them running or has failed. CRIU unlocks before it ends the repair mode,
// because the probe that each connection sends then has to get out.
func (l *locker) NetworkUnlock() error {
	l.log("network-unlock")
	return l.open()
}

// PostRestore tells which process it is.
func (l *locker) PostRestore(pid int32) error {
	l.pid = pid
	return nil
}

// close locks a network namespace, unless it is locked.
func (l *locker) close(netns string) (err error) {
	if l.lock != nil {
		return nil
	}
	l.lock, err = netlock.Namespace(netlock.WithNetNSPath(netns), netlock.WithMark(criuMark))
	if err == nil {
		l.log("network-lock: %s", netns)
	}
	return err
}

// open unlocks it. A lock that had not held to the end is an error: packets may have
// reached the sockets.
func (l *locker) open() error {
	if l.lock == nil {
		return nil
	}
	err := l.lock.Close()
	l.lock = nil
	if errors.Is(err, netlock.ErrLost) {
		err = fmt.Errorf("the connections are not to be trusted: %w", err)
	}
	return err
}
