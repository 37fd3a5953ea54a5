package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
)

// A config is what the command line says.
type config struct {
	seed      uint64
	moves     int64
	duration  time.Duration
	slots     int
	processes int
	pause     time.Duration // between the moves of each mover
	peers     time.Duration // likewise, of the peers' ends; 0: they do not move
	stay      time.Duration // of a connection in one process
	hang      time.Duration
	every     time.Duration
	packets   int
	out, pcap string
	made      bool // out is a new directory
}

func main() {
	if os.Getenv(workerEnv) != "" {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "soak: worker:", err)
			os.Exit(1)
		}
		return
	}
	c, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	if err := host.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	if err := conduct(c, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	if c.made {
		_ = os.Remove(c.out) // in which there is nothing
	}
}

func parse(args []string, help io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(help)
	f.Uint64Var(&c.seed, "seed", 0, "what all decisions follow from; 0: one that is new each time")
	f.Int64Var(&c.moves, "moves", 10_000, "end after so many moves")
	f.DurationVar(&c.duration, "duration", time.Hour, "end after so long")
	f.IntVar(&c.slots, "connections", 64, "how many are open at a time")
	f.IntVar(&c.processes, "processes", 2, "how many processes connections move between")
	f.DurationVar(&c.pause, "pause", 0, "how long each mover rests between two moves, on average")
	f.DurationVar(&c.peers, "peers", 20*time.Millisecond, "how long between two moves of a peer's end, on average; 0: peers do not move")
	f.DurationVar(&c.stay, "stay", 2*time.Second, "how long a connection stays in one process, on average")
	f.DurationVar(&c.hang, "hang", 30*time.Second, "a stream that stands still for so long is a failure")
	f.DurationVar(&c.every, "every", 10*time.Second, "how often to say how it goes")
	f.IntVar(&c.packets, "packets", 200_000, "how many of the latest packets' headers to keep, to be written if something fails")
	f.StringVar(&c.out, "out", "", "the `directory` for the evidence of a failure; default: a new one for temporary files")
	f.StringVar(&c.pcap, "pcap", "", "write the latest packets to this `file` also if all goes well")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	switch {
	case f.NArg() > 0:
		return c, fmt.Errorf("what is %q?", f.Arg(0))
	case c.slots < 1 || c.slots > maxSlots:
		return c, fmt.Errorf("-connections is from 1 to %d", maxSlots)
	case c.processes < 1 || c.moves < 1 || c.packets < 1:
		return c, errors.New("-processes, -moves and -packets are 1 at the least")
	}
	if c.seed == 0 {
		c.seed = rand.Uint64()
	}
	return c, c.makeOut()
}

// makeOut makes the directory for the evidence, which has payload and sequence
// numbers of connections in it.
func (c *config) makeOut() (err error) {
	if c.out == "" {
		c.made = true
		c.out, err = os.MkdirTemp("", "soak-")
		return err
	}
	return os.MkdirAll(c.out, 0o700)
}

func sortedKeys(m map[string]int64) []string { return slices.Sorted(maps.Keys(m)) }
