package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/soccr"
)

// A runningProgram is one that is given the sockets while it runs.
type runningProgram struct {
	*worker
	numbers map[int]int   // of descriptors, by the old ones
	frozen  time.Duration // for how long it was stopped

	stopped  *stoppedProgram
	set      []proc.Descriptor // what it was given under free numbers
	replaced []replacement     // its sockets that others have replaced
}

func newRunningProgram(config restoreConfig, j *journal) (*runningProgram, error) {
	w, err := newWorker(config.pid, config.stopFlags, lockNothing, j)
	if err != nil {
		return nil, err
	}
	return &runningProgram{worker: w, numbers: config.numbers}, nil
}

// settle stops the program and gives it the sockets.
func (p *runningProgram) settle(sockets []*restoredSocket) (err error) {
	if p.stopped, err = p.stop(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.abandon())
		}
	}()
	if err := p.stopped.frozen.Callable(p.pid); err != nil {
		return err
	}
	set, replaced, err := p.plan(sockets)
	if err != nil {
		return err
	}
	if err := p.journal.free(set); err != nil {
		return err
	}
	if err := p.stopped.replace(replaced); err != nil {
		return err
	}
	p.replaced = replaced
	done, err := p.stopped.set(p.pid, set)
	p.set = set[:done]
	return err
}

// plan finds out which descriptors the sockets shall have.
func (p *runningProgram) plan(sockets []*restoredSocket) (set []proc.Descriptor, replaced []replacement, err error) {
	taken := map[int]*restoredSocket{}
	instead := map[*socket]*restoredSocket{}
	for _, s := range sockets {
		for _, h := range s.Holders {
			if h.PID != s.pid {
				continue
			}
			number, ok := p.numbers[h.FD]
			if !ok {
				number = h.FD
			}
			if taken[number] != nil {
				return nil, nil, fmt.Errorf("two sockets are to be descriptor %d of process %d; --fd OLD=NEW gives one of them another number", number, p.pid)
			}
			taken[number] = s
			old, err := p.there(number)
			if err != nil {
				return nil, nil, err
			}
			switch {
			case old == nil:
				set = append(set, proc.Descriptor{Number: number, FD: s.fd, CloseOnExec: h.CloseOnExec})
			case instead[old] == nil:
				instead[old] = s
				replaced = append(replaced, replacement{old, old.fd, s.fd})
			case instead[old] != s:
				return nil, nil, fmt.Errorf("descriptor %d of process %d stands for the same socket as another one that is to be replaced", number, p.pid)
			}
		}
	}
	return set, replaced, nil
}

// there is the closed socket that a number stands for, or nil if it is free.
func (p *runningProgram) there(number int) (*socket, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, s := range p.stopped.sockets {
		for _, h := range s.Holders {
			if h == (holder{p.pid, number}) && s.tcp() && s.state == soccr.StateClose {
				return s, nil
			}
		}
	}
	return nil, fmt.Errorf("descriptor %d of process %d (%s) is in use: %s; --fd %d=NEW gives the socket another number",
		number, p.pid, proc.Name(p.pid), link, number)
}

// start lets the program go on.
func (p *runningProgram) start() (int, error) {
	var err error
	p.frozen, err = p.stopped.goOn()
	p.stopped = nil
	return p.pid, err
}

// abandon takes the sockets away again, and lets the program go on.
func (p *runningProgram) abandon() error {
	if p.stopped == nil {
		return nil
	}
	for i, r := range p.replaced {
		p.replaced[i].old, p.replaced[i].fresh = r.fresh, r.old
	}
	err := p.stopped.replace(p.replaced)
	for i := range p.set {
		p.set[i].FD = -1
	}
	_, closing := p.stopped.set(p.pid, p.set)
	_, thawing := p.start()
	return errors.Join(err, closing, thawing)
}
