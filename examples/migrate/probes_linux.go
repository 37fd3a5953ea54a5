package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/rawfin"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// probes are the abilities, and how to try each of them.
var probes = []struct {
	ability
	try func() error
}{
	{ability{Name: "repair mode", Since: "3.5", For: "all commands that move connections", basic: true}, func() error {
		return withConnection(func(s *soccr.Snapshot) { s.Window = soccr.Window{} }, nothing)
	}},
	{ability{Name: "repair window", Since: "4.8", For: "all commands that move connections", basic: true}, func() error {
		return withConnection(asItIs, func(fd int, s *soccr.Socket) error {
			_, err := s.Window()
			return err
		})
	}},
	{ability{Name: "half-closed states", Since: "4.10", For: "connections that one end has shut down"}, func() error {
		return withConnection(func(s *soccr.Snapshot) { s.State = soccr.StateCloseWait }, nothing)
	}},
	{ability{Name: "timestamps in milliseconds", Since: "3.9", For: "connections with timestamps, which is almost all"}, func() error {
		return withConnection(func(s *soccr.Snapshot) { s.Timestamp = soccr.Timestamp{Enabled: true, Value: 1000} }, nothing)
	}},
	{ability{Name: "timestamps in microseconds", Since: "6.7", For: "connections on routes with the feature tcp_usec_ts"}, func() error {
		return withConnection(func(s *soccr.Snapshot) {
			s.Timestamp = soccr.Timestamp{Enabled: true, Microseconds: true, Value: 1000}
		}, nothing)
	}},
	{ability{Name: "raw sockets", Since: "2.2", For: "half-closed states; to go on at once after a move"}, func() error {
		injector, err := rawfin.Open()
		if err != nil {
			return err
		}
		return injector.Close()
	}},
	{ability{Name: "packet sockets", Since: "2.2", For: "to lose nothing that arrives during a move"}, func() error {
		tap, err := soccr.OpenTap()
		if err != nil {
			return err
		}
		return tap.Close()
	}},
	{ability{Name: "nftables", Since: "4.19", For: "the network lock (other than --network-lock skip)"}, func() error {
		lock, err := netlock.New()
		if err != nil {
			return err
		}
		return errors.Join(lock.Add(netlock.Flow{Local: probeLocal, Remote: probeRemote}), lock.Close())
	}},
	{ability{Name: "sock_diag", Since: "3.3", For: "ls, and to find connections", basic: true}, func() error {
		return withListener(func(*diag.Conn, diag.Socket) error { return nil })
	}},
	{ability{Name: "sock_destroy", Since: "4.5", For: "package diag, to end connections"}, func() error {
		return withListener(func(conn *diag.Conn, listener diag.Socket) error { return conn.Destroy(listener) })
	}},
	{ability{Name: "pidfd_getfd", Since: "5.6", For: "all commands that work on programs", basic: true}, func() error {
		return withChild(nil, func(pid int) error {
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return os.NewSyscallError("pidfd_open", err)
			}
			defer unix.Close(pidfd)
			fd, err := unix.PidfdGetfd(pidfd, 0, 0)
			if err != nil {
				return os.NewSyscallError("pidfd_getfd", err)
			}
			return unix.Close(fd)
		})
	}},
	{ability{Name: "ptrace", Since: "3.4", For: "to stop programs while their connections are moved", basic: true}, func() error {
		if err := withChild(nil, trace); err != nil {
			return err
		}
		return yama()
	}},
	{ability{Name: "user namespaces", Since: "3.8", For: "the demo and the tests, without root"}, func() error {
		return withChild(&syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}, func(int) error { return nil })
	}},
}

// The ends of the connections that are made to try things.
var (
	probeLocal  = netip.MustParseAddrPort("127.0.0.1:1")
	probeRemote = netip.MustParseAddrPort("127.0.0.2:1")
)

func asItIs(*soccr.Snapshot)                {}
func nothing(fd int, _ *soccr.Socket) error { return nil }

// withConnection makes a connection out of nothing, as change wants it, and hands
// it to use. It stays paused and disappears silently. So does the peer's end, which is
// there so that nobody answers with a RST what the connection acknowledges.
func withConnection(change func(*soccr.Snapshot), use func(fd int, s *soccr.Socket) error) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	local, remote := netip.AddrPortFrom(probeLocal.Addr(), port), netip.AddrPortFrom(probeRemote.Addr(), port)
	snapshot := probeEnd(local, remote, 1000, 2000)
	change(snapshot)
	peer := probeEnd(remote, local, 2000, 1001) // its FIN is behind it
	return withRestored(peer, func(int, *soccr.Socket) error { return withRestored(snapshot, use) })
}

func probeEnd(local, remote netip.AddrPort, recvSeq, sendSeq uint32) *soccr.Snapshot {
	const window = 65535
	return &soccr.Snapshot{
		State: soccr.StateEstablished, Local: local, Remote: remote, RecvSeq: recvSeq, SendSeq: sendSeq, MSS: 1460,
		Window: soccr.Window{
			SndWl1: recvSeq, SndWnd: window, MaxWindow: window, RcvWnd: window, RcvWup: recvSeq, RcvSsthresh: window, Clamp: window,
		},
	}
}

func withRestored(snapshot *soccr.Snapshot, use func(fd int, s *soccr.Socket) error) (err error) {
	fd, err := soccr.NewSocket(snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	s, err := soccr.Pause(fd)
	if err != nil {
		return err
	}
	defer s.Release()
	if err := s.Restore(snapshot); err != nil {
		return err
	}
	return errors.Join(use(fd, s), s.Disconnect())
}

// freePort finds a port that nothing uses.
func freePort() (uint16, error) {
	fd, port, err := bound()
	if err != nil {
		return 0, err
	}
	return port, unix.Close(fd)
}

// bound makes a socket that is bound to a port of its own.
func bound() (fd int, port uint16, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, os.NewSyscallError("socket", err)
	}
	var addr unix.Sockaddr
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: probeLocal.Addr().As4()}))
	if err == nil {
		addr, err = unix.Getsockname(fd)
	}
	if err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, uint16(addr.(*unix.SockaddrInet4).Port), nil
}

// withListener hands a listening socket to use, as sock_diag tells of it.
func withListener(use func(*diag.Conn, diag.Socket) error) error {
	fd, port, err := bound()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 1); err != nil {
		return os.NewSyscallError("listen", err)
	}
	conn, err := diag.Dial(nil)
	if err != nil {
		return err
	}
	found := errors.New("a listening socket is not in the kernel's listing")
	for socket, err := range conn.Sockets(diag.Filter{States: diag.SetOf(diag.StateListen), LocalPort: port}) {
		if err != nil {
			found = err
			break
		}
		found = use(conn, socket)
	}
	return errors.Join(found, conn.Close())
}

// idleRole, as the only argument, makes the program one that does nothing until
// its standard input ends.
const idleRole = "check-child"

func idle() { _, _ = os.Stdin.Read(make([]byte, 1)) }

// withChild runs f beside a child that does nothing.
func withChild(attributes *syscall.SysProcAttr, f func(pid int) error) error {
	// ptrace(2) is a matter between threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child := exec.Command("/proc/self/exe", idleRole)
	child.SysProcAttr = attributes
	input, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start a child: %w", err)
	}
	return errors.Join(f(child.Process.Pid), input.Close(), child.Wait())
}

// trace stops a child's first thread and lets it go on.
func trace(pid int) error {
	if err := unix.PtraceSeize(pid); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_SEIZE)", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_INTERRUPT)", err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return os.NewSyscallError("wait4", err)
	}
	if !status.Stopped() {
		return fmt.Errorf("the child did not stop: status %#x", int(status))
	}
	return os.NewSyscallError("ptrace(PTRACE_DETACH)", unix.PtraceDetach(pid))
}

const yamaFile = "/proc/sys/kernel/yama/ptrace_scope"

// yama reports what a child does not show: whether other programs may be traced.
func yama() error {
	content, err := os.ReadFile(yamaFile)
	if err != nil {
		return nil //nolint:nilerr // a kernel without Yama
	}
	scope := strings.TrimSpace(string(content))
	if scope == "0" || os.Geteuid() == 0 && scope != "3" {
		return nil
	}
	return fmt.Errorf("%s is %s: only root (or, if it is 3, nobody) may trace programs that he has not started", yamaFile, scope)
}
