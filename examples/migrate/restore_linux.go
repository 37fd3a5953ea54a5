package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	dir         string
	command     []string
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
		Use:   "restore -D DIR|- -- PROGRAM ARGS...",
		Short: "Bring saved connections and listeners back, in a program that inherits them",
		Long: `restore makes the sockets of an image again, in this network namespace, and starts a
program that inherits them, as if it had never been another. Their addresses have to
be on this host, or come with --take-address, which is announced to the neighbors
(ARP, or neighbor advertisements) when the connections are locked here. Either all of them come back, or none, and the peers notice nothing
in either case; the image can be restored again.

The program finds each socket by the descriptor that it had where it was dumped (in
the first process, where several had it), and in the way of systemd's socket
activation: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES name descriptors from 3 on,
"listener.N" and "connection.N" with the N of old.

restore waits for the program, hands signals on to it, and ends with its status,
unless it is to be --restore-detached.

Addresses, ports and devices may have other names here: --map-local 10.1.0.5=10.2.0.7,
--map-remote 10.1.0.0/16=10.2.0.0/16, --map-local 10.1.0.5:80=10.1.0.5:8080. The peer
cannot be told; something on the way has to translate.`,
		Example: `  migrate restore -D /var/tmp/image -- ./server --fd 7
  migrate dump -t 1234 -D - --give-address 10.0.0.5/24@eth0 |
    ssh HOST migrate restore -D - --take-address 10.0.0.5/24@eth0 -- server`,
		RunE: func(c *cobra.Command, args []string) (err error) {
			switch {
			case config.dir == "":
				return usageError(errors.New("where from? -D DIR, or -D - for standard input"))
			case c.ArgsLenAtDash() != 0 || len(args) == 0:
				return usageError(errors.New("which program is to have the sockets? -- PROGRAM ARGS"))
			case config.networkLock != lockFlows && config.networkLock != lockNothing:
				return usageError(fmt.Errorf("--network-lock %s? nftables or skip", config.networkLock))
			}
			if config.mapping, err = config.mapFlags.parse(); err != nil {
				return usageError(err)
			}
			if config.take, err = parsePlaces(config.takeAddress); err != nil {
				return usageError(err)
			}
			config.command = args
			return restore(config, stdout, stderr)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	imageFlag(c, &config.dir)
	flags.BoolVarP(&config.detached, "restore-detached", "d", false, "do not wait for the program")
	flags.BoolVar(&config.tcpClose, "tcp-close", false, "bring connections back as closed: the program reads their end")
	flags.StringVar(&config.networkLock, "network-lock", lockFlows, "how to lock: nftables, or skip (a firewall of yours does)")
	flags.StringArrayVar(&config.takeAddress, "take-address", nil, "ADDRESS/BITS@DEVICE that this host takes, and announces to its neighbors")
	config.mapFlags.add(c)
	flags.BoolVar(&config.asJSON, "json", false, "print the summary as one JSON object, on standard error")
	return c
}

// A restored socket is one that was made again.
type restoredSocket struct {
	*image.Socket
	fd     int
	paused *soccr.Socket // of a connection
	number int           // which it has in the first process that had it
}

// A restoreResult is the summary.
type restoreResult struct {
	Connections int      `json:"connections"`
	Listeners   int      `json:"listeners"`
	PID         int      `json:"pid"`       // of the program
	Locked      int64    `json:"locked_us"` // until the connections went on
	Warnings    []string `json:"warnings"`  // what is not as it was, such as options that this kernel lacks
}

// A restorer restores an image.
type restorer struct {
	config restoreConfig
	image  *image.Image
	// original is the image as it was read, with the addresses of old.
	original image.Image
	lock     *netlock.Lock // or nil
	tap      *soccr.Tap    // or nil
	flows    []netlock.Flow
	sockets  []*restoredSocket
	result   restoreResult
}

func restore(config restoreConfig, stdout, stderr *os.File) error {
	program, err := exec.LookPath(config.command[0])
	if err != nil {
		return failed(err)
	}
	r := &restorer{config: config}
	r.result.Warnings = []string{}
	if r.image, err = loadImage(config.dir); err != nil {
		return failed(err)
	}
	child, err := r.restore(program, stdout, stderr)
	if err != nil {
		return failed(errors.Join(err, r.close(), r.rescue()))
	}
	if err := r.close(); err != nil {
		return failed(err)
	}
	if config.asJSON {
		err = printJSON(stderr, &r.result)
	} else {
		err = r.result.print(stderr)
	}
	if err != nil || config.detached {
		return err
	}
	return wait(child)
}

// rescue keeps an image that came by a pipe and could not be restored: nobody else
// may have it. What it returns says where it is.
func (r *restorer) rescue() error {
	if r.config.dir != pipeDir {
		return nil
	}
	dir, err := os.MkdirTemp("", "migrate-image-")
	if err != nil {
		return fmt.Errorf("keep the image: %w", err)
	}
	if _, err := r.original.Save(dir); err != nil {
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

// restore makes the sockets and starts the program.
func (r *restorer) restore(program string, stdout, stderr *os.File) (*os.Process, error) {
	if err := r.mapAll(); err != nil {
		return nil, err
	}
	if err := r.lockAll(); err != nil {
		return nil, err
	}
	locked := time.Now()
	h, err := host.Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = h.Close() }() // what it has done stays
	if err := take(h, r.config.take); err != nil {
		return nil, err
	}
	child, err := r.restoreLocked(program, stdout, stderr)
	if err != nil {
		return nil, errors.Join(err, give(h, r.config.take))
	}
	r.result.Locked = time.Since(locked).Microseconds()
	return child, nil
}

// restoreLocked makes the sockets and starts the program, on a host that has their
// addresses.
func (r *restorer) restoreLocked(program string, stdout, stderr *os.File) (*os.Process, error) {
	if err := r.preflight(); err != nil {
		return nil, err
	}
	for i := range r.image.Sockets {
		if err := r.makeSocket(&r.image.Sockets[i]); err != nil {
			return nil, err
		}
	}
	child, start, err := r.prepare(program, stdout, stderr)
	if err != nil {
		return nil, err
	}
	defer start.Close() // without an order the child ends
	r.endKeeper()
	if r.lock != nil {
		if err := r.lock.Remove(r.flows...); err != nil {
			return nil, err
		}
	}
	for _, s := range r.sockets {
		if s.paused == nil {
			continue
		}
		if err := s.paused.Resume(); err != nil {
			return nil, err
		}
	}
	r.result.PID = child.Pid
	_, err = start.Write([]byte{1})
	return child, err
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
		if r.lock, err = netlock.New(); err != nil {
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
	made := &restoredSocket{Socket: s, number: r.number(s)}
	var err error
	if s.Kind == image.Listener {
		if made.fd, err = soccr.NewListenerSocket(s.Listener); err != nil {
			return err
		}
		r.sockets = append(r.sockets, made)
		r.result.Listeners++
		return soccr.StartListener(made.fd, s.Listener, r.options()...)
	}
	if made.fd, err = soccr.NewSocket(s.Connection); err != nil {
		return err
	}
	r.sockets = append(r.sockets, made)
	r.result.Connections++
	if made.paused, err = soccr.Pause(made.fd); err != nil {
		return err
	}
	return made.paused.Restore(s.Connection, r.options()...)
}

// number is the descriptor of a socket in the first process that had it.
func (r *restorer) number(s *image.Socket) int {
	for _, p := range r.image.Processes {
		for _, h := range s.Holders {
			if h.PID == p.PID {
				return h.FD
			}
		}
	}
	return s.Holders[0].FD
}

// inheritRole, as the first argument, makes the program the one that waits until it
// may become another one, which inherits the sockets.
const inheritRole = "restore-child"

// prepare starts the child that is to become the program. It does so on the order.
func (r *restorer) prepare(program string, stdout, stderr *os.File) (_ *os.Process, start *os.File, err error) {
	plan, err := r.arrange()
	if err != nil {
		return nil, nil, err
	}
	wait, start, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer wait.Close()
	stdin := os.Stdin
	if r.config.dir == pipeDir { // which has held the image
		if stdin, err = os.Open(os.DevNull); err != nil {
			return nil, nil, errors.Join(err, start.Close())
		}
		defer stdin.Close()
	}
	// Package os would make the sockets block.
	files := []uintptr{stdin.Fd(), stdout.Fd(), stderr.Fd()}
	for _, s := range plan.fds[len(files):] {
		if s == nil {
			files = append(files, ^uintptr(0)) // closed
		} else {
			files = append(files, uintptr(s.fd))
		}
	}
	order := len(files)
	pid, err := syscall.ForkExec("/proc/self/exe",
		append([]string{os.Args[0], inheritRole, strconv.Itoa(order), program}, r.config.command...),
		&syscall.ProcAttr{
			Env:   append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(plan.names)), "LISTEN_FDNAMES="+strings.Join(plan.names, ":")),
			Files: append(files, wait.Fd()),
		})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start a child: %w", err), start.Close())
	}
	child, err := os.FindProcess(pid)
	return child, start, err
}

// inherit is the child: it waits for the order, and becomes the program.
func inherit(args []string) error {
	order, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if n, err := unix.Read(order, b); n != 1 {
		return fmt.Errorf("no order: %w", err)
	}
	if err := unix.Close(order); err != nil {
		return err
	}
	environment := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	return fmt.Errorf("start %s: %w", args[1], unix.Exec(args[1], args[2:], environment))
}

// An arrangement is which socket gets which descriptor.
type arrangement struct {
	fds   []*restoredSocket // by number
	names []string          // of those from 3 on
}

// arrange gives each socket the number it had, and all of them numbers from 3 on,
// without gaps, as systemd does: sockets that have one there have their turn, and
// the others have second descriptors in between.
func (r *restorer) arrange() (arrangement, error) {
	const first = 3
	var a arrangement
	named := map[*restoredSocket]bool{}
	put := func(fd int, s *restoredSocket) {
		for len(a.fds) <= fd {
			a.fds = append(a.fds, nil)
		}
		a.fds[fd] = s
	}
	put(first-1, nil)
	var others []*restoredSocket
	for _, s := range r.sockets {
		taken := s.number < len(a.fds) && a.fds[s.number] != nil
		if s.number < first || taken { // standard streams are this program's
			others = append(others, s)
			continue
		}
		put(s.number, s)
	}
	for _, s := range a.fds {
		if s != nil && s.number >= first+len(r.sockets) {
			others = append(others, s)
		}
	}
	for fd := first; len(named) < len(r.sockets); fd++ {
		if fd >= len(a.fds) || a.fds[fd] == nil {
			i := slices.IndexFunc(others, func(s *restoredSocket) bool { return !named[s] })
			if i < 0 {
				return a, errors.New("descriptors cannot be arranged")
			}
			put(fd, others[i])
		}
		s := a.fds[fd]
		named[s] = true
		a.names = append(a.names, fmt.Sprintf("%s.%d", s.Kind, s.number))
	}
	return a, nil
}

// wait waits for the program, hands signals on to it, and ends as it does.
func wait(child *os.Process) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for s := range signals {
			if s != unix.SIGINT { // which a terminal sends to all
				_ = child.Signal(s)
			}
		}
	}()
	end, err := child.Wait()
	if err != nil {
		return failed(err)
	}
	switch status := end.Sys().(syscall.WaitStatus); {
	case status.Signaled():
		return &failure{status: 128 + int(status.Signal())}
	case status.ExitStatus() != 0:
		return &failure{status: status.ExitStatus()}
	}
	return nil
}

// print writes the summary for people.
func (r *restoreResult) print(w io.Writer) error {
	b := &lines{}
	b.add("%d connections and %d listeners restored in process %d, locked for %s", r.Connections, r.Listeners, r.PID, short(r.Locked))
	for _, warning := range r.Warnings {
		b.add("  %s", warning)
	}
	_, err := w.Write(b.text)
	return err
}
