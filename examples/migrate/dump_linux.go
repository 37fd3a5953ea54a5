package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// dumpConfig is what the command line says about dump.
type dumpConfig struct {
	pid          int
	dir          string
	leaveRunning bool
	leaveClosed  bool
	tcpClose     bool
	skipInFlight bool
	networkLock  string
	holdAddress  []string
	give         []place
	stopFlags
	asJSON bool
}

func dumpCommand(stdout, stderr *os.File) *cobra.Command {
	var config dumpConfig
	c := &cobra.Command{
		Use:   "dump -t PID -D DIR|-",
		Short: "Save a program's connections, listeners and UDP sockets, and end it",
		Long: `dump stops a process and all its descendants, saves their TCP connections, listening
and UDP sockets into an image, and kills the processes, without a word to their
peers. With --leave-running the program goes on as it was, and the image is there
to be looked at (migrate show). With --leave-closed it goes on without its
connections, which have moved into the image: it reads their end.

If anything fails, and until the image is written as a whole, all can be undone, and
is: the program goes on as it was. That holds if migrate is killed, too: a guard, a
process of its own, does the work. Should the guard be killed, migrate puts right what
it has left: either the program goes on, or, once the image is there as a whole, it
is killed, and migrate itself keeps the connections locked for --lock-timeout. What
the program can notice of that tells "migrate swap -h". Of an image that goes into a
pipe nobody knows whether all of it has arrived when the guard is killed before it has
noted that: then the program goes on, and the image must not be restored.

Only sockets are saved, and not the program: its memory, and what it has read, are
gone. Sockets of other families are left out; a TCP or UDP socket that cannot be moved
is an error. See "migrate ls". Nothing keeps datagrams away meanwhile: UDP may lose
them.

When the program is gone, packets of its connections would draw RSTs from this
host. So the connections stay locked for --lock-timeout, or until they are restored
on this host, whatever comes first: time to restore them elsewhere, and to move the
address there. The lock is held by a process in the background.

--hold-address takes the address away from this host while the connections are
locked, for another one to have (restore --take-address). By hand, this is "ip address
del 10.0.0.5/24 dev eth0" here, and there "ip address add", and arping -U or ndsend.

The image is a file in DIR, for its owner only. It is as secret as the connections.

Exit status: 0 all is saved; 1 nothing was done, the program goes on as it was; 2 the
command line is wrong; 4 the guard was killed, and what it has left was put right (3
if not all could be); 130 interrupted, and the program goes on as it was.`,
		Example: `  migrate dump -t 1234 -D /var/tmp/image
  migrate dump -t 1234 -D image --leave-running && migrate show -D image
  migrate dump -t 1234 -D - --hold-address 10.0.0.5/24@eth0 |
    ssh HOST migrate restore -D - --take-address 10.0.0.5/24@eth0 -- server`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case config.pid <= 0:
				return usageError(errors.New("which program? -t PID"))
			case config.dir == "":
				return usageError(errors.New("where to? -D DIR, or -D - for standard output"))
			case config.leaveRunning && len(config.holdAddress) > 0:
				return usageError(errors.New("--leave-running and --hold-address contradict each other"))
			case config.leaveRunning && config.leaveClosed:
				return usageError(errors.New("--leave-running and --leave-closed contradict each other"))
			case !slices.Contains([]string{lockFlows, lockNamespace, lockNothing}, config.networkLock):
				return usageError(fmt.Errorf("--network-lock %s? nftables, namespace or skip", config.networkLock))
			}
			var err error
			if config.give, err = parsePlaces(config.holdAddress); err != nil {
				return usageError(err)
			}
			return guarded(guardedWork{
				do:   func(ctx context.Context, j *journal) error { return dump(ctx, config, j, stdout, stderr) },
				mend: mender{target: config.pid, flags: config.stopFlags, how: config.networkLock, dumping: &config}.prepared(),
			})
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	treeFlag(c, &config.pid)
	imageFlag(c, &config.dir)
	flags.BoolVarP(&config.leaveRunning, "leave-running", "R", false, "let the program go on as it was")
	flags.BoolVar(&config.leaveClosed, "leave-closed", false, "let the program go on without its connections")
	flags.BoolVar(&config.tcpClose, "tcp-close", false, "the connections are to be restored as closed; nobody keeps them locked")
	flags.BoolVar(&config.skipInFlight, "skip-in-flight", false, "forget connections that were not accepted yet, instead of failing")
	flags.StringVar(&config.networkLock, "network-lock", lockFlows, "how to lock: nftables (the connections), namespace (all packets), skip (a firewall of yours does)")
	flags.StringArrayVar(&config.holdAddress, "hold-address", nil, "ADDRESS/BITS@DEVICE that this host gives up, for another one to take")
	config.stopFlags.add(c)
	flags.BoolVar(&config.asJSON, "json", false, "print the summary as one JSON object")
	return c
}

// A dumpResult is the summary.
type dumpResult struct {
	Connections int   `json:"connections"`
	Listeners   int   `json:"listeners"`
	Datagrams   int   `json:"datagram_sockets"`
	Bytes       int64 `json:"bytes"` // in the queues of connections
	Image       int64 `json:"image_bytes"`
	Frozen      int64 `json:"frozen_us"` // until the program went on, or was killed
	Locked      int64 `json:"locked_us"` // until then
	// Left are the sockets that are not in the image.
	Left []refusal `json:"left_out"`
}

// A dumper dumps a program.
type dumper struct {
	*worker
	config dumpConfig
	stdout io.Writer
	result dumpResult
	*counter

	connections []*connection
	flows       []netlock.Flow
	image       image.Image
	given       bool           // the host has given up its addresses
	unkeep      chan os.Signal // that nobody need keep the connections locked
}

func dump(ctx context.Context, config dumpConfig, j *journal, stdout, stderr *os.File) (err error) {
	w, err := newWorker(config.pid, config.stopFlags, config.networkLock, j)
	if err != nil {
		return failed(err)
	}
	d := &dumper{worker: w, config: config, stdout: stdout, counter: newCounter(stderr, "saved"), unkeep: make(chan os.Signal, 1)}
	signal.Notify(d.unkeep, unix.SIGTERM) // whoever reads a pipe may be done before we are
	d.result.Left = []refusal{}
	summary := stdout
	if config.dir == pipeDir {
		summary = stderr
	}
	err = d.dump(ctx)
	d.counter.done()
	if err == nil && config.asJSON {
		err = printJSON(summary, &d.result)
	} else if err == nil {
		err = d.result.print(summary)
	}
	if err == nil && d.keeps() {
		err = d.keep()
	}
	if err = errors.Join(err, w.close()); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return &failure{statusInterrupted, err}
	}
	return failed(err)
}

// keeps reports whether connections stay locked when all is done.
func (d *dumper) keeps() bool {
	return d.lock != nil && len(d.flows) > 0 && !d.config.leaveRunning && !d.config.tcpClose
}

// keep holds the lock in the background.
func (d *dumper) keep() error {
	if err := release(); err != nil {
		return err
	}
	select {
	case <-d.unkeep:
	case <-time.After(d.config.lockTimeout):
	}
	return nil
}

func (d *dumper) dump(ctx context.Context) error {
	if err := d.survey(); err != nil {
		return err
	}
	program, err := d.stop()
	if err != nil {
		return err
	}
	locked, err := d.dumpStopped(ctx, program)
	if !locked.IsZero() {
		d.result.Locked = time.Since(locked).Microseconds()
	}
	frozen, thawing := program.goOn()
	d.result.Frozen = frozen.Microseconds()
	if err == nil && !d.config.leaveRunning && !d.config.leaveClosed {
		for _, pid := range program.pids {
			err = errors.Join(err, proc.AwaitEnd(pid, d.limit))
		}
	}
	return errors.Join(err, thawing)
}

// dumpStopped dumps a program that is stopped. When it fails, all is as it was; when
// it succeeds, the program is dead, or can go on.
func (d *dumper) dumpStopped(ctx context.Context, program *stoppedProgram) (locked time.Time, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, d.undo())
		}
	}()
	listeners, datagrams, err := d.choose(program)
	if err != nil {
		return locked, err
	}
	if err := d.journal.note(untouched(d.connections, actEnd)...); err != nil {
		return locked, err
	}
	defer d.forget(d.flows)
	locked = time.Now()
	if err := d.lockAll(listeners); err != nil {
		return locked, err
	}
	for i, c := range d.connections {
		if err := c.save(); err != nil {
			return locked, fmt.Errorf("descriptor %d of process %d: %w", c.Holders[0].FD, c.Holders[0].PID, err)
		}
		d.count(i+1, len(d.connections))
		d.add(image.Socket{Kind: image.Connection, Connection: c.snap}, c.socket)
		d.result.Connections++
		d.result.Bytes += int64(len(c.snap.RecvQueue) + len(c.snap.SendQueue))
	}
	for _, l := range listeners {
		var options []soccr.Option
		if d.config.skipInFlight {
			options = append(options, soccr.WithInFlight(soccr.DropInFlight))
		}
		snap, err := soccr.SaveListener(l.fd, options...)
		if err != nil {
			return locked, fmt.Errorf("descriptor %d of process %d: %w%s", l.Holders[0].FD, l.Holders[0].PID, err, inFlightCure(err))
		}
		d.add(image.Socket{Kind: image.Listener, Listener: snap}, l)
		d.result.Listeners++
	}
	for _, s := range datagrams {
		snap, err := soccr.SaveDatagram(s.fd)
		if err != nil {
			return locked, fmt.Errorf("descriptor %d of process %d: %w", s.Holders[0].FD, s.Holders[0].PID, err)
		}
		d.add(image.Socket{Kind: image.Datagram, Datagram: snap}, s)
		d.result.Datagrams++
	}
	for _, pid := range program.pids {
		d.image.Processes = append(d.image.Processes, image.Process{PID: pid, Name: proc.Name(pid)})
	}
	if d.keeps() {
		if d.image.Keeper, err = self(); err != nil {
			return locked, err
		}
	}
	if ctx.Err() != nil {
		return locked, errors.New("interrupted; the program goes on as it was")
	}
	if d.config.leaveClosed {
		notes := untouched(d.connections, actClose)
		for i, c := range d.connections {
			notes[i].kept = c.snap
		}
		if err := d.journal.note(notes...); err != nil {
			return locked, err
		}
	}
	if err := errors.Join(d.journal.addresses(), onHost(d.ns, func(h *host.Host) error { return give(h, d.config.give) })); err != nil {
		return locked, err
	}
	d.given = true
	if err := d.write(); err != nil {
		return locked, err
	}
	if d.config.leaveRunning {
		return locked, d.undo()
	}
	return locked, d.end(program)
}

// inFlightCure says what to do about connections in flight.
func inFlightCure(err error) string {
	if errors.Is(err, soccr.ErrInFlight) {
		return "; or --skip-in-flight forgets them"
	}
	return ""
}

// choose sorts the program's sockets.
func (d *dumper) choose(program *stoppedProgram) (listeners, datagrams []*socket, err error) {
	for _, s := range program.sockets {
		where := fmt.Sprintf("descriptor %d of process %d, %s -> %s", s.Holders[0].FD, s.Holders[0].PID, s.Local, s.Peer)
		if !s.tcp() && !s.datagram() && !strings.HasPrefix(s.Protocol, "mptcp") {
			d.result.Left = append(d.result.Left, refusal{s.Holders[0].PID, s.Holders[0].FD, s.Local, s.Peer, s.Protocol})
			continue
		}
		if err := program.hindrance(s); err != nil && !(errors.Is(err, errOutside) && d.config.leaveRunning) {
			return nil, nil, fmt.Errorf("%s: %w", where, err)
		}
		switch {
		case s.datagram():
			datagrams = append(datagrams, s)
			continue
		case s.state == soccr.StateListen:
			listeners = append(listeners, s)
			continue
		}
		c := &connection{socket: s}
		if c.flow, err = flowOf(s.fd); err == nil {
			d.flows = append(d.flows, c.flow)
		} else if !errors.Is(err, unix.ENOTCONN) {
			return nil, nil, fmt.Errorf("%s: %w", where, err)
		}
		d.connections = append(d.connections, c)
	}
	if len(d.connections)+len(listeners)+len(datagrams) == 0 {
		return nil, nil, fmt.Errorf("process %d (%s) has no TCP or UDP socket", d.pid, proc.Name(d.pid))
	}
	return listeners, datagrams, nil
}

// lockAll keeps the network away.
func (d *dumper) lockAll(listeners []*socket) error {
	switch d.config.networkLock {
	case lockNothing:
		return nil
	case lockNamespace:
		return d.makeLock(netlock.Namespace, d.config.lockTimeout)
	}
	for _, l := range listeners {
		for _, local := range listensOn(l.fd) {
			if err := d.lock.LockListener(local); err != nil {
				return err
			}
		}
	}
	return d.lock.Add(d.flows...)
}

// add puts a socket into the image.
func (d *dumper) add(s image.Socket, from *socket) {
	for _, h := range from.Holders {
		s.Holders = append(s.Holders, image.Holder{PID: h.PID, FD: h.FD, CloseOnExec: proc.CloseOnExec(h.PID, h.FD)})
	}
	d.image.Sockets = append(d.image.Sockets, s)
}

func (d *dumper) write() (err error) {
	if d.config.dir == pipeDir {
		d.result.Image, err = d.image.WriteStream(d.stdout)
		if err == nil {
			err = d.committed("")
		}
	} else {
		d.result.Image, err = d.image.Save(d.config.dir, d.committed)
	}
	if err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	return nil
}

// committed notes that there is no way back once a file is not there any more.
func (d *dumper) committed(file string) error {
	if d.config.leaveRunning {
		return nil
	}
	return d.journal.commit(file)
}

// undo lets the connections go on as they were.
func (d *dumper) undo() error {
	var err error
	if d.given {
		err = onHost(d.ns, func(h *host.Host) error { return take(h, d.config.give) })
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	for _, c := range d.connections {
		if c.paused != nil {
			err = errors.Join(err, c.paused.Resume())
			c.paused = nil
		}
	}
	return err
}

// end takes the connections out of their sockets, silently, and kills the program if
// it is not to go on without them.
func (d *dumper) end(program *stoppedProgram) error {
	var failure error
	for _, c := range d.connections {
		err := c.paused.Disconnect()
		if err == nil && d.config.leaveClosed {
			if err = c.paused.Restore(c.snap, soccr.WithClosed()); err == nil {
				err = c.paused.Resume()
			}
		}
		failure = errors.Join(failure, err)
		c.paused = nil
	}
	if d.config.leaveClosed {
		return failure
	}
	return errors.Join(failure, kill(program.pids))
}

// kill kills processes, children first.
func kill(pids []int) (failure error) {
	for _, pid := range slices.Backward(pids) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			failure = errors.Join(failure, os.NewSyscallError("kill", err))
		}
	}
	return failure
}

// self is this process, as one that keeps connections locked.
func self() (*image.Keeper, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	start, err := proc.StartTime(os.Getpid())
	return &image.Keeper{Boot: strings.TrimSpace(string(boot)), PID: os.Getpid(), Start: start}, err
}

// print writes the summary for people.
func (r *dumpResult) print(w io.Writer) error {
	b := &lines{}
	b.add("%s with %s in the queues, image of %s", counts(r.Connections, r.Listeners, r.Datagrams), size(r.Bytes), size(r.Image))
	b.add("  program stopped     %s", short(r.Frozen))
	b.add("  connections locked  %s", short(r.Locked))
	for _, left := range r.Left {
		b.add("  left out            %s, descriptor %d of process %d", left.Why, left.FD, left.PID)
	}
	_, err := w.Write(b.text)
	return err
}
