package soccr

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// AcceptAll takes the connections that wait in a listening socket's queue out of
// it, the oldest first, as accept4(2) does, without waiting for more. They are the
// caller's, close-on-exec and non-blocking, and can be paused and saved like any
// other; but nothing puts them back. On error those accepted so far are returned
// beside it.
func AcceptAll(fd int) (fds []int, err error) {
	for {
		// The listener may block.
		poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		ready, err := unix.Poll(poll[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && ready == 0 {
			return fds, nil
		}
		var accepted int
		if err == nil {
			accepted, _, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		}
		switch {
		case err == nil:
			fds = append(fds, accepted)
		case errors.Is(err, unix.EAGAIN): // somebody else has accepted it
			return fds, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			return fds, failListener("accept", fd, err)
		}
	}
}

// A pendingConn is a connection taken out of a listener's queue.
type pendingConn struct {
	fd     int
	taken  *paused // once it is saved
	unlock func() error
}

// takePending accepts what waits in the queue and saves it.
func takePending(listener int, set settings) (conns []*pendingConn, err error) {
	fds, err := AcceptAll(listener)
	for _, fd := range fds {
		conns = append(conns, &pendingConn{fd: fd, unlock: func() error { return nil }})
	}
	for _, c := range conns {
		if err != nil {
			break
		}
		err = c.save(set)
	}
	return conns, err
}

func (c *pendingConn) save(set settings) error {
	if err := awaitHandshake(c.fd, set.patience); err != nil {
		return err
	}
	s := new(Socket)
	unlock, err := set.lockSocket(s, c.fd)
	if err != nil {
		return err
	}
	if c.taken, err = set.pauseAndSave(s, c.fd, unlock); err != nil {
		return err
	}
	c.unlock = unlock
	return nil
}

// awaitHandshake: a connection of TCP Fast Open can be accepted before the end of
// its handshake, of which repair mode knows nothing.
func awaitHandshake(fd int, patience time.Duration) error {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		info, err := (&Socket{fd: fd}).info()
		if err != nil || State(info.State) != StateSynRecv || time.Since(start) > patience {
			return err
		}
	}
}

// handBack lets connections that were taken go on, and makes conns of them all.
func handBack(all []*pendingConn) (conns []*net.TCPConn, err error) {
	for _, c := range all {
		var errs [3]error
		if c.taken != nil {
			errs[0], errs[1] = c.unlock(), c.taken.socket.Resume()
			c.taken.socket.Release()
		}
		file := os.NewFile(uintptr(c.fd), "tcp")
		conn, failed := net.FileConn(file)
		errs[2] = errors.Join(failed, file.Close())
		if err = errors.Join(err, errors.Join(errs[:]...)); failed == nil {
			conns = append(conns, conn.(*net.TCPConn))
		}
	}
	return conns, err
}

// dropPending accepts what waits in the queue and forgets it.
func dropPending(listener int, set settings) (err error) {
	fds, err := AcceptAll(listener)
	for _, fd := range fds {
		// Closing is silent while repair mode is on, which Multipath TCP does not have.
		failed := new(Socket).pauseNew(fd, []Option{WithRepairer(set.repairer)})
		err = errors.Join(err, failed, unix.Close(fd))
	}
	return err
}

// settle waits until no handshake with a listener is under way, as long as new ones
// are kept away. Meanwhile connections need not wait for data (TCP_DEFER_ACCEPT):
// for those that have sent all but data, the kernel repeats its part, and they can
// be accepted.
func settle(fd int, l *ListenerSnapshot, patience time.Duration) (left uint32, err error) {
	deferred, err := sockopt.GetInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT)
	if err != nil {
		return 0, err
	}
	if deferred > 0 {
		if err := sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0); err != nil {
			return 0, err
		}
		defer func() {
			err = errors.Join(err, sockopt.SetInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferred))
		}()
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		left, err = halfOpen(fd, l)
		if err != nil || left == 0 || time.Since(start) > patience {
			return left, err
		}
	}
}
