package soccr_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// preflight runs it here, and gives what it has found.
func (n *network) preflight(t *testing.T, connections []*soccr.Snapshot, listeners []*soccr.ListenerSnapshot, options ...soccr.Option) []*soccr.OpError {
	t.Helper()
	var result error
	hosttest.Do(t, n.here, func() error {
		result = soccr.Preflight(connections, listeners, options...)
		return nil
	})
	if result == nil {
		return nil
	}
	all, ok := errors.AsType[*soccr.PreflightError](result)
	if !ok || len(all.Problems) == 0 {
		t.Fatalf("%T: %v", result, result)
	}
	for _, p := range all.Problems {
		if !strings.Contains(result.Error(), p.Error()) {
			t.Errorf("%q does not contain %q", result.Error(), p.Error())
		}
	}
	return all.Problems
}

// Each problem is found, with what it is about, and where there is none, nothing is.
func TestPreflight(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			listener := n.listen(t, listening{family: f})
			n.dial(t, f, portOf(listener))
			waiting(t, listener, 1)
			conn, peer := n.serves(t, f, n.listen(t, listening{family: f}))
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
			snap := n.checkpoint(t, conn)
			l := n.checkpointListener(t, listener, soccr.WithInFlight(soccr.KeepInFlight))

			before := openDescriptors(t)
			if found := n.preflight(t, []*soccr.Snapshot{snap}, []*soccr.ListenerSnapshot{l}); found != nil {
				t.Errorf("nothing is wrong, but: %v", found)
			}
			change := func(do func(*soccr.Snapshot)) *soccr.Snapshot {
				s := *snap
				do(&s)
				return &s
			}
			setting := func(name string, number int64, text string) func(*soccr.Snapshot) {
				return func(s *soccr.Snapshot) {
					s.Options.Settings = []soccr.Setting{{Name: name, Number: number, Text: text}}
				}
			}
			unknown, unreachable := "192.0.2.1", "203.0.113.1"
			if f == ip6 {
				unknown, unreachable = "2001:db8::1", "2001:db8:9::1"
			}
			for _, c := range []struct {
				op   string
				want error
				snap *soccr.Snapshot
			}{
				{"validate", soccr.ErrInvalidSnapshot, change(func(s *soccr.Snapshot) { s.MSS = 0 })},
				{"address", soccr.ErrAddrNotAvailable, change(func(s *soccr.Snapshot) { s.Local = f.at(netip.MustParseAddr(unknown), 80) })},
				{"route", soccr.ErrNoRoute, change(func(s *soccr.Snapshot) { s.Remote = f.at(netip.MustParseAddr(unreachable), 80) })},
				{"device", soccr.ErrNoDevice, change(setting("SO_BINDTODEVICE", 0, "nosuch"))},
				{"congestion control", soccr.ErrNoCongestion, change(func(s *soccr.Snapshot) { s.Options.Congestion = "nosuch" })},
			} {
				found := n.preflight(t, []*soccr.Snapshot{c.snap}, nil)
				if len(found) != 1 || found[0].Op != c.op || !errors.Is(found[0], c.want) || found[0].Local != c.snap.Local {
					t.Errorf("%s: %v; want %v", c.op, found, c.want)
				}
				if found := n.preflight(t, []*soccr.Snapshot{c.snap}, nil, soccr.WithClosed()); found != nil && c.op != "validate" {
					t.Errorf("%s, of what comes back as closed: %v", c.op, found)
				}
				// It is right: Restore says the same.
				err := n.here.Do(func() error {
					_, err := soccr.RestoreConn(c.snap)
					return err
				})
				if !errors.Is(err, c.want) {
					t.Errorf("%s: Restore: %v", c.op, err)
				}
			}
			all := n.preflight(t, []*soccr.Snapshot{snap, snap}, []*soccr.ListenerSnapshot{l, l})
			if len(all) != 3 { // the connection, the listener, and what is pending
				t.Errorf("two of each: %v", all)
			}
			for _, problem := range all {
				if !errors.Is(problem, soccr.ErrAddrInUse) {
					t.Errorf("two of each: %v", problem)
				}
			}
			broken := *l
			broken.Pending = []*soccr.Snapshot{nil}
			if all := n.preflight(t, nil, []*soccr.ListenerSnapshot{&broken}); len(all) != 1 || !errors.Is(all[0], soccr.ErrInvalidSnapshot) {
				t.Errorf("nothing where a connection should be pending: %v", all)
			}
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors are open, there were %d", after, before)
			}

			// Nothing was touched.
			moved := n.restore(t, snap)
			expectEOF(t, "conn", moved)
			write(t, moved, []byte("ping"))
			expect(t, "peer", peer, []byte("ping"))

			// What is there again is in the way.
			found := n.preflight(t, []*soccr.Snapshot{snap}, nil)
			if len(found) != 1 || found[0].Op != "flow" || !errors.Is(found[0], soccr.ErrAddrInUse) || found[0].Remote != snap.Remote {
				t.Errorf("a flow that is in use: %v", found)
			}
			n.restoreListener(t, l)
			found = n.preflight(t, nil, []*soccr.ListenerSnapshot{l})
			if len(found) != 2 || found[0].Op != "port" || found[1].Op != "flow" || !errors.Is(found[0], soccr.ErrAddrInUse) {
				t.Errorf("a port that is in use: %v", found)
			}
		})
	}
}

// A port with connections is free for their listener, one with another socket is
// not, unless they share it.
func TestPreflightOfPorts(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l := listening{family: f}
			listener := n.listen(t, l)
			n.serves(t, f, listener)
			snap := n.checkpointListener(t, listener)
			if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{snap}); found != nil {
				t.Errorf("beside its child: %v", found)
			}
			shared := *snap
			shared.Options.Settings = append([]soccr.Setting{}, snap.Options.Settings...)
			shared.Options.Settings = append(shared.Options.Settings, soccr.Setting{Name: "SO_REUSEPORT", Number: 1})
			if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{&shared, &shared}); found != nil {
				t.Errorf("a group: %v", found)
			}
			l.set = reusePort
			other := n.listen(t, l)
			shared.Local = netip.AddrPortFrom(shared.Local.Addr(), portOf(other))
			if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{&shared}); found != nil {
				t.Errorf("in a group that is there: %v", found)
			}
			alone := *snap
			alone.Local = shared.Local
			if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{&alone}); len(found) != 1 || !errors.Is(found[0], soccr.ErrAddrInUse) {
				t.Errorf("beside a group: %v", found)
			}
		})
	}
}

// One listener for IPv4 and one for IPv6 alone share a port, also where it is found
// in use by connections.
func TestPreflightOfBothFamilies(t *testing.T) {
	n := newNetwork(t)
	listener := n.listen(t, listening{family: ip4})
	port := portOf(listener)
	_, peer := n.serves(t, ip4, listener)
	defer reset(t, peer)
	listener.Close()
	four := &soccr.ListenerSnapshot{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port), Backlog: 5}
	six := &soccr.ListenerSnapshot{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Backlog: 5}
	if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{four, six}); len(found) != 1 || !errors.Is(found[0], soccr.ErrAddrInUse) {
		t.Errorf("IPv4, and both: %v", found)
	}
	six.Options.Settings = []soccr.Setting{{Name: "IPV6_V6ONLY", Number: 1}}
	if found := n.preflight(t, nil, []*soccr.ListenerSnapshot{four, six}); found != nil {
		t.Errorf("one of each: %v", found)
	}
	n.restoreListener(t, six)
	n.serves(t, ip4, n.restoreListener(t, four))
}

// Who may not restore is told so once, however many connections there are.
func TestPreflightWithoutPermission(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	inState(t, conn, soccr.StateCloseWait)
	snap := n.checkpoint(t, conn)
	second := *snap
	second.Remote = netip.AddrPortFrom(snap.Remote.Addr(), 1)
	var result error
	hosttest.Do(t, n.here, func() error { // a thread that ends afterwards
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		result = soccr.Preflight([]*soccr.Snapshot{snap, &second}, nil)
		return nil
	})
	all, ok := errors.AsType[*soccr.PreflightError](result)
	if !ok || len(all.Problems) != 2 || !errors.Is(all.Problems[0], soccr.ErrNoPermission) || all.Problems[1].Op != "raw socket" {
		t.Errorf("found %v", result)
	}
	if text := fmt.Sprint(result); !strings.Contains(text, "CAP_NET_ADMIN") {
		t.Errorf("%q does not say what is missing", text)
	}
}

// Queues that this user's buffers cannot hold are found before the connection is
// taken apart, whether it is to go into a new socket or into one that there is.
func TestCheckQueues(t *testing.T) {
	hosttest.Need(t)
	snap := &soccr.Snapshot{State: soccr.StateEstablished, Local: netip.MustParseAddrPort("127.0.0.1:1"), Remote: netip.MustParseAddrPort("127.0.0.1:2")}
	n := network{here: hosttest.New(t)}
	own, err := soccr.Pause(n.newSocket(t, snap))
	if err != nil {
		t.Fatal(err)
	}
	largest, err := host.LargestSendBuffer()
	if err != nil {
		t.Fatal(err)
	}
	for way, check := range map[string]func(*soccr.Snapshot) error{"new": soccr.CheckQueues, "own": own.CheckQueues} {
		for _, queue := range []*[]byte{&snap.RecvQueue, &snap.SendQueue} {
			for _, size := range []int{0, 1000, 100_000} {
				*queue = make([]byte, size)
				if err := check(snap); err != nil {
					t.Errorf("%s: %d bytes: %v", way, size, err)
				}
			}
			*queue = make([]byte, soccr.MaxQueue) // never touched, and so no memory
			err := check(snap)
			if restorable := largest == 0 || largest > soccr.MaxQueue; restorable != (err == nil) {
				t.Errorf("%s: %d bytes: %v", way, len(*queue), err)
			}
			if err != nil && !errors.Is(err, soccr.ErrBuffer) {
				t.Error(err)
			}
			*queue = nil
		}
	}
}
