package soccr

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// valid are snapshots that Save could have returned, one for each state that can
// be moved, and of each family.
func valid() map[string]*Snapshot {
	all := make(map[string]*Snapshot)
	for _, family := range []struct{ name, local, remote string }{
		{"IPv4", "192.0.2.1:80", "198.51.100.2:50000"},
		{"IPv6", "[2001:db8::1]:80", "[2001:db8::2]:50000"},
		{"IPv6 link-local", "[fe80::1%eth0]:80", "[fe80::2%eth0]:50000"},
		{"mapped", "[::ffff:192.0.2.1]:80", "[::ffff:198.51.100.2]:50000"},
	} {
		for i, row := range states {
			if !row.movable {
				continue
			}
			s := everyField()
			s.State = State(i)
			s.Local, s.Remote = netip.MustParseAddrPort(family.local), netip.MustParseAddrPort(family.remote)
			s.UnsentFIN = s.State.finPending()
			if !row.connected || row.finAcked {
				s.SendQueue, s.Unsent = nil, 0
			}
			if s.State == StateSynSent {
				s.RecvQueue = nil
			}
			s.Options.ReadShutdown = row.connected && !row.finReceived
			all[row.name+" "+family.name] = &s
		}
	}
	reset := everyField()
	reset.State, reset.Reset, reset.UnsentFIN, reset.SendQueue, reset.Unsent, reset.Options.ReadShutdown = StateClose, true, false, nil, 0, false
	all["CLOSE reset"] = &reset
	for _, local := range []string{"0.0.0.0:0", "[::]:0", "[::]:80", "127.0.0.1:80", "[fe80::1%eth0]:80"} {
		all["CLOSE "+local] = &Snapshot{State: StateClose, Local: netip.MustParseAddrPort(local)}
	}
	return all
}

func having(all ...Setting) func(*Snapshot) {
	return func(s *Snapshot) { s.Options.Settings = all }
}

func TestValidSnapshots(t *testing.T) {
	for name, s := range valid() {
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateTakesNoMemory(t *testing.T) {
	s := everyField()
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// Each row breaks one rule, which has to be the one that Validate names.
func TestValidateNamesTheField(t *testing.T) {
	addr := netip.MustParseAddrPort
	broken := make(map[string]bool)
	for _, row := range []struct {
		field, how string
		snap       func(*Snapshot) // changes a valid one of FIN_WAIT1
	}{
		{"State", "none", func(s *Snapshot) { s.State = 0 }},
		{"State", "LISTEN", func(s *Snapshot) { s.State = StateListen }},
		{"State", "SYN_RECV", func(s *Snapshot) { s.State = StateSynRecv }},
		{"State", "TIME_WAIT", func(s *Snapshot) { s.State = StateTimeWait }},
		{"State", "beyond the last", func(s *Snapshot) { s.State = 12 }},
		{"State", "255", func(s *Snapshot) { s.State = 255 }},

		{"Reset", "while it goes on", func(s *Snapshot) { s.Reset = true }},
		{"Reset", "never connected", func(s *Snapshot) { *s = Snapshot{State: StateClose, Local: addr("[::]:0"), Reset: true} }},
		{"Local", "none", func(s *Snapshot) { s.Local = netip.AddrPort{} }},
		{"Local", "port only", func(s *Snapshot) { s.Local = netip.AddrPortFrom(netip.Addr{}, 80) }},
		{"Local", "no port", func(s *Snapshot) { s.Local = addr("[2001:db8::1]:0") }},
		{"Local", "unspecified", func(s *Snapshot) { s.Local = addr("[::]:80") }},
		{"Local", "unspecified, mapped", func(s *Snapshot) { s.Local = addr("[::ffff:0.0.0.0]:80") }},
		{"Local", "multicast", func(s *Snapshot) { s.Local = addr("[ff02::1]:80") }},
		{"Local", "multicast, mapped", func(s *Snapshot) { s.Local = addr("[::ffff:224.0.0.1]:80") }},
		{"Local", "zone of a global address", func(s *Snapshot) { s.Local = addr("[2001:db8::1%eth0]:80") }},
		{"Local", "zone of a mapped address", func(s *Snapshot) {
			mapped := netip.AddrFrom16([16]byte{10: 0xff, 0xff, 169, 254, 0, 1})
			s.Local = netip.AddrPortFrom(mapped.WithZone("eth0"), 80)
		}},
		{"Local", "multicast, never connected", func(s *Snapshot) {
			*s = Snapshot{State: StateClose, Local: addr("224.0.0.1:80")}
		}},
		{"Local", "none, never connected", func(s *Snapshot) { *s = Snapshot{State: StateClose} }},

		{"Remote", "none", func(s *Snapshot) { s.Remote = netip.AddrPort{} }},
		{"Remote", "no port", func(s *Snapshot) { s.Remote = addr("[2001:db8::1]:0") }},
		{"Remote", "unspecified", func(s *Snapshot) { s.Remote = addr("[::]:80") }},
		{"Remote", "multicast", func(s *Snapshot) { s.Remote = addr("[ff02::1%eth0]:80") }},
		{"Remote", "IPv4, Local IPv6", func(s *Snapshot) { s.Remote = addr("192.0.2.1:80") }},
		{"Remote", "mapped, Local IPv6", func(s *Snapshot) { s.Remote = addr("[::ffff:192.0.2.1]:80") }},
		{"Remote", "mapped, Local IPv4", func(s *Snapshot) {
			s.Local, s.Remote = addr("192.0.2.2:80"), addr("[::ffff:192.0.2.1]:80")
		}},
		{"Remote", "port only, never connected", func(s *Snapshot) {
			*s = Snapshot{State: StateClose, Local: addr("[::]:0"), Remote: netip.AddrPortFrom(netip.Addr{}, 80)}
		}},

		{"RecvQueue", "in SYN_SENT", func(s *Snapshot) { s.State = StateSynSent }},
		{"RecvQueue", "never connected", func(s *Snapshot) { s.State, s.Remote = StateClose, netip.AddrPort{} }},
		{"SendQueue", "in SYN_SENT", func(s *Snapshot) { s.State, s.RecvQueue = StateSynSent, nil }},
		{"SendQueue", "in FIN_WAIT2", func(s *Snapshot) { s.State = StateFinWait2 }},
		{"SendQueue", "in CLOSE", func(s *Snapshot) { s.State = StateClose }},
		{"Unsent", "negative", func(s *Snapshot) { s.Unsent = -1 }},
		{"Unsent", "more than all", func(s *Snapshot) { s.Unsent = len(s.SendQueue) + 1 }},
		{"UnsentFIN", "sent after unsent bytes", func(s *Snapshot) { s.UnsentFIN = false }},
		{"UnsentFIN", "before shutdown", func(s *Snapshot) { s.State = StateEstablished }},

		{"MSS", "0", func(s *Snapshot) { s.MSS = 0 }},
		{"MSS", "too large", func(s *Snapshot) { s.MSS = 65536 }},
		{"SendScale", "too large", func(s *Snapshot) { s.SendScale = 15 }},
		{"SendScale", "not negotiated", func(s *Snapshot) { s.WindowScaling, s.RecvScale = false, 0 }},
		{"RecvScale", "too large", func(s *Snapshot) { s.RecvScale = 15 }},
		{"RecvScale", "not negotiated", func(s *Snapshot) { s.WindowScaling, s.SendScale = false, 0 }},

		{"Window.SndWnd", "too large", func(s *Snapshot) { s.Window.SndWnd = maxWindow + 1 }},
		{"Window.MaxWindow", "too large", func(s *Snapshot) { s.Window.MaxWindow = maxWindow + 1 }},
		{"Window.RcvWnd", "too large", func(s *Snapshot) { s.Window.RcvWnd = maxWindow + 1 }},
		{"Window.RcvWup", "ahead of what was received", func(s *Snapshot) { s.Window.RcvWup = s.RecvSeq + 1 }},
		{"Window.RcvWup", "far behind", func(s *Snapshot) { s.Window.RcvWup = s.RecvSeq - maxWindow - 1 }},
		{"Window.RcvSsthresh", "negative to the kernel", func(s *Snapshot) { s.Window.RcvSsthresh = maxInt + 1 }},
		{"Window.Clamp", "negative to the kernel", func(s *Snapshot) { s.Window.Clamp = maxInt + 1 }},
		{"Window.RecvMemory", "negative to the kernel", func(s *Snapshot) { s.Window.RecvMemory = maxInt + 1 }},

		{"Path.RTT", "too long", func(s *Snapshot) { s.Path.RTT = 120_000_001 }},
		{"Options.PeekOffset", "off", func(s *Snapshot) { s.Options.PeekOffsetOn = false }},
		{"Options.PeekOffset", "negative to the kernel", func(s *Snapshot) { s.Options.PeekOffset = maxInt + 1 }},
		{"Options.Congestion", "too long", func(s *Snapshot) { s.Options.Congestion = strings.Repeat("x", 16) }},
		{"Options.Congestion", "a zero", func(s *Snapshot) { s.Options.Congestion = "cubic\x00" }},
		{"Options.Congestion", "a slash", func(s *Snapshot) { s.Options.Congestion = "../x" }},
		{"Options.Congestion", "not ASCII", func(s *Snapshot) { s.Options.Congestion = "künstlich" }},
		{"Options.RecvBuffer", "negative to the kernel", func(s *Snapshot) { s.Options.RecvBuffer = maxInt + 1 }},
		{"Options.SendBuffer", "negative to the kernel", func(s *Snapshot) { s.Options.SendBuffer = maxInt + 1 }},
		{"Options.BufferLock", "unknown bits", func(s *Snapshot) { s.Options.BufferLock = 4 }},
		{"Options.ReadShutdown", "after the peer's FIN", func(s *Snapshot) { s.State = StateClosing }},
		{"Options.ReadShutdown", "never connected", func(s *Snapshot) {
			*s = Snapshot{State: StateClose, Local: addr("[::]:0"), Options: Options{ReadShutdown: true}}
		}},

		{"MD5Keys", "no key", func(s *Snapshot) { s.MD5Keys[0].Key = nil }},
		{"MD5Keys", "a key too long", func(s *Snapshot) { s.MD5Keys[0].Key = make([]byte, 81) }},
		{"MD5Keys", "for nobody", func(s *Snapshot) { s.MD5Keys[0].Peers = netip.Prefix{} }},
		{"MD5Keys", "bits behind the prefix", func(s *Snapshot) { s.MD5Keys[0].Peers = netip.MustParsePrefix("192.0.2.1/24") }},
		{"MD5Keys", "for mapped addresses", func(s *Snapshot) {
			s.MD5Keys[0].Peers = netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 128)
		}},
		{"MD5Keys", "for IPv6 on IPv4", func(s *Snapshot) {
			s.Local, s.Remote = addr("192.0.2.1:80"), addr("192.0.2.2:80")
			s.MD5Keys[0].Peers = netip.MustParsePrefix("2001:db8::1/128")
		}},
		{"MD5Keys", "one twice", func(s *Snapshot) { s.MD5Keys = slices.Repeat(s.MD5Keys[:1], 2) }},
		{"MD5Keys", "too many", func(s *Snapshot) { s.MD5Keys = slices.Repeat(s.MD5Keys[:1], 257) }},

		{"Options.Settings", "unknown", having(Setting{Name: "SO_TELEPATHY", Number: 1})},
		{"Options.Settings", "no name", having(Setting{Number: 1})},
		{"Options.Settings", "one twice", having(Setting{Name: "SO_MARK", Number: 1}, Setting{Name: "SO_MARK", Number: 2})},
		{"Options.Settings", "out of order", having(Setting{Name: "SO_PRIORITY", Number: 1}, Setting{Name: "SO_MARK", Number: 1})},
		{"Options.Settings", "of IPv4", having(Setting{Name: "IP_TTL", Number: 1})},
		{"Options.Settings", "a probe", having(Setting{Name: "IPV6_2292PKTOPTIONS"})},
		{"Options.Settings", "too much", having(Setting{Name: "TCP_KEEPIDLE", Number: 32768})},
		{"Options.Settings", "too little", having(Setting{Name: "TCP_KEEPIDLE"})},
		{"Options.Settings", "a number and a text", having(Setting{Name: "TCP_KEEPIDLE", Number: 1, Text: "s"})},
		{"Options.Settings", "a number and bytes", having(Setting{Name: "TCP_KEEPIDLE", Number: 1, Bytes: []byte{1}})},
		{"Options.Settings", "a pair too large", having(Setting{Name: "SO_TIMESTAMPING", Number: 1<<63 - 1})},
		{"Options.Settings", "no device", having(Setting{Name: "SO_BINDTODEVICE"})},
		{"Options.Settings", "a device with a number", having(Setting{Name: "SO_BINDTODEVICE", Text: "eth0", Number: 1})},
		{"Options.Settings", "a path for a device", having(Setting{Name: "SO_BINDTODEVICE", Text: "../eth0"})},
		{"Options.Settings", "a device with a long name", having(Setting{Name: "SO_BINDTODEVICE", Text: "abcdefghijklmnop"})},
		{"Options.Settings", "an empty filter", having(Setting{Name: "SO_ATTACH_FILTER"})},
		{"Options.Settings", "half an instruction", having(Setting{Name: "SO_ATTACH_FILTER", Bytes: make([]byte, 12)})},
		{"Options.Settings", "a filter too long", having(Setting{Name: "SO_ATTACH_FILTER", Bytes: make([]byte, 8*4097)})},
		{"Options.Settings", "a filter with a number", having(Setting{Name: "SO_ATTACH_FILTER", Bytes: make([]byte, 8), Number: 1})},
		{"Options.Settings", "an owner of no kind", having(Setting{Name: "F_SETOWN", Number: 1, Text: "landlord"})},
		{"Options.Settings", "a negative owner", having(Setting{Name: "F_SETOWN", Number: -1, Text: ownerProcess})},
	} {
		s := everyField()
		row.snap(&s)
		err := s.Validate()
		wrong, ok := errors.AsType[*FieldError](err)
		if !ok || wrong.Field != row.field || !errors.Is(err, ErrInvalidSnapshot) {
			t.Errorf("%s (%s): got %v", row.field, row.how, err)
			continue
		}
		if wrong.Want == nil || wrong.Got == nil || !strings.Contains(err.Error(), row.field) {
			t.Errorf("%s (%s): the error does not say enough: %v", row.field, row.how, err)
		}
		broken[row.field] = true
	}
	for _, field := range fieldsWithRules[Snapshot](t, "validate.go") {
		if !broken[field] {
			t.Errorf("no row breaks the rule for %s", field)
		}
	}
}

// A rule's field is one that exists, and has one rule.
func TestRulesNameFields(t *testing.T) {
	var s Snapshot
	exists := make(map[string]bool)
	for name := range leaves(&s) {
		exists[name] = true
	}
	for _, field := range fieldsWithRules[Snapshot](t, "validate.go") {
		if !exists[field] {
			t.Errorf("no field %s, or it has two rules", field)
		}
		delete(exists, field)
	}
}

// The limits themselves are allowed.
func TestLimitsAreValid(t *testing.T) {
	s := everyField()
	s.MSS, s.SendScale, s.RecvScale = 65535, 14, 14
	s.Window = Window{
		SndWnd: maxWindow, MaxWindow: maxWindow, RcvWnd: maxWindow, RcvWup: s.RecvSeq - maxWindow,
		RcvSsthresh: maxInt, Clamp: maxInt, RecvMemory: maxInt,
	}
	s.Unsent = len(s.SendQueue)
	s.Options.PeekOffset, s.Options.RecvBuffer, s.Options.SendBuffer = maxInt, maxInt, maxInt
	s.Options.Congestion = "Abc_xyz-0123456"
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}
