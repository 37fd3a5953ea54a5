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

// The guard's descriptors: a pipe whose other end is the program that was started,
// and one to tell it that it need not wait any longer.
const (
	lifelineFD = 3
	releaseFD  = 4
)

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
	released, release, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer released.Close()
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), guardEnv+"=1")
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{lifeline, release}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ^C is not for it
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := command.Start(); err != nil {
		return failed(err)
	}
	_, _ = lifeline.Close(), release.Close()
	go func() {
		<-signals
		_ = own.Close()
	}()
	if n, _ := released.Read(make([]byte, 1)); n > 0 {
		return nil
	}
	err = command.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return &failure{status: exit.ExitCode()} // it has said why
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

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
