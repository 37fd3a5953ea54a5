// Command migrate shows a live TCP connection moving from one host to another
// while it works.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/wire"
)

const usage = `migrate moves a live TCP connection from one host to another and back while it
works, and shows that its peer notices nothing.

Usage:

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
connection, which would answer with a RST. The client has an ordinary connection
and is told nothing.

In the end it says how long the server was stopped, how long the client heard
nothing, and what else a capture on the client's wire has seen. The exit status
is 0 only if every byte arrived once and in order, both ways, and the wire saw
nothing that a client could notice: no RST, no announced window taken back, no
clock or acknowledgement going back, no ICMP error.

Flags:
`

func main() {
	if len(os.Args) == 2 && os.Args[1] == serverRole {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program; it returns its exit status.
func run(args []string, stdout, stderr *os.File) int {
	flags := flag.NewFlagSet("migrate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	var config demoConfig
	flags.BoolVar(&config.ipv6, "6", false, "use IPv6")
	flags.IntVar(&config.moves, "moves", 8, "how many times to move")
	megabytes := flags.Int("rate", 100, "megabytes to send per second, each way; 0 is as fast as it goes")
	flags.DurationVar(&config.duration, "duration", 6*time.Second, "how long the connection works")
	asJSON := flags.Bool("json", false, "print the result as one JSON object")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	switch {
	case flags.NArg() > 0:
		return fail(stderr, 2, fmt.Errorf("unexpected argument %q; -h explains", flags.Arg(0)))
	case config.moves < 0 || *megabytes < 0:
		return fail(stderr, 2, errors.New("numbers must not be negative"))
	case config.interval() < leastInterval:
		return fail(stderr, 2, fmt.Errorf("%d moves need at least %v", config.moves, leastInterval*time.Duration(config.moves+1)))
	}
	config.rate = int64(*megabytes) * 1e6
	if err := host.Isolate(); err != nil {
		return fail(stderr, 1, err)
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
	case *asJSON:
		if err := json.NewEncoder(stdout).Encode(r); err != nil {
			return fail(stderr, 1, err)
		}
	case err == nil:
		if err := r.print(stdout); err != nil {
			return fail(stderr, 1, err)
		}
	}
	switch {
	case ctx.Err() != nil:
		return fail(stderr, 130, err) // as shells report ^C
	case err != nil:
		return fail(stderr, 1, err)
	case r.Error != "":
		return 1
	}
	return 0
}

func fail(stderr io.Writer, status int, err error) int {
	fmt.Fprintln(stderr, "migrate:", err)
	return status
}
