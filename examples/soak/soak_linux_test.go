package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		main()
		return
	}
	hosttest.Main(m)
}

// A short soak, with all that belongs to it.
func TestSoak(t *testing.T) {
	hosttest.Need(t)
	c, err := parse([]string{"-moves", "400", "-peers", "0", "-connections", "16", "-stay", "100ms", "-duration", "5s", "-every", "1s", "-hang", "1m", "-out", t.TempDir()}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	err = conduct(c, &log)
	t.Log(log.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" 0 RST", "wrapped around", wayBatch, wayInPlace, wayProcess, wayHost, "0 packets not seen"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the report does not say %q", want)
		}
	}
}

// A byte out of place is noticed, and where it comes from.
func TestContent(t *testing.T) {
	const total, size, at = 10_000, 500, 3003
	c := content(7)
	stream := make([]byte, total)
	c.fill(stream, 0)
	for offset := range 20 { // in pieces of any alignment
		piece := make([]byte, size)
		if c.fill(piece, int64(offset)); !bytes.Equal(piece, stream[offset:offset+size]) {
			t.Fatalf("the content at %d depends on where one begins", offset)
		}
	}
	for _, test := range []struct {
		name string
		from int
		want string
	}{
		{"right", at, ""},
		{"lost", at + 17, "belongs at 3020, +17 bytes off"},
		{"doubled", at - 100, "belongs at 2903, -100 bytes off"},
	} {
		err := c.check(stream[test.from:test.from+size], make([]byte, size), at, total)
		if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	changed := bytes.Clone(stream[at : at+size])
	changed[100] ^= 1
	if err := c.check(changed, make([]byte, size), at, total); err == nil || !strings.Contains(err.Error(), "byte 3103 ") {
		t.Errorf("changed: %v", err)
	}
}

// An end that reads something else than was to come says so, with evidence.
func TestEndsNotice(t *testing.T) {
	hosttest.Need(t)
	for _, test := range []struct {
		name string
		come func(c content) []byte
		want string
	}{
		{"another byte", func(c content) []byte { return []byte{byte(c.word(0)) + 1} }, "byte 0 is"},
		{"too little", func(c content) []byte { b := make([]byte, 99); c.fill(b, 0); return b }, "ends after 99 bytes of 100"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, _, err := newBoard()
			if err != nil {
				t.Fatal(err)
			}
			e := &engine{name: "test", board: b, out: t.TempDir(), stats: newStats(), failed: make(chan struct{})}
			listener, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			peer, err := net.Dial("tcp4", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			conn, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			x := &end{engine: e, conn: conn.(*net.TCPConn)}
			x.Local, x.Remote = netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
			x.Plan.Content[1], x.Plan.Total[1] = 5, 100
			x.Plan.Ends[0] = habits{MostRead: 1000, MostWrite: 1, Slow: time.Millisecond}
			b.Slots[0][1].Written.Store(101) // with the FIN
			x.start()
			if _, err := peer.Write(test.come(5)); err != nil {
				t.Fatal(err)
			}
			if err := peer.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-e.failed:
			case <-time.After(10 * time.Second):
				t.Fatal("nothing was noticed")
			}
			files, err := filepath.Glob(filepath.Join(e.out, "slot0-life0-test.txt"))
			if err != nil || len(files) != 1 || !strings.Contains(e.failure, test.want) || b.Stop.Load() == 0 {
				t.Errorf("evidence %v, %v; failure %q; stop %d", files, err, e.failure, b.Stop.Load())
			}
		})
	}
}
