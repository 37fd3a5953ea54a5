package soccr_test

import (
	"bytes"
	"encoding"
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/gosoccr/gosoccr/soccr"
)

// A mutator makes hostile values of good ones. The same seed makes the same.
type mutator struct {
	*rand.Rand
	on soccr.Sockets // whose options Settings are chosen from
}

// hostileAddrs are of all kinds that a socket tells apart.
var hostileAddrs = parseAddrs("10.77.0.1", "10.77.0.2", "10.77.0.255", "10.77.0.66", "127.0.0.1", "127.0.0.2", "0.0.0.0", "255.255.255.255",
	"192.0.2.1", "169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "fd77::1", "fd77::2", "fd77::66", "::1", "::", "2001:db8::1", "fe80::1",
	"fe80::1%net0", "fe80::1%lo", "fe80::1%none", "fd77::1%net0", "ff02::1", "ff02::1%net0", "ff0e::77", "::ffff:10.77.0.1", "::ffff:10.77.0.2",
	"::ffff:0.0.0.0", "::ffff:127.0.0.1", "::ffff:224.0.0.1", "::10.77.0.1")

func parseAddrs(texts ...string) (addrs []netip.Addr) {
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return append(addrs, netip.Addr{})
}

func pick[T any](m mutator, all ...T) T { return all[m.IntN(len(all))] }

// change changes 1 to 4 of a struct's values, at any depth.
func (m mutator) change(v any) {
	for range 1 + m.IntN(4) {
		m.value(reflect.ValueOf(v).Elem())
	}
}

func (m mutator) value(v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *netip.AddrPort:
		*p = m.addrPort(*p)
		return
	case *netip.Addr:
		*p = pick(m, hostileAddrs...)
		return
	case *netip.Prefix:
		*p = netip.PrefixFrom(pick(m, hostileAddrs...), m.IntN(140)-1)
		return
	case *[]byte:
		*p = m.bytes(*p)
		return
	case *soccr.State:
		*p = soccr.State(m.IntN(15))
		return
	case *soccr.Setting:
		m.setting(p)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		m.value(v.Field(m.IntN(v.NumField())))
	case reflect.Pointer:
		if !v.IsNil() {
			m.value(v.Elem())
		}
	case reflect.Slice:
		m.slice(v)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(pick(m, "", "net0", "lo", "none", "../..", "reno", "cubic", "bbr", "no such thing", strings.Repeat("x", 20), "10.77.0.1", "\x00"))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(m.number(uint64(v.Int()), v.Type().Bits())))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(m.number(v.Uint(), v.Type().Bits()))
	default:
		panic("cannot change " + v.Type().String())
	}
}

// number is near the old one, near a bound, or anywhere.
func (m mutator) number(old uint64, bits int) uint64 {
	near := uint64(m.IntN(5) - 2)
	n := pick(m, 0, old, old, old^1<<m.IntN(64), 1<<m.IntN(64), math.MaxUint64, math.MaxInt64, math.MaxInt32, m.Uint64()) + near
	return n << (64 - bits) >> (64 - bits)
}

func (m mutator) addrPort(old netip.AddrPort) netip.AddrPort {
	switch m.IntN(3) {
	case 0:
		return netip.AddrPortFrom(old.Addr(), pick(m, 0, 1, 22, 65535, uint16(m.Uint32())))
	case 1:
		return netip.AddrPortFrom(pick(m, hostileAddrs...), old.Port())
	}
	return netip.AddrPortFrom(pick(m, hostileAddrs...), pick(m, 0, uint16(m.Uint32())))
}

func (m mutator) bytes(old []byte) []byte {
	b := bytes.Clone(old)
	switch m.IntN(4) {
	case 0:
		return b[:m.IntN(len(b)+1)]
	case 1:
		return append(b, make([]byte, pick(m, 1, 4, 100, 1500, 70_000, 300_000))...)
	case 2:
		return nil
	}
	for range min(3, len(b)) {
		b[m.IntN(len(b))] = byte(m.Uint32())
	}
	return b
}

func (m mutator) slice(v reflect.Value) {
	n := v.Len()
	switch what := m.IntN(5); {
	case what == 0 && n > 0:
		i := m.IntN(n)
		v.Set(reflect.AppendSlice(v.Slice3(0, i, i), v.Slice(i+1, n)))
	case what == 1 && n > 0:
		v.Set(reflect.Append(v.Slice3(0, n, n), v.Index(m.IntN(n))))
	case what == 2 && n > 1:
		i, j := m.IntN(n), m.IntN(n)
		swapped := reflect.MakeSlice(v.Type(), n, n)
		reflect.Copy(swapped, v)
		swapped.Index(i).Set(v.Index(j))
		swapped.Index(j).Set(v.Index(i))
		v.Set(swapped)
	case what == 3 && n > 0:
		changed := reflect.MakeSlice(v.Type(), n, n)
		reflect.Copy(changed, v)
		m.value(changed.Index(m.IntN(n)))
		v.Set(changed)
	default:
		added := reflect.New(v.Type().Elem()).Elem()
		m.value(added)
		v.Set(reflect.Append(v.Slice3(0, n, n), added))
		if settings, ok := reflect.TypeAssert[[]soccr.Setting](v); ok { // in the order that they need
			slices.SortStableFunc(settings, func(a, b soccr.Setting) int { return strings.Compare(a.Name, b.Name) })
		}
	}
}

// add gives a socket hostile settings, or not.
func (m mutator) add(o *soccr.Options) {
	for range max(0, m.IntN(5)-2) {
		var s soccr.Setting
		m.setting(&s)
		o.Settings = append(o.Settings, s)
	}
	slices.SortStableFunc(o.Settings, func(a, b soccr.Setting) int { return strings.Compare(a.Name, b.Name) })
}

// setting is mostly of an option that such a socket has, with a value that it could
// have.
func (m mutator) setting(s *soccr.Setting) {
	if s.Name == "" || m.IntN(4) == 0 {
		s.Name = pick(m, soccr.OptionRows(m.on)...).Name
	}
	good := unusual[s.Name]
	switch m.IntN(4) {
	case 0:
		s.Number, s.Text, s.Bytes = good.Number, good.Text, good.Bytes
	case 1:
		s.Number, s.Text, s.Bytes = int64(m.number(uint64(good.Number), 64)), "", nil
	case 2:
		s.Number = int64(m.IntN(3))
	case 3:
		s.Bytes = pick(m, hostileBytes...)
		if s.Bytes == nil {
			s.Bytes = m.bytes(good.Bytes)
		}
	}
}

// hostileBytes are of headers and filters that mean harm: routes by way of others,
// lengths that lie, programs that do not end or read what is not there.
var hostileBytes = [][]byte{
	nil,
	{131, 7, 4, 10, 77, 0, 66, 0},    // IP_OPTIONS: loose source route
	{137, 7, 4, 10, 77, 0, 66, 0},    // strict
	{7, 39, 4, 39: 0},                // record route
	{68, 4, 5, 0},                    // timestamp
	{131, 255, 4, 0}, {1, 1, 1, 131}, // lengths
	slices.Concat([]byte{0, 2, 4, 1, 0, 0, 0, 0}, hostileAddrs[15].AsSlice()),                             // IPV6_RTHDR, as yet to be reached
	slices.Concat([]byte{0, 4, 4, 1, 1, 0, 0, 0}, hostileAddrs[15].AsSlice(), hostileAddrs[14].AsSlice()), // two segments
	slices.Concat([]byte{0, 2, 2, 1, 0, 0, 0, 0}, hostileAddrs[15].AsSlice()),                             // mobile
	slices.Concat([]byte{0, 4, 4, 1, 1, 0, 0, 0}, hostileAddrs[14].AsSlice(), hostileAddrs[15].AsSlice()), //
	{0, 0, 5, 2, 0, 0, 1, 0}, {0, 0, 0xc2, 4, 0, 1, 0, 0}, {0, 255, 1, 4, 0, 0, 0, 0}, {0, 0, 1, 255, 0, 0, 0, 0}, // IPV6_HOPOPTS
	{0, 6, 0, 0, 0, 0, 0, 0},                            // SO_ATTACH_FILTER: drop all
	{0, 5, 0, 0, 0xff, 0xff, 0xff, 0xff},                // jump away
	{0, 0x20, 0, 0, 0xff, 0xff, 0xff, 0xff},             // read before the packet
	{0, 0x16, 0, 0, 0, 0, 0, 0},                         // what A says, which nothing has set
	{0, 0x34, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 1}, // by zero
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// reseal changes some bytes of an encoding, and gives it the checksum that it then
// needs.
func (m mutator) reseal(b []byte) []byte {
	b = bytes.Clone(b[:len(b)-4])
	for range 1 + m.IntN(3) {
		b[m.IntN(len(b))] ^= byte(1) << m.IntN(8)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// A kept value is one that has an encoding.
type kept interface {
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

// remake makes a value of a mutated encoding of another, or says why not.
func (m mutator) remake(from, into kept) error {
	b, err := from.MarshalBinary()
	if err != nil {
		return err
	}
	return into.UnmarshalBinary(m.reseal(b))
}
