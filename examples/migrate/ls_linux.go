package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
)

func lsCommand(stdout *os.File) *cobra.Command {
	var pid int
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls -t PID",
		Short: "List the sockets of a program, and which could be dumped",
		Long: `ls lists the sockets of a process and all its descendants: every family, with the
descriptors that stand for them, their state, what waits in their queues, and, of
TCP, for how long no data has come or gone. The last column says whether dump could
take the socket, or why not. Of a listening socket the queues are the connections
that wait to be accepted, and how many may.

Nothing is stopped or changed. It takes the right to trace the program.`,
		Example: `  migrate ls -t $(pidof nginx | tr ' ' '\n' | tail -1)
  migrate ls -t 1234 --json | jq '.sockets[] | select(.dump | not)'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if pid <= 0 {
				return usageError(errors.New("which program? -t PID"))
			}
			if err := list(stdout, pid, asJSON); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	treeFlag(c, &pid)
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	return c
}

// treeFlag is -t, as CRIU has it.
func treeFlag(c *cobra.Command, pid *int) {
	c.Flags().IntVarP(pid, "tree", "t", 0, "the process, with its descendants")
}

// A listing is what ls prints.
type listing struct {
	Processes []listedProcess `json:"processes"`
	Sockets   []*socket       `json:"sockets"`
}

type listedProcess struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

func list(stdout io.Writer, pid int, asJSON bool) (err error) {
	pids, err := proc.Tree(pid)
	if err != nil {
		return err
	}
	thief := proc.NewThief()
	defer func() { err = errors.Join(err, thief.Close()) }()
	p, err := openSockets(pids, thief)
	if err != nil {
		return err
	}
	l := listing{Sockets: append([]*socket{}, p.sockets...)}
	for _, pid := range pids {
		l.Processes = append(l.Processes, listedProcess{pid, proc.Name(pid)})
	}
	if err := p.close(); err != nil {
		return err
	}
	if asJSON {
		return printJSON(stdout, l)
	}
	return l.print(stdout)
}

// print writes the listing for people: a line for each descriptor.
func (l *listing) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PID\tPROGRAM\tFD\tPROTOCOL\tSTATE\tRECV-Q\tSEND-Q\tLOCAL\tPEER\tIDLE\tDUMP")
	for _, p := range l.Processes {
		for _, s := range l.Sockets {
			for _, h := range s.Holders {
				if h.PID != p.PID {
					continue
				}
				idle := "-"
				if s.tcp() && s.State != "LISTEN" {
					idle = age(s.IdleMS)
				}
				dump := "yes"
				if !s.Dump {
					dump = "no: " + s.Why
				}
				fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", p.PID, p.Name, h.FD, s.Protocol,
					dash(s.State), s.RecvQueue, s.SendQueue, dash(s.Local), dash(s.Peer), idle, dump)
			}
		}
	}
	return table.Flush()
}

// dash stands for nothing.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
