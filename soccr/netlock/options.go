package netlock

import (
	"fmt"
	"time"

	"github.com/gosoccr/gosoccr/rawfin"
)

// DefaultTimeout is how long a lock lasts without being renewed by its owner.
const DefaultTimeout = 30 * time.Second

// minTimeout leaves room for several attempts to renew before the end.
const minTimeout = 100 * time.Millisecond

// An Option changes what [New] or [Namespace] makes.
type Option func(*config)

type config struct {
	mark      uint32
	timeout   time.Duration
	netNS     *int // nil: the caller's own, unless there is a path
	netNSPath string
	forward   bool
	// unowned makes the table as kernels before 5.12 do, for the tests.
	unowned bool
}

// WithMark sets the packet mark (SO_MARK) with which packets pass the lock on
// the loopback device: that of the segments injected to bring a socket into a
// half-closed state. The default is [rawfin.DefaultMark]; 0 lets nothing pass.
func WithMark(mark uint32) Option { return func(c *config) { c.mark = mark } }

// WithTimeout sets how long the lock lasts without being renewed; its owner
// renews it by itself, three times as often. This matters when the owner is
// stopped and, on kernels before 5.12, when it is killed. It has to be longer than
// the largest Add or Remove takes, some 5 µs per flow. The default is
// [DefaultTimeout]; less than 100 ms is an error.
func WithTimeout(timeout time.Duration) Option { return func(c *config) { c.timeout = timeout } }

// WithNetNS places the lock into another network namespace, given by a file
// descriptor of it (of /proc/PID/ns/net, for example). The descriptor stays the
// caller's, and is not used after New. Entering the namespace needs
// CAP_SYS_ADMIN in it and in the caller's user namespace.
func WithNetNS(fd int) Option {
	return func(c *config) { c.netNS, c.netNSPath = &fd, "" }
}

// WithNetNSPath is [WithNetNS] for a path: "/proc/1234/ns/net", "/run/netns/blue".
func WithNetNSPath(path string) Option {
	return func(c *config) { c.netNS, c.netNSPath = nil, path }
}

// WithForwarding keeps also forwarded packets of the flows away, as they are
// after conntrack has undone a NAT: for a lock on a router, or on the host side
// of a container's veth. (Forwarded packets that carry the flow's own addresses
// all the way are dropped without this option.)
func WithForwarding() Option { return func(c *config) { c.forward = true } }

func newConfig(options []Option) (config, error) {
	c := config{mark: rawfin.DefaultMark, timeout: DefaultTimeout}
	for _, o := range options {
		o(&c)
	}
	if c.timeout < minTimeout {
		return config{}, fmt.Errorf("timeout %v is less than %v", c.timeout, minTimeout)
	}
	return c, nil
}
