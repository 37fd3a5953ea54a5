package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/repaird/repair"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr, confine)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "repaird:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done. It has its socket by now when it is run by confine,
// which is what it calls, when it has made it, not to return if all goes well.
func run(ctx context.Context, args []string, log io.Writer, confine func(*os.File) error) error {
	flags := flag.NewFlagSet("repaird", flag.ContinueOnError)
	flags.SetOutput(log)
	path := flags.String("socket", "", "`path` of the Unix socket that clients connect to")
	connect := flags.Bool("connect", false, "connect to the socket instead, as passt-repair does, and end with the connection")
	uids := flags.String("uid", "", "the `users` who may ask, by number, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	server := &repair.Server{Log: func(format string, args ...any) { fmt.Fprintf(log, format+"\n", args...) }}
	for uid := range strings.SplitSeq(*uids, ",") {
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return fmt.Errorf("-uid: %w", err)
		}
		server.UIDs = append(server.UIDs, uint32(n))
	}
	if *path == "" || flags.NArg() > 0 {
		return errors.New("-socket and -uid are needed, and nothing else")
	}
	socket, err := inherited()
	if err != nil {
		return err
	}
	if socket == nil {
		if socket, err = open(&net.UnixAddr{Name: *path, Net: "unix"}, *connect); err != nil {
			return err
		}
		if err := confine(socket); err != nil {
			return errors.Join(err, socket.Close())
		}
	}
	if *connect {
		conn, err := connectionOf(socket)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		defer stop()
		server.Idle = -1 // until it is needed
		server.ServeConn(conn)
		return nil
	}
	listener, err := listenOn(socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	return server.Serve(listener)
}

// open makes the socket, as a file of its own.
func open(addr *net.UnixAddr, connect bool) (file *os.File, err error) {
	if connect {
		conn, err := net.DialUnix("unix", nil, addr)
		if err != nil {
			return nil, err
		}
		file, err = conn.File()
		return file, errors.Join(err, conn.Close())
	}
	listener, err := listen(addr)
	if err != nil {
		return nil, err
	}
	file, err = listener.File()
	listener.SetUnlinkOnClose(false)
	return file, errors.Join(err, listener.Close())
}

// listen makes the socket, in place of one that nobody listens at any more. Anybody
// may connect; who may ask is decided by what the kernel says of the client.
func listen(addr *net.UnixAddr) (*net.UnixListener, error) {
	listener, err := net.ListenUnix("unix", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		if info, err := os.Lstat(addr.Name); err != nil || info.Mode().Type() != fs.ModeSocket {
			return nil, errors.Join(fmt.Errorf("%s is no socket", addr.Name), err)
		}
		if conn, err := net.DialUnix("unix", nil, addr); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				err = conn.Close()
			}
			return nil, errors.Join(fmt.Errorf("%s is in use", addr.Name), err)
		}
		if err := os.Remove(addr.Name); err != nil {
			return nil, err
		}
		listener, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(addr.Name, 0o666); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}
