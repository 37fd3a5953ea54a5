package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	gocriu "github.com/checkpoint-restore/go-criu/v8"
	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

const usage = `usage: criu check
       criu dump -t PID -D DIR [-leave-running] [-netns PATH]
       criu restore -D DIR [-netns PATH]`

// keptNetNS is what CRIU calls a network namespace that it is not to dump.
const keptNetNS = "kept"

type config struct {
	criu         string
	pid          int
	dir, netns   string
	leaveRunning bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "criu:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, log io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	var c config
	flags := flag.NewFlagSet("criu", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.StringVar(&c.criu, "criu", "criu", "the `program` of CRIU")
	flags.IntVar(&c.pid, "t", 0, "the container's first `process`")
	flags.StringVar(&c.dir, "D", "", "the `directory` of the images")
	flags.StringVar(&c.netns, "netns", "", "the `path` of a network namespace that is kept, and not dumped")
	flags.BoolVar(&c.leaveRunning, "leave-running", false, "let the processes go on after the dump")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	l := &locker{netns: c.netns, log: func(format string, args ...any) { fmt.Fprintf(log, format+"\n", args...) }}
	switch {
	case args[0] == "check":
		return c.check(l)
	case args[0] == "dump" && c.pid > 0 && c.dir != "":
		return c.dump(ctx, l)
	case args[0] == "restore" && c.dir != "":
		return c.restore(l)
	}
	return errors.New(usage)
}

// client is CRIU, which is started for one request.
func (c *config) client() (*gocriu.Criu, error) {
	path, err := exec.LookPath(c.criu)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("CRIU is not installed, or not where %q says: see https://criu.org/Installation", c.criu)
	}
	if err != nil {
		return nil, err
	}
	client := gocriu.MakeCriu()
	client.SetCriuPath(path)
	return client, nil
}

// check asks for CRIU's version, which also tells whether it starts.
func (c *config) check(l *locker) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	version, err := client.GetCriuVersion()
	if err != nil {
		return fmt.Errorf("CRIU does not start; \"criu check\" tells why: %w", err)
	}
	l.log("CRIU %d.%d.%d", version/10000, version/100%100, version%100)
	return nil
}

// options are those of a dump and of a restore.
func (c *config) options(logFile string) (*rpc.CriuOpts, *os.File, error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, nil, err
	}
	return &rpc.CriuOpts{
		ImagesDirFd:    new(int32(dir.Fd())), // which CRIU opens as its caller's
		LogFile:        &logFile,
		LogLevel:       new(int32(4)),
		TcpEstablished: new(true),
		ShellJob:       new(true),
		// The lock is ours.
		NetworkLock: new(rpc.CriuNetworkLockMethod_SKIP),
	}, dir, nil
}

// dump dumps, and keeps the network locked until ctx is done, unless the processes
// go on: who restores them elsewhere knows when nothing here answers the peers.
func (c *config) dump(ctx context.Context, l *locker) (err error) {
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	options, dir, err := c.options("dump.log")
	if err != nil {
		return err
	}
	defer dir.Close()
	if c.netns == "" {
		l.netns = fmt.Sprintf("/proc/%d/ns/net", c.pid)
	} else {
		var stat unix.Stat_t
		if err := unix.Stat(c.netns, &stat); err != nil {
			return fmt.Errorf("%s: %w", c.netns, err)
		}
		options.External = []string{fmt.Sprintf("net[%d]:%s", stat.Ino, keptNetNS)}
	}
	options.Pid, options.LeaveRunning = new(int32(c.pid)), &c.leaveRunning
	defer func() { err = errors.Join(err, l.open()) }()
	if err := client.Dump(options, l); err != nil {
		return c.explain("dump", err)
	}
	if l.lock == nil {
		l.log("dumped")
		return nil
	}
	l.log("dumped; locked until it is interrupted")
	<-ctx.Done()
	return nil
}

// restore restores, and unlocks when CRIU says so.
func (c *config) restore(l *locker) (err error) {
	client, err := c.client()
	if err != nil {
		return err
	}
	options, dir, err := c.options("restore.log")
	if err != nil {
		return err
	}
	defer dir.Close()
	if c.netns != "" {
		netns, err := os.Open(c.netns)
		if err != nil {
			return err
		}
		defer netns.Close()
		client.AddInheritFd(keptNetNS, netns)
	}
	defer func() { err = errors.Join(err, l.open()) }()
	if err := client.Restore(options, l); err != nil {
		return c.explain("restore", err)
	}
	l.log("restored: process %d", l.pid)
	return nil
}

// explain says where CRIU says more.
func (c *config) explain(what string, err error) error {
	return fmt.Errorf("%s: %w; %s says more, if CRIU came that far", what, err, filepath.Join(c.dir, what+".log"))
}
