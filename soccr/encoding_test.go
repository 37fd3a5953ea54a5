package soccr

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write the golden files of this version anew")

// The goldens are snapshots whose encodings are kept in testdata. Those of a
// version that was released never change.
var goldens = []struct {
	name string
	snap Snapshot
}{
	{"every-field", everyField()},
	{"established", Snapshot{
		State:   StateEstablished,
		Local:   netip.MustParseAddrPort("192.0.2.1:443"),
		Remote:  netip.MustParseAddrPort("198.51.100.2:50000"),
		RecvSeq: 1, SendSeq: 0xffffffff, MSS: 1460,
		Window: Window{RcvWup: 1},
	}},
	{"ipv6-zone", Snapshot{
		State:     StateCloseWait,
		Local:     netip.MustParseAddrPort("[fe80::1%eth0]:179"),
		Remote:    netip.MustParseAddrPort("[fe80::2%eth0]:40000"),
		SendQueue: []byte("not acknowledged, not sent"), Unsent: 8,
		SendSeq: 5, MSS: 1440,
		Window: Window{RcvWup: 1},
	}},
	{"mapped", Snapshot{
		State:     StateLastAck,
		Local:     netip.MustParseAddrPort("[::ffff:192.0.2.1]:8080"),
		Remote:    netip.MustParseAddrPort("[::ffff:198.51.100.2]:50000"),
		UnsentFIN: true,
		RecvQueue: []byte("not read"),
		RecvSeq:   0xffffffff, SendSeq: 7, MSS: 536,
	}},
	{"never-connected", Snapshot{
		State: StateClose,
		Local: netip.MustParseAddrPort("[::]:0"),
	}},
	{"syn-sent", Snapshot{
		State:   StateSynSent,
		Local:   netip.MustParseAddrPort("192.0.2.1:40000"),
		Remote:  netip.MustParseAddrPort("198.51.100.2:80"),
		SendSeq: 0x01020304,
	}},
}

// everyField is valid, and none of its fields is zero.
func everyField() Snapshot {
	return Snapshot{
		State:     StateFinWait1,
		Local:     netip.MustParseAddrPort("[2001:db8::1]:443"),
		Remote:    netip.MustParseAddrPort("[2001:db8::2]:50000"),
		RecvQueue: []byte("\x00received\r\n\xff"), SendQueue: []byte("\x89sent\nunsent\x00"), Unsent: 7,
		UnsentFIN: true,
		RecvSeq:   0xfffffff0, SendSeq: 0x10203040,
		MSS:           1440,
		WindowScaling: true, SendScale: 7, RecvScale: 14,
		SACK:      true,
		ECN:       true,
		Timestamp: Timestamp{Enabled: true, Microseconds: true, Value: 0xdeadbeef},
		Window: Window{
			SndWl1: 0xffffffe0, SndWnd: 65535 << 7, MaxWindow: 65535 << 14,
			RcvWnd: 1 << 20, RcvWup: 0xfffffff0,
			RcvSsthresh: 2 << 20, Clamp: 3 << 20, RecvMemory: 2304,
		},
		Path: Path{
			RTT: 43_170, RTTVar: 490, MinRTT: 42_000, RTO: 244_000, Cwnd: 400, Ssthresh: 390,
			PacingRate: 17_000_000_000, Idle: 12, Saved: 1_700_000_000_123,
		},
		Options: Options{
			ReuseAddr: true, NonBlocking: true,
			PeekOffsetOn: true, PeekOffset: 3,
			Congestion: "cubic",
			RecvBuffer: 131072, SendBuffer: 87040, BufferLock: 3,
			ReadShutdown: true,
			Foreign:      true,
			Settings: []Setting{
				{Name: "F_SETOWN", Number: 77, Text: ownerGroup},
				{Name: "SO_ATTACH_FILTER", Bytes: []byte{0, 6, 0, 0, 0, 0, 0xff, 0xff}},
				{Name: "SO_BINDTODEVICE", Text: "eth0"},
				{Name: "SO_MARK", Number: -1},
				{Name: "TCP_KEEPIDLE", Number: 600},
			},
		},
		MD5Keys: []MD5Key{
			{netip.MustParsePrefix("192.0.2.0/24"), []byte("\x00secret")},
			{netip.MustParsePrefix("198.51.100.2/32"), bytes.Repeat([]byte{0xff}, 80)},
		},
	}
}

// leaves are a snapshot's fields, those of its structs by "Struct.Field": what
// the encoding has to carry, each by itself.
func leaves(s *Snapshot) iter.Seq2[string, reflect.Value] {
	var walk func(prefix string, v reflect.Value, yield func(string, reflect.Value) bool) bool
	walk = func(prefix string, v reflect.Value, yield func(string, reflect.Value) bool) bool {
		for i := range v.NumField() {
			name, field := prefix+v.Type().Field(i).Name, v.Field(i)
			visit := yield
			if field.Kind() == reflect.Struct && field.Type() != reflect.TypeFor[netip.AddrPort]() {
				visit = func(name string, v reflect.Value) bool { return walk(name+".", v, yield) }
			}
			if !visit(name, field) {
				return false
			}
		}
		return true
	}
	return func(yield func(string, reflect.Value) bool) { walk("", reflect.ValueOf(s).Elem(), yield) }
}

// diff compares snapshots; a queue that is nil is empty.
func diff(want, got *Snapshot) string {
	return cmp.Diff(want, got, cmp.Comparer(bytes.Equal), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}))
}

func marshal(tb testing.TB, s *Snapshot) []byte {
	tb.Helper()
	b, err := s.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// sealed is an encoding with the checksum that its bytes ask for.
func sealed(b []byte) []byte {
	body := bytes.Clone(b[:len(b)-crcSize])
	return binary.BigEndian.AppendUint32(body, crc32.Checksum(body, castagnoli))
}

// assemble makes an encoding without queues whose fields are given as bytes.
func assemble(fields ...[]byte) []byte {
	all := bytes.Join(fields, nil)
	b := append([]byte(magic), 0, 0, 0, version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(all)))
	b = append(b, make([]byte, 8)...)
	return sealed(append(append(b, all...), make([]byte, crcSize)...))
}

func coded(tag uint16, value ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tag)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(value))), value...)
}

// refused checks that data are an ErrInvalidSnapshot, and that trying changes nothing.
func refused(tb testing.TB, what string, data []byte) error {
	tb.Helper()
	s, before := everyField(), everyField()
	err := s.UnmarshalBinary(data)
	if !errors.Is(err, ErrInvalidSnapshot) {
		tb.Errorf("%s: got %v, want ErrInvalidSnapshot", what, err)
	}
	if errors.Is(err, io.EOF) {
		tb.Errorf("%s: the error is io.EOF, as at the end of a stream: %v", what, err)
	}
	if d := diff(&before, &s); d != "" {
		tb.Errorf("%s: the failure changed the snapshot (-before +after):\n%s", what, d)
	}
	return err
}

func TestGoldenBytes(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			if err := g.snap.Validate(); err != nil {
				t.Fatalf("the golden snapshot is not valid: %v", err)
			}
			asJSON, err := json.MarshalIndent(&g.snap, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range []struct {
				extension string
				encoded   []byte
				decode    func(*Snapshot, []byte) error
			}{
				{"bin", marshal(t, &g.snap), (*Snapshot).UnmarshalBinary},
				{"json", append(asJSON, '\n'), func(s *Snapshot, b []byte) error { return json.Unmarshal(b, s) }},
			} {
				path := filepath.Join("testdata", "snapshot-v1", g.name+"."+form.extension)
				if *update {
					if err := os.WriteFile(path, form.encoded, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				golden, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(form.encoded, golden) {
					t.Errorf("%s: encoded to\n%q, want\n%q", path, form.encoded, golden)
				}
				var got Snapshot
				if err := form.decode(&got, golden); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				if d := diff(&g.snap, &got); d != "" {
					t.Errorf("%s (-want +got):\n%s", path, d)
				}
			}
		})
	}
}

// A field that is forgotten in the encoding's table fails here.
func TestEncodingCarriesEveryField(t *testing.T) {
	full := everyField()
	full.Reset = true // which a valid snapshot in this state cannot have
	values := make(map[string]reflect.Value)
	for name, v := range leaves(&full) {
		if v.IsZero() {
			t.Errorf("everyField does not set %s", name)
		}
		values[name] = v
	}
	var probe Snapshot
	for name, field := range leaves(&probe) {
		probe = Snapshot{}
		field.Set(values[name])
		var got Snapshot
		if err := got.UnmarshalBinary(marshal(t, &probe)); err != nil {
			t.Errorf("%s alone: %v", name, err)
		} else if d := diff(&probe, &got); d != "" {
			t.Errorf("%s alone (-want +got):\n%s", name, d)
		}
	}
}

func TestTagsRise(t *testing.T) { testTagsRise(t, fields) }

func TestEveryFlippedBitIsRefused(t *testing.T) {
	for _, g := range goldens {
		b := marshal(t, &g.snap)
		for bit := range 8 * len(b) {
			b[bit/8] ^= 1 << (bit % 8)
			if err := new(Snapshot).UnmarshalBinary(b); !errors.Is(err, ErrInvalidSnapshot) {
				t.Fatalf("%s with bit %d of byte %d flipped: %v", g.name, bit%8, bit/8, err)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	for _, g := range goldens {
		b := marshal(t, &g.snap)
		for n := range b {
			if err := refused(t, g.name, b[:n]); n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: of the first %d bytes it says %v, not io.ErrUnexpectedEOF", g.name, n, err)
			}
		}
	}
}

func TestDecodingRefuses(t *testing.T) {
	full := everyField()
	good := marshal(t, &full)
	patched := func(offset int, bytes ...byte) []byte {
		b := slices.Clone(good)
		copy(b[offset:], bytes)
		return sealed(b)
	}
	sevenBits := bytes.Clone(good)
	for i := range sevenBits {
		sevenBits[i] &= 0x7f
	}
	state, mss := coded(1, byte(StateClose)), coded(8, 0, 0, 5, 180)
	for _, row := range []struct {
		name string
		data []byte
		says string
	}{
		{"nothing", nil, "no data"},
		{"something else", bytes.Repeat([]byte("no snapshot "), 20), "does not begin like one"},
		{"trailing bytes", append(bytes.Clone(good), 0), "1 bytes follow"},
		{"two snapshots", append(bytes.Clone(good), good...), "follow its end"},
		{"a newer version", patched(8, 0, 0, 0, 2), "its version is 2, this program reads version 1"},
		{"version 0", patched(8, 0, 0, 0, 0), "its version is 0"},
		{"CRLF made LF", bytes.ReplaceAll(good, []byte("\r\n"), []byte("\n")), "does not begin like one"},
		{"LF made CRLF", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), "does not begin like one"},
		{"seven bits", sevenBits, "does not begin like one"},
		{"too many fields", patched(12, 0, 1, 0, 1), "its fields is 65537 bytes, more than 65536"},
		{"a receive queue of 4 GB", patched(16, 0xff, 0xff, 0xff, 0xff), "its receive queue is 4294967295 bytes"},
		{"a send queue of 4 GB", patched(20, 0xff, 0xff, 0xff, 0xff), "its send queue is 4294967295 bytes"},
		{"a wrong checksum", slices.Concat(good[:len(good)-crcSize], []byte{1, 2, 3, 4}), "checksum"},

		{"an unknown tag", assemble(state, coded(0x7fff, 1)), "field 32767 is unknown"},
		{"tag 0", assemble(coded(0, 1), state), "field 0 is unknown"},
		{"fields out of order", assemble(mss, state), "field 1 is unknown or out of order"},
		{"a field twice", assemble(state, state), "field 1 is unknown or out of order"},
		{"half a field's head", assemble(state, mss[:3]), "its fields end too early"},
		{"half a field's value", assemble(state, mss[:7]), "field 8 ends too early"},
		{"a number too short", assemble(coded(8, 5, 180)), "field 8 has a value that it cannot have, of 2 bytes"},
		{"a number too long", assemble(coded(1, 0, 1)), "field 1 has a value that it cannot have, of 2 bytes"},
		{"a number that is zero", assemble(coded(8, 0, 0, 0, 0)), "field 8 has a value that it cannot have"},
		{"a flag that is zero", assemble(coded(9, 0)), "field 9 has a value that it cannot have"},
		{"a flag that is two", assemble(coded(9, 2)), "field 9 has a value that it cannot have"},
		{"a flag of no bytes", assemble(coded(9)), "field 9 has a value that it cannot have"},
		{"an empty text", assemble(coded(35)), "field 35 has a value that it cannot have"},
		{"no unsent bytes", assemble(coded(4, 0, 0, 0, 0)), "field 4 has a value that it cannot have"},
		{"negative unsent bytes", assemble(coded(4, 0xff, 0xff, 0xff, 0xff)), "field 4 has a value that it cannot have"},
		{"an address without a port", assemble(coded(2, 1)), "field 2 has a value that it cannot have"},
		{"an address of 5 bytes", assemble(coded(2, 0, 80, 1, 2, 3, 4, 5)), "field 2 has a value that it cannot have"},
		{"the zero address", assemble(coded(2, 0, 0)), "field 2 has a value that it cannot have"},
		{"a long flag", assemble(coded(9, make([]byte, 100)...)), "of 100 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := refused(t, row.name, row.data)
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("got %v, which does not say %q", err, row.says)
			}
		})
	}
	if err := new(Snapshot).UnmarshalBinary(assemble(state, mss)); err != nil {
		t.Errorf("the rows above are refused for another reason: %v", err)
	}
}

func TestEncodingRefuses(t *testing.T) {
	for _, row := range []struct {
		name string
		snap Snapshot
	}{
		{"negative Unsent", Snapshot{Unsent: -1}},
		{"Unsent beyond MaxQueue", Snapshot{Unsent: MaxQueue + 1}},
		{"a name longer than its length field", Snapshot{Options: Options{Congestion: strings.Repeat("x", 1<<16)}}},
		{"a name longer than all fields may be", Snapshot{Options: Options{Congestion: strings.Repeat("x", 1<<16-1)}}},
	} {
		prefix := []byte("before")
		b, err := row.snap.AppendBinary(prefix)
		if !errors.Is(err, ErrInvalidSnapshot) {
			t.Errorf("AppendBinary with %s: %v", row.name, err)
		}
		if !bytes.Equal(b, prefix) {
			t.Errorf("AppendBinary with %s appended %q", row.name, b[len(prefix):])
		}
		var out bytes.Buffer
		if n, err := row.snap.WriteTo(&out); !errors.Is(err, ErrInvalidSnapshot) || n != 0 || out.Len() != 0 {
			t.Errorf("WriteTo with %s: %d, %v, %d bytes written", row.name, n, err, out.Len())
		}
	}
}

func TestAppendBinaryAppends(t *testing.T) {
	s := everyField()
	prefix := []byte("before")
	b, err := s.AppendBinary(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(prefix, marshal(t, &s)); !bytes.Equal(b, want) {
		t.Errorf("got %q, want %q", b, want)
	}
}

// The encoding holds copies: neither side sees what is later done to the other.
func TestUnmarshalBinaryKeepsNoData(t *testing.T) {
	want := everyField()
	b := marshal(t, &want)
	var got Snapshot
	if err := got.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if d := diff(&want, &got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestSnapshotsFollowEachOther(t *testing.T) {
	var stream bytes.Buffer
	var total int64
	for _, g := range goldens {
		n, err := g.snap.WriteTo(&stream)
		if err != nil {
			t.Fatal(err)
		}
		if want := marshal(t, &g.snap); n != int64(len(want)) || !bytes.HasSuffix(stream.Bytes(), want) {
			t.Errorf("%s: WriteTo wrote other %d bytes than MarshalBinary's %d", g.name, n, len(want))
		}
		total += n
	}
	if total != int64(stream.Len()) {
		t.Errorf("WriteTo counted %d bytes of %d", total, stream.Len())
	}
	for name, reader := range map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r },
		"one byte":    iotest.OneByteReader,
		"by halves":   iotest.HalfReader,
		"early EOF":   iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			in := bytes.NewReader(stream.Bytes())
			r := reader(in)
			var got Snapshot
			for _, g := range goldens {
				size := int64(len(marshal(t, &g.snap)))
				n, err := got.ReadFrom(r)
				if err != nil || n != size {
					t.Fatalf("%s: read %d bytes, want %d: %v", g.name, n, size, err)
				}
				if d := diff(&g.snap, &got); d != "" {
					t.Errorf("%s (-want +got):\n%s", g.name, d)
				}
			}
			before := got
			n, err := got.ReadFrom(r)
			if n != 0 || err != io.EOF { //nolint:errorlint // itself, for those who compare
				t.Errorf("at the end: %d bytes, %v; want 0, io.EOF", n, err)
			}
			if d := diff(&before, &got); d != "" {
				t.Errorf("the end of the stream changed the snapshot:\n%s", d)
			}
		})
	}
}

var errBroken = errors.New("broken pipe, say")

func TestReadFromPassesErrorsOn(t *testing.T) {
	want := everyField()
	b := marshal(t, &want)
	for n := range b {
		got := everyField()
		read, err := got.ReadFrom(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(errBroken)))
		if !errors.Is(err, errBroken) || errors.Is(err, ErrInvalidSnapshot) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if read != int64(n) {
			t.Fatalf("counted %d bytes of %d", read, n)
		}
		if d := diff(&want, &got); d != "" {
			t.Fatalf("the failure changed the snapshot:\n%s", d)
		}
	}
}

// A fullDisk takes a number of bytes and no more.
type fullDisk struct{ free int }

func (d *fullDisk) Write(b []byte) (int, error) {
	n := min(len(b), d.free)
	d.free -= n
	if n < len(b) {
		return n, errBroken
	}
	return n, nil
}

func TestWriteToPassesErrorsOn(t *testing.T) {
	s := everyField()
	for free := range marshal(t, &s) {
		if n, err := s.WriteTo(&fullDisk{free}); !errors.Is(err, errBroken) || n != int64(free) {
			t.Fatalf("with room for %d bytes: wrote %d, %v", free, n, err)
		}
	}
}

// allocated is how many bytes of memory f takes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// memoryFor bounds what decoding may take for a number of bytes that arrived: a
// queue grows by doubling.
func memoryFor(arrived int) uint64 { return 256<<10 + 4*uint64(arrived) }

func TestHostileLengthsTakeNoMemory(t *testing.T) {
	for _, arrived := range []int{0, 1, 100 << 10, 1 << 20} {
		for _, queue := range []int{16, 20} {
			b := assemble()[:headerSize]
			binary.BigEndian.PutUint32(b[queue:], MaxQueue)
			b = append(b, make([]byte, arrived)...)
			var err error
			got := allocated(func() { err = new(Snapshot).UnmarshalBinary(b) })
			if !errors.Is(err, ErrInvalidSnapshot) {
				t.Errorf("got %v", err)
			}
			if got > memoryFor(len(b)) {
				t.Errorf("%d bytes that claim a queue of %d took %d bytes of memory, want at most %d",
					len(b), MaxQueue, got, memoryFor(len(b)))
			}
		}
	}
}

func TestLargeQueues(t *testing.T) {
	queue := make([]byte, 5<<20+1)
	for i := range queue {
		queue[i] = byte(i >> 8)
	}
	want := Snapshot{RecvQueue: queue, SendQueue: queue[1:], Unsent: 1 << 20}
	var got Snapshot
	if err := got.UnmarshalBinary(marshal(t, &want)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want.RecvQueue, got.RecvQueue) || !bytes.Equal(want.SendQueue, got.SendQueue) || want.Unsent != got.Unsent {
		t.Error("the queues differ")
	}
}

// JSON is for people: names, addresses and base64, not numbers.
func TestJSONIsReadable(t *testing.T) {
	s := goldens[2].snap
	b, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"State":"CLOSE_WAIT"`, `"Local":"[fe80::1%eth0]:179"`, `"Remote":"[fe80::2%eth0]:40000"`,
		`"SendQueue":"bm90IGFja25vd2xlZGdlZCwgbm90IHNlbnQ="`, `"Unsent":8`, `"Window":{"SndWl1":0,`,
	} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s does not contain %s", b, want)
		}
	}
	if err := json.Unmarshal([]byte(`{"State":"HALF_OPEN"}`), new(Snapshot)); !errors.Is(err, ErrInvalidSnapshot) {
		t.Errorf("an unknown state: %v", err)
	}
}

// fill sets every field from fuzz input: one byte for flags, as many as a number
// has, and for the rest a length and its bytes.
func fill(tb testing.TB, s *Snapshot, input []byte) {
	take := func(n int) []byte {
		b := make([]byte, n)
		input = input[copy(b, input):]
		return b
	}
	variable := func() []byte { return take(int(take(1)[0])) }
	for name, field := range leaves(s) {
		switch v := field.Addr().Interface().(type) {
		case *bool:
			*v = take(1)[0]&1 != 0
		case *State:
			*v = State(take(1)[0])
		case *uint8:
			*v = take(1)[0]
		case *uint32:
			*v = binary.BigEndian.Uint32(take(4))
		case *uint64:
			*v = binary.BigEndian.Uint64(take(8))
		case *int64:
			*v = int64(binary.BigEndian.Uint64(take(8)))
		case *int:
			*v = int(binary.BigEndian.Uint32(take(4)) % (MaxQueue + 1))
		case *string:
			*v = string(variable())
		case *[]byte:
			*v = variable()
		case *[]MD5Key:
			for range take(1)[0] % 8 {
				var addr netip.Addr
				_ = addr.UnmarshalBinary(variable())
				*v = append(*v, MD5Key{netip.PrefixFrom(addr, int(take(1)[0])), variable()})
			}
		case *[]Setting:
			for range take(1)[0] % 8 {
				*v = append(*v, Setting{string(variable()), int64(binary.BigEndian.Uint64(take(8))), string(variable()), variable()})
			}
		case *netip.AddrPort:
			var addr netip.Addr
			// An address of no possible length is one more case: none.
			_ = addr.UnmarshalBinary(variable())
			*v = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(take(2)))
		default:
			tb.Fatalf("%s: this test cannot make a %v", name, field.Type())
		}
	}
}

func FuzzSnapshotRoundTrip(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 1024))
	f.Add([]byte{1, 4, 127, 0, 0, 1, 0, 80, 4, 127, 0, 0, 1, 0, 81, 2, 'h', 'i', 1, 'x', 0, 0, 0, 1})
	f.Add(append([]byte{8, 20, 0xfe, 0x80, 13: 0, 17: 1, 18: 'e', 'h', '0', 0}, bytes.Repeat([]byte{17}, 600)...))
	for _, g := range goldens {
		f.Add(marshal(f, &g.snap))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		var want Snapshot
		fill(t, &want, input)
		b := marshal(t, &want)
		var got Snapshot
		if err := got.UnmarshalBinary(b); err != nil {
			t.Fatalf("%v: %+v", err, want)
		}
		if d := diff(&want, &got); d != "" {
			t.Fatalf("-want +got:\n%s", d)
		}
		if (want.Validate() == nil) != (got.Validate() == nil) {
			t.Fatalf("before: %v, after: %v", want.Validate(), got.Validate())
		}
		var written bytes.Buffer
		if n, err := want.WriteTo(&written); err != nil || n != int64(len(b)) || !bytes.Equal(written.Bytes(), b) {
			t.Fatalf("WriteTo wrote %d bytes, %v: %q, want %q", n, err, written.Bytes(), b)
		}
		text, err := json.Marshal(&want)
		if err != nil {
			return // a state without a name
		}
		if want.Validate() != nil {
			return // JSON has no form for an address that is none
		}
		got = Snapshot{}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if d := diff(&want, &got); d != "" {
			t.Fatalf("JSON (-want +got):\n%s", d)
		}
	})
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(magic))
	f.Add(assemble(coded(1, byte(StateClose)), coded(2, 0, 0, 0, 0, 0, 0)))
	f.Add(assemble(coded(4, 0x7f, 0xff, 0xff, 0xff)))
	f.Add(append(assemble()[:16], 0x3f, 0xff, 0xc0, 0, 0x3f, 0xff, 0xc0, 0))
	for _, g := range goldens {
		b := marshal(f, &g.snap)
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		tries := [][]byte{input}
		if len(input) > crcSize {
			tries = append(tries, sealed(input)) // past the checksum
		}
		for _, data := range tries {
			var s Snapshot
			var err error
			if took := allocated(func() { err = s.UnmarshalBinary(data) }); took > memoryFor(len(data)) {
				t.Errorf("%d bytes took %d bytes of memory", len(data), took)
			}
			if err != nil {
				if !errors.Is(err, ErrInvalidSnapshot) {
					t.Errorf("not an ErrInvalidSnapshot: %v", err)
				}
				continue
			}
			if again := marshal(t, &s); !bytes.Equal(data, again) {
				t.Errorf("%q was decoded, but encodes to %q", data, again)
			}
			if err := s.Validate(); err != nil && !errors.Is(err, ErrInvalidSnapshot) {
				t.Errorf("not an ErrInvalidSnapshot: %v", err)
			}
		}
	})
}

// BenchmarkEncoding writes and reads snapshots with large queues, which are not
// copied on the way out, nor on the way in when the image stays in memory. Beside it
// stands what a checksum and a copy of the same bytes take.
func BenchmarkEncoding(b *testing.B) {
	snap := everyField()
	snap.RecvQueue, snap.SendQueue = make([]byte, 32<<20), make([]byte, 32<<20)
	snap.Unsent = 0
	size := int64(len(snap.RecvQueue) + len(snap.SendQueue))
	image, err := snap.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	room := make([]byte, len(image))
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"checksum", func() error { crc32.Checksum(image, crc32.MakeTable(crc32.Castagnoli)); return nil }},
		{"copy", func() error { copy(room, image); return nil }},
		{"WriteTo", func() error { _, err := snap.WriteTo(io.Discard); return err }},
		{"AppendBinary", func() error { _, err := snap.AppendBinary(room[:0]); return err }},
		{"DecodeShared", func() error { _, err := new(Snapshot).DecodeShared(image); return err }},
		{"UnmarshalBinary", func() error { return new(Snapshot).UnmarshalBinary(image) }},
		{"ReadFrom", func() error { _, err := new(Snapshot).ReadFrom(bytes.NewReader(image)); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
