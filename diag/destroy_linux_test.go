package diag_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestDestroy(t *testing.T) {
	a, b := hosttest.Pair(t)
	da, db := open(t, a), open(t, b)
	for _, addr := range []netip.Addr{hosttest.B4, hosttest.B6} {
		conn, peer := connect(t, a, b, addr)
		s, err := da.Lookup(local(conn), remote(conn))
		if err != nil {
			t.Fatal(err)
		}
		if err := da.Destroy(s); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("the program reads %v, want ECONNABORTED", err)
		}
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer reads %v, want ECONNRESET", err)
		}
		err = da.Destroy(s)
		if e, ok := errors.AsType[*diag.OpError](err); !ok || e.Op != "destroy" || e.Local != s.Local || !errors.Is(err, diag.ErrNotFound) || !errors.Is(err, unix.ENOENT) {
			t.Errorf("destroyed twice: %v", err)
		}
		if _, err := db.Lookup(local(peer), remote(peer)); !errors.Is(err, diag.ErrNotFound) {
			t.Errorf("the peer's connection is still there: %v", err)
		}
	}
}

// A flow's next connection is not taken for the one that was meant.
func TestDestroySparesSuccessor(t *testing.T) {
	a, b := hosttest.Pair(t)
	d := open(t, a)
	l := listen(t, b, "tcp", netip.AddrPortFrom(hosttest.B4, 0).String(), nil)
	from := &unix.SockaddrInet4{Port: 5000, Addr: hosttest.A4.As4()}
	first := dial(t, a, l.Addr().String(), func(fd int) error { return unix.Bind(fd, from) })
	accept(t, l)
	s, err := d.Lookup(local(first), remote(first))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := dial(t, a, l.Addr().String(), func(fd int) error { return unix.Bind(fd, from) })
	peer := accept(t, l)
	if err := d.Destroy(s); !errors.Is(err, diag.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if err := d.Destroy(diag.Socket{Family: diag.IPv4, Local: local(second), Remote: remote(second), Cookie: ^uint64(0)}); !errors.Is(err, diag.ErrInvalid) {
		t.Errorf("any cookie: %v", err)
	}
	if err := d.Destroy(diag.Socket{Family: diag.IPv4, Local: local(second), Remote: remote(second)}); !errors.Is(err, diag.ErrNotFound) {
		t.Errorf("no cookie: %v", err)
	}
	if _, err := second.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	if _, err := peer.Read(make([]byte, 5)); err != nil {
		t.Error(err)
	}
}

// Everything that can be listed can be destroyed.
func TestDestroyOthers(t *testing.T) {
	a, b := hosttest.Pair(t)
	da, db := open(t, a), open(t, b)

	link, err := b.Netlink().LinkByName("net0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		a.AddAddr("net0", netip.MustParsePrefix("fe80::a/64")),
		b.AddAddr("net0", netip.MustParsePrefix("fe80::b/64")),
	); err != nil {
		t.Fatal(err)
	}
	l := listen(t, b, "tcp", "[::]:4000", nil)
	bound := listen(t, b, "tcp", "10.77.0.2:4001", func(fd int) error { return unix.BindToDevice(fd, "net0") })
	for _, to := range []string{"10.77.0.2:4000", "[fd77::2]:4000", "[fe80::b%net0]:4000"} {
		dial(t, a, to, nil)
		accept(t, l)
	}
	dial(t, a, "10.77.0.2:4001", nil)
	accept(t, bound)

	waiting, peer := connect(t, a, b, hosttest.B4)
	closeWrite(t, waiting)
	mustEOF(t, peer)
	peer.Close()
	mustEOF(t, waiting)
	timeWait := diag.Filter{States: diag.SetOf(diag.StateTimeWait)}
	await(t, "TIME_WAIT", func() bool { return len(collect(t, da, timeWait)) == 1 })
	if err := da.Destroy(collect(t, da, timeWait)[0]); err != nil {
		t.Error(err)
	}
	if left := collect(t, da, timeWait); len(left) != 0 {
		t.Errorf("left in TIME_WAIT: %+v", left)
	}

	n, links, devices := 0, 0, 0
	for s, err := range db.Sockets(diag.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if s.Local.Addr().Zone() == "net0" {
			links++
		}
		if s.Interface == link.Attrs().Index {
			devices++
		}
		if err := db.Destroy(s); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	// A third listening socket is the one of connect.
	if n != 7 || links != 1 || devices != 3 {
		t.Errorf("%d sockets, %d link-local, %d bound to a device", n, links, devices)
	}
	for _, s := range collect(t, db, diag.Filter{States: ^diag.SetOf(diag.StateClose)}) {
		t.Errorf("left: %+v", s)
	}
}
