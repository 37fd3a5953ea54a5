package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/wire"
)

// A conductor has the peers' ends of all connections, tells the other processes to
// begin, to hand over and to end theirs, and watches the wire.
type conductor struct {
	config
	log     io.Writer
	begun   time.Time
	network *network
	board   *board
	engine  *engine // of the peers
	workers []*worker
	judge   *judge

	dialing sync.Mutex // and the settings of the peers' host that act in handshakes
	offered [3]bool

	mu      sync.Mutex
	lives   int
	wrapped [2]int         // streams whose sequence numbers have, and connections
	accused map[int]string // by slot, by the judge or the watchman
}

func conduct(c config, log io.Writer) (err error) {
	runtime.LockOSThread() // the workers end with the thread that has started them
	defer runtime.UnlockOSThread()
	k := &conductor{config: c, log: log, begun: time.Now(), accused: map[int]string{}}
	fmt.Fprintf(log, "seed %d, %d connections at a time, %d processes, evidence in %s\n", c.seed, c.slots, c.processes, c.out)
	if k.network, err = newNetwork(c.slots); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.network.close()) }()
	b, boardFile, err := newBoard()
	if err != nil {
		return err
	}
	k.board = b
	b.MostWant.Store(c.moves)
	peers := k.network.hosts[peerHost].FD()
	if k.engine, err = newEngine("peers", b, c.out, peers, map[int]int{peerHost: peers}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.engine.close()) }()
	for i := range c.processes {
		w, err := k.startWorker(i, boardFile)
		if err != nil {
			return err
		}
		k.workers = append(k.workers, w)
	}
	defer func() { err = errors.Join(err, k.dismiss()) }()
	if k.judge, err = newJudge(peers, c.packets, k.accuse); err != nil {
		return err
	}
	return k.run()
}

// dismiss ends the workers.
func (c *conductor) dismiss() error {
	var errs []error
	for _, w := range c.workers {
		errs = append(errs, w.Call("Engine.Dismiss", struct{}{}, nil), w.Close(), w.cmd.Wait())
	}
	return errors.Join(errs...)
}

func (c *conductor) run() error {
	failures := make(chan string, 16)
	for _, w := range c.workers {
		go func() {
			var failure string
			if err := w.Call("Engine.Wait", struct{}{}, &failure); err == nil && failure != "" {
				failures <- failure
			}
		}()
	}
	go func() {
		<-c.engine.failed
		failures <- c.engine.failure
	}()
	if c.peers > 0 {
		c.engine.runAll(c.seed, 1<<16, 1, c.peers)
	}
	lives := make(chan error)
	for slot := range c.slots {
		go func() { lives <- c.live(slot) }()
	}
	deadline := time.After(c.duration)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	watch := newWatchman(c)
	var failed error
	for left := c.slots; left > 0 && failed == nil; {
		select {
		case err := <-lives:
			left--
			failed = err
		case failure := <-failures:
			failed = errors.New(failure)
		case <-deadline:
			c.board.Stop.Store(1)
		case <-ticker.C:
			failed = watch.look()
		}
		if failed == nil {
			failed = c.accusation()
		}
	}
	return errors.Join(c.conclude(failed))
}

// conclude says how it went.
func (c *conductor) conclude(failed error) error {
	c.board.Stop.Store(1)
	if failed != nil {
		// Let those who have failed as well say so, and write their evidence.
		time.Sleep(200 * time.Millisecond)
		path, err := c.judge.write(c.out)
		failed = errors.Join(failed, err, fmt.Errorf("the latest packets are in %s, the ends' histories and snapshots beside it; to try again: -seed %d and the same flags", path, c.seed))
	}
	if c.pcap != "" && failed == nil {
		failed = c.judge.recorder.WriteFile(c.pcap)
	}
	lost, err := c.judge.stop()
	failed = errors.Join(failed, err)
	if err := c.report(lost); err != nil && failed == nil {
		failed = err
	}
	return failed
}

func (c *conductor) accuse(slot int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accused[slot] == "" {
		c.accused[slot] = err.Error()
	}
}

// accusation is what somebody else than the ends has found.
func (c *conductor) accusation() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slot, text := range c.accused {
		return c.testified(slot, errors.New(text))
	}
	return nil
}

// testified has both ends of a slot write what they know.
func (c *conductor) testified(slot int, err error) error {
	for _, w := range c.workers {
		_ = w.Call("Engine.Testify", slot, nil) // one of them has it
	}
	return errors.Join(fmt.Errorf("slot %d: %w", slot, err), c.engine.Testify(slot, nil))
}

// live is the life of a slot: one connection after the other.
func (c *conductor) live(slot int) error {
	random := rand.New(rand.NewPCG(c.seed, uint64(slot)))
	for life := 0; c.board.Stop.Load() == 0; life++ {
		if err := c.connection(slot, life, random); err != nil && c.board.Stop.Load() == 0 {
			return fmt.Errorf("slot %d, life %d: %w", slot, life, err)
		}
		c.mu.Lock()
		c.lives++
		c.mu.Unlock()
	}
	return nil
}

// connection has one connection of a slot, from its beginning to its end.
func (c *conductor) connection(slot, life int, random *rand.Rand) error {
	p := newPlan(random)
	at, site := random.IntN(len(c.workers)), hostA+random.IntN(2)
	f := families[p.Family]
	c.board.begin(slot)
	if err := c.engine.router.route(f.address(slot), site); err != nil {
		return err
	}
	var to netip.AddrPort
	if err := c.workers[at].Call("Engine.Listen", ListenArgs{slot, site, p}, &to); err != nil {
		return err
	}
	flow := wire.Flow{A: netip.AddrPortFrom(hostAddress(peerHost, f.six), 0), B: to}
	c.judge.watch(slot, flow)
	conn, err := c.dial(to, &p)
	if err != nil {
		return err
	}
	start := state{Slot: slot, Life: life, Plan: p}
	if err := c.workers[at].Call("Engine.Accept", AcceptArgs{start, site}, nil); err != nil {
		return err
	}
	start.Side = 1
	if err := c.engine.begin(AcceptArgs{start, peerHost}, conn); err != nil {
		return err
	}
	if p.Shifted {
		if err := c.shift(slot, at, flow, &p); err != nil {
			return err
		}
	}
	if err := c.engine.Start(slot, nil); err != nil {
		return err
	}
	if err := c.workers[at].Call("Engine.Start", slot, nil); err != nil {
		return err
	}
	for !c.waitOver(slot, time.Duration(random.ExpFloat64()*float64(c.stay))) {
		if len(c.workers) > 1 && c.board.Stop.Load() == 0 {
			next := (at + 1 + random.IntN(len(c.workers)-1)) % len(c.workers)
			given, err := c.handOver(slot, at, next)
			if err != nil {
				return err
			}
			if given {
				at = next
			}
		}
	}
	if err := c.workers[at].Call("Engine.Finish", slot, nil); err != nil {
		return err
	}
	if err := c.engine.Finish(slot, nil); err != nil {
		return err
	}
	c.noteWrapped(slot, &p)
	return c.judge.over(to)
}

// noteWrapped counts the streams of a connection that have gone beyond the largest
// sequence number.
func (c *conductor) noteWrapped(slot int, p *plan) {
	streams := 0
	for i := range p.Before {
		if p.Shifted && c.board.Slots[slot][i].Written.Load() > int64(p.Before[i]) {
			streams++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrapped[0] += streams
	c.wrapped[1] += min(streams, 1)
}

// waitOver waits a while, and reports whether both ends have read all.
func (c *conductor) waitOver(slot int, d time.Duration) bool {
	for end := time.Now().Add(d); ; time.Sleep(5 * time.Millisecond) {
		if c.board.over(slot) {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// dial makes a connection with what the plan has the peer's host offer.
func (c *conductor) dial(to netip.AddrPort, p *plan) (*net.TCPConn, error) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	peers := c.network.hosts[peerHost]
	for i, want := range [...]bool{p.Timestamps, p.SACK, p.Scaling} {
		if want != c.offered[i] {
			name := [...]string{"tcp_timestamps", "tcp_sack", "tcp_window_scaling"}[i]
			if err := peers.Sysctl("net.ipv4."+name, map[bool]string{false: "0", true: "1"}[want]); err != nil {
				return nil, err
			}
			c.offered[i] = want
		}
	}
	dialer := net.Dialer{Timeout: time.Minute, Control: p.Ends[1].prepare}
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := netns.Do(peers.FD(), func() (err error) {
		conn, err = dialer.DialContext(context.Background(), "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// shift has both ends of an idle connection go on with numbers close to where they
// wrap around.
func (c *conductor) shift(slot, at int, flow wire.Flow, p *plan) error {
	x, err := c.engine.end(slot)
	if err != nil {
		return err
	}
	info, err := infoOf(x.conn)
	if err != nil {
		return err
	}
	var seqs, theirs [2]uint32
	if err := c.engine.Park(slot, &seqs); err != nil {
		return err
	}
	if err := c.workers[at].Call("Engine.Park", slot, &theirs); err != nil {
		return err
	}
	if seqs != [2]uint32{theirs[1], theirs[0]} {
		return fmt.Errorf("the ends are at %v and %v", seqs, theirs)
	}
	flow.A = netip.AddrPortFrom(flow.A.Addr(), x.Local.Port())
	flow.ScaleA, flow.ScaleB = info.RcvWscale, info.SndWscale
	ours := Shift{slot, -p.Before[1] - seqs[0], -p.Before[0] - seqs[1]}
	c.judge.watchFrom(slot, flow, seqs[0]+ours.Send, seqs[1]+ours.Recv)
	if err := c.engine.Unpark(ours, nil); err != nil {
		return err
	}
	return c.workers[at].Call("Engine.Unpark", Shift{slot, ours.Recv, ours.Send}, nil)
}

// handOver moves the end of a slot from one process to another.
func (c *conductor) handOver(slot, from, to int) (bool, error) {
	var luggage Luggage
	if err := c.workers[from].Call("Engine.Give", slot, &luggage); err != nil || luggage.Over {
		return false, err
	}
	flow := FlowArgs{luggage.State.Local, luggage.State.Remote, luggage.Site}
	if err := c.workers[to].Call("Engine.Lock", flow, nil); err != nil {
		return false, err
	}
	if err := c.workers[from].Call("Engine.Unlock", flow, nil); err != nil {
		return false, err
	}
	return true, c.workers[to].Call("Engine.Take", luggage, nil)
}

// stats adds up what all processes have done.
func (c *conductor) stats() (Stats, error) {
	all := newStats()
	var errs []error
	for _, w := range c.workers {
		var s Stats
		errs = append(errs, w.Call("Engine.Report", struct{}{}, &s))
		all.add(&s)
	}
	var ours Stats
	errs = append(errs, c.engine.Report(struct{}{}, &ours))
	all.add(&ours)
	return all, errors.Join(errs...)
}

// report says what was done, and found.
func (c *conductor) report(lost uint64) error {
	s, err := c.stats()
	if err != nil {
		return err
	}
	took := time.Since(c.begun).Round(100 * time.Millisecond)
	rsts, err := c.resets()
	fmt.Fprintf(c.log, "%d moves of %d connections in %v, %d bytes read and right, %d RST\n", s.moves(), c.lives, took, s.Bytes, rsts)
	fmt.Fprintf(c.log, "moves: %s\n", table(s.Moves))
	if len(s.Refused) > 0 {
		fmt.Fprintf(c.log, "not moved: %s\n", table(s.Refused))
	}
	fmt.Fprintf(c.log, "sequence numbers wrapped around: in %d streams of %d connections\n", c.wrapped[0], c.wrapped[1])
	fmt.Fprintf(c.log, "stalls: %v\nfrozen: %v\n", &s.Stalls, &s.Frozen)
	fmt.Fprintf(c.log, "on the wire: %v; %d packets not seen\n", c.judge, lost)
	return err
}

// resets is how many RSTs all hosts have sent to connections that were not over. The
// capture may be a little late to tell which were.
func (c *conductor) resets() (n int64, err error) {
	for range 20 {
		if n, err = c.count("OutRsts"); err != nil {
			return 0, err
		}
		if n -= c.judge.lateRSTs(); n <= 0 {
			return 0, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return n, nil
}

// count adds up a counter of all hosts.
func (c *conductor) count(name string) (n int64, err error) {
	for _, h := range c.network.hosts {
		found, failed := counters(h.FD(), name)
		err = errors.Join(err, failed)
		n += found[name]
	}
	return n, err
}

// A watchman looks every second whether all streams go on, and nobody is reset.
type watchman struct {
	*conductor
	taken [][2]int64
	since [][2]time.Time
	said  time.Time
}

func newWatchman(c *conductor) *watchman {
	return &watchman{c, make([][2]int64, c.slots), make([][2]time.Time, c.slots), time.Now()}
}

func (w *watchman) look() error {
	now := time.Now()
	for slot := range w.slots {
		for i := range 2 {
			d := &w.board.Slots[slot][i]
			taken, written := d.Taken.Load(), d.Written.Load()
			if taken != w.taken[slot][i] || taken >= written || w.since[slot][i].IsZero() {
				w.taken[slot][i], w.since[slot][i] = taken, now
			} else if now.Sub(w.since[slot][i]) > w.hang {
				return w.testified(slot, fmt.Errorf("%d of %d bytes were read %v ago, and no more since (stream %d)",
					taken, written, now.Sub(w.since[slot][i]).Round(time.Second), i))
			}
		}
	}
	if rsts, err := w.resets(); err != nil || rsts > 0 {
		return errors.Join(err, fmt.Errorf("%d RSTs were sent", rsts), w.accusation())
	}
	if now.Sub(w.said) < w.every {
		return nil
	}
	w.said = now
	s, err := w.stats()
	if err != nil {
		return err
	}
	fmt.Fprintf(w.log, "%v: %d moves, %d connections, %d MB, longest stall %v, 0 RST\n",
		now.Sub(w.begun).Round(time.Second), s.moves(), w.lives, s.Bytes/1e6, s.Stalls.Max.Round(time.Millisecond))
	return nil
}

// table gives the counts by name.
func table(counts map[string]int64) string {
	var parts []string
	for _, name := range sortedKeys(counts) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
