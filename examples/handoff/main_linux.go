package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// successorFD is the descriptor by which a process finds the one before it, if the
// environment says so.
const (
	successorFD  = 3
	successorEnv = "HANDOFF_SUCCESSOR"
)

type config struct {
	http, lines string
	next, from  string
	address     string
	patience    time.Duration
	args        []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:], http.HandlerFunc(hello), os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "handoff:", err)
		os.Exit(1)
	}
}

// hello is what the server does, if nobody says otherwise.
func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s by %s from process %d\n", r.URL.Path, r.Proto, os.Getpid())
}

func parse(args []string, log io.Writer) (c config, err error) {
	flags := flag.NewFlagSet("handoff", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.StringVar(&c.http, "http", "127.0.0.1:8080", "`address` for HTTP/1.1 and HTTP/2 (without TLS)")
	flags.StringVar(&c.lines, "lines", "127.0.0.1:8081", "`address` for lines, each of which is answered with its number")
	flags.StringVar(&c.next, "next", "", "`address` of a process on another host that takes over on SIGUSR1")
	flags.StringVar(&c.from, "from", "", "`address` on which to wait for a process on another host, and take over from it")
	flags.StringVar(&c.address, "move-address", "", "`ADDRESS/BITS@DEVICE` that goes to the other host with the connections")
	flags.DurationVar(&c.patience, "patience", 10*time.Second, "how long to wait for requests that are under way")
	c.args = args
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return c, nil
}

// run serves until ctx is done, or until another process does so instead.
func run(ctx context.Context, args []string, handler http.Handler, log io.Writer) (err error) {
	c, err := parse(args, log)
	if err != nil {
		return err
	}
	lock, err := netlock.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	s := newServer(lock, handler, func(format string, args ...any) {
		fmt.Fprintf(log, "process %d: "+format+"\n", append([]any{os.Getpid()}, args...)...)
	})
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(orders)
	if err := c.begin(s); err != nil {
		return err
	}
	s.log("serves")
	for {
		select {
		case <-ctx.Done():
			return nil
		case order := <-orders:
			give := c.giveToProcess
			if order == unix.SIGUSR1 {
				give = c.giveToHost
			}
			left, err := give(s)
			if left {
				return err
			}
			s.log("serves on: %v", err)
		}
	}
}

// begin makes the server, or takes over from another one.
func (c *config) begin(s *server) error {
	switch {
	case os.Getenv(successorEnv) != "":
		if err := os.Unsetenv(successorEnv); err != nil {
			return err
		}
		file := os.NewFile(successorFD, "process before")
		defer file.Close()
		return s.take(file, func() error { return nil })
	case c.from != "":
		control, err := net.Listen("tcp", c.from)
		if err != nil {
			return err
		}
		s.log("waits")
		stream, err := control.Accept()
		if err = errors.Join(err, control.Close()); err != nil {
			return err
		}
		defer stream.Close()
		return s.take(stream, func() error { return moveAddress(c.address, true) })
	}
	for k, addr := range map[kind]string{kindHTTP: c.http, kindLines: c.lines} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		s.log("%s on %v", k, l.Addr())
		s.serve(k, s.listener(k, &soccr.Listener{TCPListener: l.(*net.TCPListener)}))
	}
	return nil
}

// giveToProcess starts this program again and hands everything over to it.
func (c *config) giveToProcess(s *server) (left bool, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	here, there := os.NewFile(uintptr(fds[0]), "next process"), os.NewFile(uintptr(fds[1]), "this process")
	defer here.Close()
	defer there.Close()
	program, err := os.Executable() // by its name: there may be a newer one by now
	if err != nil {
		return false, err
	}
	next := exec.Command(program, c.args...)
	next.Env = append(os.Environ(), successorEnv+"=1")
	next.Stdout, next.Stderr, next.ExtraFiles = os.Stdout, os.Stderr, []*os.File{there}
	if err := next.Start(); err != nil {
		return false, err
	}
	if err := there.Close(); err != nil { // or its end would not be noticed
		return false, err
	}
	left, err = s.give(here, c.patience, func() error { return nil })
	if !left {
		err = errors.Join(err, next.Process.Kill(), ignoreExit(next.Wait()))
	}
	return left, err
}

// ignoreExit: it was killed.
func ignoreExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}

// giveToHost hands everything over to a process that waits on another host.
func (c *config) giveToHost(s *server) (left bool, err error) {
	if c.next == "" {
		return false, errors.New("nobody is named by -next")
	}
	stream, err := net.DialTimeout("tcp", c.next, 5*time.Second)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	return s.give(stream, c.patience, func() error { return moveAddress(c.address, false) })
}

// moveAddress gives this host an address, and tells its neighbors, or takes it away.
func moveAddress(place string, here bool) (err error) {
	if place == "" {
		return nil
	}
	text, device, _ := strings.Cut(place, "@")
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return err
	}
	h, err := host.Current()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if !here {
		return h.RemoveAddr(device, prefix)
	}
	announcer, err := h.NewAnnouncer(device)
	if err != nil {
		return err
	}
	if err = h.AddAddr(device, prefix); err == nil {
		err = announcer.Announce(prefix.Addr())
	}
	return errors.Join(err, announcer.Close())
}
