package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedEnv marks the second run of a program, the one inside the namespaces.
const isolatedEnv = "GOSOCCR_ISOLATED"

// Isolated reports whether this process runs inside namespaces that Isolate made.
func Isolated() bool { return os.Getenv(isolatedEnv) == "1" }

// Isolate runs this program again in a new network namespace, with the same
// arguments and standard streams, and exits with its status. It returns only
// in that second run (nil), or when the namespaces cannot be had: the error
// then names the setting that forbids them and what to do about it.
func Isolate() error {
	if Isolated() {
		return nil
	}
	// Pdeathsig is sent when the thread that started the child ends.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = namespaces()
	if err := cmd.Start(); err != nil {
		return &ForbiddenError{Setting: forbiddingSetting(), Err: err}
	}
	// ^C reaches the child by itself (same process group); what is sent to us
	// alone is handed on. Either way the child cleans up and we report its end.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for s := range signals {
			if s != unix.SIGINT {
				_ = cmd.Process.Signal(s)
			}
		}
	}()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			os.Exit(128 + int(status.Signal()))
		}
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// namespaces asks for a network namespace of our own, and for a user namespace
// in which we are root if we lack the rights to make one without.
func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if !capable(unix.CAP_SYS_ADMIN) || !capable(unix.CAP_NET_ADMIN) {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// capable reports whether this thread has a capability in its effective set.
func capable(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// ForbiddenError says that this machine does not let us make namespaces.
type ForbiddenError struct {
	Setting string // what forbids it and what to do, as far as it could be found
	Err     error  // what the kernel answered
}

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("cannot make a user and network namespace: %v\n%s", e.Err, e.Setting)
}

func (e *ForbiddenError) Unwrap() error { return e.Err }

// forbidders are the settings known to forbid namespaces to ordinary users,
// with the values that do so.
var forbidders = []struct{ path, value, cure string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
	{"/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

func forbiddingSetting() string {
	for _, f := range forbidders {
		value, err := os.ReadFile(f.path)
		if err == nil && strings.TrimSpace(string(value)) == f.value {
			return fmt.Sprintf("%s is %s; as root: %s, or run this program as root", f.path, f.value, f.cure)
		}
	}
	if status, err := os.ReadFile("/proc/self/status"); err == nil && strings.Contains(string(status), "Seccomp:\t2") {
		return "a seccomp filter is in force, as in containers; run the container with --security-opt seccomp=unconfined or --privileged, or run this program outside"
	}
	return "no setting known to forbid it was found; run this program as root"
}
