// Command migrate moves live TCP connections of programs that know nothing of it.
// Without arguments it shows one moving from one host to another while it works.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/wire"
)

// The exit statuses, of all commands.
const (
	statusFailed      = 1   // it could not be done; everything is as it was
	statusUsage       = 2   // the command line is wrong
	statusPartly      = 3   // some of it could not be done
	statusMended      = 4   // the guard was killed, and what it had left undone is put right
	statusInterrupted = 130 // as shells report ^C
)

const usage = `migrate moves live TCP connections from one socket to another, in the programs
that use them, without these programs or their peers noticing.

Without a command it is a demo of the library underneath:

	go run ./examples/migrate [flags]

It makes three hosts out of network namespaces, a client and hosts A and B, on
one switch; the machine's own network is not touched, and neither root nor any
installed program is needed. A server on host A and the client send each other
pseudo-random bytes, and check every byte that comes.

Then the connection moves, again and again: the server's process on one host
stops, takes a snapshot of its connection, gives up the address, and sends the
snapshot, and what it knows itself, to the process on the other host, which
takes the address, restores the connection and goes on. Meanwhile a network
lock (nftables) keeps the client's packets from hosts that do not have the
connection, which would answer with a RST; a tap catches them, and they are
delivered when it is there. The client has an ordinary connection and is told
nothing. --plain shows how a connection goes on without all this.

In the end it says how long the server was stopped, how long the client heard
nothing, and what else a capture on the client's wire has seen. The exit status
is 0 only if every byte arrived once and in order, both ways, and the wire saw
nothing that a client could notice: no RST, no announced window taken back, no
clock or acknowledgement going back, no ICMP error.

The commands work on live programs. They need CAP_NET_ADMIN in the user namespace
of the program's network namespace, and the right to trace the program; "migrate
check" tells what is there.

Exit status: 0 all went well; 1 it could not be done, and everything is as it was;
2 the command line is wrong; 3 some of it could not be done; 4 a guard was killed, and
what it has left was put right; 130 interrupted. That of "migrate restore -- PROGRAM"
is the program's own, once it runs.`

func main() {
	if len(os.Args) > 2 && os.Args[1] == inheritRole {
		fmt.Fprintln(os.Stderr, "migrate:", inherit(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case serverRole:
			if err := serve(); err != nil {
				fmt.Fprintln(os.Stderr, "server:", err)
				os.Exit(1)
			}
			return
		case idleRole:
			idle()
			return
		}
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program; it returns its exit status.
func run(args []string, stdout, stderr *os.File) int {
	root := demoCommand(stdout, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(commands(stdout, stderr)...)
	err := root.Execute()
	if err == nil {
		return 0
	}
	failure, ok := errors.AsType[*failure](err)
	if !ok { // cobra's own: flags, arguments
		failure = usageError(err)
	}
	if failure.err != nil {
		fmt.Fprintln(stderr, "migrate:", failure.err)
	}
	return failure.status
}

// A failure is an error with the exit status that it calls for. Without an error,
// what went wrong has been said already.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return fmt.Sprint(f.err) }
func (f *failure) Unwrap() error { return f.err }

func failed(err error) *failure     { return &failure{statusFailed, err} }
func usageError(err error) *failure { return &failure{statusUsage, err} }

// demoCommand is the program without a command.
func demoCommand(stdout, stderr *os.File) *cobra.Command {
	var config demoConfig
	var megabytes int
	var asJSON bool
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Move live TCP connections",
		Long:  usage,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unexpected argument %q; -h explains", args[0])
			}
			return nil
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(*cobra.Command, []string) error {
			config.rate = int64(megabytes) * 1e6
			return runDemo(config, asJSON, stdout, stderr)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&config.ipv6, "ipv6", "6", false, "use IPv6")
	flags.IntVar(&config.moves, "moves", 8, "how many times to move")
	flags.IntVar(&megabytes, "rate", 100, "megabytes to send per second, each way; 0 is as fast as it goes")
	flags.DurationVar(&config.duration, "duration", 6*time.Second, "how long the connection works")
	flags.BoolVar(&config.plain, "plain", false, "restore the plain way: what was in flight waits for timers, and the path is forgotten")
	flags.StringVar(&config.pcap, "pcap", "", "write the headers of the latest 200000 packets on the client's wire to this `file`, for tcpdump and others")
	flags.BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	return c
}

func runDemo(config demoConfig, asJSON bool, stdout, stderr *os.File) error {
	switch {
	case config.moves < 0 || config.rate < 0:
		return usageError(errors.New("numbers must not be negative"))
	case config.interval() < leastInterval:
		return usageError(fmt.Errorf("%d moves need at least %v", config.moves, leastInterval*time.Duration(config.moves+1)))
	}
	if err := host.Isolate(); err != nil {
		return failed(err)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	view := newView(stderr)
	r, err := demo(ctx, config, view)
	view.done()
	if err != nil {
		if r == nil {
			r = newResult(&progress{}, bothTotals{}, wire.Report{})
		}
		r.Error = err.Error()
	}
	switch {
	case asJSON:
		if err := printJSON(stdout, r); err != nil {
			return failed(err)
		}
	case err == nil:
		if err := r.print(stdout); err != nil {
			return failed(err)
		}
	}
	switch {
	case ctx.Err() != nil:
		return &failure{statusInterrupted, err}
	case err != nil:
		return failed(err)
	case r.Error != "":
		return &failure{status: statusFailed}
	}
	return nil
}

// printJSON prints what --json asks for: one object on one line.
func printJSON(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
