package criuimg

import (
	"cmp"
	"encoding/binary"
	"slices"

	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"

	"github.com/gosoccr/gosoccr/soccr"
)

// tongues is which versions of IP a socket speaks, and how.
type tongues uint8

const (
	ipv4   tongues = 1 << iota // AF_INET
	ipv6                       // AF_INET6, with IPv6 only
	mapped                     // AF_INET6, with IPv4 only
	dual                       // AF_INET6, with both

	inet6 = ipv6 | mapped | dual
	all   = ipv4 | inet6
)

func tonguesOf(snap *soccr.Snapshot) tongues {
	switch addr := snap.Local.Addr(); {
	case addr.Is4():
		return ipv4
	case addr.IsUnspecified():
		return dual
	case addr.Is4In6():
		return mapped
	default:
		return ipv6
	}
}

// A settingRow is an option that CRIU has, and a snapshot has among its Settings.
type settingRow struct {
	name string
	on   tongues
	// normal is the default, which CRIU writes and a snapshot leaves out.
	normal int64
	// sparse: CRIU leaves the default out too.
	sparse bool
	field  settingField
}

// A settingField is where CRIU's entry has an option.
type settingField interface {
	get(*inetsk.InetSkEntry) (value soccr.Setting, there bool)
	set(*inetsk.InetSkEntry, soccr.Setting)
	clear(*inetsk.InetSkEntry)
}

type entry = inetsk.InetSkEntry

// settingRows are in the order that a snapshot has its Settings in. Of IPv6, CRIU
// has no hop limit and no traffic class.
var settingRows = [...]settingRow{
	{"IPV6_FREEBIND", ipv6, 0, true, boolField(func(e *entry) **bool { return &e.IpOpts.Freebind })},
	{"IPV6_RECVPKTINFO", ipv6 | dual, 0, true, boolField(func(e *entry) **bool { return &e.IpOpts.Pktinfo })},
	{"IPV6_V6ONLY", inet6, 0, false, boolField(func(e *entry) **bool { return &e.V6Only })},
	{"IP_FREEBIND", ipv4 | mapped | dual, 0, true, boolField(func(e *entry) **bool { return &e.IpOpts.Freebind })},
	{"IP_PKTINFO", ipv4, 0, true, boolField(func(e *entry) **bool { return &e.IpOpts.Pktinfo })},
	{"IP_TOS", ipv4, 0, true, wordField(func(e *entry) **uint32 { return &e.IpOpts.Tos })},
	{"IP_TTL", ipv4, 64, false, wordField(func(e *entry) **uint32 { return &e.IpOpts.Ttl })},
	{"O_ASYNC", all, 0, true, fileFlag(async)},
	{"SO_ATTACH_FILTER", all, 0, true, filterField{}},
	{"SO_BINDTODEVICE", all, 0, true, deviceField{}},
	{"SO_BROADCAST", all, 0, false, boolField(func(e *entry) **bool { return &e.Opts.SoBroadcast })},
	{"SO_DONTROUTE", all, 0, false, boolField(func(e *entry) **bool { return &e.Opts.SoDontroute })},
	{"SO_KEEPALIVE", all, 0, false, boolField(func(e *entry) **bool { return &e.Opts.SoKeepalive })},
	{"SO_LINGER", all, -1, true, wordField(func(e *entry) **uint32 { return &e.Opts.SoLinger })}, // is there if it is on
	{"SO_MARK", all, 0, true, intField(func(e *entry) **uint32 { return &e.Opts.SoMark })},
	{"SO_NO_CHECK", all, 0, false, boolField(func(e *entry) **bool { return &e.Opts.SoNoCheck })},
	{"SO_OOBINLINE", all, 0, false, wordField(func(e *entry) **uint32 { return &e.Opts.SoOobinline })},
	{"SO_PRIORITY", all, 0, false, wordField(func(e *entry) **uint32 { return &e.Opts.SoPriority })},
	{"SO_RCVLOWAT", all, 1, false, wordField(func(e *entry) **uint32 { return &e.Opts.SoRcvlowat })},
	{"SO_RCVTIMEO", all, 0, false, timeField{
		func(e *entry) **uint64 { return &e.Opts.SoRcvTmoSec }, func(e *entry) **uint64 { return &e.Opts.SoRcvTmoUsec }}},
	{"SO_REUSEPORT", all, 0, false, boolField(func(e *entry) **bool { return &e.Opts.SoReuseport })},
	{"SO_SNDTIMEO", all, 0, false, timeField{
		func(e *entry) **uint64 { return &e.Opts.SoSndTmoSec }, func(e *entry) **uint64 { return &e.Opts.SoSndTmoUsec }}},
	{"TCP_CORK", all, 0, true, boolField(func(e *entry) **bool { return &e.TcpOpts.Cork })},
	{"TCP_KEEPCNT", all, 9, false, wordField(func(e *entry) **uint32 { return &e.TcpOpts.Keepcnt })},
	{"TCP_KEEPIDLE", all, 7200, false, wordField(func(e *entry) **uint32 { return &e.TcpOpts.Keepidle })},
	{"TCP_KEEPINTVL", all, 75, false, wordField(func(e *entry) **uint32 { return &e.TcpOpts.Keepintvl })},
	{"TCP_NODELAY", all, 0, true, boolField(func(e *entry) **bool { return &e.TcpOpts.Nodelay })},
}

// decodeSettings reads what of the options is not as it is by default.
func decodeSettings(e *entry, on tongues) (settings []soccr.Setting) {
	for i := range settingRows {
		row := &settingRows[i]
		if row.on&on == 0 {
			continue
		}
		s, there := row.field.get(e)
		if !there || len(s.Text)+len(s.Bytes) == 0 && s.Number == row.normal {
			continue
		}
		s.Name = row.name
		settings = append(settings, s)
	}
	// To set IP_TOS sets the priority too, so a snapshot has both.
	const tos, priority = "IP_TOS", "SO_PRIORITY"
	if _, changes := findSetting(settings, tos); changes {
		if i, there := findSetting(settings, priority); !there {
			settings = slices.Insert(settings, i, soccr.Setting{Name: priority})
		}
	}
	return settings
}

func encodeSettings(e *entry, on tongues, settings []soccr.Setting) {
	for i := range settingRows { // first, because some share a field
		if row := &settingRows[i]; row.on&on == 0 {
			row.field.clear(e)
		}
	}
	for i := range settingRows {
		row := &settingRows[i]
		if row.on&on == 0 {
			continue
		}
		if i, there := findSetting(settings, row.name); there {
			row.field.set(e, settings[i])
		} else if row.sparse {
			row.field.clear(e)
		} else {
			row.field.set(e, soccr.Setting{Number: row.normal})
		}
	}
}

func findSetting(settings []soccr.Setting, name string) (int, bool) {
	return slices.BinarySearchFunc(settings, name, func(s soccr.Setting, name string) int { return cmp.Compare(s.Name, name) })
}

type (
	boolField func(*entry) **bool
	wordField func(*entry) **uint32
	intField  func(*entry) **uint32 // of a negative number too
	timeField struct{ seconds, microseconds func(*entry) **uint64 }
	fileFlag  uint32

	deviceField struct{}
	filterField struct{}
)

func (f boolField) get(e *entry) (s soccr.Setting, there bool) {
	p := *f(e)
	if p != nil && *p {
		s.Number = 1
	}
	return s, p != nil
}

func (f boolField) set(e *entry, s soccr.Setting) { *f(e) = new(s.Number != 0) }
func (f boolField) clear(e *entry)                { *f(e) = nil }

func (f wordField) get(e *entry) (s soccr.Setting, there bool) {
	p := *f(e)
	if p != nil {
		s.Number = int64(*p)
	}
	return s, p != nil
}

func (f wordField) set(e *entry, s soccr.Setting) { *f(e) = new(uint32(s.Number)) }
func (f wordField) clear(e *entry)                { *f(e) = nil }

func (f intField) get(e *entry) (soccr.Setting, bool) {
	s, there := wordField(f).get(e)
	s.Number = int64(int32(s.Number))
	return s, there
}

func (f intField) set(e *entry, s soccr.Setting) { wordField(f).set(e, s) }
func (f intField) clear(e *entry)                { wordField(f).clear(e) }

// get gives a time that no socket has for one that the kernel would not take.
func (f timeField) get(e *entry) (s soccr.Setting, there bool) {
	seconds, microseconds := *f.seconds(e), *f.microseconds(e)
	if seconds == nil || microseconds == nil {
		return s, false
	}
	if *seconds >= 1<<40 || *microseconds >= 1_000_000 {
		return soccr.Setting{Number: -1}, true
	}
	return soccr.Setting{Number: int64(*seconds*1_000_000 + *microseconds)}, true
}

func (f timeField) set(e *entry, s soccr.Setting) {
	*f.seconds(e), *f.microseconds(e) = new(uint64(s.Number/1_000_000)), new(uint64(s.Number%1_000_000))
}

func (f timeField) clear(e *entry) { f.set(e, soccr.Setting{}) } // they are required

func (f fileFlag) get(e *entry) (soccr.Setting, bool) {
	on := e.GetFlags()&uint32(f) != 0
	if on {
		return soccr.Setting{Number: 1}, true
	}
	return soccr.Setting{}, false
}

func (f fileFlag) set(e *entry, _ soccr.Setting) { e.Flags = new(e.GetFlags() | uint32(f)) }
func (f fileFlag) clear(e *entry)                { e.Flags = new(e.GetFlags() &^ uint32(f)) }

func (deviceField) get(e *entry) (soccr.Setting, bool) {
	name := e.GetOpts().GetSoBoundDev()
	return soccr.Setting{Text: name}, name != ""
}

func (deviceField) set(e *entry, s soccr.Setting) { e.Opts.SoBoundDev = &s.Text }
func (deviceField) clear(e *entry)                { e.Opts.SoBoundDev = nil }

// A filter's instruction is a number in both, whose bytes are the fields of struct
// sock_filter.
func (filterField) get(e *entry) (s soccr.Setting, there bool) {
	for _, instruction := range e.GetOpts().GetSoFilter() {
		s.Bytes = binary.BigEndian.AppendUint64(s.Bytes, instruction)
	}
	return s, len(s.Bytes) > 0
}

func (f filterField) set(e *entry, s soccr.Setting) {
	f.clear(e)
	for b := s.Bytes; len(b) >= 8; b = b[8:] {
		e.Opts.SoFilter = append(e.Opts.SoFilter, binary.BigEndian.Uint64(b))
	}
}

func (filterField) clear(e *entry) { e.Opts.SoFilter = nil }
