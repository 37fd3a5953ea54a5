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

// invalid is what Validate says of a field whose value is not what people want.
func invalid(field string, got any, want string) error {
	return &FieldError{Field: field, Want: want, Got: got, Err: ErrInvalidSnapshot}
}

// Validate reports the first field that keeps the snapshot from being restored,
// as an ErrInvalidSnapshot inside a *FieldError, or nil. A snapshot that Save
// returned is always valid; one that travelled may not be. Restore calls it.
func (s *Snapshot) Validate() error {
	row, w, o := s.State.row(), &s.Window, &s.Options
	switch false { // each case is what has to hold
	case row.movable:
		return invalid("State", s.State, "a state that can be moved")
	case validEnd(s.Local) || s.State == StateClose && !s.Remote.IsValid() && validBound(s.Local):
		return invalid("Local", s.Local, "a unicast address with a port, a zone only if link-local")
	case s.State == StateClose && s.Remote == (netip.AddrPort{}) ||
		validEnd(s.Remote) && family(s.Remote.Addr()) == family(s.Local.Addr()):
		return invalid("Remote", s.Remote, "an address of Local's family with a port")
	case len(s.RecvQueue) == 0 || len(s.RecvQueue) <= MaxQueue && s.State != StateSynSent && s.Remote.IsValid():
		return invalid("RecvQueue", len(s.RecvQueue), "at most MaxQueue bytes, none unless connected once")
	case len(s.SendQueue) == 0 || len(s.SendQueue) <= MaxQueue && row.connected && !row.finAcked:
		return invalid("SendQueue", len(s.SendQueue), "at most MaxQueue bytes, none in a state in which all is acknowledged")
	case s.Unsent >= 0 && s.Unsent <= len(s.SendQueue):
		return invalid("Unsent", s.Unsent, "between 0 and the length of SendQueue")
	case s.UnsentFIN == s.State.finPending() || !s.UnsentFIN && s.Unsent == 0:
		return invalid("UnsentFIN", s.UnsentFIN, "true behind unsent bytes, and only where a FIN waits")
	case !s.Reset || s.State == StateClose && s.Remote.IsValid():
		return invalid("Reset", s.Reset, "true only of a connection that is closed")
	case s.MSS >= 1 && s.MSS <= 65535 || !row.connected:
		return invalid("MSS", s.MSS, "between 1 and 65535")
	case s.SendScale == 0 || s.WindowScaling && s.SendScale <= maxScale:
		return invalid("SendScale", s.SendScale, "at most 14, and 0 without window scaling")
	case s.RecvScale == 0 || s.WindowScaling && s.RecvScale <= maxScale:
		return invalid("RecvScale", s.RecvScale, "at most 14, and 0 without window scaling")
	case w.SndWnd <= maxWindow:
		return invalid("Window.SndWnd", w.SndWnd, "at most 65535<<14")
	case w.MaxWindow <= maxWindow:
		return invalid("Window.MaxWindow", w.MaxWindow, "at most 65535<<14")
	case w.RcvWnd <= maxWindow:
		return invalid("Window.RcvWnd", w.RcvWnd, "at most 65535<<14")
	case s.rcvNxt()-w.RcvWup <= maxWindow || !row.connected:
		return invalid("Window.RcvWup", w.RcvWup, "not after what was received, and at most 65535<<14 before it")
	case w.RcvSsthresh <= maxInt:
		return invalid("Window.RcvSsthresh", w.RcvSsthresh, "at most 2147483647")
	case w.Clamp <= maxInt:
		return invalid("Window.Clamp", w.Clamp, "at most 2147483647")
	case w.RecvMemory <= maxInt:
		return invalid("Window.RecvMemory", w.RecvMemory, "at most 2147483647")
	case s.Path.RTT <= maxRTT:
		return invalid("Path.RTT", s.Path.RTT, "at most 120000000 microseconds")
	case validName(o.Congestion):
		return invalid("Options.Congestion", o.Congestion, "at most 15 letters, digits, '_' or '-'")
	case !o.ReadShutdown || s.State.mayShutDownReading():
		return invalid("Options.ReadShutdown", o.ReadShutdown, "true only on a connection that the peer has not closed")
	case validMD5Keys(s.MD5Keys, s.Local.Addr()):
		return invalid("MD5Keys", len(s.MD5Keys), wantMD5Keys)
	}
	return o.validate(s.sockets())
}

// validate is Validate for what all such sockets' options have in common.
func (o *Options) validate(on sockets) error {
	switch false { // each case is what has to hold
	case o.PeekOffset == 0 || o.PeekOffsetOn && o.PeekOffset <= maxInt:
		return invalid("Options.PeekOffset", o.PeekOffset, "at most 2147483647, and 0 when off")
	case o.RecvBuffer <= maxInt:
		return invalid("Options.RecvBuffer", o.RecvBuffer, "at most 2147483647")
	case o.SendBuffer <= maxInt:
		return invalid("Options.SendBuffer", o.SendBuffer, "at most 2147483647")
	case o.BufferLock <= 3:
		return invalid("Options.BufferLock", o.BufferLock, "bits 0 and 1 at most")
	}
	if wrong := wrongSetting(o.Settings, on); wrong != "" {
		return invalid("Options.Settings", wrong, "options that are kept of such a socket, by rising name, with values that they can have")
	}
	return nil
}

// wantMD5Keys is what people are told who have other keys.
const wantMD5Keys = "at most 256 keys of 1 to 80 bytes, each for another prefix of the socket's family or IPv4"

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
