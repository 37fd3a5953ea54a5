package host_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// An address moves from one host on a switch to another: those who talked to
// the first talk to the second as soon as it has announced itself.
func TestAnnounce(t *testing.T) {
	hosttest.Need(t)
	s, err := host.NewSwitch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const device = "net0"
	client, a, b := hosttest.New(t), hosttest.New(t), hosttest.New(t)
	for _, h := range []*host.Host{client, a, b} {
		if err := s.Plug(h, device); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ client, service netip.Prefix }{
		{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("10.77.0.9/24")},
		{netip.MustParsePrefix("fd77::1/64"), netip.MustParsePrefix("fd77::9/64")},
	} {
		t.Run(test.client.String(), func(t *testing.T) {
			if err := client.AddAddr(device, test.client); err != nil {
				t.Fatal(err)
			}
			service := test.service.Addr()
			for _, h := range []*host.Host{a, b} {
				if err := h.AddAddr(device, test.service); err != nil {
					t.Fatal(err)
				}
				announce(t, h, device, service)
				// Another CPU may deliver it, and later than what is sent after it.
				for deadline := time.Now().Add(3 * time.Second); h == b && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					if bytes.Equal(neighbor(t, client, device, service), mac(t, h, device)) {
						break
					}
				}
				greet(t, client, h, service)
				if got, want := neighbor(t, client, device, service), mac(t, h, device); !bytes.Equal(got, want) {
					t.Errorf("%v is at %v, want %v", service, got, want)
				}
				if err := h.RemoveAddr(device, test.service); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// An address receives as soon as AddAddr returns.
func TestAddAddrIsUsableAtOnce(t *testing.T) {
	a, _ := hosttest.Pair(t)
	for i := range byte(20) {
		for _, prefix := range []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 100 + i}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: 100 + i}), 64),
		} {
			if err := a.AddAddr("net0", prefix); err != nil {
				t.Fatal(err)
			}
			greet(t, a, a, prefix.Addr())
		}
	}
}

func announce(t *testing.T, h *host.Host, device string, addr netip.Addr) {
	t.Helper()
	a, err := h.NewAnnouncer(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Announce(addr), a.Close()); err != nil {
		t.Fatal(err)
	}
}

// greet sends a datagram from one host to the other's address and waits for it:
// from then on, packets need not wait, and overtake each other, for a neighbor
// to be found.
func greet(t *testing.T, from, to *host.Host, addr netip.Addr) {
	t.Helper()
	var in net.PacketConn
	hosttest.Do(t, to, func() (err error) {
		in, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer in.Close()
	var out net.Conn
	hosttest.Do(t, from, func() (err error) {
		out, err = net.Dial("udp", in.LocalAddr().String())
		return err
	})
	defer out.Close()
	if _, err := out.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := in.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := in.ReadFrom(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
}

func mac(t *testing.T, h *host.Host, device string) net.HardwareAddr {
	t.Helper()
	link, err := h.Netlink().LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().HardwareAddr
}

// neighbor is where a host sends what is for an address.
func neighbor(t *testing.T, h *host.Host, device string, addr netip.Addr) net.HardwareAddr {
	t.Helper()
	link, err := h.Netlink().LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	neighbors, err := h.Netlink().NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbors {
		if got, _ := netip.AddrFromSlice(n.IP); got.Unmap() == addr {
			return n.HardwareAddr
		}
	}
	t.Fatalf("%v is not known", addr)
	return nil
}

func TestCurrent(t *testing.T) {
	a, b := hosttest.Pair(t)
	var here *host.Host
	hosttest.Do(t, a, func() (err error) {
		here, err = host.Current()
		return err
	})
	defer here.Close()
	if got, want := mac(t, here, "net0"), mac(t, a, "net0"); !bytes.Equal(got, want) || bytes.Equal(got, mac(t, b, "net0")) {
		t.Errorf("in the host with %v, want %v", got, want)
	}
}
