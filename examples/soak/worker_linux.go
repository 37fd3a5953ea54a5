package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workerEnv marks a process that moves connections, by its number.
const workerEnv = "GOSOCCR_SOAK_WORKER"

// A worker is such a process, as seen by the conductor.
type worker struct {
	*rpc.Client
	cmd *exec.Cmd
}

// The files that a worker inherits.
const (
	fdCalls = 3 + iota
	fdBoard
	fdHosts
)

func (c *conductor) startWorker(number int, boardFile *os.File) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "conductor")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", workerEnv, number),
		fmt.Sprintf("%s_SEED=%d", workerEnv, c.seed), fmt.Sprintf("%s_PAUSE=%d", workerEnv, c.pause), workerEnv+"_OUT="+c.out)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, boardFile}
	for _, h := range c.network.hosts {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(dup(h.FD())), "host"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for _, f := range cmd.ExtraFiles[2:] {
		f.Close()
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	return &worker{rpc.NewClient(conn), cmd}, nil
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1 // which shows when it is used
	}
	return n
}

// work is the whole life of a worker.
func work() error {
	number, err := strconv.Atoi(os.Getenv(workerEnv))
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv(workerEnv+"_SEED"), 10, 64)
	if err != nil {
		return err
	}
	pause, err := strconv.Atoi(os.Getenv(workerEnv + "_PAUSE"))
	if err != nil {
		return err
	}
	for fd := fdCalls; fd < fdHosts+hosts; fd++ {
		unix.CloseOnExec(fd)
	}
	b, err := openBoard(os.NewFile(fdBoard, "board"))
	if err != nil {
		return err
	}
	e, err := newEngine(fmt.Sprintf("process%d", number), b, os.Getenv(workerEnv+"_OUT"), fdHosts+peerHost,
		map[int]int{hostA: fdHosts + hostA, hostB: fdHosts + hostB})
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Engine", e); err != nil {
		return err
	}
	calls := os.NewFile(fdCalls, "conductor")
	conn, err := net.FileConn(calls)
	if err != nil {
		return err
	}
	calls.Close()
	e.runAll(seed, uint64(number), 2, time.Duration(pause))
	server.ServeConn(conn) // until the conductor has heard all, or is gone
	return e.close()
}

// runAll starts what moves ends: on each site so many at a time.
func (e *engine) runAll(seed, number uint64, each int, pause time.Duration) {
	for _, s := range e.sites {
		for i := range each {
			random := rand.New(rand.NewPCG(seed, number<<32|uint64(s.number)<<16|uint64(i)))
			go func() {
				if err := e.run(s, random, pause); err != nil {
					fmt.Fprintln(os.Stderr, errors.Join(errors.New(e.name), err))
				}
			}()
		}
	}
}
