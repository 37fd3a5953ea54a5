package criuimg_test

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// full is a snapshot in which every field that CRIU knows has a value.
func full() *soccr.Snapshot {
	return &soccr.Snapshot{
		State: soccr.StateEstablished,
		Local: netip.MustParseAddrPort("[fe80::1%net0]:80"), Remote: netip.MustParseAddrPort("[fe80::2%net0]:4711"),
		RecvQueue: []byte("received"), SendQueue: []byte("to be sent"), Unsent: 4,
		RecvSeq: 1000, SendSeq: math.MaxUint32,
		MSS: 1440, WindowScaling: true, SendScale: 3, RecvScale: 7, SACK: true, ECN: true,
		Timestamp: soccr.Timestamp{Enabled: true, Microseconds: true, Value: 12345},
		Window: soccr.Window{
			SndWl1: 999, SndWnd: 50_000, MaxWindow: 60_000, RcvWnd: 70_000, RcvWup: 990,
			RcvSsthresh: 70_000, Clamp: 65535 << 7, RecvMemory: 8,
		},
		Options: soccr.Options{
			ReuseAddr: true, NonBlocking: true, RecvBuffer: 100_000, SendBuffer: 200_000, BufferLock: 3,
			ReadShutdown: true, Settings: slices.Concat(settings6, settings),
		},
	}
}

// The options that CRIU knows, on all sockets, only on those of IPv6, and only on
// those of IPv4.
var (
	settings = []soccr.Setting{
		{Name: "O_ASYNC", Number: 1},
		{Name: "SO_ATTACH_FILTER", Bytes: []byte("\x00\x30\x01\x02\x00\x00\x00\x09\x00\x06\x00\x00\xff\xff\xff\xff")},
		{Name: "SO_BINDTODEVICE", Text: "net0"},
		{Name: "SO_BROADCAST", Number: 1},
		{Name: "SO_DONTROUTE", Number: 1},
		{Name: "SO_KEEPALIVE", Number: 1},
		{Name: "SO_LINGER", Number: 0},
		{Name: "SO_MARK", Number: -5},
		{Name: "SO_NO_CHECK", Number: 1},
		{Name: "SO_OOBINLINE", Number: 1},
		{Name: "SO_PRIORITY", Number: 6},
		{Name: "SO_RCVLOWAT", Number: 2},
		{Name: "SO_RCVTIMEO", Number: 3_000_004},
		{Name: "SO_REUSEPORT", Number: 1},
		{Name: "SO_SNDTIMEO", Number: 5_000_006},
		{Name: "TCP_CORK", Number: 1},
		{Name: "TCP_KEEPCNT", Number: 3},
		{Name: "TCP_KEEPIDLE", Number: 1},
		{Name: "TCP_KEEPINTVL", Number: 2},
		{Name: "TCP_NODELAY", Number: 1},
	}
	settings6 = []soccr.Setting{{Name: "IPV6_FREEBIND", Number: 1}, {Name: "IPV6_RECVPKTINFO", Number: 1}, {Name: "IPV6_V6ONLY", Number: 1}}
	settings4 = []soccr.Setting{
		{Name: "IP_FREEBIND", Number: 1}, {Name: "IP_PKTINFO", Number: 1}, {Name: "IP_TOS", Number: 16}, {Name: "IP_TTL", Number: 65},
	}
)

// full4 is full over IPv4.
func full4() *soccr.Snapshot {
	return change(func(s *soccr.Snapshot) {
		s.Local, s.Remote = netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:65535")
		s.Options.Settings = slices.Concat(settings4, settings)
	})
}

func newSocket(tb testing.TB, snap *soccr.Snapshot) (*criuimg.Socket, []criuimg.Loss) {
	tb.Helper()
	s, losses, err := criuimg.NewSocket(7, 8, snap)
	if err != nil {
		tb.Fatal(err)
	}
	return s, losses
}

func snapshotOf(tb testing.TB, s *criuimg.Socket) (*soccr.Snapshot, []criuimg.Loss) {
	tb.Helper()
	snap, losses, err := s.Snapshot()
	if err != nil {
		tb.Fatal(err)
	}
	return snap, losses
}

func diff(want, got *soccr.Snapshot) string {
	return cmp.Diff(want, got, sameAddr, cmp.Comparer(bytes.Equal))
}

// A snapshot of nothing but what CRIU knows comes back whole.
func TestRoundTrip(t *testing.T) {
	for name, snap := range map[string]*soccr.Snapshot{
		"full": full(),
		"IPv4": full4(),
		"mapped": change(func(s *soccr.Snapshot) {
			s.Local, s.Remote = netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), netip.MustParseAddrPort("[::ffff:192.0.2.2]:2")
			s.Options.Settings = slices.Concat(settings4[:1], settings)
		}),
		"TOS without a priority": change(func(s *soccr.Snapshot) {
			*s = *full4()
			s.Options.Settings = []soccr.Setting{{Name: "IP_TOS", Number: 8}, {Name: "SO_PRIORITY"}}
		}),
		"no options": change(func(s *soccr.Snapshot) {
			*s = *full4()
			s.Options.Settings = nil
		}),
		"link-local peer": change(func(s *soccr.Snapshot) { s.Local = netip.MustParseAddrPort("[2001:db8::1]:80") }),
		"unsent FIN": change(func(s *soccr.Snapshot) {
			s.State, s.UnsentFIN, s.Options.ReadShutdown = soccr.StateFinWait1, true, false
			s.Window.RcvWup = s.RecvSeq
		}),
		"milliseconds": change(func(s *soccr.Snapshot) { s.Timestamp.Microseconds = false }),
		"connecting": {
			State: soccr.StateSynSent, SendSeq: 5,
			Local: netip.MustParseAddrPort("192.0.2.1:1"), Remote: netip.MustParseAddrPort("192.0.2.2:2"),
			Options: full().Options,
		},
		"bound": {
			State: soccr.StateClose, Local: netip.MustParseAddrPort("[::]:99"), Options: full().Options,
			RecvSeq: math.MaxUint32, SendSeq: math.MaxUint32, // as the kernel has it
		},
	} {
		snap.Options.Settings = only(snap)
		t.Run(name, func(t *testing.T) {
			switch snap.State {
			case soccr.StateSynSent, soccr.StateClose:
				snap.Options.ReadShutdown = false
			}
			for _, bigEndian := range []bool{false, true} {
				s := &criuimg.Socket{BigEndian: bigEndian}
				own, losses := newSocket(t, snap)
				s.Inet, s.Stream = own.Inet, own.Stream
				if len(losses) > 0 {
					t.Errorf("lost: %v", losses)
				}
				if bigEndian { // the other order of the addresses
					if _, err := s.SetSnapshot(full()); err != nil {
						t.Fatal(err)
					}
					if _, err := s.SetSnapshot(snap); err != nil {
						t.Fatal(err)
					}
				}
				got, losses := snapshotOf(t, s)
				if len(losses) > 0 {
					t.Errorf("lost on the way back: %v", losses)
				}
				if d := diff(snap, got); d != "" {
					t.Errorf("big-endian %v (-want +got):\n%s", bigEndian, d)
				}
			}
		})
	}
}

func change(f func(*soccr.Snapshot)) *soccr.Snapshot {
	s := full()
	f(s)
	return s
}

// only are the settings that a socket of the snapshot's state can have.
func only(snap *soccr.Snapshot) []soccr.Setting {
	switch {
	case snap.Local.Addr().Is4():
		return slices.DeleteFunc(slices.Clone(snap.Options.Settings), func(s soccr.Setting) bool { return strings.HasPrefix(s.Name, "IPV6_") })
	case snap.Local.Addr().IsUnspecified():
		return slices.Concat(settings6[1:], settings4[:1], settings)
	}
	return snap.Options.Settings
}

// The words of an address depend on the machine, as in CRIU's images.
func TestByteOrder(t *testing.T) {
	snap := change(func(s *soccr.Snapshot) {
		s.Local, s.Remote = netip.MustParseAddrPort("10.77.0.1:1"), netip.MustParseAddrPort("10.77.0.2:2")
	})
	snap.Options.Settings = nil
	s, _ := newSocket(t, snap)
	if got := s.Inet.SrcAddr; !slices.Equal(got, []uint32{0x01004d0a}) {
		t.Errorf("little-endian: %#x", got)
	}
	s.BigEndian = true
	if _, err := s.SetSnapshot(snap); err != nil {
		t.Fatal(err)
	}
	if got := s.Inet.SrcAddr; !slices.Equal(got, []uint32{0x0a4d0001}) {
		t.Errorf("big-endian: %#x", got)
	}
}

// What a snapshot has and CRIU has not is named, whatever it is, and nothing else.
func TestLossesOfSnapshot(t *testing.T) {
	lost := map[string]bool{}
	for _, field := range leaves(reflect.TypeFor[soccr.Snapshot](), "") {
		snap := full()
		if !alter(snap, field) {
			t.Errorf("%s: this test has no other value for it", field)
			continue
		}
		if field == "MD5Keys" {
			if _, _, err := criuimg.NewSocket(7, 8, snap); !errors.Is(err, soccr.ErrSigned) {
				t.Errorf("a signed connection: %v", err)
			}
			continue
		}
		s, losses := newSocket(t, snap)
		again, _ := snapshotOf(t, s)
		var want, got []string
		for _, field := range leaves(reflect.TypeFor[soccr.Snapshot](), "") {
			if d := cmp.Diff(value(snap, field).Interface(), value(again, field).Interface(), sameAddr); d != "" {
				want = append(want, field)
			}
		}
		for _, l := range losses {
			field, option, isOption := strings.Cut(l.Field, "[")
			got = append(got, field)
			lost[field] = true
			if isOption {
				if option != "TCP_USER_TIMEOUT]" || l.Value != int64(1234) || l.Instead != nil {
					t.Errorf("wrong loss %v", l)
				}
				continue
			}
			if v := value(snap, l.Field).Interface(); !reflect.DeepEqual(l.Value, v) {
				t.Errorf("%s: the loss tells %v, lost is %v", l.Field, l.Value, v)
			}
			if v := value(again, l.Field).Interface(); !reflect.DeepEqual(l.Instead, v) {
				t.Errorf("%s: the loss tells %v instead, it is %v", l.Field, l.Instead, v)
			}
		}
		if !slices.Equal(want, got) {
			t.Errorf("%s altered: lost are %v, named are %v", field, want, got)
		}
	}
	documented := table(t, "A snapshot has, and")
	for field := range lost {
		if strings.HasPrefix(field, "Path.") {
			field = "Path" // all of it
			lost[field] = true
		}
		if !slices.Contains(documented, field) {
			t.Errorf("%s can be lost, but the package comment does not say so", field)
		}
	}
	of := map[string]bool{"Pending": true, "HalfOpen": true, "Multipath": true} // listeners
	for _, field := range documented {
		if !lost[field] && !of[field] {
			t.Errorf("%s is not lost, but the package comment says so", field)
		}
	}
}

func TestListener(t *testing.T) {
	whole := func() *soccr.ListenerSnapshot {
		return &soccr.ListenerSnapshot{
			Local: netip.MustParseAddrPort("[::]:443"), Backlog: 77,
			Options: soccr.Options{ReuseAddr: true, NonBlocking: true, RecvBuffer: 1, SendBuffer: 2, BufferLock: 1,
				Settings: slices.Concat(settings6[1:], settings4[:1], settings)},
		}
	}
	s, losses, err := criuimg.NewListener(3, 4, whole())
	if err != nil || len(losses) > 0 {
		t.Fatal(losses, err)
	}
	got, losses, err := s.Listener()
	if err != nil || len(losses) > 0 {
		t.Fatal(losses, err)
	}
	if d := cmp.Diff(whole(), got, sameAddr); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	// A change changes nothing else, and what is lost is told.
	s.Inet.NsId = new(uint32(9))
	want := clone(s)
	want.Inet.Backlog, want.Inet.SrcPort = new(uint32(78)), new(uint32(444))
	l := whole()
	l.Local, l.Backlog = netip.AddrPortFrom(l.Local.Addr(), 444), 78
	l.Multipath, l.HalfOpen, l.Pending = true, 5, []*soccr.Snapshot{change(func(s *soccr.Snapshot) {
		s.Local = netip.AddrPortFrom(s.Local.Addr(), 444)
	})}
	l.Options.Settings = append(l.Options.Settings, soccr.Setting{Name: "TCP_USER_TIMEOUT", Number: 5})
	losses, err = s.SetListener(l)
	if err != nil {
		t.Fatal(err)
	}
	var lost []string
	for _, l := range losses {
		lost = append(lost, l.Field)
	}
	if d := cmp.Diff([]string{"Multipath", "Options.Settings[TCP_USER_TIMEOUT]", "HalfOpen", "Pending"}, lost); d != "" {
		t.Errorf("losses (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, s, protocmp.Transform()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	l.MD5Keys = []soccr.MD5Key{{Peers: netip.MustParsePrefix("2001:db8::/32"), Key: []byte("secret")}}
	if _, err := s.SetListener(l); !errors.Is(err, soccr.ErrSigned) || strings.Contains(err.Error(), "secret") {
		t.Errorf("with keys: %v", err)
	}
	l.MD5Keys, l.Pending = nil, []*soccr.Snapshot{nil}
	if _, err := s.SetListener(l); !errors.Is(err, soccr.ErrInvalidSnapshot) {
		t.Errorf("with no pending connection: %v", err)
	}
	port := s.Inet.SrcPort
	s.Inet.SrcPort = new(uint32(0))
	if _, _, err := s.Listener(); !errors.Is(err, soccr.ErrInvalidSnapshot) {
		t.Errorf("without a port: %v", err)
	}
	s.Inet.SrcPort = port
	s.Inet.DstPort = new(uint32(5))
	if _, _, err := s.Listener(); !errors.Is(err, criuimg.ErrInvalidImage) {
		t.Errorf("with a peer: %v", err)
	}
	connection, _ := newSocket(t, full())
	if _, _, err := connection.Listener(); !errors.Is(err, soccr.ErrState) {
		t.Errorf("of a connection: %v", err)
	}
}

// leaves are the paths of all fields that have no fields.
func leaves(t reflect.Type, path string) (all []string) {
	for f := range t.Fields() {
		if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[netip.AddrPort]() {
			all = append(all, leaves(f.Type, path+f.Name+".")...)
		} else {
			all = append(all, path+f.Name)
		}
	}
	return all
}

func value(s *soccr.Snapshot, path string) reflect.Value {
	v := reflect.ValueOf(s).Elem()
	for name := range strings.SplitSeq(path, ".") {
		v = v.FieldByName(name)
	}
	return v
}

// alter gives a field another value with which the snapshot is valid.
func alter(s *soccr.Snapshot, path string) bool {
	switch v := value(s, path).Addr().Interface().(type) {
	case *bool:
		*v = !*v
		switch path {
		case "WindowScaling":
			s.SendScale, s.RecvScale = 0, 0
		case "Timestamp.Enabled":
			s.Timestamp = soccr.Timestamp{}
		case "Reset":
			s.State, s.SendQueue, s.Unsent, s.Options.ReadShutdown = soccr.StateClose, nil, 0, false
		case "UnsentFIN":
			s.State, s.Options.ReadShutdown, s.Unsent = soccr.StateFinWait1, false, 0
		}
	case *uint8:
		*v--
	case *uint32:
		*v++
		if path == "Options.PeekOffset" {
			s.Options.PeekOffsetOn = true
		}
	case *uint64:
		*v++
	case *int64:
		*v++
	case *[]soccr.Setting:
		*v = append(slices.Clone(*v), soccr.Setting{Name: "TCP_USER_TIMEOUT", Number: 1234})
	case *[]soccr.MD5Key:
		*v = []soccr.MD5Key{{Peers: netip.PrefixFrom(s.Remote.Addr().WithZone(""), 128), Key: []byte("secret")}}
	case *int:
		*v--
	case *string:
		*v = "other"
	case *[]byte:
		*v = append([]byte("more"), *v...)
	case *soccr.State:
		*v = soccr.StateCloseWait
		s.Options.ReadShutdown = false
	case *netip.AddrPort:
		*v = netip.AddrPortFrom(v.Addr(), v.Port()+1)
	default:
		return false
	}
	return s.Validate() == nil
}

// The package comment tells which options CRIU has.
func TestDocumentedSettings(t *testing.T) {
	comment := string(must(os.ReadFile("doc.go"))(t))
	for _, s := range slices.Concat(settings, settings4, settings6) {
		if !strings.Contains(comment, s.Name) {
			t.Errorf("%s is not in the package comment", s.Name)
		}
	}
}

// table are the words in the first column of a table of the package comment.
func table(t *testing.T, head string) (rows []string) {
	t.Helper()
	_, text, ok := strings.Cut(string(must(os.ReadFile("doc.go"))(t)), head)
	if !ok {
		t.Fatalf("the package comment has no %q", head)
	}
	started := false
	for line := range strings.Lines(text) {
		row, indented := strings.CutPrefix(line, "//\t")
		switch {
		case indented:
			started = true
			rows = append(rows, strings.Fields(row)[0])
		case started:
			return rows
		}
	}
	return rows
}

// What CRIU has and a snapshot has not is named as well.
func TestLossesOfImage(t *testing.T) {
	documented := table(t, "CRIU has, and")
	for name, f := range map[string]struct {
		set  func(*criuimg.Socket)
		loss criuimg.Loss
	}{
		"flags": {func(s *criuimg.Socket) { *s.Inet.Flags |= 0o2000 },
			criuimg.Loss{Field: "inet_sk.flags", Value: uint32(0o26002), Instead: uint32(0o24002)}},
		"opt_mask": {func(s *criuimg.Socket) { *s.Stream.Entry.OptMask |= 16 },
			criuimg.Loss{Field: "tcp_stream.opt_mask", Value: uint32(16 + 15 + 64), Instead: uint32(15 + 64)}},
		"backlog": {func(s *criuimg.Socket) { s.Inet.Backlog = new(uint32(12345)) },
			criuimg.Loss{Field: "inet_sk.backlog", Value: uint32(12345), Instead: uint32(10)}},
		"timestamp": {func(s *criuimg.Socket) { *s.Stream.Entry.OptMask &^= 64; s.Stream.Entry.Timestamp = new(uint32(77)) },
			criuimg.Loss{Field: "tcp_stream.timestamp", Value: uint32(77), Instead: uint32(76)}},
		"ttl": {func(s *criuimg.Socket) { s.Inet.IpOpts.Ttl = new(uint32(9)) }, // of an IPv6 socket
			criuimg.Loss{Field: "ip_opts.ttl", Value: uint32(9), Instead: uint32(0)}},
		"raw": {func(s *criuimg.Socket) { s.Inet.IpOpts.Raw = &inetsk.IpOptsRawEntry{Hdrincl: new(true)} },
			criuimg.Loss{Field: "ip_opts_raw.hdrincl", Value: true, Instead: false}},
		"so_passcred": {func(s *criuimg.Socket) { s.Inet.Opts.SoPasscred = new(true) },
			criuimg.Loss{Field: "sk_opts.so_passcred", Value: true, Instead: false}},
		"so_passsec": {func(s *criuimg.Socket) { s.Inet.Opts.SoPasssec = new(true) },
			criuimg.Loss{Field: "sk_opts.so_passsec", Value: true, Instead: false}},
		"shutdown": {func(s *criuimg.Socket) { s.Inet.Shutdown = new(skopts.SkShutdown_BOTH) },
			criuimg.Loss{Field: "inet_sk.shutdown", Value: skopts.SkShutdown_BOTH.Number(), Instead: skopts.SkShutdown_READ.Number()}},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newSocket(t, full())
			f.set(s)
			before := clone(s)
			snap, losses := snapshotOf(t, s)
			if d := cmp.Diff([]criuimg.Loss{f.loss}, losses); d != "" {
				t.Errorf("losses (-want +got):\n%s", d)
			}
			if !slices.Contains(documented, f.loss.Field) {
				t.Errorf("%s is not in the package comment", f.loss.Field)
			}
			// The entries keep it.
			snap.MSS++
			if _, err := s.SetSnapshot(snap); err != nil {
				t.Fatal(err)
			}
			*before.Stream.Entry.MssClamp++
			if d := cmp.Diff(before, s, protocmp.Transform()); d != "" {
				t.Errorf("after a change of the MSS (-want +got):\n%s", d)
			}
		})
	}
}

func clone(s *criuimg.Socket) *criuimg.Socket {
	c := *s
	c.Inet = proto.CloneOf(s.Inet)
	if s.Stream != nil {
		c.Stream = &criuimg.Stream{Entry: proto.CloneOf(s.Stream.Entry), RecvQueue: s.Stream.RecvQueue, SendQueue: s.Stream.SendQueue}
	}
	return &c
}

// What a newer CRIU has added is told, and stays.
func TestUnknownFields(t *testing.T) {
	s, _ := newSocket(t, full())
	message := must(proto.Marshal(s.Inet))(t)
	message = append(message, 0xf8, 0x3f, 1) // field 1023, a varint
	if err := proto.Unmarshal(message, s.Inet); err != nil {
		t.Fatal(err)
	}
	snap, losses := snapshotOf(t, s)
	if len(losses) != 1 || !strings.HasPrefix(losses[0].Field, "inet_sk:") {
		t.Errorf("losses %v, want that of the new field", losses)
	}
	if _, err := s.SetSnapshot(snap); err != nil {
		t.Fatal(err)
	}
	if again := must(proto.Marshal(s.Inet))(t); !bytes.Equal(message, again) {
		t.Errorf("%x, want %x", again, message)
	}
}

// A change of one thing changes nothing else in the entries.
func TestSetSnapshotMerges(t *testing.T) {
	for _, s := range read(t, criuImages(t)).Sockets {
		if s.State() != soccr.StateLastAck || s.Inet.GetFamily() != 2 {
			continue
		}
		s.Inet.Opts.SoBroadcast, s.Inet.Fown.Uid, s.Inet.Flags = new(true), new(uint32(6)), new(uint32(0o6002))
		want := clone(s)
		want.Inet.SrcAddr, want.Inet.DstPort, want.Inet.Flags = []uint32{0x0302000a}, new(uint32(99)), new(uint32(0o2002))
		snap, _ := snapshotOf(t, s)
		moved := *snap
		moved.Local = netip.AddrPortFrom(netip.MustParseAddr("10.0.2.3"), snap.Local.Port())
		moved.Remote = netip.AddrPortFrom(snap.Remote.Addr(), 99)
		moved.Options.NonBlocking = false
		if _, err := s.SetSnapshot(&moved); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, s, protocmp.Transform()); d != "" {
			t.Errorf("addresses changed (-want +got):\n%s", d)
		}
		return
	}
	t.Fatal("no such socket")
}

// What sock_diag would tell of the queue is right, for who shows images.
func TestBacklog(t *testing.T) {
	s, _ := newSocket(t, change(func(s *soccr.Snapshot) {
		s.State, s.SendQueue, s.Unsent, s.Options.ReadShutdown = soccr.StateFinWait1, nil, 0, false
	}))
	for state, want := range map[soccr.State]uint32{soccr.StateFinWait1: 1, soccr.StateFinWait2: 0} {
		snap, _ := snapshotOf(t, s)
		snap.State = state
		if _, err := s.SetSnapshot(snap); err != nil {
			t.Fatal(err)
		}
		if s.Inet.GetBacklog() != want {
			t.Errorf("%v: %d, want %d", state, s.Inet.GetBacklog(), want)
		}
	}
}

// The lowest bit of a timestamp tells CRIU's kernel the resolution.
func TestResolution(t *testing.T) {
	for _, microseconds := range []bool{true, false} {
		for value := range uint32(2) {
			s, _ := newSocket(t, change(func(s *soccr.Snapshot) {
				s.Timestamp = soccr.Timestamp{Enabled: true, Microseconds: microseconds, Value: 12344 + value}
			}))
			if odd := s.Stream.Entry.GetTimestamp()&1 != 0; odd != microseconds || s.Stream.Entry.GetTimestamp()&^1 != 12344 {
				t.Errorf("%d in microseconds (%v) becomes %d", 12344+value, microseconds, s.Stream.Entry.GetTimestamp())
			}
		}
	}
}

// A socket can become any other.
func TestSetSnapshotReplaces(t *testing.T) {
	bound := &soccr.Snapshot{State: soccr.StateClose, Local: netip.MustParseAddrPort("0.0.0.0:1"), RecvSeq: math.MaxUint32, SendSeq: math.MaxUint32}
	bound.Options.RecvBuffer, bound.Options.SendBuffer = 1, 2
	steps := []*soccr.Snapshot{full(), bound, full()}
	s, _ := newSocket(t, bound)
	for i, snap := range steps {
		losses, err := s.SetSnapshot(snap)
		if err != nil || len(losses) > 0 {
			t.Fatal(losses, err)
		}
		got, _ := snapshotOf(t, s)
		if d := diff(snap, got); d != "" {
			t.Errorf("step %d (-want +got):\n%s", i, d)
		}
		if (s.Stream != nil) != snap.Remote.IsValid() {
			t.Errorf("step %d: stream %v", i, s.Stream)
		}
	}
}

func TestFamilyChanges(t *testing.T) {
	plain := func(s *soccr.Snapshot) *soccr.Snapshot {
		s.Options.Settings = nil
		return s
	}
	s, _ := newSocket(t, plain(full()))
	for _, snap := range []*soccr.Snapshot{plain(full4()), plain(full())} {
		if _, err := s.SetSnapshot(snap); err != nil {
			t.Fatal(err)
		}
		want, _ := newSocket(t, snap)
		want.Inet.V6Only = nil // its default, which nobody has changed
		if d := cmp.Diff(want, s, protocmp.Transform(), protocmp.IgnoreFields(&inetsk.IpOptsEntry{}, "ttl")); d != "" {
			t.Errorf("%v (-want +got):\n%s", snap.Local, d)
		}
	}
}

// An option that the kernel changes with another is told.
func TestPriorityFollowsTOS(t *testing.T) {
	snap := full4()
	snap.Options.Settings = []soccr.Setting{{Name: "IP_TOS", Number: 8}}
	_, losses := newSocket(t, snap)
	want := []criuimg.Loss{{Field: "Options.Settings[SO_PRIORITY]", Value: nil, Instead: int64(0)}}
	if d := cmp.Diff(want, losses); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Link-local addresses have their device in both places where CRIU has it.
func TestDevice(t *testing.T) {
	s, _ := newSocket(t, full())
	if s.Inet.GetIfname() != "net0" || s.Inet.GetOpts().GetSoBoundDev() != "net0" {
		t.Errorf("ifname %q, so_bound_dev %q", s.Inet.GetIfname(), s.Inet.GetOpts().GetSoBoundDev())
	}
	away := change(func(s *soccr.Snapshot) {
		s.Options.Settings = nil
		s.Local, s.Remote = netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::2]:81")
	})
	if _, err := s.SetSnapshot(away); err != nil {
		t.Fatal(err)
	}
	if s.Inet.Ifname != nil || s.Inet.Opts.SoBoundDev != nil {
		t.Errorf("ifname %q, so_bound_dev %q remain", s.Inet.GetIfname(), s.Inet.GetOpts().GetSoBoundDev())
	}
	// That of the peer's address is the one that the socket is bound to.
	bound := change(func(s *soccr.Snapshot) { s.Local = netip.MustParseAddrPort("[2001:db8::1]:80") })
	if s, _ := newSocket(t, bound); s.Inet.Ifname != nil {
		t.Errorf("ifname %q of a socket at %v", s.Inet.GetIfname(), bound.Local)
	}
	peer := change(func(s *soccr.Snapshot) {
		s.Options.Settings = nil
		s.Local = netip.MustParseAddrPort("[2001:db8::1]:80")
	})
	if _, err := s.SetSnapshot(peer); err != nil {
		t.Fatal(err)
	}
	if got, _ := snapshotOf(t, s); got.Remote != peer.Remote {
		t.Errorf("the peer is %v, want %v", got.Remote, peer.Remote)
	}
	between := change(func(s *soccr.Snapshot) { s.Remote = netip.MustParseAddrPort("[fe80::2%net1]:81") })
	if _, err := s.SetSnapshot(between); !errors.Is(err, soccr.ErrInvalidSnapshot) {
		t.Errorf("two devices: %v", err)
	}
}

// Entries of which the kernel could make no socket are refused, by name.
func TestInvalidEntries(t *testing.T) {
	for name, f := range map[string]struct {
		set   func(*criuimg.Socket)
		field string
	}{
		"port":           {func(s *criuimg.Socket) { s.Inet.SrcPort = new(uint32(65536)) }, "inet_sk.src_port"},
		"peer's port":    {func(s *criuimg.Socket) { s.Inet.DstPort = new(uint32(1 << 31)) }, "inet_sk.dst_port"},
		"no address":     {func(s *criuimg.Socket) { s.Inet.SrcAddr = nil }, "inet_sk.src_addr"},
		"short address":  {func(s *criuimg.Socket) { s.Inet.DstAddr = s.Inet.DstAddr[:3] }, "inet_sk.dst_addr"},
		"long address":   {func(s *criuimg.Socket) { s.Inet.DstAddr = make([]uint32, 1000) }, "inet_sk.dst_addr"},
		"family":         {func(s *criuimg.Socket) { s.Inet.Family = new(uint32(1)) }, "inet_sk.src_addr"},
		"device":         {func(s *criuimg.Socket) { s.Inet.Ifname = new(strings.Repeat("x", 16)) }, "inet_sk.ifname"},
		"unspecified":    {func(s *criuimg.Socket) { s.Inet.DstAddr = make([]uint32, 4) }, "Remote"},
		"state":          {func(s *criuimg.Socket) { s.Inet.State = new(uint32(257)) }, "State"},
		"queue":          {func(s *criuimg.Socket) { s.Stream.Entry.InqLen = new(uint32(9)) }, "tcp_stream.inq_len"},
		"unsent":         {func(s *criuimg.Socket) { s.Stream.Entry.UnsqLen = new(uint32(11)) }, "tcp_stream.unsq_len"},
		"scale":          {func(s *criuimg.Socket) { s.Stream.Entry.SndWscale = new(uint32(256 + 7)) }, "tcp_stream.snd_wscale"},
		"our scale":      {func(s *criuimg.Socket) { s.Stream.Entry.RcvWscale = new(uint32(15)) }, "tcp_stream.rcv_wscale"},
		"no timestamp":   {func(s *criuimg.Socket) { s.Stream.Entry.Timestamp = nil }, "tcp_stream.timestamp"},
		"MSS":            {func(s *criuimg.Socket) { s.Stream.Entry.MssClamp = new(uint32(0)) }, "MSS"},
		"window":         {func(s *criuimg.Socket) { s.Stream.Entry.SndWnd = new(uint32(1 << 31)) }, "Window.SndWnd"},
		"window's start": {func(s *criuimg.Socket) { s.Stream.Entry.RcvWup = new(uint32(2000)) }, "Window.RcvWup"},
		"buffer lock":    {func(s *criuimg.Socket) { s.Inet.Opts.SoBufLock = new(uint32(256)) }, "sk_opts.so_buf_lock"},
		"microseconds":   {func(s *criuimg.Socket) { s.Inet.Opts.SoRcvTmoUsec = new(uint64(1_000_000)) }, "Options.Settings"},
		"seconds":        {func(s *criuimg.Socket) { s.Inet.Opts.SoSndTmoSec = new(uint64(1 << 63)) }, "Options.Settings"},
		"option":         {func(s *criuimg.Socket) { s.Inet.TcpOpts.Keepcnt = new(uint32(1 << 31)) }, "Options.Settings"},
		"filter":         {func(s *criuimg.Socket) { s.Inet.Opts.SoFilter = make([]uint64, 4097) }, "Options.Settings"},
		"buffer":         {func(s *criuimg.Socket) { s.Inet.Opts.SoRcvbuf = new(uint32(1 << 31)) }, "Options.RecvBuffer"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newSocket(t, full())
			f.set(s)
			_, _, err := s.Snapshot()
			var wrong *soccr.FieldError
			if !errors.As(err, &wrong) || wrong.Field != f.field {
				t.Errorf("got %v, want an error of %s", err, f.field)
			}
			if !errors.Is(err, criuimg.ErrInvalidImage) && !errors.Is(err, soccr.ErrInvalidSnapshot) {
				t.Errorf("%v is neither ErrInvalidImage nor ErrInvalidSnapshot", err)
			}
			// What is wrong can be put right.
			if _, err := s.SetSnapshot(full()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoSnapshot(t *testing.T) {
	s, _ := newSocket(t, full())
	s.Stream = nil
	if _, _, err := s.Snapshot(); !errors.Is(err, criuimg.ErrNoStream) {
		t.Errorf("without a stream: %v", err)
	}
	s.Inet.State = new(uint32(soccr.StateListen))
	if _, _, err := s.Snapshot(); !errors.Is(err, soccr.ErrState) {
		t.Errorf("of a listener: %v", err)
	}
	before := clone(s)
	var wrong *soccr.FieldError
	unread := change(func(s *soccr.Snapshot) { s.Options.PeekOffset = 1 }) // of a field that is not encoded
	if _, err := s.SetSnapshot(unread); !errors.Is(err, soccr.ErrInvalidSnapshot) || !errors.As(err, &wrong) || wrong.Field != "Options.PeekOffset" {
		t.Errorf("of an invalid snapshot: %v", err)
	}
	if d := cmp.Diff(before, s, protocmp.Transform()); d != "" {
		t.Errorf("changed by it:\n%s", d)
	}
}

// A socket whose sequence numbers CRIU could not restore is written without a
// window, which CRIU then does not set.
func TestNoWindow(t *testing.T) {
	s, _ := newSocket(t, &soccr.Snapshot{
		State: soccr.StateClose, Local: netip.MustParseAddrPort("192.0.2.1:1"), Remote: netip.MustParseAddrPort("192.0.2.2:2"),
		RecvSeq: 1 << 31, SendSeq: 5,
	})
	e := s.Stream.Entry
	if e.SndWl1 != nil || e.SndWnd != nil || e.MaxWindow != nil || e.RcvWnd != nil || e.RcvWup != nil {
		t.Errorf("%v", e)
	}
	if o := s.Inet.GetOpts(); o.GetSoRcvbuf() != 131072 || o.GetSoSndbuf() != 16384 {
		t.Errorf("buffers %d and %d, want those of a fresh socket", o.GetSoRcvbuf(), o.GetSoSndbuf())
	}
	if e.GetMssClamp() != 536 {
		t.Errorf("MSS %d, want one that CRIU can set", e.GetMssClamp())
	}
	if e.GetInqSeq() != 1<<31+1 || e.GetOutqSeq() != 6 {
		t.Errorf("sequence numbers %d, %d do not count the FINs", e.GetInqSeq(), e.GetOutqSeq())
	}
}

// What has no place in an image may be a key: it is not shown to whoever sees the error.
func TestLossKeepsSecrets(t *testing.T) {
	l := criuimg.Loss{Field: "Options.Settings[TCP_FASTOPEN_KEY]", Value: []byte("0123456789abcdef")}
	if got, want := l.String(), "Options.Settings[TCP_FASTOPEN_KEY]: 16 bytes becomes <nil>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
