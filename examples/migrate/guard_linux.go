package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// guardEnv, in the environment, makes the program the guard: a process of its own,
// in a session of its own, that does all that must not be left half done. The one
// that was started only waits for it. However that one ends, be it by SIGKILL, the
// guard finishes what it is at, undoes what is to be undone, and ends.
const guardEnv = "MIGRATE_GUARD"

// The guard's descriptors: a pipe whose other end is the program that was started,
// and one to tell it that it need not wait any longer.
const (
	lifelineFD = 3
	releaseFD  = 4
)

// guarded has a guard do the work of this command.
func guarded(work func(context.Context) error) error {
	return begin(work, &syscall.SysProcAttr{Setsid: true}, nil) // ^C is not for it
}

// guardedStart is guarded for work that starts a program and hands it over: then has
// it as its child. The guard stays in the session, so that the program can be in it.
func guardedStart(work func(context.Context) error, then func(child int) error) error {
	return begin(work, &syscall.SysProcAttr{Setpgid: true}, then)
}

func begin(work func(context.Context) error, attributes *syscall.SysProcAttr, then func(child int) error) error {
	if os.Getenv(guardEnv) != "" {
		return guard(work)
	}
	if then != nil { // the guard's children are ours when it has ended
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return failed(os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err))
		}
	}
	lifeline, own, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer own.Close()
	released, release, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer released.Close()
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), guardEnv+"="+strconv.Itoa(unix.Getpgrp()))
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{lifeline, release}
	command.SysProcAttr = attributes
	signals := make(chan os.Signal, 1)
	catch(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := command.Start(); err != nil {
		return failed(err)
	}
	_, _ = lifeline.Close(), release.Close()
	go func() {
		<-signals
		_ = own.Close()
	}()
	message := make([]byte, 32)
	n, _ := released.Read(message)
	if n > 0 && then == nil {
		return nil
	}
	err = command.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return &failure{status: exit.ExitCode()} // it has said why
	}
	if err != nil {
		return failed(err)
	}
	if child, err := strconv.Atoi(string(message[:n])); err == nil {
		return then(child)
	}
	return nil
}

// catch is signal.Notify for those signals that are not ignored, as by nohup(1).
func catch(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// handOver tells the program that was started which child is its own when the guard
// has ended.
func handOver(child int) error {
	_, err := unix.Write(releaseFD, []byte(strconv.Itoa(child)))
	if errors.Is(err, unix.EPIPE) { // it has ended already
		err = nil
	}
	return err
}

// starter is the process group of the program that was started.
var starter int

// release lets the program that was started end, as if all were done, while the
// guard goes on without terminal, pipes and directory.
func release() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	file := os.NewFile(releaseFD, "release")
	_, err = file.Write([]byte{1})
	if errors.Is(err, unix.EPIPE) { // it has ended already
		err = nil
	}
	return errors.Join(err, file.Close())
}

// guard is the other half: the context ends when the program that was started does,
// or is told to.
func guard(work func(context.Context) error) error {
	// Nothing that it starts is to have them.
	unix.CloseOnExec(lifelineFD)
	unix.CloseOnExec(releaseFD)
	starter, _ = strconv.Atoi(os.Getenv(guardEnv))
	if err := os.Unsetenv(guardEnv); err != nil {
		return failed(err)
	}
	// What it says may reach nobody. Caught and not ignored: what it starts would
	// ignore them, too.
	catch(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGINT, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	go func() {
		_, _ = os.NewFile(lifelineFD, "lifeline").Read(make([]byte, 1))
		stop()
	}()
	// It should not be the one to die when memory is short; that takes a capability.
	setOOM("-1000")
	return work(ctx)
}

// setOOM sets how likely the kernel kills this process when memory is short, as far
// as it may.
func setOOM(score string) { _ = os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0) }
