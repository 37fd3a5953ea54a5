package rawfin_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/rawfin"
)

// At the link layer a FIN reaches the socket past an OUTPUT that drops all, and
// nothing of it leaves the host.
func TestWithLink(t *testing.T) {
	a, b := hosttest.Pair(t)
	i := open(t, b, rawfin.WithLink())
	for _, test := range []struct {
		name, network string
		to            netip.Addr
	}{{"IPv4", "", hosttest.B4}, {"IPv6", "", hosttest.B6}, {"IPv4-mapped", "mapped", hosttest.B4}} {
		t.Run(test.name, func(t *testing.T) {
			_, local := connect(t, a, b, netip.Addr{}, test.to, test.network)
			s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
			firewall(t, b)
			if err := open(t, b).Inject(s); !errors.Is(err, unix.EPERM) {
				t.Errorf("through OUTPUT: %v, want EPERM", err)
			}
			wire := capture(t, a)
			if err := i.Inject(s); err != nil {
				t.Fatal(err)
			}
			waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
			wire.wantNoneSent(t, s)
		})
	}
}

// wantNoneSent looks at what has arrived by now: a veth delivers at once.
func (c tap) wantNoneSent(t *testing.T, s rawfin.Segment) {
	t.Helper()
	frame := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(c.fd, frame, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		packet := gopacket.NewPacket(frame[:n], layers.LayerTypeEthernet, gopacket.Default)
		if tcp, ok := packet.TransportLayer().(*layers.TCP); ok {
			t.Errorf("about %v the host sent %v", s, tcp)
		}
	}
}

// The mark survives, so that rules on the way in can tell the segment.
func TestWithLinkKeepsTheMark(t *testing.T) {
	a, b := hosttest.Pair(t)
	_, local := connect(t, a, b, netip.Addr{}, hosttest.B4, "")
	s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
	const mark = 0x2a
	dropInput(t, b, mark)
	if err := open(t, b, rawfin.WithLink(), rawfin.WithMark(mark)).Inject(s); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for what must not happen
	if state := info(t, local).State; state != unix.BPF_TCP_ESTABLISHED {
		t.Fatalf("socket is in state %d: the segment had another mark", state)
	}
	if err := open(t, b, rawfin.WithLink(), rawfin.WithMark(mark+1)).Inject(s); err != nil {
		t.Fatal(err)
	}
	waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
}

// What stands in the way of a segment that comes in by the loopback device, and
// the settings that let it through.
func TestWithLinkConditions(t *testing.T) {
	type sysctl struct{ name, value string }
	for _, test := range []struct {
		name                  string
		sameHost              bool
		to                    netip.Addr
		obstacle, withoutThat sysctl
	}{
		{"strict reverse path filter", false, hosttest.B4,
			sysctl{"net.ipv4.conf.lo.rp_filter", "1"}, sysctl{"net.ipv4.conf.lo.rp_filter", "2"}},
		{"both ends on one host", true, hosttest.B4,
			sysctl{"net.ipv4.conf.lo.accept_local", "0"}, sysctl{"net.ipv4.conf.lo.accept_local", "1"}},
		{"127.0.0.1", true, netip.MustParseAddr("127.0.0.1"),
			sysctl{"net.ipv4.conf.lo.accept_local", "1"}, sysctl{"net.ipv4.conf.lo.route_localnet", "1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a, b := hosttest.Pair(t)
			set := func(s sysctl) {
				if err := b.Sysctl(s.name, s.value); err != nil {
					t.Fatal(err)
				}
			}
			// A new socket, unlike these, has no route in store for what comes in.
			set(sysctl{"net.ipv4.tcp_early_demux", "0"})
			set(test.obstacle)
			from := map[bool]*host.Host{false: a, true: b}[test.sameHost]
			_, local := connect(t, from, b, netip.Addr{}, test.to, "")
			s := fromPeer(t, local, rawfin.FIN|rawfin.ACK)
			i := open(t, b, rawfin.WithLink())
			inject := func() {
				t.Helper()
				if err := i.Inject(s); err != nil {
					t.Fatal(err)
				}
			}
			inject()
			time.Sleep(20 * time.Millisecond) // for what must not happen
			if state := info(t, local).State; state != unix.BPF_TCP_ESTABLISHED {
				t.Fatalf("socket is in state %d", state)
			}
			set(test.withoutThat)
			inject()
			waitState(t, local, unix.BPF_TCP_CLOSE_WAIT)
		})
	}
}

// Destinations that the loopback device cannot deliver to, or must not.
func TestWithLinkRefuses(t *testing.T) {
	a, b := hosttest.Pair(t)
	i := open(t, b, rawfin.WithLink())
	for name, s := range map[string]rawfin.Segment{
		"of another host": segment(netip.AddrPortFrom(hosttest.B4, 1), netip.AddrPortFrom(hosttest.A4, 2), rawfin.ACK),
		"link-local":      segment(netip.AddrPortFrom(linkLocal(t, a), 1), netip.AddrPortFrom(linkLocal(t, b), 2), rawfin.ACK),
	} {
		err := i.Inject(s)
		if _, ok := errors.AsType[*rawfin.SegmentError](err); !ok {
			t.Errorf("%s: got %v, want a SegmentError", name, err)
		}
	}
}
