package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Host is a network namespace without a name: it lives as long as the
// process, or until Close and the end of its last socket.
type Host struct {
	ns   netns.NsHandle
	link *netlink.Handle
}

// New makes a host whose loopback device is up, with buffers that this user can
// restore ([LimitBuffers]). It needs CAP_SYS_ADMIN, which [Isolate] gives.
func New() (*Host, error) {
	h := &Host{ns: netns.None()}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := LimitBuffers(); err != nil {
			return err
		}
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		h.ns = ns
		return nil
	})
	if err != nil {
		return nil, err
	}
	if h.link, err = netlink.NewHandleAt(h.ns); err != nil {
		return nil, errors.Join(err, h.ns.Close())
	}
	return h, h.up("lo")
}

// Close gives the host up. What runs in it may run on: the kernel keeps the
// namespace until its last socket is closed.
func (h *Host) Close() error {
	h.link.Close()
	return h.ns.Close()
}

// FD is the namespace's file descriptor, owned by the host.
func (h *Host) FD() int { return int(h.ns) }

// Netlink configures the host's devices, addresses and routes.
func (h *Host) Netlink() *netlink.Handle { return h.link }

// Do runs f on a thread inside the host: every socket that f itself makes
// belongs to the host. Goroutines that f starts are outside.
func (h *Host) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(h.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f in a goroutine whose thread ends with it, so that no other
// goroutine ever runs in the namespace that f entered.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		finished := false
		defer func() {
			if !finished { // f called runtime.Goexit, as testing.T.FailNow does
				done <- errors.New("host: function did not return")
			}
		}()
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		err := f()
		finished = true
		done <- err
	}()
	return <-done
}

// Sysctl sets one of the host's settings: Sysctl("net.ipv4.tcp_sack", "0").
func (h *Host) Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	return h.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
}

// Connect joins two hosts by a veth pair; each end is called name in its host.
func Connect(a, b *Host, name string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, Namespace: netlink.NsFd(a.FD())},
		PeerName:      name,
		PeerNamespace: netlink.NsFd(b.FD()),
	}
	if err := a.link.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", name, err)
	}
	return errors.Join(a.up(name), b.up(name))
}

// AddAddr gives a device of the host an address, usable at once: IPv6 addresses
// skip duplicate address detection.
func (h *Host) AddAddr(device string, prefix netip.Prefix) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	if err := h.link.AddrAdd(link, address(prefix)); err != nil {
		return err
	}
	if prefix.Addr().Is4() {
		return nil
	}
	return h.waitLocal(prefix.Addr())
}

// waitLocal waits until an IPv6 address receives: the kernel makes it so some
// time after it has added the address, even without duplicate address detection
// (addrconf_dad_work inserts the local route), and drops packets meanwhile.
func (h *Host) waitLocal(addr netip.Addr) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		routes, err := h.link.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%v does not become local", addr), err)
		}
	}
}

// RemoveAddr takes an address from a device of the host.
func (h *Host) RemoveAddr(device string, prefix netip.Prefix) error {
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	return h.link.AddrDel(link, address(prefix))
}

func address(prefix netip.Prefix) *netlink.Addr {
	a, err := netlink.ParseAddr(prefix.String())
	if err != nil {
		panic(err) // a netip.Prefix prints as what ParseAddr reads
	}
	if prefix.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func (h *Host) up(device string) error {
	// Link-local addresses appear when a device comes up; without duplicate
	// address detection they are usable at once.
	dad := "net.ipv6.conf." + device + ".accept_dad"
	if err := h.Sysctl(dad, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	link, err := h.link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	return h.link.LinkSetUp(link)
}
