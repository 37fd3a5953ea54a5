package main

import (
	"context"
	"errors"
	"fmt"
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
// guard finishes what it is at, undoes what is to be undone, and ends. Should the guard
// be killed, the other one puts right what it can; see journal.
const guardEnv = "MIGRATE_GUARD"

// The guard's descriptors: a pipe whose other end is the program that was started, a
// socket to tell it things, and the journal.
const (
	lifelineFD = 3
	tellFD     = 4
	journalFD  = 5
)

// A guardedWork is what a guard does. Should the guard be killed itself, the program that
// was started puts right what it has left, by mend.
type guardedWork struct {
	do   func(context.Context, *journal) error
	mend func(*remains) error
}

// guarded has a guard do the work of this command.
func guarded(work guardedWork) error {
	return begin(work, &syscall.SysProcAttr{Setsid: true}, nil) // ^C is not for it
}

// guardedStart is guarded for work that starts a program and hands it over: then has
// it as its child. The guard stays in the session, so that the program can be in it.
func guardedStart(work guardedWork, then func(child int) error) error {
	return begin(work, &syscall.SysProcAttr{Setpgid: true}, then)
}

func begin(work guardedWork, attributes *syscall.SysProcAttr, then func(child int) error) error {
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
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed(os.NewSyscallError("socketpair", err))
	}
	told := os.NewFile(uintptr(sockets[0]), "told")
	defer told.Close()
	tell := os.NewFile(uintptr(sockets[1]), "tell")
	journal, err := newJournal()
	if err != nil {
		return failed(err)
	}
	defer journal.file.Close()
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), guardEnv+"="+strconv.Itoa(unix.Getpgrp()))
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{lifeline, tell, journal.file}
	command.SysProcAttr = attributes
	signals := make(chan os.Signal, 1)
	catch(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := command.Start(); err != nil {
		return failed(err)
	}
	_, _ = lifeline.Close(), tell.Close()
	go func() {
		<-signals
		_ = own.Close()
	}()
	message, locks := listen(int(told.Fd()))
	if message != "" && then == nil {
		return nil
	}
	err = command.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return &failure{status: exit.ExitCode()} // it has said why
	} else if ok && message == "" {
		return afterDeath(work, journal, locks, fmt.Errorf("the guard, process %d, has died (%w)", command.Process.Pid, exit))
	}
	if err != nil && message == "" {
		return failed(err)
	}
	if child, err := strconv.Atoi(message); err == nil { // with which nothing is left to be done
		return then(child)
	}
	return nil
}

// afterDeath puts right what a guard has left that was killed.
func afterDeath(work guardedWork, journal *journal, locks []int, death error) error {
	left, err := journal.read()
	if err == nil {
		left.locks = locks
		err = work.mend(left)
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return &failure{f.status, fmt.Errorf("%w; %w", death, f.err)}
	}
	return failed(errors.Join(death, err))
}

// listen hears what the guard tells, until it has something to say, or ends, and has
// the sockets of its locks.
func listen(fd int) (message string, locks []int) {
	b, rights := make([]byte, 32), make([]byte, unix.CmsgSpace(4))
	for {
		n, extra, _, _, err := unix.Recvmsg(fd, b, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0:
			return "", locks
		case extra == 0:
			return string(b[:n]), locks
		}
		messages, err := unix.ParseSocketControlMessage(rights[:extra])
		if err != nil || len(messages) == 0 {
			continue
		}
		fds, _ := unix.ParseUnixRights(&messages[0])
		locks = append(locks, fds...)
	}
}

// tell tells the program that was started something, and gives it a descriptor if it
// is one.
func tell(message string, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	err := unix.Sendmsg(tellFD, []byte(message), rights, nil, unix.MSG_NOSIGNAL)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // it has ended already
		return nil
	}
	return os.NewSyscallError("sendmsg", err)
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
func handOver(child int) error { return tell(strconv.Itoa(child), -1) }

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
	return errors.Join(tell("released", -1), unix.Close(tellFD))
}

// guard is the other half: the context ends when the program that was started does,
// or is told to.
func guard(work guardedWork) error {
	for fd := lifelineFD; fd <= journalFD; fd++ { // nothing that it starts is to have them
		unix.CloseOnExec(fd)
	}
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
	return work.do(ctx, &journal{file: os.NewFile(journalFD, "journal")})
}

// setOOM sets how likely the kernel kills this process when memory is short, as far
// as it may.
func setOOM(score string) { _ = os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0) }
