package diag_test

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/gosoccr/gosoccr/diag"
)

// List connections of this network namespace, here those of one port, and what
// waits in them.
func ExampleConn_Sockets() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	fmt.Fprint(client, "hello")

	c, err := diag.Dial(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	filter := diag.Filter{
		States:    diag.Connected,
		LocalPort: listener.Addr().(*net.TCPAddr).AddrPort().Port(),
	}
	for s, err := range c.Sockets(filter) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.State, "at", s.Local.Addr(), "with", s.RecvQueue, "unread bytes")
	}
	// Output:
	// ESTABLISHED at 127.0.0.1 with 5 unread bytes
}

// Find a connection of this program, and the one that it is not.
func ExampleConn_Lookup() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	c, err := diag.Dial(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	s, err := c.Lookup(local, remote)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.State, s.Local == local, s.Remote == remote)

	// The listening socket's port has no connection to itself.
	_, err = c.Lookup(remote, remote)
	fmt.Println(errors.Is(err, diag.ErrNotFound))
	// Output:
	// ESTABLISHED true true
	// true
}

// Tell which file descriptor of this process a connection is.
func ExampleHeldBy() {
	c, err := diag.Dial(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	sockets := make(map[uint32]diag.Socket)
	for s, err := range c.Sockets(diag.Filter{}) {
		if err != nil {
			log.Fatal(err)
		}
		sockets[s.Inode] = s
	}
	for h, err := range diag.HeldBy(os.Getpid()) {
		if err != nil {
			log.Fatal(err)
		}
		if s, ok := sockets[h.Inode]; ok {
			fmt.Printf("%d: %v %v->%v\n", h.FD, s.State, s.Local, s.Remote)
		}
	}
}
