package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// confinedEnv tells the program, run again, which descriptor its socket is.
const confinedEnv = "REPAIRD_SOCKET"

// confine runs the program again with CAP_NET_ADMIN alone, which it cannot exceed any
// more. Capabilities are a thread's own: execve(2) gives those of this one to all.
func confine(socket *os.File) error {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	keep := has[0].Permitted & (1 << unix.CAP_NET_ADMIN)
	left := [2]unix.CapUserData{{Effective: keep, Permitted: keep, Inheritable: keep}}
	if err := unix.Capset(&header, &left[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if keep != 0 { // else every request will be refused, and say so
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0); err != nil {
			return fmt.Errorf("PR_CAP_AMBIENT: %w", err)
		}
	}
	// Neither root nor a file's capabilities give it more than it has now.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	fd := socket.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
		return err
	}
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), confinedEnv+"="+strconv.Itoa(int(fd))))
	return fmt.Errorf("run again: %w", err)
}

// inherited is the socket that confine has left, or nil.
func inherited() (*os.File, error) {
	text := os.Getenv(confinedEnv)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", confinedEnv, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "socket"), os.Unsetenv(confinedEnv)
}

// listenOn and connectionOf make what net knows of a descriptor, which they close.
func listenOn(file *os.File) (*net.UnixListener, error) {
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("%s is no Unix socket", confinedEnv)
	}
	listener.SetUnlinkOnClose(true)
	return listener, nil
}

func connectionOf(file *os.File) (*net.UnixConn, error) {
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s is no Unix socket", confinedEnv)
	}
	return conn, nil
}
