//go:build amd64 || arm64

package soccr_test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
)

// TestCalls counts the system calls that a move takes, and compares them with
// testdata/calls.txt, so that one more is noticed. With -update it writes that
// file anew. On another kernel than the file's they may be others. Where time goes
// slowly, priming is tried again, and so is this: the fewest count.
//
// Another process makes the calls, because a thread can only be watched by one of
// another process; and in a user namespace, so that it may do what an ordinary
// user may.
func TestCalls(t *testing.T) {
	if os.Getenv(watchedEnv) != "" {
		makeCalls(t)
		return
	}
	const golden = "testdata/calls.txt"
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	wantTotal, wantKernel := parseHead(t, want)
	got := watchCalls(t)
	gotTotal, gotKernel := parseHead(t, got)
	for attempt := 1; attempt < 10 && got != want && gotKernel == wantKernel; attempt++ {
		again := watchCalls(t)
		if total, _ := parseHead(t, again); total < gotTotal {
			got, gotTotal = again, total
		}
	}
	if soccr.Update() {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if gotKernel == wantKernel && got != want {
		t.Errorf("%d calls and not %d; if that is as it should be: go test ./soccr -run TestCalls -update", gotTotal, wantTotal)
	}
}

const head = "%d system calls on Linux %s as counted and written by TestCalls\n"

func parseHead(t *testing.T, table string) (total int, kernel string) {
	t.Helper()
	if _, err := fmt.Sscanf(table, head, &total, &kernel); err != nil {
		t.Fatalf("%v in %.80q", err, table)
	}
	return total, kernel
}

// watchedEnv marks the process whose calls are counted.
const watchedEnv = "GOSOCCR_WATCHED"

// A way is how a connection is moved, in stages.
type way struct {
	name   string
	stages func(conn *net.TCPConn) ([]func() error, error)
}

var stageNames = [...]string{"pause and save", "close", "restore", "resume"}

var ways = [...]way{
	{"floor", func(conn *net.TCPConn) ([]func() error, error) {
		f, err := newFloorConn(conn)
		return []func() error{
			func() error { f.pause(); f.save(); return f.err() },
			func() error { f.close(); return f.err() },
			func() error { f.restore(); return f.err() },
			func() error { f.resume(); return f.err() },
		}, err
	}},
	{"all", libraryWay()},
	{"plain", libraryWay(soccr.WithPlain())},
	{"bare", libraryWay(soccr.WithoutOptions(), soccr.WithoutVerifying())},
	{"primed", libraryWay(soccr.WithPath(soccr.PathSame))},
}

func libraryWay(options ...soccr.Option) func(conn *net.TCPConn) ([]func() error, error) {
	return func(conn *net.TCPConn) ([]func() error, error) {
		f, err := newFloorConn(conn)
		if err != nil {
			return nil, err
		}
		fd := f.fd
		var socket *soccr.Socket
		var snap *soccr.Snapshot
		return []func() error{
			func() (err error) {
				if socket, err = soccr.Pause(fd, options...); err == nil {
					snap, err = socket.Save()
				}
				return err
			},
			func() error { socket.Release(); return unix.Close(fd) },
			func() (err error) {
				if fd, err = soccr.NewSocket(snap); err != nil {
					return err
				}
				if socket, err = soccr.Pause(fd, options...); err != nil {
					return err
				}
				return socket.Restore(snap)
			},
			func() error { return socket.Resume() },
		}, nil
	}
}

// situations are the connections that are moved.
var situations = [...]struct {
	name   string
	family family
	queue  int // bytes that the program has not read
}{
	{"IPv4", loopback4, 0},
	{"IPv6", loopback6, 0},
	{"64KiB", loopback4, 64 << 10},
}

// makeCalls is the other process: it moves all connections in all ways, and says
// which stage begins.
func makeCalls(t *testing.T) {
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	n := &network{here: here, there: here}
	// Once for what is done only once, then for those who watch.
	for _, watched := range []bool{false, true} {
		if watched {
			meetWatcher(t)
		}
		for _, w := range ways {
			for _, s := range situations {
				stages, err := w.stages(n.benchConn(t, s.family, s.queue))
				for i := 0; i < len(stages) && err == nil; i++ {
					if watched {
						announce(counted)
					}
					err = stages[i]()
					if watched {
						announce(uncounted)
					}
				}
				if err != nil {
					t.Fatalf("%s, %s: %v", s.name, w.name, err)
				}
			}
		}
	}
	announce(unwatched)
}

// moves is how many moves there are: each connection in each way.
const moves = len(ways) * len(situations)

// watchCalls starts the other process, watches it, and gives a table with a
// column for each move.
func watchCalls(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCalls$")
	cmd.Env = append(os.Environ(), watchedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	calls := watch(t, cmd)
	if got, want := len(calls), moves*len(stageNames); got != want {
		t.Fatalf("%d stages were watched, want %d", got, want)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, head, len(slices.Concat(calls...)), kernel(t))
	row := func(name string, cells []string) { fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(cells, "\t")) }
	var way, situation []string
	for i := range moves {
		way = append(way, ways[i/len(situations)].name)
		situation = append(situation, situations[i%len(situations)].name)
	}
	row("", way)
	row("", situation)
	for i, stage := range stageNames {
		var total []string
		counts := make(map[string][]string) // of one call in each move
		for move := range moves {
			made := calls[move*len(stageNames)+i]
			total = append(total, fmt.Sprint(len(made)))
			for _, call := range made {
				if counts[call] == nil {
					counts[call] = slices.Repeat([]string{"."}, moves)
				}
				n, _ := strconv.Atoi(counts[call][move])
				counts[call][move] = fmt.Sprint(n + 1)
			}
		}
		row(stage, total)
		for _, call := range slices.Sorted(maps.Keys(counts)) {
			row("  "+call, counts[call])
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
