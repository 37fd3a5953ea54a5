package repair_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/repaird/repair"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// FuzzRequests: whatever a client sends, in whatever pieces, with whatever descriptors,
// the server answers what it has done, has done all or nothing of what it does not
// answer, and keeps no descriptor.
//
// An input is a sequence of messages, of three bytes each: whether it is one byte or two,
// which, and which descriptors go with it.
func FuzzRequests(f *testing.F) {
	hosttest.Need(f)
	f.Add([]byte{0, repair.On, 0b0011, 0, repair.Off, 0b0011})
	f.Add([]byte{0, repair.OffNoProbe, 0b0001})
	f.Add([]byte{0, repair.On, 0b0101})                // and a listener, which has no repair mode
	f.Add([]byte{0, repair.On, 0b1001})                // and no socket
	f.Add([]byte{1, repair.On, 0b0001})                // and more data
	f.Add([]byte{0, 2, 0b0001})                        // no command
	f.Add([]byte{0, repair.On, 0, 0, repair.On, 0b11}) // without descriptors
	newSocket := func() int {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	tcp, listener := [2]int{newSocket(), newSocket()}, newSocket()
	var pipe [2]int
	if err := errors.Join(unix.Listen(listener, 1), unix.Pipe2(pipe[:], unix.O_CLOEXEC)); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	all := []int{tcp[0], tcp[1], listener, pipe[0]}
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, fd := range tcp {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
				t.Fatal(err)
			}
		}
		before := openFDs(t)
		client, server, err := unixPair()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&repair.Server{UIDs: []uint32{uint32(os.Getuid())}, MaxFDs: 3, Idle: 10 * time.Second}).ServeConn(server)
		}()
		want := [2]int{} // the modes of both
		for ; len(input) >= 3 && err == nil; input = input[3:] {
			data := bytes.Repeat(input[1:2], 1+int(input[0]%2))
			var sent []int
			for i, fd := range all {
				if input[2]&(1<<i) != 0 {
					sent = append(sent, fd)
				}
			}
			if input[2]&0x80 != 0 && len(sent) > 0 { // too many
				sent = append(sent, sent[0], sent[0], sent[0])
			}
			if _, _, err = client.WriteMsgUnix(data, unix.UnixRights(sent...), nil); err != nil {
				break
			}
			var answer [1]byte
			if _, err = client.Read(answer[:]); err != nil {
				break
			}
			if answer[0] != input[1] {
				t.Fatalf("answer %d to %d", answer[0], input[1])
			}
			for i := range tcp {
				if input[2]&(1<<i) != 0 {
					want[i] = max(0, int(int8(input[1])))
				}
			}
			if len(data) > 1 {
				break // the second byte is a request without descriptors
			}
		}
		_ = client.Close()
		<-done
		for i, fd := range tcp {
			if mode, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || mode != want[i] {
				t.Errorf("socket %d is in mode %d, %v; want %d", i, mode, err, want[i])
			}
		}
		if after := openFDs(t); after > before {
			t.Errorf("%d descriptors are left", after-before)
		}
	})
}
