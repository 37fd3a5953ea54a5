package soccr

import "net/netip"

// Limits of what a snapshot may hold. They are those of the kernel.
const (
	// MaxQueue is the most bytes of a queue that a snapshot can hold: as many as
	// the largest window.
	MaxQueue = maxWindow
	// maxWindow is the largest window that can be advertised: 65535 << 14.
	maxWindow = 65535 << maxScale
	maxScale  = 14 // RFC 7323, 2.3; the kernel answers EFBIG above it
	maxInt    = 1<<31 - 1
	maxRTT    = 120_000_000 // TCP_RTO_MAX, microseconds
	maxName   = 15          // TCP_CA_NAME_MAX less the final zero
)

// A rule is something that the kernel or Restore depends on.
type rule[T any] struct {
	field string
	want  string // for people
	got   func(*T) any
	ok    func(*T) bool
}

// broken is the first rule that a snapshot breaks, as an ErrInvalidSnapshot inside
// a *FieldError, or nil.
func broken[T any](rules []rule[T], s *T) error {
	for i := range rules {
		if r := &rules[i]; !r.ok(s) {
			return &FieldError{Field: r.field, Want: r.want, Got: r.got(s), Err: ErrInvalidSnapshot}
		}
	}
	return nil
}

// connected limits a rule to the states in which it means something.
func connected(ok func(*Snapshot) bool) func(*Snapshot) bool {
	return func(s *Snapshot) bool { return !s.State.row().connected || ok(s) }
}

var rules = []rule[Snapshot]{
	{"State", "a state that can be moved",
		func(s *Snapshot) any { return s.State },
		func(s *Snapshot) bool { return s.State.row().movable }},
	{"Local", "a unicast address with a port, a zone only if link-local",
		func(s *Snapshot) any { return s.Local },
		func(s *Snapshot) bool {
			if s.State == StateClose && !s.Remote.IsValid() {
				return validBound(s.Local)
			}
			return validEnd(s.Local)
		}},
	{"Remote", "an address of Local's family with a port",
		func(s *Snapshot) any { return s.Remote },
		func(s *Snapshot) bool {
			if s.State == StateClose && s.Remote == (netip.AddrPort{}) {
				return true
			}
			return validEnd(s.Remote) && family(s.Remote.Addr()) == family(s.Local.Addr())
		}},
	{"RecvQueue", "at most MaxQueue bytes, none unless connected once",
		func(s *Snapshot) any { return len(s.RecvQueue) },
		func(s *Snapshot) bool {
			return len(s.RecvQueue) == 0 ||
				len(s.RecvQueue) <= MaxQueue && s.State != StateSynSent && s.Remote.IsValid()
		}},
	{"SendQueue", "at most MaxQueue bytes, none in a state in which all is acknowledged",
		func(s *Snapshot) any { return len(s.SendQueue) },
		func(s *Snapshot) bool {
			return len(s.SendQueue) == 0 ||
				len(s.SendQueue) <= MaxQueue && s.State.row().connected && !s.State.row().finAcked
		}},
	{"Unsent", "between 0 and the length of SendQueue",
		func(s *Snapshot) any { return s.Unsent },
		func(s *Snapshot) bool { return s.Unsent >= 0 && s.Unsent <= len(s.SendQueue) }},
	{"UnsentFIN", "true behind unsent bytes, and only where a FIN waits",
		func(s *Snapshot) any { return s.UnsentFIN },
		func(s *Snapshot) bool {
			if !s.State.finPending() {
				return !s.UnsentFIN
			}
			return s.UnsentFIN || s.Unsent == 0
		}},
	{"Reset", "true only of a connection that is closed",
		func(s *Snapshot) any { return s.Reset },
		func(s *Snapshot) bool { return !s.Reset || s.State == StateClose && s.Remote.IsValid() }},
	{"MSS", "between 1 and 65535",
		func(s *Snapshot) any { return s.MSS },
		connected(func(s *Snapshot) bool { return s.MSS >= 1 && s.MSS <= 65535 })},
	{"SendScale", "at most 14, and 0 without window scaling",
		func(s *Snapshot) any { return s.SendScale },
		func(s *Snapshot) bool { return s.SendScale == 0 || s.WindowScaling && s.SendScale <= maxScale }},
	{"RecvScale", "at most 14, and 0 without window scaling",
		func(s *Snapshot) any { return s.RecvScale },
		func(s *Snapshot) bool { return s.RecvScale == 0 || s.WindowScaling && s.RecvScale <= maxScale }},
	{"Window.SndWnd", "at most 65535<<14",
		func(s *Snapshot) any { return s.Window.SndWnd },
		func(s *Snapshot) bool { return s.Window.SndWnd <= maxWindow }},
	{"Window.MaxWindow", "at most 65535<<14",
		func(s *Snapshot) any { return s.Window.MaxWindow },
		func(s *Snapshot) bool { return s.Window.MaxWindow <= maxWindow }},
	{"Window.RcvWnd", "at most 65535<<14",
		func(s *Snapshot) any { return s.Window.RcvWnd },
		func(s *Snapshot) bool { return s.Window.RcvWnd <= maxWindow }},
	{"Window.RcvWup", "not after what was received, and at most 65535<<14 before it",
		func(s *Snapshot) any { return s.Window.RcvWup },
		connected(func(s *Snapshot) bool { return s.rcvNxt()-s.Window.RcvWup <= maxWindow })},
	{"Window.RcvSsthresh", "at most 2147483647",
		func(s *Snapshot) any { return s.Window.RcvSsthresh },
		func(s *Snapshot) bool { return s.Window.RcvSsthresh <= maxInt }},
	{"Window.Clamp", "at most 2147483647",
		func(s *Snapshot) any { return s.Window.Clamp },
		func(s *Snapshot) bool { return s.Window.Clamp <= maxInt }},
	{"Window.RecvMemory", "at most 2147483647",
		func(s *Snapshot) any { return s.Window.RecvMemory },
		func(s *Snapshot) bool { return s.Window.RecvMemory <= maxInt }},
	{"Path.RTT", "at most 120000000 microseconds",
		func(s *Snapshot) any { return s.Path.RTT },
		func(s *Snapshot) bool { return s.Path.RTT <= maxRTT }},
	{"Options.PeekOffset", "at most 2147483647, and 0 when off",
		func(s *Snapshot) any { return s.Options.PeekOffset },
		func(s *Snapshot) bool {
			return s.Options.PeekOffset == 0 || s.Options.PeekOffsetOn && s.Options.PeekOffset <= maxInt
		}},
	{"Options.Congestion", "at most 15 letters, digits, '_' or '-'",
		func(s *Snapshot) any { return s.Options.Congestion },
		func(s *Snapshot) bool { return validName(s.Options.Congestion) }},
	{"Options.RecvBuffer", "at most 2147483647",
		func(s *Snapshot) any { return s.Options.RecvBuffer },
		func(s *Snapshot) bool { return s.Options.RecvBuffer <= maxInt }},
	{"Options.SendBuffer", "at most 2147483647",
		func(s *Snapshot) any { return s.Options.SendBuffer },
		func(s *Snapshot) bool { return s.Options.SendBuffer <= maxInt }},
	{"Options.BufferLock", "bits 0 and 1 at most",
		func(s *Snapshot) any { return s.Options.BufferLock },
		func(s *Snapshot) bool { return s.Options.BufferLock <= 3 }},
	{"Options.ReadShutdown", "true only on a connection that the peer has not closed",
		func(s *Snapshot) any { return s.Options.ReadShutdown },
		func(s *Snapshot) bool {
			return !s.Options.ReadShutdown || s.State.mayShutDownReading()
		}},
	{"MD5Keys", "at most 256 keys of 1 to 80 bytes, each for another prefix of the socket's family or IPv4",
		func(s *Snapshot) any { return len(s.MD5Keys) },
		func(s *Snapshot) bool { return validMD5Keys(s.MD5Keys, s.Local.Addr()) }},
	{"Options.Settings", "options that are kept of such a socket, by rising name, with values that they can have",
		func(s *Snapshot) any { return wrongSetting(s.Options.Settings, s.sockets()) },
		func(s *Snapshot) bool { return wrongSetting(s.Options.Settings, s.sockets()) == "" }},
}

// Validate reports the first field that keeps the snapshot from being restored,
// as an ErrInvalidSnapshot inside a *FieldError, or nil. A snapshot that Save
// returned is always valid; one that travelled may not be. Restore calls it.
func (s *Snapshot) Validate() error { return broken(rules, s) }

// validEnd reports whether a connection can have this end.
func validEnd(end netip.AddrPort) bool {
	addr := end.Addr()
	return validBound(end) && end.Port() != 0 && !addr.Unmap().IsUnspecified()
}

// validBound reports whether a socket can be bound to this address, or to none.
func validBound(end netip.AddrPort) bool {
	addr := end.Addr()
	return addr.IsValid() && !addr.IsMulticast() && validZone(addr, addr.IsLinkLocalUnicast())
}

// validZone reports whether an address has no zone, or that of a device, if it may.
func validZone(addr netip.Addr, linkLocal bool) bool {
	return addr.Zone() == "" || linkLocal && !addr.Is4In6() && validDevice(addr.Zone())
}

// neverBound reports whether this is no address to be bound to. One without a port
// is: with IP_BIND_ADDRESS_NO_PORT, connect(2) chooses the port.
func neverBound(end netip.AddrPort) bool {
	return end.Port() == 0 && end.Addr().Unmap().IsUnspecified()
}

// family tells IPv4 (4), IPv6 (6) and IPv4-mapped addresses (46) apart.
func family(addr netip.Addr) int {
	switch {
	case addr.Is4():
		return 4
	case addr.Is4In6():
		return 46
	default:
		return 6
	}
}

func validName(name string) bool {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return len(name) <= maxName
}
