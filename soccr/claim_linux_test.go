package soccr_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// rivalEnv marks the process that wants the same connections.
const rivalEnv = "GOSOCCR_RIVAL"

// A contest is what one of two checkpointers does to a connection: it looks at it a few
// times, which lets it go on, and in the end takes it.
type contest struct {
	Delay      time.Duration
	Looks      int
	Checkpoint bool // takes it as a program does its own
	NoTaking   bool // or does not
	Unlock     bool // instead: its lock lets the flow go
	In, Out    []byte
	Flow       [2]netip.AddrPort
}

// A standing is what has come of it.
type standing struct {
	Looked, Refused, Changed int
	Snapshot                 []byte // what it has taken
	Refusal                  string // why it has not: another one has paused it
	Gone                     bool   // or had it before
	Wrong                    string // which must not be
}

// enter does what a checkpointer does with a descriptor, and a lock of its own or one
// that both have.
func (c *contest) enter(fd int, lock *netlock.Lock) (o standing) {
	if c.Unlock {
		if err := lock.UnlockFlow(c.Flow[0], c.Flow[1]); err != nil {
			o.Wrong = err.Error()
		}
		return o
	}
	spin(c.Delay)
	for range c.Looks {
		if c.look(fd, &o); o.Gone || o.Wrong != "" {
			return o
		}
	}
	if c.NoTaking {
		return o
	}
	var snap *soccr.Snapshot
	var err error
	if c.Checkpoint {
		snap, err = checkpointDescriptor(fd, lock)
	} else {
		snap, err = takeWith(lock, fd, c.Flow[0], c.Flow[1])
	}
	if snap != nil {
		c.judge(snap, &o)
		if image, failed := snap.MarshalBinary(); failed != nil {
			o.Wrong = failed.Error()
		} else if !o.Gone {
			o.Snapshot = image
		}
	}
	switch {
	case errors.Is(err, soccr.ErrPaused):
		o.Refusal = err.Error()
	case errors.Is(err, soccr.ErrChanged):
		o.Changed++
	case err != nil:
		o.Wrong = err.Error()
	}
	return o
}

// look pauses, saves and resumes.
func (c *contest) look(fd int, o *standing) {
	s, err := soccr.Pause(fd)
	if errors.Is(err, soccr.ErrPaused) {
		o.Refused++
		return
	}
	if err != nil {
		o.Wrong = err.Error()
		return
	}
	snap, err := s.Save()
	switch {
	case err == nil:
		o.Looked++
		c.judge(snap, o)
	case errors.Is(err, soccr.ErrChanged):
		o.Changed++
	default:
		o.Wrong = err.Error()
	}
	if err := s.Resume(); err != nil {
		o.Wrong = "resume: " + err.Error()
	}
}

func (c *contest) judge(snap *soccr.Snapshot, o *standing) {
	switch {
	case !snap.Remote.IsValid():
		o.Gone = true
	case !bytes.Equal(snap.RecvQueue, c.In) || !bytes.Equal(snap.SendQueue, c.Out):
		o.Wrong = fmt.Sprintf("saved %d received bytes and %d to send, or others", len(snap.RecvQueue), len(snap.SendQueue))
	}
}

// checkpointDescriptor is Checkpoint for a conn of our own.
func checkpointDescriptor(fd int, lock *netlock.Lock) (*soccr.Snapshot, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(own), "")
	defer file.Close()
	return soccr.Checkpoint(file, soccr.WithLock(lock))
}

// A rival wants the same connection.
type rival interface {
	enter(t *testing.T, c contest, fd int) standing
}

// localRival is in this process.
type localRival struct{ lock *netlock.Lock }

func (r localRival) enter(_ *testing.T, c contest, fd int) standing { return c.enter(fd, r.lock) }

// remoteRival is another process.
type remoteRival struct{ to *net.UnixConn }

func newRemoteRival(t *testing.T) remoteRival {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), ""), os.NewFile(uintptr(pair[1]), "")
	defer ours.Close()
	defer theirs.Close()
	to, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestTwoCheckpointers$")
	cmd.Env = append(os.Environ(), rivalEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		to.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return remoteRival{to.(*net.UnixConn)}
}

func (r remoteRival) enter(t *testing.T, c contest, fd int) (o standing) {
	request, err := json.Marshal(c)
	if err == nil {
		_, _, err = r.to.WriteMsgUnix(request, unix.UnixRights(fd), nil)
	}
	answer := make([]byte, 1<<17)
	n := 0
	if err == nil {
		n, err = r.to.Read(answer)
	}
	if err == nil {
		err = json.Unmarshal(answer[:n], &o)
	}
	if err != nil {
		t.Error(err)
	}
	return o
}

// serveRival is the other process.
func serveRival(t *testing.T) {
	lock, err := netlock.New()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	b, rights := make([]byte, 1<<17), make([]byte, unix.CmsgSpace(4))
	for {
		n, k, _, _, err := unix.Recvmsg(3, b, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return
		}
		var c contest
		if err := json.Unmarshal(b[:n], &c); err != nil {
			t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(rights[:k])
		if err != nil || len(messages) != 1 {
			t.Fatal("no descriptor", err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		o := c.enter(fds[0], lock)
		unix.Close(fds[0])
		answer, err := json.Marshal(o)
		if err == nil {
			_, err = unix.Write(3, answer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Two checkpointers, of one process or of two, want the same connection at the same
// time, each by a descriptor of its own. What either of them saves is right; one has it
// in the end, and the other is told so; and nothing is lost.
func TestTwoCheckpointers(t *testing.T) {
	if os.Getenv(rivalEnv) != "" {
		serveRival(t)
		return
	}
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	n := &network{here: here, there: here}
	n.makeLock(t)
	other := &network{here: here, there: here}
	other.makeLock(t)
	refused := 0
	for _, test := range []struct {
		name       string
		rival      rival
		checkpoint bool
	}{
		{"in one process", localRival{other.lock}, false},
		{"in one process, with one lock", localRival{n.lock}, true},
		{"in two processes", newRemoteRival(t), false},
		{"in two processes, by Checkpoint", newRemoteRival(t), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var total standing
			neither, late, twice := 0, 0, 0
			for round := range raceRounds(40) {
				random := rand.New(rand.NewPCG(uint64(round), 3))
				c := contest{Looks: random.IntN(20), Checkpoint: test.checkpoint}
				standings := n.contest(t, round, c, random, test.rival)
				taken := 0
				for _, o := range standings {
					total.Looked += o.Looked
					total.Refused += o.Refused
					total.Changed += o.Changed
					if o.Snapshot != nil && o.Refusal == "" {
						taken++
					} else if o.Gone {
						late++
					}
					if o.Snapshot != nil && o.Refusal != "" {
						twice++
					}
				}
				if taken == 0 {
					neither++
				}
			}
			t.Logf("%d times: saved %d times and refused %d times meanwhile, changed %d times; in the end it was gone %d times, refused with a snapshot %d times, and nobody's %d times",
				raceRounds(40), total.Looked, total.Refused, total.Changed, late, twice, neither)
			refused += total.Refused
		})
	}
	if refused == 0 {
		t.Error("they were never in each other's way")
	}
}

// contest has two want a connection, and sees what has become of it.
func (n *network) contest(t *testing.T, round int, c contest, random *rand.Rand, r rival) (standings [2]standing) {
	t.Helper()
	conn, peer := n.connect(t, []family{loopback4, loopback6}[round%2])
	in, out := pattern(1, 20_000), pattern(101, 20_000)
	c.In, c.Out = in[:5000], out[:7000]
	write(t, peer, c.In)
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(c.In) })
	deafen(t, peer)
	write(t, conn, c.Out)
	c.Flow = [2]netip.AddrPort{localAddr(conn), peerAddr(conn)}
	fd := ownDescriptor(t, conn)
	defer unix.Close(fd)

	finished := make(chan standing)
	second := c
	second.Delay = time.Duration(random.IntN(300)) * time.Microsecond
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	go func() { finished <- r.enter(t, second, own) }()
	standings[0] = c.enter(fd, n.lock)
	standings[1] = <-finished

	var snap *soccr.Snapshot
	for _, o := range standings {
		if o.Wrong != "" {
			t.Fatalf("round %d: %s", round, o.Wrong)
		}
		if o.Snapshot == nil || o.Refusal != "" {
			continue
		}
		if snap != nil {
			t.Fatalf("round %d: both have it", round)
		}
		snap = new(soccr.Snapshot)
		if err := snap.UnmarshalBinary(o.Snapshot); err != nil {
			t.Fatal(err)
		}
	}
	if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || snap == nil && on != 0 {
		t.Fatalf("round %d: nobody has it, and it is paused: %d, %v", round, on, err)
	}
	if snap != nil { // whoever has it hands it to our lock
		if err := n.lock.LockFlow(c.Flow[0], c.Flow[1]); err != nil {
			t.Fatal(err)
		}
	}
	if r != (localRival{n.lock}) {
		unlock := contest{Unlock: true, Flow: c.Flow}
		if o := r.enter(t, unlock, fd); o.Wrong != "" {
			t.Fatal(o.Wrong)
		}
	}
	undeafen(t, peer)
	var moved *net.TCPConn
	if snap == nil {
		if err := n.lock.UnlockFlow(c.Flow[0], c.Flow[1]); err != nil {
			t.Fatal(err)
		}
		moved = n.fileConn(t, fd)
	} else {
		hosttest.Do(t, n.here, func() (err error) {
			moved, err = soccr.RestoreConn(snap, soccr.WithLock(n.lock))
			return err
		})
	}
	defer abort(moved)
	defer abort(peer)
	write(t, peer, in[len(c.In):])
	write(t, moved, out[len(c.Out):])
	expect(t, "conn", moved, in)
	expect(t, "peer", peer, out)
	return standings
}

// A program's checkpointer closes the conn, and with that its claim ends for a moment.
// If another process gets hold of the socket there, it is told so, and does not end a
// connection that is not its own any more.
func TestCheckpointedMeanwhile(t *testing.T) {
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	n := &network{here: here, there: here}
	n.makeLock(t)
	r := newRemoteRival(t)
	for _, take := range []bool{false, true} {
		t.Run(fmt.Sprintf("and taken %v", take), func(t *testing.T) {
			conn, peer := n.connect(t, loopback4)
			c := contest{In: []byte("received"), Flow: [2]netip.AddrPort{localAddr(conn), peerAddr(conn)}, Looks: 1, NoTaking: !take}
			write(t, peer, c.In)
			eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == len(c.In) })
			fd := ownDescriptor(t, conn)
			defer unix.Close(fd)
			var rivals standing
			snap, err := soccr.Checkpoint(&closedLate{n.fileConn(t, fd), func() { rivals = r.enter(t, c, fd) }}, soccr.WithLock(n.lock))
			if snap == nil || !errors.Is(err, soccr.ErrPaused) {
				t.Fatalf("%v, %v", snap, err)
			}
			if rivals.Wrong != "" || rivals.Looked != 1 || take != (rivals.Snapshot != nil) {
				t.Fatalf("%+v", rivals)
			}
			if err := n.lock.UnlockFlow(c.Flow[0], c.Flow[1]); err != nil {
				t.Fatal(err)
			}
			if take {
				r.enter(t, contest{Unlock: true, Flow: c.Flow}, fd)
				if state := soccr.State(fdInfo(t, fd).State); state != soccr.StateClose {
					t.Errorf("taken, and in state %v", state)
				}
				return
			}
			moved := n.fileConn(t, fd)
			write(t, moved, []byte("sent"))
			expect(t, "peer", peer, []byte("sent"))
			expect(t, "conn", moved, c.In)
		})
	}
}

// A closedLate conn is closed, and then something happens.
type closedLate struct {
	*net.TCPConn
	then func()
}

func (c *closedLate) Close() error {
	err := c.TCPConn.Close()
	c.then()
	return err
}

// A paused socket is its checkpointer's, under whatever descriptor, until Resume or
// Release, or until that process has ended.
func TestClaim(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	own := ownDescriptor(t, conn)
	defer unix.Close(own)
	dup, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	refused := func(when string, want bool) {
		t.Helper()
		s, err := soccr.Pause(dup)
		if err == nil {
			err = s.Resume()
		}
		if !want && err != nil || want && !errors.Is(err, soccr.ErrPaused) {
			t.Errorf("%s: %v", when, err)
		}
	}
	s := new(soccr.Socket)
	for _, end := range []struct {
		name string
		do   func() error
	}{
		{"resumed", s.Resume},
		{"released", func() error { s.Release(); return nil }},
	} {
		for range 2 { // the same Socket may be paused again
			if err := s.Pause(own); err != nil {
				t.Fatal(err)
			}
		}
		refused("paused", true)
		if err := end.do(); err != nil {
			t.Fatal(err)
		}
		refused(end.name, false)
	}
	// Those who check by other means are not asked.
	if err := s.Pause(own, soccr.WithoutVerifying()); err != nil {
		t.Fatal(err)
	}
	refused("paused without verifying", false)
	// None of many sockets is paused twice.
	b, err := soccr.SaveAll(io.Discard, []int{own, dup})
	if err != nil {
		t.Fatal(err)
	}
	if failed := []bool{errors.Is(b.Err(0), soccr.ErrPaused), errors.Is(b.Err(1), soccr.ErrPaused)}; failed[0] == failed[1] {
		t.Errorf("%v, %v", b.Err(0), b.Err(1))
	}
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	refused("resumed with others", false)
	moved := n.fileConn(t, own)
	write(t, moved, []byte("sent"))
	expect(t, "peer", peer, []byte("sent"))
}
