package soccr_test

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/chart"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

var reportTo = flag.String("report", "", "measure at length and write performance.md and its charts to this directory")

// TestReport measures what moves cost and writes a report of it: with -report the
// one in docs, otherwise a short one, to see that it can be written.
func TestReport(t *testing.T) {
	if os.Getenv(crowdEnv) != "" {
		movePart(t)
		return
	}
	dir, effort := *reportTo, 20
	sizes, most, processes := []int{2, 10, 100, 1000, 10_000}, 100_000, 10
	if dir == "" {
		dir, effort = t.TempDir(), 1
		sizes, most, processes = []int{2, 20}, 40, 2
	}
	r := &reporter{Machine: machine(t), effort: effort, dir: dir}
	r.single(t)
	r.crowds(t, sizes, most, processes)
	r.queues(t)
	r.images(t)
	r.stream(t)
	var b strings.Builder
	if err := reportText.Execute(&b, r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "performance.md"), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"frozen", "stages", "queues", "throughput"} {
		if !strings.Contains(b.String(), "(performance-"+name+".svg)") {
			t.Errorf("the report does not show the chart %s", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "performance-"+name+".svg")); err != nil {
			t.Error(err)
		}
	}
}

// A reporter has what the report's text shows.
type reporter struct {
	Machine string
	Single  quantiles // one connection of a Go program, lock included
	Crowds  []crowdRow
	Stages  []stageRow
	Queues  []queueRow
	Images  []imageRow
	Gap     time.Duration // the longest pause in the stream around its move
	Usual   time.Duration // and the longest before

	effort int
	dir    string
}

type quantiles struct {
	N                  int
	Median, P99, Least time.Duration
}

func quantilesOf(d []time.Duration) quantiles {
	slices.Sort(d)
	return quantiles{len(d), d[len(d)/2], d[(len(d)*99+99)/100-1], d[0]}
}

type crowdRow struct {
	N         int
	Way       string
	Processes int
	Workers   int // of each
	Frozen    quantiles
	PerConn   time.Duration // of the median
}

type stageRow struct {
	Way                                                string
	Lock, Save, Close, Restore, Unlock, Resume, Before time.Duration
}

type queueRow struct {
	Size                    int
	Floor, Bound, All, Bare time.Duration
}

func (r *reporter) chart(t *testing.T, name string, c *chart.Chart) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "performance-"+name+".svg"), []byte(c.SVG()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// single moves a connection of this program's own, with all that belongs to it.
func (r *reporter) single(t *testing.T) {
	n, lock := newBatchNetwork(t)
	conn, _ := n.connect(t, loopback4)
	timed := &flowTimer{Locker: lock}
	var frozen []time.Duration
	hosttest.Do(t, n.here, func() error {
		for range 50*r.effort + 3 {
			snap, err := soccr.Checkpoint(conn, soccr.WithLock(timed))
			if err != nil {
				return err
			}
			locked := timed.locking
			if conn, err = soccr.RestoreConn(snap, soccr.WithLock(timed)); err != nil {
				return err
			}
			frozen = append(frozen, timed.unlocked.Sub(locked))
		}
		return nil
	})
	conn.Close()
	r.Single = quantilesOf(frozen[3:]) // without what is done only once
}

// A flowTimer notes when a flow is locked and unlocked.
type flowTimer struct {
	soccr.Locker
	locking, unlocked time.Time
}

func (l *flowTimer) LockFlow(local, remote netip.AddrPort) error {
	l.locking = time.Now()
	return l.Locker.LockFlow(local, remote)
}

func (l *flowTimer) UnlockFlow(local, remote netip.AddrPort) error {
	err := l.Locker.UnlockFlow(local, remote)
	l.unlocked = time.Now()
	return err
}

// crowds moves more and more connections at once, the most of them in several
// processes.
func (r *reporter) crowds(t *testing.T, sizes []int, most, processes int) {
	frozen := chart.Chart{Title: "How long N connections are frozen", X: "connections", Y: "milliseconds from lock to unlock", LogX: true, LogY: true}
	stages := chart.Chart{Title: "What a move costs, by stage", X: "stage: 1 lock, 2 save, 3 close, 4 restore, 5 unlock", Y: "microseconds for each connection"}
	for i, way := range batchWays {
		median, worst := chart.Line{Name: way.name + ", p50"}, chart.Line{Name: way.name + ", p99", Dashed: true}
		for _, size := range sizes {
			for _, workers := range []int{1, runtime.GOMAXPROCS(0)} {
				moves := r.moves(t, size, workers, way.options)
				var times []time.Duration
				for _, m := range moves {
					times = append(times, m.frozen)
				}
				row := crowdRow{N: size, Way: way.name, Processes: 1, Workers: workers, Frozen: quantilesOf(times)}
				row.PerConn = row.Frozen.Median / time.Duration(size)
				r.Crowds = append(r.Crowds, row)
				if workers == 1 {
					if size == min(1000, sizes[len(sizes)-1]) {
						s := stagesOf(way.name, moves, size)
						r.Stages = append(r.Stages, s)
						stages.Lines = append(stages.Lines, s.line())
					}
					if runtime.GOMAXPROCS(0) > 1 {
						continue
					}
				}
				median.Points = append(median.Points, chart.Point{X: float64(size), Y: milliseconds(row.Frozen.Median)})
				worst.Points = append(worst.Points, chart.Point{X: float64(size), Y: milliseconds(row.Frozen.P99)})
			}
		}
		row := r.processes(t, most, processes, i)
		r.Crowds = append(r.Crowds, row)
		median.Points = append(median.Points, chart.Point{X: float64(most), Y: milliseconds(row.Frozen.Median)})
		worst.Points = append(worst.Points, chart.Point{X: float64(most), Y: milliseconds(row.Frozen.P99)})
		frozen.Lines = append(frozen.Lines, median, worst)
	}
	r.chart(t, "frozen", &frozen)
	r.chart(t, "stages", &stages)
}

func milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }

func (r *reporter) moves(t *testing.T, size, workers int, options []soccr.Option) (moves []batchMove) {
	n, lock := newBatchNetwork(t)
	c := n.bothEnds(t, size)
	timed := &timedLock{FlowsPreparer: lock}
	options = append(slices.Clone(options), soccr.WithLock(timed), soccr.WithWorkers(workers))
	hosttest.Do(t, n.here, func() error {
		for range max(r.effort*min(100, 10_000/size)/10, 2+r.effort/5) {
			m, err := c.move(timed, options)
			if err != nil {
				return err
			}
			moves = append(moves, m)
		}
		return nil
	})
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.forget()
	return moves
}

// stagesOf are the medians of each stage, for each connection.
func stagesOf(way string, moves []batchMove, size int) stageRow {
	of := func(stage func(batchMove) time.Duration) time.Duration {
		var all []time.Duration
		for _, m := range moves {
			all = append(all, stage(m))
		}
		return median(all) / time.Duration(size)
	}
	return stageRow{
		Way:     way,
		Before:  of(func(m batchMove) time.Duration { return m.before }),
		Lock:    of(func(m batchMove) time.Duration { return m.lock }),
		Save:    of(func(m batchMove) time.Duration { return m.save }),
		Close:   of(func(m batchMove) time.Duration { return m.close }),
		Restore: of(func(m batchMove) time.Duration { return m.restore }),
		Unlock:  of(func(m batchMove) time.Duration { return m.unlock }),
		Resume:  of(func(m batchMove) time.Duration { return m.resume }),
	}
}

func (s stageRow) line() chart.Line {
	l := chart.Line{Name: s.Way}
	for i, d := range []time.Duration{s.Lock, s.Save, s.Close, s.Restore, s.Unlock} {
		l.Points = append(l.Points, chart.Point{X: float64(i + 1), Y: float64(d) / 1e3})
	}
	return l
}

// queues moves single connections with more and more data in them, in turns by the
// floor, by the floor that reads the options too, and by the library.
func (r *reporter) queues(t *testing.T) {
	floor, all, bare := chart.Line{Name: "floor"}, chart.Line{Name: "all"}, chart.Line{Name: "bare"}
	bound := chart.Line{Name: "floor and options"}
	lines := [...]*chart.Line{&floor, &bound, &all, &bare}
	for _, size := range []int{0, 8, 16, 32, 48, 64} {
		h := hosttest.New(t)
		n := &network{here: h, there: h}
		var conns [len(lines)]*floorConn
		for i := range conns {
			var err error
			if conns[i], err = newFloorConn(n.benchConn(t, loopback4, size<<10)); err != nil {
				t.Fatal(err)
			}
		}
		calls := loopback4.optionCalls()
		withoutAll := append(slices.Clone(batchWays[1].options), conns[3].ends())
		var socket soccr.Socket
		var snap soccr.Snapshot
		ways := [...]func(*floorConn) error{
			(*floorConn).move,
			func(f *floorConn) error { return errors.Join(f.readOptions(calls), f.move()) },
			func(f *floorConn) (err error) { f.fd, err = benchClosingMove(f.fd, &socket, &snap, nil); return err },
			func(f *floorConn) (err error) {
				f.fd, err = benchClosingMove(f.fd, &socket, &snap, withoutAll)
				return err
			},
		}
		var times [len(ways)][]time.Duration
		hosttest.Do(t, h, func() error {
			const batch = 8 // moves between two looks at the clock
			for range 25 * r.effort {
				for i, move := range ways {
					start := time.Now()
					for range batch {
						if err := move(conns[i]); err != nil {
							return err
						}
					}
					times[i] = append(times[i], time.Since(start)/batch)
				}
			}
			return nil
		})
		row := queueRow{Size: size, Floor: median(times[0]), Bound: median(times[1]), All: median(times[2]), Bare: median(times[3])}
		r.Queues = append(r.Queues, row)
		for i, line := range lines {
			unix.Close(conns[i].fd)
			line.Points = append(line.Points, chart.Point{X: float64(size), Y: float64(median(times[i])) / 1e3})
		}
	}
	r.chart(t, "queues", &chart.Chart{
		Title: "What a move costs, by what is in the receive queue", X: "KiB", Y: "microseconds",
		Lines: []chart.Line{floor, bare, bound, all},
	})
}

// An imageRow is how fast the image of a group passes: bytes of its queues in a second.
type imageRow struct {
	What string
	Time time.Duration // of one passage
	Rate float64       // GB/s
}

// images saves connections with much in their queues as one image and restores
// them from it, in turns with the bare copy of the same bytes: within memory, and
// out of the receive queues.
func (r *reporter) images(t *testing.T) {
	const conns = 32
	size := 60 << 10
	if *reportTo != "" {
		size = 4 << 20
	}
	n, _ := newBatchNetwork(t)
	c := &crowd{}
	for range conns {
		conn, peer := n.connect(t, loopback4)
		if size > 60<<10 {
			setInt(t, conn, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4*size)
		}
		write(t, peer, make([]byte, size))
		eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == size })
		file, err := conn.File()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.fds = append(c.fds, fd)
		file.Close()
		conn.Close()
	}
	from, to := make([]byte, size), make([]byte, size)
	image := bytes.NewBuffer(make([]byte, 0, conns*(size+4096)))
	var saved, restored *soccr.Batch
	passages := [...]struct {
		what string
		do   func() error
	}{
		{"copied within memory", func() error {
			for range conns {
				copy(to, from)
			}
			return nil
		}},
		{"copied out of the receive queues (recv, MSG_PEEK)", func() error {
			for _, fd := range c.fds {
				if k, _, err := unix.Recvfrom(fd, to, unix.MSG_PEEK); err != nil || k != size {
					return fmt.Errorf("%d bytes: %w", k, err)
				}
			}
			return nil
		}},
		{"saved and written to memory (SaveAll)", func() (err error) {
			saved, err = soccr.SaveAll(image, c.fds, soccr.WithWorkers(1))
			return err
		}},
		{"given back to the kernel (Close)", func() error {
			c.forget()
			return saved.Close()
		}},
		{"read and restored (RestoreAll)", func() (err error) {
			restored, err = soccr.RestoreAll(image, soccr.WithWorkers(1))
			return err
		}},
	}
	var times [len(passages)][]time.Duration
	hosttest.Do(t, n.here, func() error {
		for range max(r.effort/2, 1) {
			image.Reset()
			for i, p := range passages {
				start := time.Now()
				if err := p.do(); err != nil {
					return fmt.Errorf("%s: %w", p.what, err)
				}
				times[i] = append(times[i], time.Since(start))
			}
			if err := restored.Resume(); err != nil {
				return err
			}
			for i := range restored.Len() {
				if err := restored.Err(i); err != nil {
					return err
				}
				c.fds = append(c.fds, restored.FD(i))
			}
		}
		return nil
	})
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	for i, p := range passages {
		took := median(times[i])
		r.Images = append(r.Images, imageRow{p.what, took, conns * float64(size) / float64(took)})
	}
}

// stream watches what a program reads while its connection moves, between two
// hosts on a wire.
func (r *reporter) stream(t *testing.T) {
	const length, bin = 300 * time.Millisecond, 2 * time.Millisecond
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		data := make([]byte, 64<<10)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := peer.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				return
			}
			if _, err := peer.Write(data); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
		}
	}()
	defer func() { close(stop); <-done }()
	bins := make([]float64, length/bin)
	buffer := make([]byte, 256<<10)
	start, moved, last := time.Now(), false, time.Now()
	for {
		now := time.Since(start)
		if now >= length {
			break
		}
		if now >= length/2 && !moved {
			moved = true
			conn = tapped(t, n, conn)
		}
		k, err := readSome(conn, buffer, start.Add(length))
		if err != nil {
			t.Fatal(err)
		}
		bins[min(int(time.Since(start)/bin), len(bins)-1)] += float64(k)
		pause := time.Since(last)
		last = time.Now()
		if moved {
			r.Gap = max(r.Gap, pause)
		} else {
			r.Usual = max(r.Usual, pause)
		}
	}
	line := chart.Line{Name: "received"}
	for i, sum := range bins {
		line.Points = append(line.Points, chart.Point{X: milliseconds(time.Duration(i) * bin), Y: sum / bin.Seconds() / 1e6})
	}
	r.chart(t, "throughput", &chart.Chart{
		Title: fmt.Sprintf("A stream whose receiver moves after %d ms", (length / 2).Milliseconds()),
		X:     "milliseconds", Y: "MB/s", Lines: []chart.Line{line},
	})
}

// tapped moves a connection, and what the peer sends meanwhile with it.
func tapped(t *testing.T, n *network, conn *net.TCPConn) (moved *net.TCPConn) {
	hosttest.Do(t, n.here, func() error {
		tap, err := soccr.OpenTap()
		if err != nil {
			return err
		}
		defer tap.Close()
		options := []soccr.Option{soccr.WithLock(n.lock), soccr.WithTap(tap)}
		snap, err := soccr.Checkpoint(conn, options...)
		if err == nil {
			moved, err = soccr.RestoreConn(snap, options...)
		}
		return err
	})
	t.Cleanup(func() { moved.Close() })
	return moved
}

// readSome reads what there is; that there is nothing until the end is no error.
func readSome(conn *net.TCPConn, b []byte, end time.Time) (int, error) {
	if err := conn.SetReadDeadline(end); err != nil {
		return 0, err
	}
	n, err := conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return n, err
}

// machine describes what this runs on.
func machine(t *testing.T) string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	load := "unknown"
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = cmp.Or(strings.Fields(string(text))...)
	}
	return fmt.Sprintf("%s, %d processors for Go, Linux %s, %s/%s, %s; load average %s when it began",
		model, runtime.GOMAXPROCS(0), kernel(t), runtime.GOOS, runtime.GOARCH, runtime.Version(), load)
}

// kernel is the version of the kernel that runs, without the patch level.
func kernel(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	version := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	return strings.Join(version[:2], ".")
}

var reportText = template.Must(template.New("report").Funcs(template.FuncMap{
	"us": func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/1e3) },
	"ms": func(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/1e6) },
	"over": func(a, b time.Duration) string {
		return fmt.Sprintf("%.2f", float64(a)/float64(b))
	},
}).Parse(`# What a move costs

Written by ` + "`go test ./soccr -run TestReport -report $PWD/docs`" + ` on: {{.Machine}}.

**all** keeps and verifies everything, socket options included; **bare** leaves the options and the verification to the
caller (WithoutOptions, WithoutVerifying). The **floor** is what the system calls cost that libsoccr makes for the same
move, issued bare, which keeps no options and verifies nothing. Idle connections over the loopback device; p99 is the
worst of fewer than 100 runs. What else the machine did meanwhile is in these times too; the best run shows
what the move itself takes.

## One connection of a Go program

Checkpoint, RestoreConn and the lock (two nftables transactions): frozen, from lock to unlock, for
{{us .Single.Median}} µs at the median of {{.Single.N}} moves, {{us .Single.P99}} µs at p99, and at best
{{us .Single.Least}} µs.

## How long N connections are frozen

![frozen time against N](performance-frozen.svg)

From the lock of all flows until all are unlocked; in between they are saved, encoded, closed, decoded and restored.
More than a process may have descriptors for are moved by several at the same time, from the first lock of all to
the last unlock.

| connections | way | processes | workers of each | best ms | p50 ms | p99 ms | µs for each at p50 | runs |
|---:|---|---:|---:|---:|---:|---:|---:|---:|
{{range .Crowds}}| {{.N}} | {{.Way}} | {{.Processes}} | {{.Workers}} | {{ms .Frozen.Least}} | {{ms .Frozen.Median}} | {{ms .Frozen.P99}} | {{us .PerConn}} | {{.Frozen.N}} |
{{end}}
## By stage

![cost by stage](performance-stages.svg)

Microseconds for each connection, by one worker. What comes before the lock does not freeze
anything: the options are read, and the lock is told which flows it will hold (Lock.Prepare).

| way | before | lock | save | close | restore | unlock | resume |
|---|---:|---:|---:|---:|---:|---:|---:|
{{range .Stages}}| {{.Way}} | {{us .Before}} | {{us .Lock}} | {{us .Save}} | {{us .Close}} | {{us .Restore}} | {{us .Unlock}} | {{us .Resume}} |
{{end}}
## By what is in the queue

![cost by queue size](performance-queues.svg)

One connection, moved within a thread, without a lock; medians in microseconds. The **bound** is the floor and the
getsockopt calls that reading the options takes, one for each option that no other reading tells, issued bare: nothing
that keeps the options can cost less, and what **all** costs beyond it sets them, reads back what it has set, and looks
whether the connection has moved while it was read.

| KiB | floor | bare | bare ÷ floor | bound | bound ÷ floor | all | all ÷ floor | all ÷ bound |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{{range .Queues}}| {{.Size}} | {{us .Floor}} | {{us .Bare}} | {{over .Bare .Floor}} | {{us .Bound}} | {{over .Bound .Floor}} | {{us .All}} | {{over .All .Floor}} | {{over .All .Bound}} |
{{end}}
## The image of a group

32 connections, each with 4 MiB that its program has not read, saved as one image and restored from it by one worker;
medians.

| the bytes are | ms | GB/s |
|---|---:|---:|
{{range .Images}}| {{.What}} | {{ms .Time}} | {{printf "%.1f" .Rate}} |
{{end}}
## Throughput around a move

![throughput](performance-throughput.svg)

Two hosts on a veth pair; the receiving end moves, and a tap catches what arrives meanwhile (WithTap). Its longest pause from then on was {{ms .Gap}} ms, and before
{{ms .Usual}} ms.
`))
