package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:], http.HandlerFunc(hello), os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

// run is the front or a backend.
func run(ctx context.Context, args []string, handler http.Handler, log io.Writer) error {
	flags := flag.NewFlagSet("proxy", flag.ContinueOnError)
	flags.SetOutput(log)
	listen := flags.String("listen", "", "front: the `address` on which to accept")
	backends := map[string]string{}
	flags.Func("backend", "front: `PATH=ADDRESS`: who takes connections whose first request is for PATH (/a); may be repeated", func(text string) error {
		path, addr, ok := strings.Cut(text, "=")
		if !ok || !strings.HasPrefix(path, "/") || addr == "" {
			return errors.New("want /PATH=ADDRESS")
		}
		backends[path] = addr
		return nil
	})
	control := flags.String("control", "", "backend: the `address` on which to wait for the front")
	if err := flags.Parse(args); err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(log, format+"\n", args...) }
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *listen != "" && *control == "" && len(backends) > 0:
		return runFront(ctx, *listen, backends, say)
	case *listen == "" && *control != "" && len(backends) == 0:
		return runBack(ctx, *control, handler, say)
	}
	return errors.New("want -listen and -backend, to be the front, or -control, to be a backend")
}
