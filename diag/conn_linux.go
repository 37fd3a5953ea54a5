package diag

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
)

// A Conn asks the kernel about the sockets of one network namespace. It may be
// used by several goroutines at once, and inside a listing of its own.
type Conn struct {
	ns *os.File
	// nl is for questions with one answer. Each listing has a socket of its
	// own: the kernel allows one dump at a time, and a socket with half of a
	// dump in it is good for nothing else.
	nl *netlink.Conn
}

// Dial makes a Conn. A nil config means the zero one. The Conn keeps the
// namespace alive until it is closed.
func Dial(config *Config) (*Conn, error) {
	if config == nil {
		config = new(Config)
	}
	c, err := dial(config.NetNS)
	if err != nil {
		return nil, &OpError{Op: "dial", Err: because(err)}
	}
	return c, nil
}

func dial(ns int) (*Conn, error) {
	file, err := openNamespace(ns)
	if err != nil {
		return nil, err
	}
	c := &Conn{ns: file}
	if c.nl, err = c.open(0); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := probe(c.nl, unix.AF_INET, unix.IPPROTO_TCP); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends the Conn. Listings that are under way finish or fail.
func (c *Conn) Close() error {
	if c.ns.Close() != nil {
		return &OpError{Op: "close", Err: net.ErrClosed}
	}
	if err := c.nl.Close(); err != nil {
		return &OpError{Op: "close", Err: err}
	}
	return nil
}

// threadNamespace is the network namespace of whatever thread opens it.
const threadNamespace = "/proc/thread-self/ns/net"

func openNamespace(fd int) (*os.File, error) {
	if fd == 0 {
		return os.Open(threadNamespace)
	}
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}

// open makes a netlink socket in the namespace. Messages are received into a
// buffer of a fixed size, or one made for each if the size is 0. It does not enter a namespace
// in which the thread is already, as that needs a capability; so everybody can
// look at the namespace he lives in.
func (c *Conn) open(bufferSize int) (*netlink.Conn, error) {
	raw, err := c.ns.SyscallConn()
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var (
		nl      *netlink.Conn
		dialErr error
	)
	if raw.Control(func(fd uintptr) {
		nl, dialErr = netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: foreign(int(fd)), MessageBufferSize: bufferSize})
	}) != nil {
		return nil, net.ErrClosed
	}
	return nl, dialErr
}

// foreign gives the namespace's file descriptor back if this thread is in
// another namespace, and 0 if it is in that one.
func foreign(ns int) int {
	if netns.Current(ns) {
		return 0
	}
	return ns
}

// probe lists the sockets of no state at all. A kernel without the module for a
// protocol answers ENOENT to every question (inet_diag_lock_handler), which
// could be taken for the lack of a socket later on.
func probe(nl *netlink.Conn, family Family, protocol uint8) error {
	b := request(family, 0, 0, sockID{})
	b[1] = protocol
	_, err := nl.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
		Data:   b,
	})
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel lacks CONFIG_INET_DIAG or CONFIG_INET_TCP_DIAG, or its modules inet_diag and tcp_diag cannot be loaded", errors.ErrUnsupported)
	}
	return err
}

// because puts the reason to be compared with errors.Is before what the kernel
// answered.
func because(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ErrNoPermission, err)
	}
	return err
}

// zones names devices as the namespace of nl does. What it is asked for more
// than once it remembers.
func zones(nl *netlink.Conn) zoner {
	known := make(map[uint32]string)
	return func(ifindex uint32) string {
		name, ok := known[ifindex]
		if !ok {
			name = deviceName(nl, ifindex)
			known[ifindex] = name
		}
		return name
	}
}

// deviceName is the device's name, or its number if it has none.
func deviceName(nl *netlink.Conn, ifindex uint32) string {
	var request unix.Ifreq
	request.SetUint32(ifindex)
	if err := deviceIoctl(nl, unix.SIOCGIFNAME, &request); err != nil {
		return strconv.FormatUint(uint64(ifindex), 10)
	}
	return request.Name()
}

// deviceIndex finds the device that a zone names, or numbers.
func deviceIndex(nl *netlink.Conn, zone string) (int, error) {
	if zone == "" {
		return 0, nil
	}
	request, err := unix.NewIfreq(zone)
	if err == nil {
		err = deviceIoctl(nl, unix.SIOCGIFINDEX, request)
	}
	if err == nil {
		return int(request.Uint32()), nil
	}
	if index, parseErr := strconv.ParseUint(zone, 10, 31); parseErr == nil {
		return int(index), nil
	}
	return 0, fmt.Errorf("device %q: %w", zone, err)
}

// deviceIoctl wraps the ioctls of netdevice(7). They work on sockets of any
// family, in the socket's own namespace.
func deviceIoctl(nl *netlink.Conn, request uint, ifreq *unix.Ifreq) error {
	raw, err := nl.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlIfreq(int(fd), request, ifreq) })
	return errors.Join(err, ioctlErr)
}
