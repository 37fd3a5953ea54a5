package soccr

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// everyListenerField is valid, and none of its fields is zero.
func everyListenerField() ListenerSnapshot {
	pending := goldens[1].snap
	pending.RecvQueue = []byte("hello")
	pending.RecvSeq += 5
	l := ListenerSnapshot{
		Local:     netip.MustParseAddrPort("[::]:443"),
		Multipath: true,
		Backlog:   4096,
		Options:   everyField().Options,
		HalfOpen:  2,
		Pending:   []*Snapshot{&pending, new(everyField())},
	}
	l.MD5Keys = everyField().MD5Keys
	l.Options.ReadShutdown = false // a listener has none
	l.Options.Settings = []Setting{{Name: "IPV6_V6ONLY", Number: 1}, {Name: "SO_REUSEPORT", Number: 1}}
	return l
}

var goldenListeners = map[string]ListenerSnapshot{
	"every-field": everyListenerField(),
	"plain":       {Local: netip.MustParseAddrPort("192.0.2.1:80"), Backlog: 128},
	"zone":        {Local: netip.MustParseAddrPort("[fe80::1%eth0]:179")},
	"mapped":      {Local: netip.MustParseAddrPort("[::ffff:0.0.0.0]:8080"), Pending: []*Snapshot{new(goldens[3].snap)}},
}

func diffListeners(want, got *ListenerSnapshot) string {
	return cmp.Diff(want, got, cmp.Comparer(bytes.Equal), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}))
}

func TestListenerGoldenBytes(t *testing.T) {
	testGoldens(t, "listener-v1", goldenListeners, diffListeners)
}

func TestListenerEncodingCarriesEveryField(t *testing.T) {
	testEveryField(t, everyListenerField(), diffListeners)
	testTagsRise(t, listenerForm.fields)
}

// What is damaged, cut, or of another kind is refused, and changes nothing.
func TestListenerDecodingRefuses(t *testing.T) {
	l := everyListenerField()
	b, err := l.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, data []byte) {
		t.Helper()
		got, before := ListenerSnapshot{Backlog: 7}, ListenerSnapshot{Backlog: 7}
		err := got.UnmarshalBinary(data)
		if !errors.Is(err, ErrInvalidSnapshot) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", what, err)
		}
		if d := diffListeners(&before, &got); d != "" {
			t.Errorf("%s: the failure changed the listener:\n%s", what, d)
		}
	}
	for i := range b {
		refuse("cut", b[:i])
		damaged := bytes.Clone(b)
		damaged[i] ^= 4
		refuse("damaged", damaged)
	}
	refuse("continued", append(bytes.Clone(b), 0))
	refuse("a connection", marshal(t, &goldens[1].snap))
	var s Snapshot
	if err := s.UnmarshalBinary(b); !errors.Is(err, ErrInvalidSnapshot) {
		t.Errorf("a listener as a connection: %v", err)
	}
	hostile, err := listenerForm.append(nil, &listenerRecord{pending: 1<<32 - 1})
	if err != nil {
		t.Fatal(err)
	}
	refuse("too many pending", hostile)
	hostile, err = listenerForm.append(nil, &listenerRecord{pending: MaxPending})
	if err != nil {
		t.Fatal(err)
	}
	refuse("none of many pending", hostile)
	if took := allocated(func() { _ = new(ListenerSnapshot).UnmarshalBinary(hostile) }); took > memoryFor(len(hostile)) {
		t.Errorf("%d bytes took %d bytes of memory", len(hostile), took)
	}
	for what, l := range map[string]*ListenerSnapshot{
		"too many":       {Pending: make([]*Snapshot, MaxPending+1)},
		"none":           {Pending: []*Snapshot{nil}},
		"one not usable": {Pending: []*Snapshot{{Unsent: -1}}},
	} {
		_, marshalErr := l.MarshalBinary()
		_, writeErr := l.WriteTo(io.Discard)
		if !errors.Is(marshalErr, ErrInvalidSnapshot) || !errors.Is(writeErr, ErrInvalidSnapshot) {
			t.Errorf("%s: MarshalBinary: %v; WriteTo: %v", what, marshalErr, writeErr)
		}
	}
}

func TestListenersFollowEachOther(t *testing.T) {
	testFollowEachOther(t, new(everyListenerField()), diffListeners)
}

func TestListenerValidate(t *testing.T) {
	testValidate(t, everyListenerField, []breach[ListenerSnapshot]{
		{"Local", func(l *ListenerSnapshot) { l.Local = netip.AddrPort{} }},
		{"Local", func(l *ListenerSnapshot) { l.Local = netip.MustParseAddrPort("192.0.2.1:0") }},
		{"Local", func(l *ListenerSnapshot) { l.Local = netip.MustParseAddrPort("224.0.0.1:80") }},
		{"Local", func(l *ListenerSnapshot) { l.Local = netip.MustParseAddrPort("[2001:db8::1%eth0]:80") }},
		{"Backlog", func(l *ListenerSnapshot) { l.Backlog = 1 << 31 }},
		{"Options.Settings", func(l *ListenerSnapshot) { l.Options.Settings[0].Name = "SO_NOSUCH" }},
		{"Options.Settings", func(l *ListenerSnapshot) { l.Options.Settings[1].Number = 2 }},
		{"Options.Settings", func(l *ListenerSnapshot) { l.Local = netip.MustParseAddrPort("0.0.0.0:443") }},
		{"MD5Keys", func(l *ListenerSnapshot) { l.MD5Keys[0].Key = nil }},
		{"Pending", func(l *ListenerSnapshot) { l.Pending = make([]*Snapshot, 1) }},
		{"Pending", func(l *ListenerSnapshot) { l.Local = netip.MustParseAddrPort("[::]:444") }},
		{"Pending", func(l *ListenerSnapshot) {
			l.Pending[0] = &Snapshot{State: StateClose, Local: netip.MustParseAddrPort("192.0.2.1:443")}
		}},
		{"Pending", func(l *ListenerSnapshot) {
			for range MaxPending {
				l.Pending = append(l.Pending, l.Pending[0])
			}
		}},
		{"Pending[1].MSS", func(l *ListenerSnapshot) { l.Pending[1].MSS = 0 }},
		{"Options.PeekOffset", func(l *ListenerSnapshot) { l.Options.PeekOffset, l.Options.PeekOffsetOn = 1, false }},
		{"Options.RecvBuffer", func(l *ListenerSnapshot) { l.Options.RecvBuffer = 1 << 31 }},
		{"Options.SendBuffer", func(l *ListenerSnapshot) { l.Options.SendBuffer = 1 << 31 }},
		{"Options.BufferLock", func(l *ListenerSnapshot) { l.Options.BufferLock = 4 }},
	}, "listener.go")
}

func TestListensOn(t *testing.T) {
	for addr, want := range map[string]int{"0.0.0.0:80": 1, "[::]:80": 2, "192.0.2.1:80": 1, "[2001:db8::1]:80": 1, "[::ffff:0.0.0.0]:80": 1} {
		l := ListenerSnapshot{Local: netip.MustParseAddrPort(addr)}
		if got := l.listensOn(); len(got) != want || got[0] != l.Local {
			t.Errorf("%s: %v", addr, got)
		}
		l.Options.Settings = []Setting{{Name: "IPV6_V6ONLY", Number: 1}}
		if got := l.listensOn(); len(got) != 1 {
			t.Errorf("%s, IPv6 only: %v", addr, got)
		}
	}
}

func FuzzUnmarshalListener(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(listenerForm.magic))
	for _, l := range goldenListeners {
		b, err := l.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		tries := [][]byte{input}
		if len(input) > crcSize {
			tries = append(tries, sealed(input)) // past the checksum, if nothing is pending
		}
		for _, data := range tries {
			var l ListenerSnapshot
			var err error
			// Each pending connection takes more memory than its shortest encoding.
			if took := allocated(func() { err = l.UnmarshalBinary(data) }); took > 16*memoryFor(len(data)) {
				t.Errorf("%d bytes took %d bytes of memory", len(data), took)
			}
			if err != nil {
				if !errors.Is(err, ErrInvalidSnapshot) {
					t.Errorf("not an ErrInvalidSnapshot: %v", err)
				}
				continue
			}
			again, err := l.MarshalBinary()
			if err != nil || !bytes.Equal(data, again) {
				t.Errorf("%q was decoded, but encodes to %q: %v", data, again, err)
			}
			if err := l.Validate(); err != nil && !errors.Is(err, ErrInvalidSnapshot) {
				t.Errorf("not an ErrInvalidSnapshot: %v", err)
			}
		}
	})
}
