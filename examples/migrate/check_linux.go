package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func checkCommand(stdout *os.File) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell what this kernel and this user can do",
		Long: `check tries each ability of the kernel that moving connections takes, as the user
who runs it and in his network namespace, and says what it is good for and which
kernel brought it. Nothing is guessed: connections are put together on the loopback
device, without a peer, and a child process is traced. Nothing is sent or left.

Exit status: 0 nothing is missing; 3 something is missing that only some features
need; 1 connections cannot be moved at all.`,
		Example: `  migrate check
  sudo migrate check
  unshare --user --map-root-user --net sh -c 'ip link set lo up; migrate check'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := check()
			if asJSON {
				if err := printJSON(stdout, r); err != nil {
					return failed(err)
				}
			} else if err := r.print(stdout); err != nil {
				return failed(err)
			}
			if status := r.status(); status != 0 {
				return &failure{status: status}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	return c
}

// A checkResult is what check has found out.
type checkResult struct {
	Kernel    string    `json:"kernel"`
	Abilities []ability `json:"abilities"`
}

// An ability is something the kernel can do for this user, or not.
type ability struct {
	Name    string `json:"name"`
	For     string `json:"for"`   // what needs it
	Since   string `json:"since"` // which Linux
	OK      bool   `json:"ok"`
	Missing string `json:"missing,omitempty"` // why not

	basic bool // nothing goes without
}

// check tries all abilities.
func check() checkResult {
	r := checkResult{Kernel: kernelRelease()}
	for _, probe := range probes {
		a := probe.ability
		if err := probe.try(); err != nil {
			a.Missing = err.Error()
		} else {
			a.OK = true
		}
		r.Abilities = append(r.Abilities, a)
	}
	return r
}

func (r *checkResult) status() int {
	status := 0
	for _, a := range r.Abilities {
		switch {
		case a.OK:
		case a.basic:
			return statusFailed
		default:
			status = statusPartly
		}
	}
	return status
}

// print writes the result for people.
func (r *checkResult) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "LINUX %s\tSINCE\tFOR\n", r.Kernel)
	for _, a := range r.Abilities {
		mark := "ok"
		if !a.OK {
			mark = "--"
		}
		fmt.Fprintf(table, "%s %s\t%s\t%s\n", mark, a.Name, a.Since, a.For)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	// One reason is often behind several of them.
	var reasons []string
	missing := map[string][]string{}
	for _, a := range r.Abilities {
		if a.OK {
			continue
		}
		reason := portNumber.ReplaceAllString(a.Missing, "$1")
		if missing[reason] == nil {
			reasons = append(reasons, reason)
		}
		missing[reason] = append(missing[reason], a.Name)
	}
	for _, reason := range reasons {
		if _, err := fmt.Fprintf(w, "\nmissing: %s\n  %s\n", strings.Join(missing[reason], ", "), reason); err != nil {
			return err
		}
	}
	return nil
}

// portNumber finds ports that were chosen for a single try.
var portNumber = regexp.MustCompile(`(127\.0\.0\.1):\d+`)

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
