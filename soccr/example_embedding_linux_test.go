package soccr_test

import (
	"bufio"
	"errors"
	"fmt"
	"log"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// What docs/embedding.md shows is here, to the letter.

// save takes the connection of a stopped program out of its socket, of which fd is the
// caller's descriptor and flow what sock_diag says of it. The lock has to be one of the
// socket's network namespace. On error everything is as it was.
func save(fd int, flow netlock.Flow, lock *netlock.Lock) (snapshot *soccr.Snapshot, err error) {
	if err := lock.Add(flow); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Remove(flow))
		}
	}()
	socket, err := soccr.Pause(fd)
	if err != nil {
		return nil, err // the socket is untouched
	}
	snapshot, err = socket.Save()
	if err != nil {
		return nil, errors.Join(err, socket.Resume()) // the connection goes on
	}
	// Here a dump that leaves the program running calls Resume instead.
	if err := socket.Disconnect(); err != nil {
		return nil, errors.Join(err, socket.Resume())
	}
	socket.Release()
	return snapshot, nil // and the flow stays locked
}

// restore puts a connection into a new socket, in the network namespace netns. The
// caller owns fd; a program gets it by inheritance, or by SCM_RIGHTS. On error there
// is no socket, nothing was sent, and the snapshot can be restored again.
func restore(snapshot *soccr.Snapshot, netns int, lock *netlock.Lock) (fd int, err error) {
	flow := netlock.Flow{Local: snapshot.Local, Remote: snapshot.Remote}
	if err := lock.Add(flow); err != nil {
		return -1, err
	}
	// A socket belongs to the namespace of the thread that makes it, for ever.
	err = within(netns, func() (err error) {
		fd, err = soccr.NewSocket(snapshot)
		return err
	})
	if err != nil {
		return -1, errors.Join(err, lock.Remove(flow))
	}
	socket, err := soccr.Pause(fd)
	if err == nil {
		err = socket.Restore(snapshot, soccr.WithLock(lock))
	}
	if err != nil {
		// Closed before it is unlocked, so that nothing answers the peer.
		return -1, errors.Join(err, unix.Close(fd), lock.Remove(flow))
	}
	// All connections of a program come to this point before the first one goes on.
	if err := lock.Remove(flow); err != nil {
		return -1, errors.Join(err, unix.Close(fd)) // still paused: silently
	}
	return fd, socket.Resume()
}

// within runs f on a thread in a network namespace.
func within(netns int, f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Setns(netns, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// A checkpointer moves a stopped program's connection, into a network namespace.
func Example_checkpointer() {
	conn, peer := connected()
	file, err := conn.File() // stands for a descriptor from elsewhere: pidfd_getfd(2), SCM_RIGHTS
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(peer, "hello")
	netns, err := os.Open("/proc/thread-self/ns/net") // stands for that of a container
	if err != nil {
		log.Fatal(err)
	}
	defer netns.Close()
	lock, err := netlock.New(netlock.WithNetNS(int(netns.Fd())))
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()

	flow := netlock.Flow{Local: addrPort(conn.LocalAddr()), Remote: addrPort(conn.RemoteAddr())}
	snapshot, err := save(int(file.Fd()), flow, lock)
	if err != nil {
		log.Fatal(err)
	}
	fd, err := restore(snapshot, int(netns.Fd()), lock)
	if err != nil {
		log.Fatal(err)
	}
	restored := os.NewFile(uintptr(fd), "connection")
	defer restored.Close()
	line, err := bufio.NewReader(restored).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	// Output:
	// "hello\n" <nil>
}
