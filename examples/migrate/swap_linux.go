package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// swapConfig is what the command line says about swap.
type swapConfig struct {
	pid       int
	every     time.Duration
	count     int
	newSocket bool
	stopFlags
	asJSON bool
}

func swapCommand(stdout, stderr *os.File) *cobra.Command {
	var config swapConfig
	c := &cobra.Command{
		Use:   "swap -t PID",
		Short: "Take a program's connections apart and rebuild them, while it runs",
		Long: `swap is a drill: would this program and its peers survive a move? It stops a process
and all its descendants, locks their TCP connections, saves each, takes it out of
its socket, restores it from what it has saved, and lets the program go on: what a
dump here and a restore elsewhere would do, but in the very same sockets. The
program keeps its descriptors, its epoll registrations and all else; system calls
in which it waits go on as if nothing had been.

With --every, it does so again and again. A connection whose peer has not
acknowledged anything since it was last swapped is left alone until it has: each
swap begins its timers anew.

With --new-socket, each connection goes into a new socket, which takes the place of
the old one under all its descriptors, in every process of the program, and with
every epoll instance there: what a restore into a running program does. To that end
the processes are made to receive the descriptors; no code is left in them. It takes
longer, and new sockets have other inode numbers. 32-bit programs cannot be made to,
nor those that filter system calls (seccomp), if CAP_SYS_ADMIN is missing.

Listening sockets, and those of other families, stay as they are. A connection that
cannot be moved stays as it is, too, and the summary says why.

The work is done by a guard, a process of its own. If migrate is killed, be it by
kill -9, the guard finishes the round and ends; the program is never left stopped,
nor are connections left apart. Should the guard itself be killed, migrate puts right
what it has left, from what the guard has noted: connections that were only paused go
on, those that were apart are put back. That takes some milliseconds, for which the
program runs, unless --freeze-cgroup keeps it stopped (not with --new-socket). Then

  - calls on these connections may fail (EPERM, ENOTCONN, EINVAL, EPIPE), and others
    in which it waits return EINTR. A connection that it closes for that is lost, and
    migrate says so.
  - what it writes into a connection that was just being read by the guard may be lost,
    or come back to it.
  - a process that was just being made to make a system call (--new-socket) goes on
    with the wrong registers, and is likely to crash. Migrate says which it is.

If both are killed, nobody is left to do that. Paused connections stay paused, those
that were apart are lost, a cgroup may stay frozen. There is no command to cure this:
what is only paused looks like what was half put back, and must not go on.

What a program can notice: it was stopped for a moment; a blocking send, or a
receive with MSG_WAITALL, returns what it had done so far; SO_RCVTIMEO and
SO_SNDTIMEO begin anew with each round. With --new-socket, also: an edge-triggered
epoll instance reports once more what is so; and what was registered with
EPOLLONESHOT, and has fired, may fire once more when the peer resets.

Exit status: 0 all connections were swapped; 3 some could not be; 1 nothing could
be done; 4 the guard was killed, and what it has left was put right (3 if not all could
be); 130 interrupted.`,
		Example: `  migrate swap -t 1234
  migrate swap -t 1234 --every 100ms --count 100
  migrate swap -t 1234 --new-socket`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case config.pid <= 0:
				return usageError(errors.New("which program? -t PID"))
			case config.every < 0 || config.count < 0:
				return usageError(errors.New("numbers must not be negative"))
			case config.every == 0 && !c.Flags().Changed("count"):
				config.count = 1
			}
			return guarded(guardedWork{
				do:   func(ctx context.Context, j *journal) error { return swap(ctx, config, j, stdout, stderr) },
				mend: mender{target: config.pid, flags: config.stopFlags, how: lockFlows}.prepared(),
			})
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	treeFlag(c, &config.pid)
	flags.DurationVar(&config.every, "every", 0, "swap again and again, with this much time in between")
	flags.BoolVar(&config.newSocket, "new-socket", false, "put the connections into new sockets, behind the same descriptors")
	flags.IntVar(&config.count, "count", 0, "how many times; 0 is until it is interrupted, or once without --every")
	config.stopFlags.add(c)
	flags.BoolVar(&config.asJSON, "json", false, "print the summary as one JSON object")
	return c
}

// stopFlags are those of all commands that stop programs.
type stopFlags struct {
	limit, lockTimeout time.Duration
	cgroup             string
}

func (s *stopFlags) add(c *cobra.Command) {
	c.Flags().DurationVar(&s.limit, "timeout", 10*time.Second, "how long to wait for the program to stop")
	c.Flags().StringVar(&s.cgroup, "freeze-cgroup", "", "the directory of a cgroup (v2) that the program is in, to be frozen first: it stops at once, and all others in there")
	c.Flags().DurationVar(&s.lockTimeout, "lock-timeout", netlock.DefaultTimeout, "how long connections stay locked if nobody is left to unlock them")
}

// A swapResult is the summary.
type swapResult struct {
	Rounds  int       `json:"rounds"`
	Swapped int       `json:"swapped"` // connections, counted each time
	Waited  int       `json:"waited"`  // those left alone because their peer had acknowledged nothing
	Bytes   int64     `json:"bytes"`   // in their queues
	Frozen  []int64   `json:"frozen_us"`
	Locked  []int64   `json:"locked_us"`
	Refused []refusal `json:"refused"`
	Error   string    `json:"error,omitempty"`
}

// A refusal is a connection that was left as it is, and why.
type refusal struct {
	PID   int    `json:"pid"`
	FD    int    `json:"fd"`
	Local string `json:"local"`
	Peer  string `json:"peer"`
	Why   string `json:"why"`
}

// A swapper swaps a program's connections.
type swapper struct {
	*worker
	newSocket bool
	result    swapResult
	// last is what the peer of a connection had acknowledged when it was swapped
	// last, by cookie, if there was something to acknowledge.
	last map[uint64]uint32
	// refused are the sockets in result.Refused, by cookie.
	refused map[uint64]bool
}

func swap(ctx context.Context, config swapConfig, j *journal, stdout, stderr *os.File) error {
	w, err := newWorker(config.pid, config.stopFlags, lockFlows, j)
	if err != nil {
		return failed(err)
	}
	s := &swapper{worker: w, newSocket: config.newSocket, last: map[uint64]uint32{}, refused: map[uint64]bool{}}
	s.result.Frozen, s.result.Locked, s.result.Refused = []int64{}, []int64{}, []refusal{}
	err = errors.Join(s.repeat(ctx, config, progressOn(stderr)), w.close())
	r := &s.result
	if err != nil {
		r.Error = err.Error()
	}
	if config.asJSON {
		err = errors.Join(err, printJSON(stdout, r))
	} else if r.Rounds > 0 {
		err = errors.Join(err, r.print(stdout))
	}
	switch {
	case err != nil:
		return failed(err)
	case ctx.Err() != nil:
		return &failure{statusInterrupted, nil}
	case len(r.Refused) > 0:
		return &failure{statusPartly, nil}
	}
	return nil
}

// progressOn shows how far it has come, on a terminal.
func progressOn(stderr *os.File) func(*swapResult) {
	if !term.IsTerminal(int(stderr.Fd())) {
		return func(*swapResult) {}
	}
	return func(r *swapResult) {
		if r == nil {
			fmt.Fprintln(stderr)
			return
		}
		fmt.Fprintf(stderr, "\rround %d, %d connections, stopped for %s \x1b[K", r.Rounds, r.Swapped, short(r.Frozen[len(r.Frozen)-1]))
	}
}

// repeat swaps as often as it shall.
func (s *swapper) repeat(ctx context.Context, config swapConfig, progress func(*swapResult)) error {
	ticks := time.NewTicker(max(config.every, time.Nanosecond))
	defer ticks.Stop()
	for {
		if err := s.survey(); err != nil {
			return err
		}
		if err := s.round(); err != nil {
			return err
		}
		progress(&s.result)
		if s.result.Rounds == config.count {
			break
		}
		select {
		case <-ticks.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	progress(nil)
	return nil
}

// round stops the program, swaps its connections, and lets it go on.
func (s *swapper) round() error {
	program, err := s.stop()
	if err != nil {
		return err
	}
	err = s.swapAll(program)
	frozen, thawing := program.goOn()
	s.result.Rounds++
	s.result.Frozen = append(s.result.Frozen, frozen.Microseconds())
	return errors.Join(err, thawing, s.journal.clear())
}

// swapAll swaps the connections of the stopped program. Whatever fails, it leaves
// none apart, paused or locked if there is a way.
func (s *swapper) swapAll(program *stoppedProgram) (err error) {
	var all []*connection
	var flows []netlock.Flow
	for _, c := range program.sockets {
		if !c.tcp() || !diag.Connected.Has(diag.State(c.state)) {
			continue
		}
		if hindrance := program.hindrance(c); hindrance != nil {
			s.refuse(c, hindrance)
			continue
		}
		flow, err := flowOf(c.fd)
		if err != nil {
			return err
		}
		all, flows = append(all, &connection{socket: c, flow: flow}), append(flows, flow)
	}
	if len(all) == 0 {
		return nil
	}
	if s.newSocket {
		if err := program.callable(all); err != nil {
			return err
		}
	}
	if err := s.journal.note(untouched(all, actResume)...); err != nil {
		return err
	}
	defer s.forget(flows)
	if err := s.watch(flows); err != nil {
		return err
	}
	began := time.Now()
	if err := s.lock.Add(flows...); err != nil {
		return err
	}
	for _, c := range all {
		if failure := c.save(); failure != nil {
			s.refuse(c.socket, failure)
			c.paused = nil
		} else {
			err = errors.Join(err, s.swapOne(c))
		}
	}
	if s.newSocket {
		err = errors.Join(err, s.renew(program, all))
	}
	err = errors.Join(err, s.journal.commit(""), s.lock.Remove(flows...))
	s.result.Locked = append(s.result.Locked, time.Since(began).Microseconds())
	for _, c := range all {
		if c.paused != nil && !c.apart {
			err = errors.Join(err, c.paused.Resume())
		}
		if c.fresh != nil { // the program has it, or it is empty
			err = errors.Join(err, unix.Close(c.fresh.fd))
		}
	}
	return err
}

// swapOne takes a saved connection out of its socket and puts it back, or into a new
// one.
func (s *swapper) swapOne(c *connection) error {
	reached := acknowledged(c.snap)
	last, again := s.last[c.Cookie]
	delete(s.last, c.Cookie)
	if c.snap.Unacked() > 0 {
		s.last[c.Cookie] = reached
		if again && last == reached {
			s.result.Waited++
			return nil
		}
	}
	err := c.paused.CheckQueues(c.snap) // also because it may have to go back
	if err == nil && s.newSocket {
		err = soccr.CheckQueues(c.snap)
	}
	if err != nil {
		s.refuse(c.socket, err)
		return nil
	}
	if err := s.journal.note(note{cookie: c.Cookie, first: actRestore, then: actFinish, kept: c.snap}); err != nil {
		return err
	}
	c.apart = true
	if err := c.paused.Disconnect(); err != nil {
		return err
	}
	if s.newSocket {
		fresh, err := s.renewOne(c)
		if err == nil {
			c.fresh, c.paused, c.apart = fresh, fresh.paused, false
			return nil
		}
		s.refuse(c.socket, err) // and back into the old one
	}
	if err := c.rebuild(s.worker); err != nil {
		return err
	}
	if !s.newSocket {
		s.swapped(c)
	}
	return nil
}

func (s *swapper) swapped(c *connection) {
	s.result.Swapped++
	s.result.Bytes += int64(len(c.snap.RecvQueue) + len(c.snap.SendQueue))
}

// refuse remembers why a connection stays as it is.
func (s *swapper) refuse(c *socket, why error) {
	if s.refused[c.Cookie] {
		return
	}
	s.refused[c.Cookie] = true
	s.result.Refused = append(s.result.Refused, refusal{c.Holders[0].PID, c.Holders[0].FD, c.Local, c.Peer, why.Error()})
}

// print writes the summary for people.
func (r *swapResult) print(w io.Writer) error {
	b := &lines{}
	b.add("%d rounds, %d connections swapped with %s in their queues", r.Rounds, r.Swapped, size(r.Bytes))
	if len(r.Frozen) > 0 {
		b.add("  program stopped     %s", spread(r.Frozen))
	}
	if len(r.Locked) > 0 {
		b.add("  connections locked  %s", spread(r.Locked))
	}
	if r.Waited > 0 {
		b.add("  left alone          %d times, because the peer had acknowledged nothing since", r.Waited)
	}
	for _, refused := range r.Refused {
		b.add("  stayed as it was    %s -> %s, descriptor %d of process %d: %s",
			refused.Local, refused.Peer, refused.FD, refused.PID, refused.Why)
	}
	_, err := w.Write(b.text)
	return err
}
