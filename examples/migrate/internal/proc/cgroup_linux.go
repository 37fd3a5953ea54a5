package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNotInside is the error if a process is not in the cgroup that is to stop it.
var ErrNotInside = errors.New("it is not in the cgroup that is to be frozen")

// A cgroup is one whose freezer stops a program. No cgroup has nothing to do.
type cgroup struct {
	directory string
	frozen    bool // somebody else has frozen it
}

// freezeCgroup stops the program's cgroup, if there is one that shall be.
func (z *Frozen) freezeCgroup(root int, deadline time.Time) error {
	if z.freezer.Cgroup == "" {
		return nil
	}
	g := &cgroup{directory: z.freezer.Cgroup}
	err := g.check(root)
	if err == nil {
		z.cgroup = g
		err = g.set(true)
	}
	if err == nil {
		err = g.wait(deadline)
	}
	if err != nil {
		return fmt.Errorf("freeze %s: %w", g.directory, err)
	}
	return nil
}

// check makes sure that all of the program would be stopped, and not this one.
func (g *cgroup) check(root int) error {
	state, err := os.ReadFile(g.file("cgroup.freeze"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no cgroup (v2) that can be frozen (Linux 5.2): %w", err)
	}
	if err != nil {
		return err
	}
	g.frozen = strings.TrimSpace(string(state)) == "1"
	members, err := g.members()
	if err != nil {
		return err
	}
	if members[fmt.Sprint(os.Getpid())] {
		return ErrOwn
	}
	pids, err := Tree(root)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if !members[fmt.Sprint(pid)] {
			return fmt.Errorf("process %d (%s): %w; /proc/%d/cgroup tells which it is in", pid, Name(pid), ErrNotInside, pid)
		}
	}
	return nil
}

// members are the processes in it and in the cgroups below.
func (g *cgroup) members() (map[string]bool, error) {
	members := map[string]bool{}
	err := filepath.WalkDir(g.directory, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		content, err := os.ReadFile(path)
		for pid := range strings.FieldsSeq(string(content)) {
			members[pid] = true
		}
		return err
	})
	return members, err
}

func (g *cgroup) file(name string) string { return filepath.Join(g.directory, name) }

// set freezes it, or lets it go on.
func (g *cgroup) set(frozen bool) error {
	if g == nil {
		return nil
	}
	value := "0"
	if frozen {
		value = "1"
	}
	return os.WriteFile(g.file("cgroup.freeze"), []byte(value), 0)
}

// restore leaves it as it was found.
func (g *cgroup) restore() error {
	if g == nil {
		return nil
	}
	return g.set(g.frozen)
}

// wait waits until all in it have stopped.
func (g *cgroup) wait(deadline time.Time) error {
	const pause = 100 * time.Microsecond
	for {
		events, err := os.ReadFile(g.file("cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(events), "frozen 1") {
			return nil
		}
		if time.Now().After(deadline) {
			return ErrTimeout
		}
		time.Sleep(pause)
	}
}
