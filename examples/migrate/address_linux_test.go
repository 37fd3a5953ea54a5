package main

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// A program's connections go to another host, with their address.
func TestMoveToHost(t *testing.T) {
	hosttest.Need(t)
	for _, p := range []plan{plan4, plan6} {
		n, err := newNetwork(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.close() })
		from, to := n.servers[0], n.servers[1]
		if err := from.AddAddr(device, p.service); err != nil {
			t.Fatal(err)
		}
		where := p.service.String() + "@" + device
		var e *echo
		hosttest.Do(t, from, func() error {
			e = startEcho(t, "threads", netip.AddrPortFrom(p.service.Addr(), 0).String())
			return nil
		})
		var c net.Conn
		hosttest.Do(t, n.client, func() (err error) {
			c, err = net.Dial("tcp", e.addr)
			return err
		})
		t.Cleanup(func() { c.Close() })
		if err := exchange(c); err != nil {
			t.Fatal(err)
		}
		var img []byte
		hosttest.Do(t, from, func() error {
			img = dumped(t, e.pid, "--hold-address", where)
			return nil
		})
		if has(t, from, p.service.Addr()) {
			t.Error("the old host still has the address")
		}
		// What comes before the connection is there must not be answered.
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		hosttest.Do(t, to, func() error {
			revive(t, img, "--take-address", where)
			return nil
		})
		b := make([]byte, 5)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		if err := exchange(c); err != nil {
			t.Error(err)
		}
	}
}

// has reports whether a host has an address: whether one can bind to it.
func has(t *testing.T, h *host.Host, addr netip.Addr) bool {
	t.Helper()
	return h.Do(func() error {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err == nil {
			l.Close()
		}
		return err
	}) == nil
}

// A host that fails to restore, or to dump, has its addresses as before.
func TestAddressesAfterFailure(t *testing.T) {
	hosttest.Need(t)
	n, err := newNetwork(plan4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.close() })
	h, service := n.servers[0], plan4.service
	if err := h.AddAddr(device, service); err != nil {
		t.Fatal(err)
	}
	where := service.String() + "@" + device
	var e *echo
	hosttest.Do(t, h, func() error {
		e = startEcho(t, "threads", netip.AddrPortFrom(service.Addr(), 0).String())
		return nil
	})
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hosttest.Do(t, h, func() error {
		if got, said := dumpInto(t, file, e.pid, "--hold-address", where); got != statusFailed {
			t.Errorf("status %d: %s", got, said)
		}
		return nil
	})
	if !has(t, h, service.Addr()) {
		t.Error("the address is gone, though nothing was dumped")
	}
	dir := t.TempDir()
	hosttest.Do(t, h, func() error {
		if got, said := dumpInto(t, dir, e.pid, "--leave-running"); got != 0 {
			t.Errorf("status %d: %s", got, said)
		}
		return nil
	})
	other := n.servers[1]
	hosttest.Do(t, other, func() error {
		got, _, stderr := status(t, inside(program(t, "restore", "-D", dir, "--map-local", service.Addr().String()+"=192.0.2.1",
			"--take-address", where, "--", "/proc/self/exe")))
		if got != statusFailed {
			t.Errorf("status %d: %s", got, stderr)
		}
		return nil
	})
	if has(t, other, service.Addr()) {
		t.Error("the address is here, though nothing was restored")
	}
}

func TestParsePlaces(t *testing.T) {
	for text, ok := range map[string]bool{
		"10.0.0.5/24@eth0": true, "fd00::5/64@eth0": true, "10.0.0.5@eth0": false, "10.0.0.5/24": false, "10.0.0.5/24@": false,
	} {
		if _, err := parsePlaces([]string{text}); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}
