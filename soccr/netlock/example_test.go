package netlock_test

import (
	"errors"
	"fmt"
	"log"
	"net"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var (
	_ soccr.Locker    = (*netlock.Lock)(nil)
	_ soccr.Tracker   = (*netlock.Lock)(nil)
	_ soccr.Explainer = (*netlock.Lock)(nil)
)

// A program takes one of its connections out of the kernel and puts it back,
// while the lock keeps the peer's packets away.
func Example() {
	conn, err := net.Dial("tcp", "192.0.2.1:80")
	if err != nil {
		log.Fatal(err)
	}
	lock, err := netlock.New()
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()

	snap, err := soccr.Checkpoint(conn.(*net.TCPConn), soccr.WithLock(lock))
	if err != nil {
		log.Fatal(err)
	}
	restored, err := soccr.RestoreConn(snap, soccr.WithLock(lock))
	if err != nil {
		log.Fatal(err)
	}
	defer restored.Close()
}

// Many flows are locked at once, and a lock may fail to be had at all.
func ExampleNew() {
	lock, err := netlock.New(netlock.WithNetNSPath("/run/netns/blue"))
	switch {
	case errors.Is(err, netlock.ErrNoPermission), errors.Is(err, netlock.ErrNoNFTables):
		log.Fatal(err) // says what is missing
	case err != nil:
		log.Fatal(err)
	}
	defer func() {
		if err := lock.Close(); errors.Is(err, netlock.ErrLost) {
			log.Print("packets may have come in between: ", err)
		}
	}()
	var flows []netlock.Flow // of all connections that are to be moved
	if err := lock.Add(flows...); err != nil {
		log.Print("not one of them is locked: ", err)
	}
}

// A container is about to be moved: nothing comes in or goes out.
func ExampleNamespace() {
	lock, err := netlock.Namespace(netlock.WithNetNSPath("/proc/1234/ns/net"))
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()
}

// A connection in a half-closed state cannot be restored, because a firewall drops
// the segment that is to bring it there. Which rule is it?
func ExampleExplain() {
	var snap *soccr.Snapshot
	lock, err := netlock.New()
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()

	var conn *net.TCPConn
	restore := func() (err error) {
		conn, err = soccr.RestoreConn(snap, soccr.WithLock(lock))
		return err
	}
	if err := restore(); errors.Is(err, soccr.ErrInjection) {
		drops, err := netlock.Explain(restore)
		for _, d := range drops {
			fmt.Println("dropped by", d) // dropped by rule 7 of chain ip filter KUBE-FIREWALL
		}
		fmt.Println(conn, err) // the second attempt may have succeeded
	}
}
