package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
)

// A process is a server, seen from the demo.
type process struct {
	name    string
	command *exec.Cmd
	orders  io.WriteCloser
	answers *json.Decoder
	ended   chan struct{}
}

// patience is how long a server may take for an order. Nothing takes that long
// unless something is badly wrong.
const patience = 5 * time.Second

// startServers starts one server in each host, and links the two.
func startServers(ctx context.Context, hosts [2]*host.Host, names [2]string) (_ [2]*process, err error) {
	var servers [2]*process
	link, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return servers, os.NewSyscallError("socketpair", err)
	}
	defer func() {
		if err != nil {
			stopServers(servers)
		}
	}()
	ends := [2]*os.File{os.NewFile(uintptr(link[0]), "link"), os.NewFile(uintptr(link[1]), "link")}
	defer func() {
		for _, end := range ends {
			_ = end.Close() // the servers have theirs
		}
	}()
	for i, end := range ends {
		if servers[i], err = startServer(ctx, hosts[i], names[i], end); err != nil {
			return servers, fmt.Errorf("start the server on %s: %w", names[i], err)
		}
	}
	return servers, nil
}

func startServer(ctx context.Context, h *host.Host, name string, link *os.File) (*process, error) {
	command := exec.CommandContext(ctx, "/proc/self/exe", serverRole)
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{link}
	// Sent when the thread that started the process ends, of which this program
	// may be killed.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	orders, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, command: command, orders: orders, answers: json.NewDecoder(answers), ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.ended)
		// A new process is in the network namespace of the thread that starts it.
		_ = h.Do(func() error {
			err := command.Start()
			started <- err
			if err == nil {
				err = command.Wait()
			}
			return err
		})
	}()
	return p, <-started
}

// ask gives an order and waits for the answer.
func (p *process) ask(o order) (answer, error) {
	// Fails if the process has ended.
	timer := time.AfterFunc(patience, func() { _ = p.command.Process.Kill() })
	var a answer
	err := json.NewEncoder(p.orders).Encode(o)
	if err == nil {
		err = p.answers.Decode(&a)
	}
	late := !timer.Stop()
	switch {
	case err != nil && late:
		return a, fmt.Errorf("%s, %s: no answer within %v", p.name, o.Do, patience)
	case err != nil:
		return a, fmt.Errorf("%s, %s: the server is gone: %w", p.name, o.Do, err)
	case a.Error != "":
		return a, fmt.Errorf("%s, %s: %s", p.name, o.Do, a.Error)
	}
	return a, nil
}

// stopServers lets the servers end, and makes those who do not.
func stopServers(servers [2]*process) {
	var all sync.WaitGroup
	for _, p := range servers {
		if p == nil {
			continue
		}
		_ = p.orders.Close() // it may be gone already
		all.Go(func() {
			select {
			case <-p.ended:
			case <-time.After(time.Second):
				_ = p.command.Process.Kill()
				<-p.ended
			}
		})
	}
	all.Wait()
}
