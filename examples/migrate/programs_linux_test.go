package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asEcho, in the environment, makes the test binary one of the programs whose
// connections are moved. They send back what they get, and know nothing of being
// moved: an EINTR, or any other surprise, ends them.
const asEcho = "MIGRATE_AS_ECHO"

func init() {
	name := os.Getenv(asEcho)
	if len(os.Args) == 2 && os.Args[1] == "heir" { // what restore is told to start
		name = os.Args[1]
	}
	if name != "" {
		if err := echoes[name](); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

var echoes = map[string]func() error{
	"go":      echoGo,
	"threads": echoThreads,
	"epoll":   echoEpoll,
	"poll":    echoPoll,
	"forked":  echoForked,
	"medley":  medley,
	"idle":    idleListener,
	"uring":   uring,
	"foreign": foreign,
	"heir":    heir,
	"stuffed": stuffed,

	"stubborn": stubborn,
	"lodger":   lodger,

	"vacant":    vacant,
	"patient":   patient,
	"datagrams": datagrams,
	"filtered":  filtered,
}

// echoBuffer is how much they read at a time.
const echoBuffer = 32 << 10

// echoGo is an ordinary Go server.
func echoGo() error {
	l, err := net.Listen("tcp", os.Getenv("MIGRATE_LISTEN"))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, echoBuffer)); err != nil {
				fmt.Fprintln(os.Stderr, "go:", err)
				os.Exit(1)
			}
			c.Close()
		}()
	}
}

// rawListen makes a listening socket by system calls.
func rawListen(flags int) (int, error) {
	addr := netip.MustParseAddrPort(os.Getenv("MIGRATE_LISTEN"))
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(addr.Addr().AsSlice())})
	if addr.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|flags, 0)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		return -1, err
	}
	name, err := unix.Getsockname(fd)
	if err == nil {
		fmt.Println(addrText(name))
	}
	return fd, err
}

// echoThreads blocks in accept(2), and for each connection in recv(2) and send(2),
// in threads of their own.
func echoThreads() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		for {
			fd, _, err := unix.Accept(listener)
			if err != nil {
				failed <- fmt.Errorf("accept: %w", err)
				return
			}
			go func() {
				runtime.LockOSThread()
				if err := echoBlocking(fd); err != nil {
					failed <- err
				}
			}()
		}
	}()
	return <-failed
}

func echoBlocking(fd int) error {
	b := make([]byte, echoBuffer)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return fmt.Errorf("recv: %w", err)
		}
		if n == 0 {
			return unix.Close(fd)
		}
		for rest := b[:n]; len(rest) > 0; {
			sent, err := unix.SendmsgN(fd, rest, nil, nil, unix.MSG_NOSIGNAL)
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			rest = rest[sent:]
		}
	}
}

// stubborn is threads, but tries again whatever goes wrong.
func stubborn() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept(listener)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go echoStubbornly(fd)
	}
}

func echoStubbornly(fd int) {
	runtime.LockOSThread()
	again := func(call func() (int, error)) int {
		for {
			n, err := call()
			if err == nil {
				return n
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	b := make([]byte, echoBuffer)
	for {
		n := again(func() (int, error) { return unix.Read(fd, b) })
		if n == 0 {
			_ = unix.Close(fd)
			return
		}
		for rest := b[:n]; len(rest) > 0; {
			rest = rest[again(func() (int, error) { return unix.SendmsgN(fd, rest, nil, nil, unix.MSG_NOSIGNAL) }):]
		}
	}
}

// A peer is a connection of a program that never blocks.
type peer struct {
	pending  []byte
	finished bool
}

// turn reads and writes until neither goes on, and reports whether it is over.
func (p *peer) turn(fd int) (over bool, err error) {
	b := make([]byte, echoBuffer)
	for {
		for len(p.pending) > 0 {
			n, err := unix.SendmsgN(fd, p.pending, nil, nil, unix.MSG_NOSIGNAL)
			if errors.Is(err, unix.EAGAIN) {
				return false, nil
			}
			if err != nil {
				return false, fmt.Errorf("send: %w", err)
			}
			p.pending = p.pending[n:]
		}
		if p.finished {
			return true, unix.Close(fd)
		}
		n, _, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("recv: %w", err)
		}
		p.pending, p.finished = append(p.pending[:0], b[:n]...), n == 0
	}
}

// acceptAll accepts what is there.
func acceptAll(listener int, peers map[int]*peer) (fds []int, err error) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EAGAIN) {
			return fds, nil
		}
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		peers[fd] = &peer{}
		fds = append(fds, fd)
	}
}

// echoEpoll waits for edges.
func echoEpoll() error {
	listener, err := rawListen(unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	ep, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		return unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd,
			&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)})
	}
	if err := watch(listener); err != nil {
		return err
	}
	runtime.LockOSThread()
	peers := map[int]*peer{}
	events := make([]unix.EpollEvent, 16)
	for {
		n, err := unix.EpollWait(ep, events, -1)
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, e := range events[:n] {
			if e.Events&(unix.EPOLLERR|unix.EPOLLHUP) == unix.EPOLLERR {
				return fmt.Errorf("epoll_wait: events %#x on descriptor %d", e.Events, e.Fd)
			}
			if int(e.Fd) != listener {
				over, err := peers[int(e.Fd)].turn(int(e.Fd))
				if err != nil {
					return err
				}
				if over {
					delete(peers, int(e.Fd))
				}
				continue
			}
			fds, err := acceptAll(listener, peers)
			for _, fd := range fds {
				err = errors.Join(err, watch(fd))
			}
			if err != nil {
				return err
			}
		}
	}
}

// echoPoll asks for levels.
func echoPoll() error {
	listener, err := rawListen(unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	peers := map[int]*peer{}
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		for fd, p := range peers {
			events := int16(unix.POLLIN)
			if len(p.pending) > 0 {
				events = unix.POLLOUT
			}
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: events})
		}
		if _, err := unix.Poll(fds, -1); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		for _, f := range fds[1:] {
			if f.Revents == 0 {
				continue
			}
			if f.Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
				return fmt.Errorf("poll: events %#x on descriptor %d", f.Revents, f.Fd)
			}
			over, err := peers[int(f.Fd)].turn(int(f.Fd))
			if err != nil {
				return err
			}
			if over {
				delete(peers, int(f.Fd))
			}
		}
		if _, err := acceptAll(listener, peers); err != nil {
			return err
		}
	}
}

// echoForked accepts in a process, and has a child serve the connections, which
// both have open.
func echoForked() error {
	if os.Getenv("MIGRATE_CHILD") != "" {
		const inherited = 3
		return echoBlocking(inherited)
	}
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return err
	}
	return haveServed(fd, nil)
}

// medley has sockets of many families open, and uses none.
func medley() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	for _, s := range [][3]int{
		{unix.AF_INET, unix.SOCK_DGRAM, 0}, {unix.AF_UNIX, unix.SOCK_SEQPACKET, 0}, {unix.AF_NETLINK, unix.SOCK_RAW, 0},
		{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
	} {
		if _, err := unix.Socket(s[0], s[1], s[2]); err != nil {
			return err
		}
	}
	if _, err := unix.Dup(listener); err != nil {
		return err
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return nil
}

// heir serves the sockets that it has inherited.
func heir() error {
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != strconv.Itoa(len(names)) {
		return errors.New("LISTEN_PID or LISTEN_FDS is wrong")
	}
	ended := make(chan error)
	for i, name := range names {
		fd := 3 + i
		kind, number, _ := strings.Cut(name, ".")
		old, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		var here, there unix.Stat_t
		if err := errors.Join(unix.Fstat(fd, &here), unix.Fstat(old, &there)); err != nil || here.Ino != there.Ino {
			return fmt.Errorf("descriptor %d is not %s: %w", fd, name, err)
		}
		go func() {
			runtime.LockOSThread()
			if err := unix.SetNonblock(fd, false); err != nil {
				ended <- err
				return
			}
			switch kind {
			case "connection":
				ended <- echoBlocking(fd)
				return
			case "datagram":
				ended <- echoDatagrams(fd)
				return
			}
			for {
				accepted, _, err := unix.Accept(fd)
				if err != nil {
					ended <- fmt.Errorf("accept: %w", err)
				}
				go func() { ended <- echoBlocking(accepted) }()
			}
		}()
	}
	for {
		if err := <-ended; err != nil {
			return err
		}
	}
}

// idleListener accepts a connection, and does nothing with it.
func idleListener() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	if _, _, err := unix.Accept(listener); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return nil
}

// stuffed writes until no more fits, and reads nothing: all that it knows of its
// connections is in their queues.
func stuffed() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK)
		if err != nil {
			return err
		}
		written := 0
		for b := make([]byte, 10_000); ; written += len(b) {
			for i := range b {
				b[i] = byte((written + i) % 251)
			}
			n, err := unix.Write(fd, b)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return err
			}
			b = b[:n]
		}
		// The heir blocks.
		if err := unix.SetNonblock(fd, false); err != nil {
			return err
		}
		fmt.Println(written)
	}
}

// vacancy is the descriptor under which programs get a connection from outside.
const vacancy = 50

// vacant waits until it has a connection under a certain number.
func vacant() error {
	if _, err := rawListen(0); err != nil {
		return err
	}
	for {
		if _, err := unix.Getpeername(vacancy); err == nil {
			return echoBlocking(vacancy)
		}
		time.Sleep(time.Millisecond)
	}
}

// lodger is vacant, but tries again whatever goes wrong.
func lodger() error {
	if _, err := rawListen(0); err != nil {
		return err
	}
	for {
		if _, err := unix.Getpeername(vacancy); err == nil {
			echoStubbornly(vacancy)
		}
		time.Sleep(time.Millisecond)
	}
}

// patient waits for edges of a connection, and goes on waiting when that ends; and
// when it must not read or write (EPERM).
func patient() error {
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	ep, err := unix.EpollCreate1(0)
	if err == nil {
		err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET})
	}
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	for events := make([]unix.EpollEvent, 1); ; {
		if _, err := unix.EpollWait(ep, events, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for b := make([]byte, echoBuffer); ; {
			n, err := unix.Read(fd, b)
			if n == 0 || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOTCONN) {
				break
			}
			if err == nil {
				_, err = unix.Write(fd, b[:n])
			}
			if errors.Is(err, unix.EPERM) {
				time.Sleep(100 * time.Microsecond)
			} else if err != nil {
				return err
			}
		}
	}
}

// datagrams has a UDP socket, and never reads from it.
func datagrams() error {
	c, err := net.ListenPacket("udp", os.Getenv("MIGRATE_LISTEN"))
	if err != nil {
		return err
	}
	fmt.Println(c.LocalAddr())
	time.Sleep(time.Hour)
	return c.Close()
}

func echoDatagrams(fd int) error {
	b := make([]byte, echoBuffer)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err == nil {
			err = unix.Sendto(fd, b[:n], 0, from)
		}
		if err != nil {
			return err
		}
	}
}

// filtered is threads with a filter that kills whoever makes a socket pair.
func filtered() error {
	const (
		loadNumber = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		ifEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer     = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: loadNumber, K: 0}, // seccomp_data.nr
		{Code: ifEqual, Jf: 1, K: unix.SYS_SOCKETPAIR},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return echoThreads()
}

// uring has an io_uring instance.
func uring() error {
	params := make([]byte, 120) // struct io_uring_params
	if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(unsafe.SliceData(params))), 0); errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	return idleListener()
}

// foreign has a child in another network namespace than its socket.
func foreign() error {
	if os.Getenv("MIGRATE_CHILD") != "" {
		time.Sleep(time.Hour)
		return nil
	}
	listener, err := rawListen(0)
	if err != nil {
		return err
	}
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return err
	}
	return haveServed(fd, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
}

// haveServed gives a connection to a child.
func haveServed(fd int, attributes *syscall.SysProcAttr) error {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), "MIGRATE_CHILD=1")
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "connection")}
	child.SysProcAttr = attributes
	if err := child.Start(); err != nil {
		return err
	}
	if attributes != nil {
		_ = child.ExtraFiles[0].Close()
	}
	return child.Wait()
}

// An echo is such a program.
type echo struct {
	name    string
	addr    string
	pid     int
	stderr  *lockedBuffer
	command *exec.Cmd
	lines   *bufio.Scanner
}

// echoEnv is the environment of one.
func echoEnv(name, listen string) []string {
	return []string{
		asEcho + "=" + name, "MIGRATE_LISTEN=" + listen,
		"GODEBUG=multipathtcp=0,asyncpreemptoff=1", // whose signals interrupt, too
		"GORACE=atexit_sleep_ms=0 " + os.Getenv("GORACE"),
	}
}

// startEcho starts one; listen is an address with port 0. It is killed when the
// test ends, if it has not been seen to end before.
func startEcho(t *testing.T, name, listen string) *echo {
	t.Helper()
	e := &echo{name: name, command: exec.Command("/proc/self/exe"), stderr: &lockedBuffer{}}
	e.command.Env = append(os.Environ(), echoEnv(name, listen)...)
	e.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	e.command.Stderr = e.stderr
	out, err := e.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.command.Start(); err != nil {
		t.Fatal(err)
	}
	e.pid = e.command.Process.Pid
	t.Cleanup(func() {
		_ = unix.Kill(-e.pid, unix.SIGKILL)
		_ = e.command.Wait()
		if said := e.stderr.String(); said != "" {
			t.Errorf("the program said: %s", said)
		}
	})
	e.lines = bufio.NewScanner(out)
	if !e.lines.Scan() {
		t.Fatalf("the program did not start: %s", e.stderr.String())
	}
	e.addr = e.lines.Text()
	return e
}

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
