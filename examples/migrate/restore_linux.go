package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// restoreConfig is what the command line says about restore.
type restoreConfig struct {
	dir     string
	command []string
	pid     int      // of the program that runs already, or 0
	fds     []string // OLD=NEW
	numbers map[int]int
	stopFlags
	detached    bool
	tcpClose    bool
	networkLock string
	mapFlags    mapFlags
	asJSON      bool
	mapping     soccr.Mapping
	takeAddress []string
	take        []place
}

func restoreCommand(stdout, stderr *os.File) *cobra.Command {
	var config restoreConfig
	c := &cobra.Command{
		Use:   "restore -D DIR|- {-- PROGRAM ARGS... | -t PID}",
		Short: "Bring saved sockets back, in a program that inherits them, or in one that runs",
		Long: `restore makes the sockets of an image again, in this network namespace, and starts a
program that inherits them, as if it had never been another. Their addresses have to
be on this host, or come with --take-address, which is announced to the neighbors
(ARP, or neighbor advertisements) when the connections are locked here. Either all of
them come back, or none, and the peers notice nothing in either case; the image can
be restored again.

The program finds each socket by the descriptor that it had where it was dumped (in
the first process, where several had it), and in the way of systemd's socket
activation: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES name descriptors from 3 on,
"listener.N", "connection.N" and "datagram.N" with the N of old.

restore waits for the program, hands signals on to it, and ends with its status,
unless it is to be --restore-detached.

With -t PID, a program that runs gets the sockets instead, in its own network
namespace, under the descriptors that they had, or that --fd says. It is stopped for
that. The numbers have to be free, or to stand for TCP sockets that are closed, such
as those that dump --leave-closed leaves; these are replaced, also with the epoll
instances that watch them. What the program does with new descriptors is its own
matter; it is not told. 32-bit programs cannot be given any.

If migrate is killed, be it by kill -9, a guard, a process of its own, either undoes
what was done or goes through with it. Should the guard be killed, migrate does so,
and says which ("were restored"). What a program can notice of that tells "migrate swap
-h". An image that came by a pipe and could not be restored is kept in a file, and
restore says where.

Addresses, ports and devices may have other names here: --map-local 10.1.0.5=10.2.0.7,
--map-remote 10.1.0.0/16=10.2.0.0/16, --map-local 10.1.0.5:80=10.1.0.5:8080. The peer
cannot be told; something on the way has to translate.

Exit status: 0 all is restored, and with -- PROGRAM, the program's own; 1 nothing is
restored; 2 the command line is wrong; 4 the guard was killed, and what it has left was
put right (3 if not all could be).`,
		Example: `  migrate restore -D /var/tmp/image -- ./server --fd 7
  migrate restore -D /var/tmp/image -t 1234 --fd 7=12
  migrate dump -t 1234 -D - --hold-address 10.0.0.5/24@eth0 |
    ssh HOST migrate restore -D - --take-address 10.0.0.5/24@eth0 -- server`,
		RunE: func(c *cobra.Command, args []string) (err error) {
			into := config.pid != 0
			switch {
			case config.dir == "":
				return usageError(errors.New("where from? -D DIR, or -D - for standard input"))
			case into && len(args) > 0:
				return usageError(errors.New("-t PID and -- PROGRAM contradict each other"))
			case !into && (c.ArgsLenAtDash() != 0 || len(args) == 0):
				return usageError(errors.New("which program is to have the sockets? -- PROGRAM ARGS, or -t PID"))
			case !into && len(config.fds) > 0:
				return usageError(errors.New("--fd is for -t PID; a program that inherits sockets finds them by LISTEN_FDNAMES"))
			case config.networkLock != lockFlows && config.networkLock != lockNothing:
				return usageError(fmt.Errorf("--network-lock %s? nftables or skip", config.networkLock))
			}
			if config.mapping, err = config.mapFlags.parse(); err != nil {
				return usageError(err)
			}
			if config.take, err = parsePlaces(config.takeAddress); err != nil {
				return usageError(err)
			}
			if config.numbers, err = parseNumbers(config.fds); err != nil {
				return usageError(err)
			}
			config.command = args
			work := guardedWork{
				do:   func(ctx context.Context, j *journal) error { return restore(ctx, config, j, stdout, stderr) },
				mend: mender{target: config.pid, flags: config.stopFlags, how: config.networkLock, restoring: &config}.prepared(),
			}
			if into {
				return guarded(work)
			}
			return guardedStart(work, func(child int) error {
				if config.detached {
					return nil
				}
				return wait(child)
			})
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	imageFlag(c, &config.dir)
	flags.IntVarP(&config.pid, "tree", "t", 0, "a process that runs, to have the sockets")
	flags.StringArrayVar(&config.fds, "fd", nil, "OLD=NEW: another number for a descriptor, with -t")
	flags.BoolVarP(&config.detached, "restore-detached", "d", false, "do not wait for the program")
	flags.BoolVar(&config.tcpClose, "tcp-close", false, "bring connections back as closed: the program reads their end")
	flags.StringVar(&config.networkLock, "network-lock", lockFlows, "how to lock: nftables, or skip (a firewall of yours does)")
	flags.StringArrayVar(&config.takeAddress, "take-address", nil, "ADDRESS/BITS@DEVICE that this host takes, and announces to its neighbors")
	config.mapFlags.add(c)
	config.stopFlags.add(c)
	flags.BoolVar(&config.asJSON, "json", false, "print the summary as one JSON object, on standard error")
	return c
}

// parseNumbers reads descriptors and what they are to be.
func parseNumbers(texts []string) (map[int]int, error) {
	numbers := map[int]int{}
	for _, text := range texts {
		from, to, _ := strings.Cut(text, "=")
		old, oldErr := strconv.ParseUint(from, 10, 31)
		number, err := strconv.ParseUint(to, 10, 31)
		if oldErr != nil || err != nil {
			return nil, fmt.Errorf("--fd %s: want OLD=NEW", text)
		}
		numbers[int(old)] = int(number)
	}
	return numbers, nil
}

// A restored socket is one that was made again.
type restoredSocket struct {
	*image.Socket
	fd     int
	paused *soccr.Socket // of a connection
	pid    int           // the first process that had it
	number int           // its descriptor there
}

// A restoreResult is the summary.
type restoreResult struct {
	Connections int      `json:"connections"`
	Listeners   int      `json:"listeners"`
	Datagrams   int      `json:"datagram_sockets"`
	Bytes       int64    `json:"bytes"`     // in the queues of connections
	PID         int      `json:"pid"`       // of the program
	Locked      int64    `json:"locked_us"` // until the connections went on
	Frozen      int64    `json:"frozen_us"` // for how long a program was stopped that runs already
	Warnings    []string `json:"warnings"`  // what is not as it was, such as options that this kernel lacks
}

// A home is the program that is to have the sockets.
type home interface {
	// settle gives them to the program, which does not run.
	settle([]*restoredSocket) error
	// start lets it run, and returns which process it is.
	start() (pid int, err error)
	// abandon leaves the program as it was, or without.
	abandon() error
}

// A restorer restores an image.
type restorer struct {
	config restoreConfig
	home   home
	image  *image.Image
	// original is the image as it was read, with the addresses of old.
	original image.Image
	journal  *journal
	lock     *netlock.Lock // or nil
	tap      *soccr.Tap    // or nil
	flows    []netlock.Flow
	sockets  []*restoredSocket
	progress *counter
	result   restoreResult
}

func restore(ctx context.Context, config restoreConfig, j *journal, stdout, stderr *os.File) (err error) {
	r := &restorer{config: config, journal: j, progress: newCounter(stderr, "restored")}
	r.result.Warnings = []string{}
	var running *runningProgram
	if config.pid != 0 {
		if running, err = newRunningProgram(config, j); err != nil {
			return failed(err)
		}
		defer func() { err = errors.Join(err, running.close()) }()
		r.home = running
	} else {
		program, err := exec.LookPath(config.command[0])
		if err != nil {
			return failed(err)
		}
		r.home = &newProgram{config: config, program: program, stdout: stdout, stderr: stderr}
	}
	if r.image, err = loadImage(config.dir); err != nil {
		return failed(err)
	}
	if config.dir == pipeDir {
		if err := j.image(r.image.WriteTo); err != nil {
			return failed(err)
		}
	}
	restore := func() error { return errors.Join(r.restore(ctx), r.close()) }
	if running != nil {
		err = running.inside(restore)
		r.result.Frozen = running.frozen.Microseconds()
	} else {
		err = restore()
	}
	r.progress.done()
	if err != nil {
		err = errors.Join(err, r.rescue())
		if ctx.Err() != nil {
			return &failure{statusInterrupted, err}
		}
		return failed(err)
	}
	if config.asJSON {
		err = printJSON(stderr, &r.result)
	} else {
		err = r.result.print(stderr)
	}
	if running == nil {
		err = errors.Join(err, handOver(r.result.PID))
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// rescue keeps an image that came by a pipe and could not be restored: nobody else
// may have it. What it returns says where it is.
func (r *restorer) rescue() error {
	if r.config.dir != pipeDir {
		return nil
	}
	return keepImage(&r.original)
}

// keepImage keeps an image in a new file. What it returns says where it is.
func keepImage(img *image.Image) error {
	dir, err := os.MkdirTemp("", "migrate-image-")
	if err != nil {
		return fmt.Errorf("keep the image: %w", err)
	}
	if _, err := img.Save(dir); err != nil {
		return fmt.Errorf("keep the image: %w", err)
	}
	return fmt.Errorf("the image is kept: migrate restore -D %s", dir)
}

// close gives up what the restorer has; a socket that is paused still disappears
// silently.
func (r *restorer) close() error {
	var err error
	for _, s := range r.sockets {
		err = errors.Join(err, unix.Close(s.fd))
	}
	r.sockets = nil
	if r.tap != nil {
		err = errors.Join(err, r.tap.Close())
	}
	if r.lock != nil {
		err = errors.Join(err, r.lock.Close())
	}
	return err
}

// restore makes the sockets and gives them to the program.
func (r *restorer) restore(ctx context.Context) error {
	if err := r.mapAll(); err != nil {
		return err
	}
	if err := r.lockAll(); err != nil {
		return err
	}
	locked := time.Now()
	h, err := host.Current()
	if err != nil {
		return err
	}
	defer func() { _ = h.Close() }() // what it has done stays
	if err := errors.Join(r.journal.addresses(), take(h, r.config.take)); err != nil {
		return err
	}
	if err := r.restoreLocked(ctx); err != nil {
		return errors.Join(err, give(h, r.config.take))
	}
	r.result.Locked = time.Since(locked).Microseconds()
	return nil
}

// restoreLocked makes the sockets and gives them to the program, on a host that has
// their addresses.
func (r *restorer) restoreLocked(ctx context.Context) (err error) {
	if err := r.preflight(); err != nil {
		return err
	}
	for i := range r.image.Sockets {
		if err := r.makeSocket(&r.image.Sockets[i]); err != nil {
			return err
		}
		r.progress.count(i+1, len(r.image.Sockets))
	}
	if err := r.note(); err != nil {
		return err
	}
	if err := r.home.settle(r.sockets); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.home.abandon())
		}
	}()
	if ctx.Err() != nil {
		return errors.New("interrupted; nothing is restored")
	}
	if err := r.journal.commit(""); err != nil {
		return err
	}
	r.endKeeper()
	if r.lock != nil {
		if err := r.lock.Remove(r.flows...); err != nil {
			return err
		}
	}
	for _, s := range r.sockets {
		if s.paused == nil {
			continue
		}
		if err := s.paused.Resume(); err != nil {
			return err
		}
	}
	r.result.PID, err = r.home.start()
	return err
}

// note notes what is to be done with the sockets once the program has them.
func (r *restorer) note() error {
	var notes []note
	for _, s := range r.sockets {
		cookie, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return os.NewSyscallError("getsockopt(SO_COOKIE)", err)
		}
		n := note{cookie: cookie, first: actTakeAway, then: actNothing}
		if s.Kind == image.Connection {
			n.then, n.kept = actFinish, s.Connection
			if r.config.tcpClose {
				n.then = actClose
			}
		}
		notes = append(notes, n)
	}
	return r.journal.note(notes...)
}

// mapAll gives the sockets their addresses of here.
func (r *restorer) mapAll() (err error) {
	r.original = *r.image
	r.image.Sockets = slices.Clone(r.image.Sockets)
	for i := range r.image.Sockets {
		s := &r.image.Sockets[i]
		switch s.Kind {
		case image.Connection:
			s.Connection, err = r.config.mapping.Apply(s.Connection)
		case image.Listener:
			s.Listener, err = r.config.mapping.ApplyListener(s.Listener)
		case image.Datagram:
			s.Datagram, err = r.config.mapping.ApplyDatagram(s.Datagram)
		}
		if err != nil {
			return err
		}
		if c := s.Connection; c != nil && c.Remote.IsValid() {
			r.flows = append(r.flows, netlock.Flow{Local: c.Local, Remote: c.Remote})
		}
	}
	return nil
}

// lockAll locks the connections before they are there.
func (r *restorer) lockAll() (err error) {
	if r.config.networkLock == lockFlows {
		if r.lock, err = netlock.New(netlock.WithTimeout(r.config.lockTimeout)); err != nil {
			return err
		}
		if err := r.journal.share(r.lock); err != nil {
			return err
		}
		if r.tap, err = soccr.OpenTap(); err != nil && !errors.Is(err, soccr.ErrNoPermission) {
			return err
		}
		if r.tap != nil {
			for _, f := range r.flows {
				if err := r.tap.Watch(f.Local, f.Remote); err != nil {
					return err
				}
			}
		}
		if err := r.lock.Add(r.flows...); err != nil {
			return err
		}
	}
	return nil
}

// endKeeper has the process end that has kept the connections locked since they were
// dumped, if that was here. If it does not, they go on when its time is over.
func (r *restorer) endKeeper() {
	keeper := r.image.Keeper
	if keeper == nil || !isKeeper(keeper) {
		return
	}
	const patience = 5 * time.Second
	err := unix.Kill(keeper.PID, unix.SIGTERM)
	if err == nil {
		err = proc.AwaitEnd(keeper.PID, patience)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		r.result.Warnings = append(r.result.Warnings, fmt.Sprintf("process %d keeps the connections locked for a while: %v", keeper.PID, err))
	}
}

// isKeeper makes sure that a process is the one of which an image says so: this
// program, on this host, since then.
func isKeeper(k *image.Keeper) bool {
	now, err := self()
	if err != nil || now.Boot != k.Boot {
		return false
	}
	start, err := proc.StartTime(k.PID)
	if err != nil || start != k.Start {
		return false
	}
	ours, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	theirs, err := os.Stat(filepath.Join("/proc", strconv.Itoa(k.PID), "exe"))
	return err == nil && os.SameFile(ours, theirs)
}

// preflight finds all that is in the way, before anything is done.
func (r *restorer) preflight() error {
	var connections []*soccr.Snapshot
	var listeners []*soccr.ListenerSnapshot
	for i := range r.image.Sockets {
		switch s := &r.image.Sockets[i]; s.Kind {
		case image.Connection:
			connections = append(connections, s.Connection)
		case image.Listener:
			listeners = append(listeners, s.Listener)
		}
	}
	return soccr.Preflight(connections, listeners, r.options()...)
}

func (r *restorer) options() []soccr.Option {
	options := []soccr.Option{soccr.WithLosses(func(l soccr.Loss) {
		r.result.Warnings = append(r.result.Warnings, "not set: "+fmt.Sprint(l))
	})}
	if r.lock != nil {
		options = append(options, soccr.WithLock(r.lock))
	}
	if r.tap != nil {
		options = append(options, soccr.WithTap(r.tap))
	}
	if r.config.tcpClose {
		options = append(options, soccr.WithClosed())
	}
	return options
}

// makeSocket makes a socket again, and leaves it paused.
func (r *restorer) makeSocket(s *image.Socket) error {
	first := r.first(s)
	made := &restoredSocket{Socket: s, pid: first.PID, number: first.FD}
	var err error
	switch s.Kind {
	case image.Listener:
		made.fd, err = soccr.NewListenerSocket(s.Listener)
	case image.Datagram:
		made.fd, err = soccr.NewDatagramSocket(s.Datagram)
	default:
		made.fd, err = soccr.NewSocket(s.Connection)
	}
	if err != nil {
		return err
	}
	r.sockets = append(r.sockets, made)
	switch s.Kind {
	case image.Listener:
		r.result.Listeners++
		return soccr.StartListener(made.fd, s.Listener, r.options()...)
	case image.Datagram:
		r.result.Datagrams++
		return soccr.StartDatagram(made.fd, s.Datagram, r.options()...)
	}
	r.result.Connections++
	r.result.Bytes += int64(len(s.Connection.RecvQueue) + len(s.Connection.SendQueue))
	if made.paused, err = soccr.Pause(made.fd); err != nil {
		return err
	}
	return made.paused.Restore(s.Connection, r.options()...)
}

// first is a socket's descriptor in the first process that had it.
func (r *restorer) first(s *image.Socket) image.Holder {
	for _, p := range r.image.Processes {
		for _, h := range s.Holders {
			if h.PID == p.PID {
				return h
			}
		}
	}
	return s.Holders[0]
}

// print writes the summary for people.
func (r *restoreResult) print(w io.Writer) error {
	b := &lines{}
	b.add("%s with %s in the queues restored in process %d", counts(r.Connections, r.Listeners, r.Datagrams), size(r.Bytes), r.PID)
	b.add("  connections locked  %s", short(r.Locked))
	if r.Frozen > 0 {
		b.add("  program stopped     %s", short(r.Frozen))
	}
	for _, warning := range r.Warnings {
		b.add("  %s", warning)
	}
	_, err := w.Write(b.text)
	return err
}

// counts says how many sockets there are of each kind.
func counts(connections, listeners, datagrams int) string {
	text := fmt.Sprintf("%d connections, %d listeners", connections, listeners)
	if datagrams > 0 {
		text += fmt.Sprintf(", %d UDP sockets", datagrams)
	}
	return text
}
