package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// guardEnv, in the environment, makes the program the guard: a process of its own,
// in a session of its own, that does all that must not be left half done. The one
// that was started only waits for it. However that one ends, be it by SIGKILL, the
// guard finishes what it is at, undoes what is to be undone, and ends.
const guardEnv = "MIGRATE_GUARD"

// lifelineFD is a pipe whose other end is the program that was started.
const lifelineFD = 3

// guarded has a guard do the work of this command.
func guarded(work func(context.Context) error) error {
	if os.Getenv(guardEnv) != "" {
		return guard(work)
	}
	lifeline, own, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer own.Close()
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), guardEnv+"=1")
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{lifeline}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ^C is not for it
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := command.Start(); err != nil {
		return failed(err)
	}
	_ = lifeline.Close()
	go func() {
		<-signals
		_ = own.Close()
	}()
	err = command.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return &failure{status: exit.ExitCode()} // it has said why
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// guard is the other half: the context ends when the program that was started does,
// or is told to.
func guard(work func(context.Context) error) error {
	// What it says may reach nobody.
	signal.Ignore(unix.SIGPIPE, unix.SIGINT, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	go func() {
		_, _ = os.NewFile(lifelineFD, "lifeline").Read(make([]byte, 1))
		stop()
	}()
	// It should not be the one to die when memory is short; that takes a capability.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	return work(ctx)
}
