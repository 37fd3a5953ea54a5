package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inheritRole, as the first argument, makes the program the one that waits until it
// may become another one, which inherits the sockets.
const inheritRole = "restore-child"

// A newProgram is one that is started, and inherits the sockets.
type newProgram struct {
	config         restoreConfig
	program        string
	stdout, stderr *os.File

	child *os.Process
	order *os.File // to the child, which waits for it
}

// settle starts the child that is to become the program. It does so on the order.
func (p *newProgram) settle(sockets []*restoredSocket) error {
	plan, err := arrange(sockets)
	if err != nil {
		return err
	}
	wait, order, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wait.Close()
	p.order = order
	stdin := os.Stdin
	if p.config.dir == pipeDir { // which has held the image
		if stdin, err = os.Open(os.DevNull); err != nil {
			return errors.Join(err, order.Close())
		}
		defer stdin.Close()
	}
	// Package os would make the sockets block.
	files := []uintptr{stdin.Fd(), p.stdout.Fd(), p.stderr.Fd()}
	for _, s := range plan.fds[len(files):] {
		if s == nil {
			files = append(files, ^uintptr(0)) // closed
		} else {
			files = append(files, uintptr(s.fd))
		}
	}
	number := strconv.Itoa(len(files))
	pid, err := syscall.ForkExec("/proc/self/exe",
		append([]string{os.Args[0], inheritRole, number, strconv.Itoa(starter), p.program}, p.config.command...),
		&syscall.ProcAttr{
			Env:   append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(plan.names)), "LISTEN_FDNAMES="+strings.Join(plan.names, ":")),
			Files: append(files, wait.Fd()),
		})
	if err != nil {
		return errors.Join(fmt.Errorf("start a child: %w", err), order.Close())
	}
	p.child, err = os.FindProcess(pid)
	return err
}

// start gives the order.
func (p *newProgram) start() (pid int, err error) {
	_, err = p.order.Write([]byte{1})
	return p.child.Pid, errors.Join(err, p.order.Close())
}

// abandon has the child end, which gets no order.
func (p *newProgram) abandon() error {
	err := p.order.Close()
	if errors.Is(err, os.ErrClosed) {
		err = p.child.Kill()
	}
	_, waiting := p.child.Wait()
	return errors.Join(err, waiting)
}

// inherit is the child: it waits for the order, and becomes the program.
func inherit(args []string) error {
	order, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	group, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if n, err := unix.Read(order, b); n != 1 {
		return fmt.Errorf("no order: %w", err)
	}
	// The group of the program that was started is the one that the terminal talks to.
	_ = unix.Setpgid(0, group) // it may have ended
	if err := unix.Close(order); err != nil {
		return err
	}
	environment := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	return fmt.Errorf("start %s: %w", args[2], unix.Exec(args[2], args[3:], environment))
}

// An arrangement is which socket gets which descriptor.
type arrangement struct {
	fds   []*restoredSocket // by number
	names []string          // of those from 3 on
}

// arrange gives each socket the number it had, and all of them numbers from 3 on,
// without gaps, as systemd does: sockets that have one there have their turn, and
// the others have second descriptors in between.
func arrange(sockets []*restoredSocket) (arrangement, error) {
	const first = 3
	var a arrangement
	named := map[*restoredSocket]bool{}
	put := func(fd int, s *restoredSocket) {
		for len(a.fds) <= fd {
			a.fds = append(a.fds, nil)
		}
		a.fds[fd] = s
	}
	put(first-1, nil)
	var others []*restoredSocket
	for _, s := range sockets {
		taken := s.number < len(a.fds) && a.fds[s.number] != nil
		if s.number < first || taken { // standard streams are this program's
			others = append(others, s)
			continue
		}
		put(s.number, s)
	}
	for _, s := range a.fds {
		if s != nil && s.number >= first+len(sockets) {
			others = append(others, s)
		}
	}
	for fd := first; len(named) < len(sockets); fd++ {
		if fd >= len(a.fds) || a.fds[fd] == nil {
			i := slices.IndexFunc(others, func(s *restoredSocket) bool { return !named[s] })
			if i < 0 {
				return a, errors.New("descriptors cannot be arranged")
			}
			put(fd, others[i])
		}
		s := a.fds[fd]
		named[s] = true
		a.names = append(a.names, fmt.Sprintf("%s.%d", s.Kind, s.number))
	}
	return a, nil
}

// wait waits for the program, hands signals on to it, and ends as it does.
func wait(pid int) error {
	child, err := os.FindProcess(pid)
	if err != nil {
		return failed(err)
	}
	signals := make(chan os.Signal, 1)
	catch(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for s := range signals {
			if s != unix.SIGINT { // which a terminal sends to all
				_ = child.Signal(s)
			}
		}
	}()
	end, err := child.Wait()
	if err != nil {
		return failed(err)
	}
	switch status := end.Sys().(syscall.WaitStatus); {
	case status.Signaled():
		return &failure{status: 128 + int(status.Signal())}
	case status.ExitStatus() != 0:
		return &failure{status: status.ExitStatus()}
	}
	return nil
}
