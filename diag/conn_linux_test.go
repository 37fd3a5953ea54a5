package diag_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// A Conn stays in the namespace that it was made in, from whatever thread.
func TestNamespaceOfThread(t *testing.T) {
	h := hosttest.New(t)
	l := listen(t, h, "tcp", "127.0.0.1:4000", nil)
	var inside, outside *diag.Conn
	hosttest.Do(t, h, func() (err error) {
		inside, err = diag.Dial(nil)
		return err
	})
	defer inside.Close()
	hosttest.Need(t)
	outside, err := diag.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	count := func() (here, there int) {
		for _, s := range collect(t, inside, diag.Filter{LocalPort: at.Port()}) {
			if s.Local == at {
				here++
			}
		}
		return here, len(collect(t, outside, diag.Filter{LocalPort: at.Port()}))
	}
	if here, there := count(); here != 1 || there != 0 {
		t.Errorf("from outside: %d and %d sockets", here, there)
	}
	hosttest.Do(t, h, func() error {
		if here, there := count(); here != 1 || there != 0 {
			t.Errorf("from inside: %d and %d sockets", here, there)
		}
		return nil
	})
}

// The namespace's file descriptor is the caller's again after Dial.
func TestNamespaceByFD(t *testing.T) {
	h := hosttest.New(t)
	listen(t, h, "tcp", "127.0.0.1:4000", nil)
	fd, err := unix.FcntlInt(uintptr(h.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := openFDs(t) - 1
	d, err := diag.Dial(&diag.Config{NetNS: fd})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	if got := len(collect(t, d, diag.Filter{})); got != 1 {
		t.Errorf("%d sockets, want 1", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}

func TestDialFails(t *testing.T) {
	hosttest.Need(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := openFDs(t)
	for _, c := range []struct {
		ns   int
		want error
	}{{-1, unix.EBADF}, {int(null.Fd()), unix.EINVAL}} {
		d, err := diag.Dial(&diag.Config{NetNS: c.ns})
		if e, ok := errors.AsType[*diag.OpError](err); !ok || e.Op != "dial" || !errors.Is(err, c.want) || d != nil {
			t.Errorf("namespace %d: %v, %v, want %v", c.ns, d, err, c.want)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}

func TestClosed(t *testing.T) {
	hosttest.Need(t)
	d, err := diag.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort("127.0.0.1:1")
	if _, err := d.Lookup(at, at); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Lookup: %v", err)
	}
	if err := d.Destroy(diag.Socket{Family: diag.IPv4, Local: at, Remote: at}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Destroy: %v", err)
	}
	for s, err := range d.Sockets(diag.Filter{}) {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Sockets: %+v, %v", s, err)
		}
	}
	if err := d.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
}

// Listing and looking up need no capability in one's own namespace.
func TestUnprivileged(t *testing.T) {
	h := hosttest.New(t)
	l := listen(t, h, "tcp", "127.0.0.1:0", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1)
	})
	conn := dial(t, h, l.Addr().String(), nil)
	hosttest.Do(t, h, func() error {
		// Do's thread ends with this function, and its lack of rights with it.
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		d, err := diag.Dial(nil)
		if err != nil {
			return err
		}
		defer d.Close()
		if got := len(collect(t, d, diag.Filter{Details: diag.DetailAll})); got != 3 {
			t.Errorf("%d sockets, want 3", got)
		}
		s, err := d.Lookup(local(conn), remote(conn))
		if err != nil {
			return err
		}
		if err := d.Destroy(s); !errors.Is(err, diag.ErrNoPermission) || !errors.Is(err, unix.EPERM) {
			t.Errorf("Destroy: %v, want ErrNoPermission", err)
		}
		for s, err := range d.Sockets(diag.Filter{Mark: 1, MarkMask: 1}) {
			if !errors.Is(err, diag.ErrNoPermission) {
				t.Errorf("mark: %+v, %v, want ErrNoPermission", s, err)
			}
		}
		return nil
	})
}
