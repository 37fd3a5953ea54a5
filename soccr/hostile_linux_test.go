package soccr_test

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var (
	hostileCount = flag.Int("hostile", 600, "how many mutated snapshots of each kind TestHostile restores")
	hostileFirst = flag.Int("hostile.first", 0, "the first of them")
	hostileSeed  = flag.Uint64("hostile.seed", 1, "what they are made from")
)

// TestHostile restores snapshots in which anything may be wrong. Each is refused with
// an error that says what it is, but not what is in the queues, and leaves nothing, or
// becomes the socket that it describes; and no packet goes to anybody but its peer. By
// hand, for longer:
//
//	go test ./soccr -run TestHostile -v -timeout 1h -hostile 100000 -hostile.seed $RANDOM
//
// A failure names its input; -hostile 1 -hostile.first N is that one alone.
func TestHostile(t *testing.T) {
	t.Run("connections", func(t *testing.T) { newRig(t).run(t, soccr.TCP, (*rig).connection) })
	t.Run("listeners", func(t *testing.T) { newRig(t).run(t, soccr.TCP, (*rig).listener) })
	t.Run("datagrams", func(t *testing.T) { newRig(t).run(t, soccr.UDP, (*rig).datagram) })
}

// A rig is where hostile snapshots are restored: a host whose peer never answers, and
// on which all packets are watched.
type rig struct {
	*network
	t     *testing.T
	m     mutator
	input int
	watch *strangers

	secrets [][]byte // of this input
	seen    map[string]int
}

func newRig(t *testing.T) *rig {
	r := &rig{network: newNetwork(t), t: t, seen: make(map[string]int)}
	mute, err := netlock.Namespace(netlock.WithNetNS(r.there.FD()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mute.Close(); err != nil {
			t.Error(err)
		}
	})
	hosttest.Do(t, r.here, func() error { // everybody else is behind the peer
		for _, via := range []netip.Addr{ip4.there, ip6.there} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: via.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
	r.watch = watchStrangers(t, r.network)
	return r
}

// run restores as many as are wanted, one after the other.
func (r *rig) run(t *testing.T, on soccr.Sockets, restore func(*rig) (what string, err error)) {
	fds := openFiles(t)
	start := time.Now()
	for i := range *hostileCount {
		r.input = *hostileFirst + i
		r.secrets = nil
		r.m = mutator{rand.New(rand.NewPCG(*hostileSeed, uint64(r.input))), on}
		hang := time.AfterFunc(time.Minute, func() {
			stacks := make([]byte, 1<<20)
			panic(fmt.Sprintf("input %d hangs\n%s", r.input, stacks[:runtime.Stack(stacks, true)]))
		})
		var what string
		var err error
		hosttest.Do(t, r.here, func() error { what, err = restore(r); return nil })
		hang.Stop()
		r.seen[r.judge(what, err)]++
	}
	took := time.Since(start)
	if now := openFiles(t); len(now) > len(fds) {
		t.Errorf("descriptors are left: there were %d, and are %d: %v", len(fds), len(now), now)
	}
	r.watch.stop(t)
	t.Logf("%d inputs in %v: %.0f per second, seed %d", *hostileCount, took.Round(time.Millisecond), float64(*hostileCount)/took.Seconds(), *hostileSeed)
	for _, what := range slices.SortedFunc(maps.Keys(r.seen), func(a, b string) int { return cmp.Compare(r.seen[b], r.seen[a]) }) {
		t.Logf("%7d %s", r.seen[what], what)
	}
}

func (r *rig) errorf(format string, args ...any) {
	r.t.Helper()
	r.t.Errorf("input %d of seed %d: %s", r.input, *hostileSeed, fmt.Sprintf(format, args...))
}

// judge sorts an outcome, and complains of an error that does not say what is wrong.
func (r *rig) judge(what string, err error) string {
	if err == nil {
		return what
	}
	for _, secret := range r.secrets {
		if text := err.Error(); soccr.Shows(text, secret[:min(32, len(secret))]) {
			r.errorf("%s: the error shows %.32q: %s", what, secret, text)
		}
	}
	if wrong, ok := errors.AsType[*soccr.FieldError](err); ok && errors.Is(err, soccr.ErrInvalidSnapshot) {
		field, _, _ := strings.Cut(wrong.Field, "[")
		return "invalid: " + field
	}
	if what == "undecodable" {
		if !errors.Is(err, soccr.ErrInvalidSnapshot) {
			r.errorf("not decoded: %v", err)
		}
		return what
	}
	op, ok := errors.AsType[*soccr.OpError](err)
	if !ok {
		r.errorf("%s: the error is no *OpError: %v", what, err)
		return what
	}
	if wrong, ok := errors.AsType[*soccr.FieldError](err); ok && errors.Is(err, soccr.ErrMismatch) {
		return op.Op + ": mismatch: " + wrong.Field
	}
	for _, reason := range refusals {
		if errors.Is(err, reason) {
			return op.Op + ": " + reason.Error()
		}
	}
	r.errorf("%s: the error has no reason: %v", what, err)
	return op.Op + ": " + op.Err.Error()
}

// refusals are the reasons that a valid snapshot may be refused for.
var refusals = []error{soccr.ErrState, soccr.ErrAddrInUse, soccr.ErrAddrNotAvailable, soccr.ErrNoDevice, soccr.ErrOption, soccr.ErrNoCongestion, soccr.ErrNoRoute,
	soccr.ErrNoPermission, soccr.ErrBuffer, soccr.ErrInjection}

func openFiles(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name, _ := os.Readlink("/proc/self/fd/" + e.Name())
		names = append(names, name)
	}
	return names
}

// port is another one for each input, so that packets tell whose they are.
func (r *rig) port() uint16 { return uint16(1024 + r.input%60_000) }

// seed is a good snapshot of a connection: of any state and family, with anything in
// its queues.
func (r *rig) seed() *soccr.Snapshot {
	m, f := r.m, pick(r.m, families...)
	s := &soccr.Snapshot{
		State: pick(m, soccr.StateEstablished, soccr.StateEstablished, soccr.StateEstablished, soccr.StateSynSent, soccr.StateFinWait1, soccr.StateFinWait2,
			soccr.StateCloseWait, soccr.StateClosing, soccr.StateLastAck, soccr.StateTimeWait, soccr.StateClose),
		Local: netip.AddrPortFrom(f.here, 7777), Remote: netip.AddrPortFrom(f.there, r.port()),
		SendSeq: pick(m, 0, 5, 1<<31, m.Uint32()), RecvSeq: pick(m, 0, 7, 1<<31, m.Uint32()), MSS: pick[uint32](m, 1400, 536, 65495),
		SACK: true, Timestamp: soccr.Timestamp{Enabled: m.IntN(2) == 0, Value: m.Uint32()},
		Window:  soccr.Window{SndWnd: 64 << 10, MaxWindow: 64 << 10, RcvWnd: 64 << 10},
		Path:    soccr.Path{RTT: 1000, RTTVar: 500, MinRTT: 900, RTO: 201_000, Cwnd: 20, Saved: time.Now().UnixMilli()},
		Options: soccr.Options{NonBlocking: true, ReuseAddr: m.IntN(2) == 0},
	}
	if f == mapped {
		s.Local, s.Remote = mapEnd(s.Local), mapEnd(s.Remote)
	}
	if m.IntN(2) == 0 {
		s.WindowScaling, s.SendScale, s.RecvScale = true, uint8(m.IntN(15)), uint8(m.IntN(15))
	}
	if s.State != soccr.StateSynSent {
		s.RecvQueue = pattern(1, m.IntN(3)*m.IntN(3000))
	}
	switch s.State {
	case soccr.StateEstablished, soccr.StateCloseWait, soccr.StateFinWait1, soccr.StateClosing, soccr.StateLastAck:
		s.SendQueue = pattern(2, m.IntN(3)*m.IntN(3000))
		if s.State == soccr.StateEstablished || s.State == soccr.StateCloseWait {
			s.Unsent = m.IntN(len(s.SendQueue) + 1)
		}
	}
	s.Window.RcvWup, s.Window.SndWl1 = s.RecvSeq, s.RecvSeq
	if m.IntN(8) == 0 {
		s.MD5Keys = []soccr.MD5Key{{Peers: netip.PrefixFrom(f.there, f.there.BitLen()), Key: []byte("key")}}
	}
	return s
}

func mapEnd(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

// connection restores a hostile connection, and compares.
func (r *rig) connection() (string, error) {
	snap := r.seed()
	r.m.on |= pick(r.m, soccr.IPv4, soccr.IPv6) | soccr.Connected
	switch r.m.IntN(16) {
	case 0: // as it is
	case 1, 2, 3:
		changed := new(soccr.Snapshot)
		if err := r.m.remake(snap, changed); err != nil {
			return "undecodable", err
		}
		snap = changed
	default:
		r.m.change(snap)
	}
	r.m.add(&snap.Options)
	r.secrets = append(r.secrets, snap.RecvQueue, snap.SendQueue)
	for _, k := range snap.MD5Keys {
		r.secrets = append(r.secrets, k.Key)
	}
	r.watch.expect(snap.Local, snap.Remote)
	var losses []soccr.Loss
	options := []soccr.Option{soccr.WithLosses(func(l soccr.Loss) { losses = append(losses, l) })}
	how := pick(r.m, "", "", "", "primed", "plain", "closed")
	switch how {
	case "primed":
		options = append(options, soccr.WithPath(soccr.PathSame))
	case "plain":
		options = append(options, soccr.WithPlain())
	case "closed":
		options = append(options, soccr.WithClosed())
	}

	before := marshalJSON(snap)
	defer func() {
		if after := marshalJSON(snap); after != before {
			r.errorf("Restore changed the snapshot:\n%s\n%s", before, after)
		}
	}()
	if r.m.IntN(4) == 0 {
		conn, err := soccr.RestoreConn(snap, options...)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return "reset", nil // by this host, where nobody knows of it
		}
		if err != nil {
			return "conn", err
		}
		abort(conn)
		return "conn restored", nil
	}
	fd, err := soccr.NewSocket(snap)
	if err != nil {
		return "socket", err
	}
	defer func() {
		if err := unix.Close(fd); err != nil {
			r.errorf("close: %v", err)
		}
	}()
	s, err := soccr.Pause(fd, options...)
	if err != nil {
		return "pause", err
	}
	if err := s.Restore(snap); err != nil {
		return "restore", err
	}
	if r.m.IntN(3) == 0 {
		s.Release()
		return "restored", nil
	}
	if err := s.Resume(); errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // likewise
		s.Release()
		return "reset", nil
	} else if err != nil {
		return "resume", err
	}
	if how == "closed" || snap.State == soccr.StateTimeWait || snap.State == soccr.StateClose {
		return "resumed, closed", nil
	}
	return r.compare(fd, snap, losses)
}

// sortedKeys are keys in an order that does not matter to the kernel.
func sortedKeys(keys []soccr.MD5Key) string {
	var all []string
	for _, k := range keys {
		all = append(all, fmt.Sprintf("%v %x", k.Peers, k.Key))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// brief is a snapshot without what is long.
func brief(s *soccr.Snapshot) string {
	short := *s
	short.RecvQueue, short.SendQueue = nil, nil
	return fmt.Sprintf("%d and %d bytes, %s", len(s.RecvQueue), len(s.SendQueue), marshalJSON(short))
}

func marshalJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// compare saves the connection again, and silences it.
func (r *rig) compare(fd int, want *soccr.Snapshot, losses []soccr.Loss) (string, error) {
	s, err := soccr.Pause(fd)
	if err != nil {
		return "pause again", err
	}
	defer s.Release()
	got, err := s.Save()
	for i := 0; i < 5 && errors.Is(err, soccr.ErrChanged); i++ {
		got, err = s.Save()
	}
	if err != nil {
		r.errorf("the restored connection cannot be saved: %v: %s", err, brief(want))
		return "not saved", nil
	}
	if remote := want.Remote.Addr().Unmap(); got.State == soccr.StateClose && (remote.IsLoopback() || remote == ip4.here || remote == ip6.here) {
		return "reset", nil // likewise
	}
	type row struct {
		field     string
		want, got any
	}
	rows := []row{
		{"State", want.State, got.State}, {"Local", want.Local, got.Local}, {"Remote", want.Remote, got.Remote},
		{"SendSeq", want.SendSeq, got.SendSeq}, {"RecvSeq", want.RecvSeq, got.RecvSeq},
		{"RecvQueue", string(want.RecvQueue), string(got.RecvQueue)}, {"SendQueue", string(want.SendQueue), string(got.SendQueue)},
		{"SACK", want.SACK, got.SACK}, {"Timestamp", want.Timestamp.Enabled, got.Timestamp.Enabled},
		{"SendScale", want.SendScale, got.SendScale}, {"RecvScale", want.RecvScale, got.RecvScale}, {"MSS", want.MSS, got.MSS},
		{"MD5Keys", sortedKeys(want.MD5Keys), sortedKeys(got.MD5Keys)},
		{"ReuseAddr", want.Options.ReuseAddr, got.Options.ReuseAddr}, {"NonBlocking", want.Options.NonBlocking, got.Options.NonBlocking},
		{"ReadShutdown", want.Options.ReadShutdown, got.Options.ReadShutdown},
	}
	if want.State == soccr.StateSynSent { // its connect(2) begins anew
		rows = rows[:3]
	}
	for _, row := range rows {
		if row.want != row.got {
			r.errorf("%s is %.60q, want %.60q: %s", row.field, fmt.Sprint(row.got), fmt.Sprint(row.want), brief(want))
			break
		}
	}
	return "resumed and compared", nil
}

// listener restores a hostile listener.
func (r *rig) listener() (string, error) {
	f := pick(r.m, ip4, ip6)
	r.m.on |= pick(r.m, soccr.IPv4, soccr.Dual) | soccr.Listening
	l := &soccr.ListenerSnapshot{
		Local: netip.AddrPortFrom(pick(r.m, f.here, f.anyAddr()), r.port()), Backlog: uint32(1 + r.m.IntN(1000)), Multipath: r.m.IntN(4) == 0,
		Options: soccr.Options{NonBlocking: true, ReuseAddr: true},
	}
	for range r.m.IntN(3) {
		s := r.seed()
		s.State, s.MD5Keys = soccr.StateEstablished, nil
		s.Local = netip.AddrPortFrom(s.Local.Addr(), l.Local.Port())
		l.Pending = append(l.Pending, s)
	}
	if r.m.IntN(4) == 0 {
		changed := new(soccr.ListenerSnapshot)
		if err := r.m.remake(l, changed); err != nil {
			return "undecodable", err
		}
		l = changed
	} else {
		r.m.change(l)
	}
	r.m.add(&l.Options)
	for _, s := range l.Pending {
		if s != nil {
			r.watch.expect(s.Local, s.Remote)
		}
	}
	if r.m.IntN(2) == 0 {
		listener, err := soccr.RestoreListener(l)
		if err != nil {
			return "listener", err
		}
		for range l.Pending {
			conn, err := listener.Accept()
			if err != nil {
				r.errorf("accept: %v", err)
				break
			}
			_ = conn.Close()
		}
		if err := listener.Close(); err != nil {
			r.errorf("close: %v", err)
		}
		return "listens, with its connections", nil
	}
	fd, err := soccr.NewListenerSocket(l)
	if err != nil {
		return "socket", err
	}
	defer unix.Close(fd)
	if err := soccr.StartListener(fd, l); err != nil {
		return "listener", err
	}
	got, err := soccr.SaveListener(fd)
	if err != nil {
		r.errorf("the restored listener cannot be saved: %v\n%s", err, marshalJSON(l))
		return "not saved", nil
	}
	if got.Local != l.Local || got.Multipath != l.Multipath || got.Options.ReuseAddr != l.Options.ReuseAddr || sortedKeys(got.MD5Keys) != sortedKeys(l.MD5Keys) {
		r.errorf("listens as %s, want %s", marshalJSON(got), marshalJSON(l))
	}
	return "listens", nil
}

// datagram restores a hostile datagram socket.
func (r *rig) datagram() (string, error) {
	f := pick(r.m, ip4, ip6)
	r.m.on |= pick(r.m, soccr.IPv4, soccr.Dual) | soccr.Unconnected
	d := &soccr.DatagramSnapshot{
		Local: netip.AddrPortFrom(pick(r.m, f.here, f.anyAddr()), r.port()), Lite: r.m.IntN(4) == 0,
		Options: soccr.Options{NonBlocking: true, ReuseAddr: r.m.IntN(2) == 0},
	}
	if f == ip6 && d.Local.Addr() == f.here { // inet6_bind sets it
		d.Options.Settings = []soccr.Setting{{Name: "IPV6_V6ONLY", Number: 1}}
	}
	if d.Local.Addr() == f.here && r.m.IntN(2) == 0 {
		d.Remote = netip.AddrPortFrom(f.there, r.port())
	}
	for range r.m.IntN(3) {
		d.RecvQueue = append(d.RecvQueue, soccr.Datagram{
			From: netip.AddrPortFrom(f.there, r.port()), To: f.here, HopLimit: 64, Data: pattern(3, r.m.IntN(3000))})
	}
	if r.m.IntN(3) == 0 {
		d.Groups = []soccr.Group{{Addr: pick(r.m, hostileAddrs[11], hostileAddrs[24]), Device: "net0"}}
	}
	if r.m.IntN(4) == 0 {
		changed := new(soccr.DatagramSnapshot)
		if err := r.m.remake(d, changed); err != nil {
			return "undecodable", err
		}
		d = changed
	} else {
		r.m.change(d)
	}
	r.m.add(&d.Options)
	r.watch.expect(d.Local, d.Remote)
	for _, one := range d.RecvQueue {
		r.secrets = append(r.secrets, one.Data)
		r.watch.expect(netip.AddrPortFrom(one.To, d.Local.Port()), one.From)
	}
	fd, err := soccr.NewDatagramSocket(d)
	if err != nil {
		return "socket", err
	}
	defer unix.Close(fd)
	var losses []soccr.Loss
	if err := soccr.StartDatagram(fd, d, soccr.WithLosses(func(l soccr.Loss) { losses = append(losses, l) })); err != nil {
		return "restore", err
	}
	got, err := soccr.SaveDatagram(fd)
	if err != nil {
		r.errorf("the restored socket cannot be saved: %v\n%s", err, marshalJSON(d))
		return "not saved", nil
	}
	if got.Local != d.Local && d.Local.Port() != 0 || got.Remote != d.Remote || got.Lite != d.Lite ||
		got.ReadShutdown != d.ReadShutdown || got.Options.ReuseAddr != d.Options.ReuseAddr {
		r.errorf("restored as %s, want %s", marshalJSON(got), marshalJSON(d))
	}
	want := 0
	for _, one := range d.RecvQueue {
		want++ // the kernel's own, if it makes one of many again (UDP_GRO)
		if one.Segment > 0 && len(one.Data) > 0 {
			want += (len(one.Data) - 1) / int(one.Segment)
		}
	}
	if _, one := d.Options.Setting("UDP_GRO"); len(losses) == 0 && len(got.RecvQueue) != want && !one {
		r.errorf("holds %d datagrams, want %d, and none was lost: %s", len(got.RecvQueue), want, marshalJSON(d))
	}
	return "restored", nil
}

// strangers are those to whom no packet may go. All that leave the host, or pass its
// loopback device, are watched.
type strangers struct {
	fds   []int
	done  sync.WaitGroup
	ended atomic.Bool

	mu       sync.Mutex
	friends  map[[2]netip.AddrPort]bool
	packets  int
	intruded []string
}

func watchStrangers(t *testing.T, n *network) *strangers {
	s := &strangers{friends: make(map[[2]netip.AddrPort]bool)}
	for _, device := range []string{"lo", "net0"} {
		hosttest.Do(t, n.here, func() error {
			link, err := netlink.LinkByName(device)
			if err == nil && device == "lo" {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			s.fds = append(s.fds, fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20); err != nil {
				return err
			}
			timeout := unix.Timeval{Usec: 100_000}
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: link.Attrs().Index})
		})
	}
	for _, fd := range s.fds {
		s.done.Go(func() { s.read(fd) })
	}
	return s
}

// expect says that packets between these are as they should be.
func (s *strangers) expect(a, b netip.AddrPort) {
	plain := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	a, b = plain(a), plain(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.friends[[2]netip.AddrPort{a, b}] = true
	s.friends[[2]netip.AddrPort{b, a}] = true
}

func (s *strangers) read(fd int) {
	b := make([]byte, 512)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		switch {
		case err == nil:
			s.packet(b[:n])
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR), s.ended.Load():
			return
		}
	}
}

// packet judges one.
func (s *strangers) packet(b []byte) {
	flow, ok := flowOf(b)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets++
	if !s.friends[flow] && len(s.intruded) < 20 {
		s.intruded = append(s.intruded, fmt.Sprintf("%v > %v: %x", flow[0], flow[1], b))
	}
}

// flowOf are the ends of a TCP or UDP packet, the second one as it is on the wire.
func flowOf(b []byte) (flow [2]netip.AddrPort, ok bool) {
	if len(b) < 20 {
		return flow, false
	}
	var addrs [2]netip.Addr
	protocol, payload := b[9], []byte(nil)
	switch b[0] >> 4 {
	case 4:
		addrs[0], _ = netip.AddrFromSlice(b[12:16])
		addrs[1], _ = netip.AddrFromSlice(b[16:20])
		payload = b[min(len(b), int(b[0]&15)*4):]
	case 6:
		if len(b) < 40 {
			return flow, false
		}
		addrs[0], _ = netip.AddrFromSlice(b[8:24])
		addrs[1], _ = netip.AddrFromSlice(b[24:40])
		protocol, payload = b[6], b[40:]
		for slices.Contains([]byte{0, 43, 60}, protocol) && len(payload) >= 2 {
			protocol, payload = payload[0], payload[min(len(payload), 8+8*int(payload[1])):]
		}
	}
	if !slices.Contains([]byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE}, protocol) || len(payload) < 4 {
		return flow, false
	}
	for i, addr := range addrs {
		flow[i] = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(payload[2*i:]))
	}
	return flow, true
}

func (s *strangers) stop(t *testing.T) {
	t.Helper()
	s.ended.Store(true)
	s.done.Wait()
	for _, fd := range s.fds {
		unix.Close(fd)
	}
	t.Logf("%d packets were seen", s.packets)
	for _, p := range s.intruded {
		t.Errorf("a packet to a stranger: %s", p)
	}
}
