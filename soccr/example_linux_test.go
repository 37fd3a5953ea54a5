package soccr_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A program moves a connection of its own: out of one conn, through bytes that
// could travel to another host, and into another conn. Its peer notices nothing.
func Example() {
	conn, peer := connected()
	fmt.Fprintln(peer, "hello")

	lock, err := netlock.New() // keeps the peer's packets away meanwhile
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()
	snapshot, err := soccr.Checkpoint(conn, soccr.WithLock(lock)) // conn is closed now
	if err != nil {
		log.Fatal(err)
	}
	image, err := snapshot.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}

	var arrived soccr.Snapshot
	if err := arrived.UnmarshalBinary(image); err != nil {
		log.Fatal(err)
	}
	moved, err := soccr.RestoreConn(&arrived, soccr.WithLock(lock))
	if err != nil {
		log.Fatal(err)
	}
	defer moved.Close()

	line, err := bufio.NewReader(moved).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	fmt.Fprintln(moved, "and hello to you")
	line, err = bufio.NewReader(peer).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	// Output:
	// "hello\n" <nil>
	// "and hello to you\n" <nil>
}

// A checkpointer works on file descriptors, of a stopped program for example. It
// decides itself when to lock, when to go back, and what to do with the socket.
func ExamplePause() {
	conn, peer := connected()
	file, err := conn.File() // stands for a descriptor from elsewhere: pidfd_getfd(2), SCM_RIGHTS
	if err != nil {
		log.Fatal(err)
	}
	fd := int(file.Fd())
	fmt.Fprintln(peer, "hello")

	socket, err := soccr.Pause(fd)
	if err != nil {
		log.Fatal(err)
	}
	snapshot, err := socket.Save()
	if err != nil {
		// The connection goes on as if nothing had been.
		log.Fatal(err, socket.Resume())
	}
	fmt.Println(snapshot.State, "with", len(snapshot.RecvQueue), "unread bytes")
	// Out of the socket, silently, whoever else has a descriptor of it.
	if err := socket.Disconnect(); err != nil {
		log.Fatal(err)
	}
	socket.Release()

	// Into a new one: here, or wherever the snapshot has travelled.
	newFD, err := soccr.NewSocket(snapshot)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(newFD)
	restored, err := soccr.Pause(newFD)
	if err != nil {
		log.Fatal(err)
	}
	if err := restored.Restore(snapshot); err != nil {
		log.Fatal(err) // the socket holds nothing, the snapshot can be tried again
	}
	if err := restored.Resume(); err != nil {
		log.Fatal(err)
	}
	if _, err := unix.Write(newFD, []byte("moved\n")); err != nil {
		log.Fatal(err)
	}
	line, err := bufio.NewReader(peer).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	// Output:
	// ESTABLISHED with 6 unread bytes
	// "moved\n" <nil>
}

// A server hands its listener over, with a client that it has not accepted yet.
// Clients that connect while nobody listens wait: the lock keeps them from being
// refused.
func ExampleCheckpointListener() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(client, "hello")

	lock, err := netlock.New()
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()
	snapshot, err := soccr.CheckpointListener(listener.(*net.TCPListener), // which is closed now
		soccr.WithLock(lock), soccr.WithInFlight(soccr.KeepInFlight))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(snapshot.Pending), "connection waits to be accepted")

	// Here, or wherever the snapshot has travelled; Preflight has a look first.
	if err := soccr.Preflight(nil, []*soccr.ListenerSnapshot{snapshot}); err != nil {
		log.Fatal(err)
	}
	restored, err := soccr.RestoreListener(snapshot, soccr.WithLock(lock))
	if err != nil {
		log.Fatal(err)
	}
	defer restored.Close()
	conn, err := restored.Accept()
	if err != nil {
		log.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	fmt.Printf("%q %v\n", line, err)
	// Output:
	// 1 connection waits to be accepted
	// "hello\n" <nil>
}

// A connection goes on under another address, where a NAT on the way, or a move of
// the peer, sees to it that the peer's packets arrive there.
func ExampleMapping() {
	mapping := &soccr.Mapping{
		Local:   []soccr.AddrRule{soccr.MapAddr(netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.9.8.7"))},
		Devices: map[string]string{"eth0": "net1"},
	}
	snapshot := &soccr.Snapshot{ // of a socket that is bound
		State:   soccr.StateClose,
		Local:   netip.MustParseAddrPort("10.1.2.3:80"),
		Options: soccr.Options{Settings: []soccr.Setting{{Name: "SO_BINDTODEVICE", Text: "eth0"}}},
	}
	mapped, err := mapping.Apply(snapshot)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(mapped.Local, mapped.Options.Settings[0].Text)
	// Output:
	// 10.9.8.7:80 net1
}

// connected makes the two ends of a connection.
func connected() (conn, peer *net.TCPConn) {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Go's default, which cannot be moved
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	return accepted.(*net.TCPConn), dialed.(*net.TCPConn)
}
