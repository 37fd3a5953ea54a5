package soccr_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// crowdEnv marks a process that has a part of a crowd: how many sockets, and which of
// batchWays they go.
const crowdEnv = "GOSOCCR_CROWD"

// movePart is that process: whenever it reads a line it moves its sockets, and writes
// when the first lock was asked for and the last one gone.
func movePart(t *testing.T) {
	var size, way int
	if _, err := fmt.Sscan(os.Getenv(crowdEnv), &size, &way); err != nil {
		t.Fatal(err)
	}
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	n := &network{here: here, there: here}
	n.makeLock(t)
	c := n.bothEnds(t, size)
	timed := &timedLock{FlowsPreparer: n.lock}
	options := append(slices.Clone(batchWays[way].options), soccr.WithLock(timed), soccr.WithWorkers(1))
	fmt.Println(0, 0)
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err == io.EOF {
			return
		}
		if _, err := c.move(timed, options); err != nil {
			t.Fatal(err)
		}
		fmt.Println(timed.locking.UnixNano(), timed.unlocked.UnixNano())
	}
}

// A part is such a process, seen from the one that started it.
type part struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// processes moves sockets of many processes of one host at the same time: more than a
// process may have.
func (r *reporter) processes(t *testing.T, size, processes, way int) crowdRow {
	t.Helper()
	h := hosttest.New(t)
	parts := make([]*part, processes)
	for i := range parts {
		p := &part{cmd: exec.Command("/proc/self/exe", "-test.run=^TestReport$")}
		p.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", crowdEnv, size/processes, way))
		p.cmd.Stderr = os.Stderr
		stdout, err := p.cmd.StdoutPipe()
		if err == nil {
			p.stdin, err = p.cmd.StdinPipe()
		}
		if err != nil {
			t.Fatal(err)
		}
		p.stdout = bufio.NewReader(stdout)
		hosttest.Do(t, h, p.cmd.Start) // a process is where the thread is that starts it
		t.Cleanup(func() { _ = p.cmd.Process.Kill() })
		parts[i] = p
	}
	said := func() (locking, unlocked int64) {
		t.Helper()
		for i, p := range parts {
			var from, to int64
			if _, err := fmt.Fscanln(p.stdout, &from, &to); err != nil {
				t.Fatal(err)
			}
			if i == 0 || from < locking {
				locking = from
			}
			unlocked = max(unlocked, to)
		}
		return locking, unlocked
	}
	said()
	var frozen []time.Duration
	for range 1 + r.effort/10 {
		for _, p := range parts {
			if _, err := io.WriteString(p.stdin, "\n"); err != nil {
				t.Fatal(err)
			}
		}
		locking, unlocked := said()
		frozen = append(frozen, time.Duration(unlocked-locking))
	}
	for _, p := range parts {
		p.stdin.Close()
		_, _ = io.Copy(io.Discard, p.stdout)
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	row := crowdRow{N: size, Way: batchWays[way].name, Processes: processes, Workers: 1, Frozen: quantilesOf(frozen)}
	row.PerConn = row.Frozen.Median / time.Duration(size)
	return row
}
