package rawfin_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/rawfin"
)

// What is sent arrives at the peer as it is, by the way that the source address, the
// mark or the device of the connection decides.
func TestSend(t *testing.T) {
	a, b := hosttest.Pair(t)
	if err := host.Connect(a, b, "net1"); err != nil {
		t.Fatal(err)
	}
	// A second network, which routes to the same peers as the first does.
	other4, other6 := netip.MustParseAddr("10.78.0.2"), netip.MustParseAddr("fd78::2")
	peer4, peer6 := netip.MustParseAddr("10.79.0.1"), netip.MustParseAddr("fd79::1")
	for _, addr := range []netip.Addr{other4, other6} {
		if err := b.AddAddr("net1", netip.PrefixFrom(addr, addr.BitLen())); err != nil {
			t.Fatal(err)
		}
	}
	const mark = 0x10
	index := map[string]int{}
	for _, device := range []string{"net0", "net1"} {
		link, err := b.Netlink().LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		index[device] = link.Attrs().Index
	}
	for _, r := range []struct {
		device   string
		src, dst netip.Addr
		mark     uint32
	}{
		{"net0", netip.Addr{}, peer4, 0}, {"net0", netip.Addr{}, peer6, 0},
		{"net1", other4, peer4, 0}, {"net1", other6, peer6, 0},
		{"net1", netip.Addr{}, peer4, mark}, {"net1", netip.Addr{}, peer6, mark},
	} {
		steer(t, b, index[r.device], r.src, r.dst, r.mark)
	}
	// IPv6 does not send by a device without a route, even who is bound to it.
	if err := b.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: index["net1"], Dst: netlink.NewIPNet(peer6.AsSlice()), Priority: 1 << 20,
	}); err != nil {
		t.Fatal(err)
	}
	// Nobody answers for the peers, which need not exist.
	for device, i := range index {
		link, err := a.Netlink().LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		for _, peer := range []netip.Addr{peer4, peer6} {
			if err := b.Netlink().NeighSet(&netlink.Neigh{
				LinkIndex: i, IP: peer.AsSlice(), HardwareAddr: link.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	llA, llB := linkLocal(t, a), linkLocal(t, b)
	for _, test := range []struct {
		name     string
		from, to netip.Addr
		options  []rawfin.Option
		device   string // that it arrives on
	}{
		{"IPv4", hosttest.B4, peer4, nil, "net0"},
		{"IPv6", hosttest.B6, peer6, nil, "net0"},
		{"IPv4-mapped", mapped(netip.AddrPortFrom(hosttest.B4, 0)).Addr(), mapped(netip.AddrPortFrom(peer4, 0)).Addr(), nil, "net0"},
		{"link-local", llB, llA.WithZone(llB.Zone()), nil, "net0"},
		{"IPv4, routed by its source", other4, peer4, nil, "net1"},
		{"IPv6, routed by its source", other6, peer6, nil, "net1"},
		{"IPv4, routed by its mark", hosttest.B4, peer4, []rawfin.Option{rawfin.WithMark(mark)}, "net1"},
		{"IPv6, routed by its mark", hosttest.B6, peer6, []rawfin.Option{rawfin.WithMark(mark)}, "net1"},
		{"IPv4, bound to a device", hosttest.B4, peer4, []rawfin.Option{rawfin.WithDevice(index["net1"])}, "net1"},
		{"IPv6, bound to a device", hosttest.B6, peer6, []rawfin.Option{rawfin.WithDevice(index["net1"])}, "net1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := segment(netip.AddrPortFrom(test.from, 1000), netip.AddrPortFrom(test.to, 2000), rawfin.ACK)
			s.Timestamps, s.TSVal, s.TSEcr = true, 7, 8
			type arrival struct {
				wire.Segment
				device string
			}
			arrived := make(chan arrival, 10)
			for device := range index {
				stop := watch(t, a, device, func(got wire.Segment) {
					if !got.ICMP && got.Src.Port() == s.Src.Port() {
						arrived <- arrival{got, device}
					}
				})
				defer stop()
			}
			if err := open(t, b, append([]rawfin.Option{rawfin.WithMark(0)}, test.options...)...).Send(s); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-arrived:
				if got.device != test.device {
					t.Errorf("it went by %s, want %s", got.device, test.device)
				}
				same(t, s, got.Segment)
			case <-time.After(patience):
				t.Error("nothing arrived")
			}
		})
	}
}

// steer has a host send to a peer by a device: all, or what has a source or a mark.
func steer(t *testing.T, h *host.Host, device int, src, dst netip.Addr, mark uint32) {
	t.Helper()
	route := netlink.Route{LinkIndex: device, Dst: netlink.NewIPNet(dst.AsSlice()), Scope: netlink.SCOPE_LINK}
	if src.IsValid() || mark != 0 {
		rule := netlink.NewRule()
		rule.Family = map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[dst.Is4()]
		rule.Table, rule.Mark = 100, mark
		if src.IsValid() {
			rule.Src = netlink.NewIPNet(src.AsSlice())
		}
		route.Table = rule.Table
		if err := h.Netlink().RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Netlink().RouteReplace(&route); err != nil {
		t.Fatal(err)
	}
}

// watch captures what passes a device of a host, until it is stopped.
func watch(t *testing.T, h *host.Host, device string, each func(wire.Segment)) (stop func()) {
	t.Helper()
	var c *wire.Capture
	hosttest.Do(t, h, func() (err error) {
		c, err = wire.Watch(device, each)
		return err
	})
	return func() {
		if _, err := c.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// same compares what arrived with what was sent.
func same(t *testing.T, s rawfin.Segment, got wire.Segment) {
	t.Helper()
	bare := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	if got.Src != bare(s.Src) || got.Dst != bare(s.Dst) || got.Seq != s.Seq || got.Ack != s.Ack || got.Window != s.Window ||
		rawfin.Flags(got.Flags) != s.Flags || !got.HasTimestamp || got.TSVal != s.TSVal || got.Len != 0 {
		t.Errorf("%+v arrived, %+v was sent", got, s)
	}
}

// What is not sent says why.
func TestSendFails(t *testing.T) {
	_, b := hosttest.Pair(t)
	to4 := segment(netip.AddrPortFrom(hosttest.B4, 1), netip.AddrPortFrom(hosttest.A4, 2), rawfin.ACK)
	to6 := segment(netip.AddrPortFrom(hosttest.B6, 1), netip.AddrPortFrom(hosttest.A6, 2), rawfin.ACK)
	for _, s := range []rawfin.Segment{to4, to6} {
		nowhere := s
		nowhere.Dst = map[bool]netip.AddrPort{
			true: netip.MustParseAddrPort("203.0.113.1:2"), false: netip.MustParseAddrPort("[2001:db8::1]:2"),
		}[s.Dst.Addr().Is4()]
		if err := open(t, b).Send(nowhere); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("no route: %v", err)
		}
		if err := open(t, b, rawfin.WithLink()).Send(s); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("at the link layer: %v", err)
		}
	}
	if err := open(t, b, rawfin.WithFamily(hosttest.B4)).Send(to6); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("of the other family: %v", err)
	}
	invalid := to4
	invalid.Dst = netip.AddrPort{}
	if _, ok := errors.AsType[*rawfin.SegmentError](open(t, b).Send(invalid)); !ok {
		t.Error("a segment without a destination was sent")
	}
	firewall(t, b)
	for _, s := range []rawfin.Segment{to4, to6} {
		if _, ok := errors.AsType[*rawfin.DroppedError](open(t, b).Send(s)); !ok {
			t.Errorf("to %v: the firewall was not noticed", s.Dst)
		}
	}
}
