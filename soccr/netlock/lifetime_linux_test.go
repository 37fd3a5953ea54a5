package netlock

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

var kills = flag.Int("kills", 20, "how often TestKilledOwner kills one of each kind")

// helperEnv makes the test binary an owner of locks that can be killed.
const helperEnv = "GOSOCCR_NETLOCK_HELPER"

// helper locks the flow that it is given by its arguments, and says so. Then it
// waits for a line and says what removing the flow gave; or, as "busy", it makes
// and unmakes locks until it is killed.
func helper() {
	say := func(err error) {
		fmt.Println(err, errors.Is(err, ErrLost))
	}
	var options []Option
	timeout, err := time.ParseDuration(os.Args[1])
	if err == nil {
		options = append(options, WithTimeout(timeout))
	}
	mode := os.Getenv(helperEnv)
	busy := strings.Contains(mode, "busy")
	if strings.Contains(mode, "unowned") {
		options = append(options, unowned)
	}
	flow := Flow{Local: netip.MustParseAddrPort(os.Args[2]), Remote: netip.MustParseAddrPort(os.Args[3])}
	for first := true; first || busy; {
		l, err := New(options...)
		if err == nil {
			err = l.Add(append(manyFlows(2000), flow)...)
		}
		switch {
		case busy && errors.Is(err, ErrLost): // it had no CPU for as long as its timeout
		case first || err != nil:
			say(err)
			first = false
		}
		if !busy {
			_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
			say(l.Remove(flow))
		}
		if err := l.Close(); err != nil {
			say(err)
		}
	}
}

// unowned makes the table as it is on kernels before 5.12.
func unowned(c *config) { c.unowned = true }

// owner is a process that has locked a flow.
type owner struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.Writer
	stdout *bufio.Reader
}

func startOwner(t testing.TB, h *host.Host, mode string, timeout time.Duration, f Flow) *owner {
	t.Helper()
	o := &owner{t: t, cmd: exec.Command("/proc/self/exe", timeout.String(), f.Local.String(), f.Remote.String())}
	o.cmd.Env = append(os.Environ(), helperEnv+"="+mode)
	o.cmd.Stderr = os.Stderr
	stdin, err := o.cmd.StdinPipe()
	must(t, err)
	stdout, err := o.cmd.StdoutPipe()
	must(t, err)
	o.stdin, o.stdout = stdin, bufio.NewReader(stdout)
	hosttest.Do(t, h, o.cmd.Start) // a process is where the thread is that starts it
	t.Cleanup(func() {
		_ = o.cmd.Process.Kill() // if it has not ended
		_ = o.cmd.Wait()
	})
	o.says("<nil> false\n")
	return o
}

func (o *owner) says(want string) {
	o.t.Helper()
	if got, err := o.stdout.ReadString('\n'); got != want {
		o.t.Fatalf("the owner says %q, %v, want %q", got, err, want)
	}
}

func (o *owner) kill() {
	o.t.Helper()
	must(o.t, o.cmd.Process.Kill())
	_ = o.cmd.Wait() // the signal that ended it
}

// Whenever its owner is killed, a lock is gone with it, or, where tables have no
// owners, within its timeout; then the next lock removes what is left.
func TestKilledOwner(t *testing.T) {
	for _, c := range []struct {
		mode    string
		timeout time.Duration
	}{{"busy", DefaultTimeout}, {"busy, unowned", minTimeout}} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			a, _, conn, _ := pair(t)
			for range *kills {
				o := startOwner(t, a, c.mode, c.timeout, conn.Flow)
				time.Sleep(rand.N(20 * time.Millisecond)) // any moment
				o.kill()
				for _, end := range []*net.TCPConn{conn.local, conn.peer} {
					must(t, end.SetDeadline(time.Now().Add(soon)))
				}
				if got := tables(t, a); c.timeout == DefaultTimeout && len(got) != 0 {
					t.Fatalf("tables %v are left", got)
				}
				conn.wantFree()
				if c.timeout == DefaultTimeout {
					continue
				}
				time.Sleep(c.timeout) // so that no lease is left, if the flow was free before
				l, err := New(WithNetNS(a.FD()))
				must(t, err)
				must(t, l.Close())
				if got := tables(t, a); len(got) != 0 {
					t.Fatalf("tables %v are left", got)
				}
			}
		})
	}
}

// A killed owner's lock holds as long as somebody else has its socket.
func TestHeirOfKilledOwner(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l, err := New(WithNetNS(a.FD()))
	must(t, err)
	must(t, l.Add(c.Flow))
	raw, err := l.SyscallConn()
	must(t, err)
	heir, failure := -1, error(nil)
	must(t, raw.Control(func(fd uintptr) { heir, failure = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }))
	must(t, failure)
	must(t, l.table.conn.Close()) // as its end would
	c.wantLocked(other)
	must(t, unix.Close(heir))
	if got := tables(t, a); len(got) != 0 {
		t.Errorf("tables %v are left", got)
	}
	c.wantFree()
	_ = l.Close() // there is nothing left to close
}

// On kernels where tables have no owners, the lock ends within its timeout, and
// its table is removed by the next lock.
func TestKilledOwnerOfOldKernel(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	const timeout = 400 * time.Millisecond
	o := startOwner(t, a, "unowned", timeout, c.Flow)
	c.wantLocked(other)
	abandoned := tables(t, a)[0]
	newTestLock(t, a) // leaves a lock alone that is in use
	o.kill()
	killed := time.Now()
	if !slices.Contains(tables(t, a), abandoned) {
		t.Error("the table went with its owner, which is what this test is not about")
	}
	c.wantFree()
	// The peer's retransmission may have come up to its timer later.
	if rto := time.Duration(info(t, c.peer).Rto) * time.Microsecond; time.Since(killed) > timeout+4*rto {
		t.Errorf("free after %v", time.Since(killed))
	}
	newTestLock(t, a)
	if slices.Contains(tables(t, a), abandoned) {
		t.Error("the table of the killed owner is left")
	}
}

// A lock whose owner is stopped expires, and does not come back.
func TestStoppedOwner(t *testing.T) {
	for _, mode := range []string{"owned", "unowned"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			a, _, c, other := pair(t)
			o := startOwner(t, a, mode, 400*time.Millisecond, c.Flow)
			c.wantLocked(other)
			must(t, o.cmd.Process.Signal(unix.SIGSTOP))
			c.wantFree()
			must(t, o.cmd.Process.Signal(unix.SIGCONT))
			_, err := io.WriteString(o.stdin, "\n")
			must(t, err)
			want := (&OpError{Op: "remove", Err: ErrLost}).Error() + " true\n"
			o.says(want)
			c.wantFree()
		})
	}
}

// That a lock has expired is known by the clock, before the kernel is asked.
func TestExpiryIsNoticed(t *testing.T) {
	t.Parallel()
	a, b, c, _ := pair(t)
	l, err := New(WithNetNS(a.FD()), WithTimeout(minTimeout))
	must(t, err)
	must(t, l.Add(c.Flow))
	listener := listen(t, a, netip.AddrPortFrom(hosttest.A4, 0).String()).Addr().(*net.TCPAddr).AddrPort()
	must(t, l.LockListener(listener))
	l.mu.Lock() // nothing is renewed
	c.wantFree()
	conn, dialed := dial(b, listener, soon)
	must(t, dialed)
	conn.Close()
	err = l.usable()
	l.mu.Unlock()
	if !errors.Is(err, ErrLost) {
		t.Errorf("%v, want ErrLost", err)
	}
	if err := l.Close(); !errors.Is(err, ErrLost) {
		t.Errorf("close: %v, want ErrLost", err)
	}
	if got := tables(t, a); len(got) != 0 {
		t.Errorf("tables %v are left", got)
	}
}

// A lock lasts for longer than its timeout.
func TestRenewal(t *testing.T) {
	for name, options := range map[string][]Option{"owned": nil, "unowned": {unowned}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _, c, other := pair(t)
			const timeout = 300 * time.Millisecond
			l := newTestLock(t, a, append(options, WithTimeout(timeout))...)
			l.table.capacity = 7
			must(t, l.Add(append(manyFlows(20), c.Flow)...)) // not in the first group
			for end := time.Now().Add(3 * timeout); time.Now().Before(end); time.Sleep(timeout / 10) {
				c.wantLocked(other)
			}
			must(t, l.Remove(c.Flow))
			c.wantFree()
		})
	}
}

// A table without an owner can be removed by anybody. The lock notices.
func TestRemovedTable(t *testing.T) {
	t.Parallel()
	a, _, c, _ := pair(t)
	l, err := New(WithNetNS(a.FD()), unowned)
	must(t, err)
	must(t, l.Add(c.Flow))
	flushRuleset(t, a)
	if err := l.Remove(c.Flow); !errors.Is(err, ErrLost) {
		t.Errorf("remove: %v, want ErrLost", err)
	}
	if err := l.Add(c.Flow); !errors.Is(err, ErrLost) {
		t.Errorf("add: %v, want ErrLost", err)
	}
	if err := l.Close(); !errors.Is(err, ErrLost) {
		t.Errorf("close: %v, want ErrLost", err)
	}
	must(t, l.Close())
}

// An owned table survives what a firewall's reload does.
func TestFlushRuleset(t *testing.T) {
	t.Parallel()
	a, _, c, other := pair(t)
	l := newTestLock(t, a)
	must(t, l.Add(c.Flow))
	flushRuleset(t, a)
	c.wantLocked(other)
	must(t, l.Remove(c.Flow))
	c.wantFree()
}

func flushRuleset(t testing.TB, h *host.Host) {
	t.Helper()
	nft, err := nftables.New(nftables.WithNetNSFd(h.FD()))
	must(t, err)
	nft.FlushRuleset()
	must(t, nft.Flush())
}
