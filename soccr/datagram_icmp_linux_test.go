package soccr_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// allowPing lets the test's own group have ping sockets on a host, as most
// distributions let everybody.
func allowPing(t *testing.T, h *host.Host) {
	t.Helper()
	group := unix.Getegid()
	if err := h.Sysctl("net.ipv4.ping_group_range", fmt.Sprintf("%d %d", group, group)); err != nil {
		t.Fatal(err)
	}
}

// An icmp is what differs between ICMP and ICMPv6.
type icmp struct {
	family
	protocol       int
	request, reply byte
	// onlyReplies is a filter of raw sockets.
	onlyReplies soccr.Setting
}

var icmps = []icmp{
	{ip4, unix.IPPROTO_ICMP, 8, 0, soccr.Setting{Name: "ICMP_FILTER", Number: int64(^int32(1))}},
	{ip6, unix.IPPROTO_ICMPV6, 128, 129, soccr.Setting{Name: "ICMPV6_FILTER", Bytes: onlyEchoReplies6()}},
}

// onlyEchoReplies6 has a bit for each type: those that are set do not pass.
func onlyEchoReplies6() (b []byte) {
	for i := range 8 {
		word := ^uint32(0)
		if i == 129/32 {
			word ^= 1 << (129 % 32)
		}
		b = binary.NativeEndian.AppendUint32(b, word)
	}
	return b
}

// echo asks for an echo and waits for it.
func (i icmp) echo(t *testing.T, fd int, sequence uint16, to unix.Sockaddr) {
	t.Helper()
	i.ask(t, fd, sequence, to)
	ident := uint16(rawIdent)
	if style, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && style == unix.SOCK_DGRAM {
		ident = name(t, fd).Port()
	}
	b := packet(t, fd)
	if len(b) < 8 || b[0] != i.reply || binary.BigEndian.Uint16(b[4:]) != ident || binary.BigEndian.Uint16(b[6:]) != sequence {
		t.Fatalf("the answer to %d is %x", sequence, b)
	}
}

// rawIdent is the identifier of raw sockets' requests; ping sockets have their own.
const rawIdent = 0x1234

func (i icmp) ask(t *testing.T, fd int, sequence uint16, to unix.Sockaddr) {
	t.Helper()
	b := []byte{i.request, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, rawIdent)
	b = binary.BigEndian.AppendUint16(b, sequence)
	sum := uint32(i.request)<<8 + rawIdent + uint32(sequence) // which only a raw socket of IPv4 has to know
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	sendTo(t, fd, b, to)
}

// packet waits for a packet and reads it, without the header that raw sockets of
// IPv4 have it with.
func packet(t *testing.T, fd int) []byte {
	t.Helper()
	b := make([]byte, 200)
	var count int
	eventually(t, "a packet is here", func() bool {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		count = n
		return err == nil
	})
	if b = b[:count]; count > 20 && b[0] == 0x45 {
		return b[20:]
	}
	return b
}

// Ping sockets keep their identifier and their peer, and go on. What had not been
// read is left in the old one.
func TestPingSockets(t *testing.T) {
	n := newNetwork(t)
	allowPing(t, n.here)
	for _, i := range icmps {
		for _, c := range []struct {
			name             string
			bound, connected bool
		}{{"new", false, false}, {"bound", true, false}, {"connected", false, true}, {"both", true, true}} {
			t.Run(i.name+"/"+c.name, func(t *testing.T) {
				fd := n.rawSocket(t, i.domain(), unix.SOCK_DGRAM, i.protocol)
				to := i.sockaddr(i.there, 0)
				if c.bound {
					if err := unix.Bind(fd, i.sockaddr(i.here, 777)); err != nil {
						t.Fatal(err)
					}
				}
				remote := netip.AddrPort{}
				if c.connected {
					if err := unix.Connect(fd, to); err != nil {
						t.Fatal(err)
					}
					remote, to = netip.AddrPortFrom(i.there, 0), nil
				}
				for sequence := range uint16(2) {
					local := name(t, fd)
					snap, moved, lost := n.moveDatagram(t, fd)
					if fd = moved; !snap.Ping || snap.Local != local || snap.Remote != remote || lost != nil {
						t.Fatalf("at %v, connected to %v: saved %+v, lost %v", local, remote, snap, lost)
					}
					i.echo(t, fd, sequence, to)
				}
				i.ask(t, fd, 9, to)
				waits(t, fd)
				_, fd, _ = n.moveDatagram(t, fd)
				i.echo(t, fd, 10, to)
			})
		}
	}
}

// waits is over when there is something to read.
func waits(t *testing.T, fd int) {
	t.Helper()
	eventually(t, "something waits", func() bool {
		poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll[:], 0)
		return err == nil && n == 1
	})
}

// Raw sockets keep their protocol, ends and filter, and go on. What had not been
// read is left in the old one.
func TestRawSockets(t *testing.T) {
	n := newNetwork(t)
	const protocol = 253 // for experiments (RFC 3692)
	for _, i := range icmps {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/connected %v", i.name, connected), func(t *testing.T) {
				to, remote := i.sockaddr(i.there, 0), netip.AddrPort{}
				connect := func(fd int) {
					if err := unix.Bind(fd, i.sockaddr(i.here, 0)); err != nil {
						t.Fatal(err)
					}
					if !connected {
						return
					}
					if err := unix.Connect(fd, i.sockaddr(i.there, 0)); err != nil {
						t.Fatal(err)
					}
					to, remote = nil, netip.AddrPortFrom(i.there, 0)
				}
				pings := n.rawSocket(t, i.domain(), unix.SOCK_RAW, i.protocol)
				if err := soccr.SetOption(pings, i.onlyReplies); err != nil {
					t.Fatal(err)
				}
				connect(pings)
				for sequence := range uint16(2) {
					snap, moved, lost := n.moveDatagram(t, pings)
					pings = moved
					filter, _ := snap.Options.Setting(i.onlyReplies.Name)
					if int(snap.Raw) != i.protocol || snap.Local != netip.AddrPortFrom(i.here, 0) || snap.Remote != remote || lost != nil ||
						filter.Number != i.onlyReplies.Number || !bytes.Equal(filter.Bytes, i.onlyReplies.Bytes) {
						t.Fatalf("saved %+v, lost %v", snap, lost)
					}
					i.echo(t, pings, sequence, to)
				}

				other := n.rawSocket(t, i.domain(), unix.SOCK_RAW, protocol)
				connect(other)
				peer := (&network{here: n.there}).rawSocket(t, i.domain(), unix.SOCK_RAW, protocol)
				sendTo(t, peer, []byte("unread"), i.sockaddr(i.here, 0))
				waits(t, other)
				_, other, _ = n.moveDatagram(t, other)
				sendTo(t, peer, []byte("ping"), i.sockaddr(i.here, 0))
				if got := packet(t, other); string(got) != "ping" {
					t.Errorf("read %q", got)
				}
				sendTo(t, other, []byte("pong"), to)
				if got := packet(t, peer); string(got) != "pong" {
					t.Errorf("the peer read %q", got)
				}
			})
		}
	}
}

// A raw socket is no *net.UDPConn, and a ping socket, as in Go programs, is one.
func TestConnsOfPingAndRawSockets(t *testing.T) {
	n := newNetwork(t)
	allowPing(t, n.here)
	ping := udpConn(t, n.rawSocket(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP))
	snap, err := soccr.CheckpointDatagram(ping)
	if err != nil {
		t.Fatal(err)
	}
	hosttest.Do(t, n.here, func() (err error) {
		ping, err = soccr.RestoreDatagram(snap)
		return err
	})
	ping.Close()
	if _, err := soccr.RestoreDatagram(&soccr.DatagramSnapshot{Raw: 253, Local: netip.MustParseAddrPort("0.0.0.0:0")}); !errors.Is(err, soccr.ErrNotUDP) {
		t.Errorf("a raw socket: %v", err)
	}
	// Not everybody may have them, and on a new host nobody.
	hosttest.Do(t, n.there, func() error {
		if _, err := soccr.NewDatagramSocket(snap); !errors.Is(err, soccr.ErrNoPermission) || !errors.Is(err, unix.EACCES) {
			t.Errorf("a ping socket of nobody: %v", err)
		}
		return nil
	})
}
