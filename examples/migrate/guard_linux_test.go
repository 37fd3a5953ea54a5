package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// Wherever the guard of a command is killed, the one that was started puts right what
// it has left: nobody traces the program, nothing is paused or locked, no byte is lost.
func TestGuardKilledAtStages(t *testing.T) {
	hosttest.Need(t)
	t.Run("commands", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"swap":                          func(t *testing.T) { testSwapGuardKilled(t, "--new-socket=false") },
			"swap into new sockets":         func(t *testing.T) { testSwapGuardKilled(t, "--new-socket") },
			"swap, frozen":                  testFrozenGuardKilled,
			"dump":                          testDumpGuardKilled,
			"dump, leave running":           testDumpRunningGuardKilled,
			"restore into another program":  func(t *testing.T) { testRestoreGuardKilled(t, "lodger") },
			"restore into the same program": func(t *testing.T) { testRestoreGuardKilled(t, "patient", "--leave-closed") },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	nft, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := nft.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		t.Errorf("table %s is left", table.Name)
	}
}

func testSwapGuardKilled(t *testing.T, way string) {
	var e *echo
	var c net.Conn
	var stream *conversation
	damaged := 0
	killedAtStages(t, true, func(s *stepped) {
		if e == nil {
			e = startEcho(t, "stubborn", "127.0.0.1:0")
			c, stream = dialEcho(t, e), converseAhead(t, e.addr, 60_000)
		}
		said := s.guardKilled(t, "swap", "-t", fmt.Sprint(e.pid), way)
		if strings.Contains(said, "may be damaged") {
			damaged++
			e.discard()
			e = nil
			return
		}
		s.sound(t, e, said)
		if err := stream.goesOn(); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
	t.Logf("%d times the program may have been damaged", damaged)
	if e != nil {
		stream.end(t)
	}
}

// A program in a cgroup that is frozen meanwhile notices nothing at all.
func testFrozenGuardKilled(t *testing.T) {
	dir, err := makeCgroup(t) // first, so that it is removed last
	if err != nil {
		t.Logf("no cgroup can be made here: %v", err)
		return
	}
	e := startEcho(t, "threads", "127.0.0.1:0") // which complains
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, e.pid), 0); err != nil {
		t.Fatal(err)
	}
	stream := converseAhead(t, e.addr, 60_000)
	killedAtStages(t, true, func(s *stepped) {
		said := s.guardKilled(t, "swap", "-t", fmt.Sprint(e.pid), "--freeze-cgroup", dir)
		s.sound(t, e, said)
		if err := stream.goesOn(); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
	stream.end(t)
}

// Either the program goes on as it was, or the image is there as a whole and the
// program is not.
func testDumpGuardKilled(t *testing.T) {
	images := 0
	var e *echo
	var c net.Conn
	killedAtStages(t, true, func(s *stepped) {
		if e == nil {
			e = startEcho(t, "stubborn", "127.0.0.1:0")
			c = dialEcho(t, e)
		}
		img, said := s.dump(t, e.pid)
		if killed := s.stops == s.last; killed && s.code != statusMended && (s.code != 0 || img == nil) {
			t.Fatalf("at stop %d: status %d: %s", s.last, s.code, said)
		}
		if img == nil {
			s.sound(t, e, said)
		} else {
			images++
			if tracer := tracerOf(e.pid); tracer != "" && proc.AwaitEnd(e.pid, 0) != nil {
				t.Fatalf("at stop %d: the program goes on, too; %s", s.last, said)
			}
			revive(t, img)
			e = nil
		}
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
	t.Logf("%d images were there", images)
}

func testDumpRunningGuardKilled(t *testing.T) {
	e := startEcho(t, "stubborn", "127.0.0.1:0")
	c := dialEcho(t, e)
	dir := t.TempDir()
	killedAtStages(t, true, func(s *stepped) {
		said := s.guardKilled(t, "dump", "-R", "-t", fmt.Sprint(e.pid), "-D", dir)
		s.sound(t, e, said)
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
}

// Either the sockets are there, or they can be restored again. The program is another
// one, or has been left without them by a dump with such flags.
func testRestoreGuardKilled(t *testing.T, into string, dump ...string) {
	restored, damaged := 0, 0
	var e *echo
	var c net.Conn
	killedAtStages(t, true, func(s *stepped) {
		if e == nil {
			first := into
			if len(dump) == 0 {
				first = "stubborn"
			}
			e = startEcho(t, first, "127.0.0.1:0")
			c = dialEcho(t, e)
		}
		// Nobody keeps the connection locked, for no packet comes.
		img := dumped(t, e.pid, append(dump, "--network-lock", "skip")...)
		args := []string{}
		if fds := descriptors(t, img); len(dump) == 0 {
			e = startEcho(t, into, "127.0.0.1:0")
			args = []string{"--fd", fmt.Sprintf("%d=%d", fds[image.Connection], vacancy)}
			if old, ok := fds[image.Listener]; ok {
				args = append(args, "--fd", fmt.Sprintf("%d=%d", old, vacancy+1))
				img = only(t, img, image.Connection)
			}
		} else {
			img = only(t, img, image.Connection)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, image.Name), img, 0o600); err != nil {
			t.Fatal(err)
		}
		said := s.guardKilled(t, append([]string{"restore", "-t", fmt.Sprint(e.pid), "-D", dir}, args...)...)
		if strings.Contains(said, "may be damaged") {
			damaged++
			e.discard()
			e = nil
			return
		}
		s.sound(t, e, said)
		if s.code == statusMended && !strings.Contains(said, "were restored") {
			if got, said := restoreInto(t, img, e.pid, args...); got != 0 {
				t.Fatalf("at stop %d: status %d: %s", s.last, got, said)
			}
		} else {
			restored++
		}
		if err := exchange(c); err != nil {
			t.Fatalf("at stop %d: %v; %s", s.last, err, said)
		}
	})
	t.Logf("%d times they were there; %d times the program may have been damaged", restored, damaged)
}

// discard ends a program that may have gone wrong, and forgets what it has said.
func (e *echo) discard() {
	_ = unix.Kill(-e.pid, unix.SIGKILL)
	_ = e.command.Wait()
	e.stderr = &lockedBuffer{}
}

// goesOn waits until more has come back.
func (c *conversation) goesOn() error {
	began := c.bytes.Load()
	for deadline := time.Now().Add(20 * time.Second); c.bytes.Load() == began; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing comes behind the first %d bytes", began)
		}
	}
	return nil
}

// sound fails the test unless a killed guard has left nothing behind.
func (s *stepped) sound(t *testing.T, e *echo, said string) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("at stop %d: %s; %s", s.last, fmt.Sprintf(format, args...), said)
	}
	if tracer := tracerOf(e.pid); tracer != "0" {
		fail("process %s traces it", tracer)
	}
	thief := proc.NewThief()
	defer thief.Close()
	all, err := openSockets([]int{e.pid}, thief)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = all.close() }()
	for _, c := range all.sockets {
		if !c.tcp() || c.state == soccr.StateListen {
			continue
		}
		if paused, err := isPaused(c.fd); paused || err != nil {
			fail("%s -> %s is paused, %v", c.Local, c.Peer, err)
		}
	}
}

// guardKilled runs a command, whose guard is killed, and says what it has said.
func (s *stepped) guardKilled(t *testing.T, args ...string) string {
	t.Helper()
	said := s.command(t, args...)
	killed := s.stops == s.last
	if damaged := strings.Contains(said, "may be damaged"); !damaged && killed != (s.code == statusMended) {
		t.Fatalf("at stop %d of %d: status %d: %s", s.stops, s.last, s.code, said)
	}
	return said
}
