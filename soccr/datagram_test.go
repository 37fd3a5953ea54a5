package soccr

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// everyDatagramField is valid, and none of its fields is zero.
func everyDatagramField() DatagramSnapshot {
	return DatagramSnapshot{
		Lite:   true,
		Local:  netip.MustParseAddrPort("[fe80::1%eth0]:5000"),
		Remote: netip.MustParseAddrPort("[fe80::2%eth0]:6000"), ReadShutdown: true, WriteShutdown: true,
		Options: Options{
			ReuseAddr: true, NonBlocking: true, PeekOffsetOn: true, PeekOffset: 3, RecvBuffer: 212992, SendBuffer: 212992, BufferLock: 3, Foreign: true,
			Settings: []Setting{{Name: "IPV6_MULTICAST_HOPS", Number: 7}, {Name: "UDPLITE_SEND_CSCOV", Number: 8}},
		},
		Groups: []Group{
			{Addr: netip.MustParseAddr("239.1.2.3"), Device: "eth0"},
			{Addr: netip.MustParseAddr("ff02::77"), Device: "eth1", Only: true, Sources: []netip.Addr{netip.MustParseAddr("2001:db8::2")}},
		},
		RecvQueue: []Datagram{
			{From: netip.MustParseAddrPort("[fe80::2%eth0]:6000"), To: netip.MustParseAddr("fe80::1%eth0"), HopLimit: 1, TrafficClass: 2, Segment: 3, Data: []byte("\x00data\xff")},
			{From: netip.MustParseAddrPort("[::ffff:192.0.2.1]:0"), To: netip.MustParseAddr("::ffff:192.0.2.2")},
		},
	}
}

var goldenDatagrams = map[string]DatagramSnapshot{
	"every-field": everyDatagramField(),
	"plain":       {Local: netip.MustParseAddrPort("192.0.2.1:53")},
	"ping":        {Ping: true, Local: netip.MustParseAddrPort("192.0.2.1:77"), Remote: netip.MustParseAddrPort("192.0.2.2:0")},
	"raw":         {Raw: 253, Local: netip.MustParseAddrPort("[::]:0")},
	"unbound":     {Local: netip.MustParseAddrPort("[::]:0")},
	"multicast":   {Local: netip.MustParseAddrPort("239.1.2.3:5000"), Groups: []Group{{Addr: netip.MustParseAddr("239.1.2.3"), Device: "eth0"}}},
}

func diffDatagrams(want, got *DatagramSnapshot) string {
	return cmp.Diff(want, got, cmp.Comparer(bytes.Equal), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}))
}

func TestDatagramGoldenBytes(t *testing.T) {
	testGoldens(t, "datagram-v1", goldenDatagrams, diffDatagrams)
}

func TestDatagramEncodingCarriesEveryField(t *testing.T) {
	every := everyDatagramField()
	every.Ping, every.Raw = true, 253 // as no socket is
	testEveryField(t, every, diffDatagrams)
	testTagsRise(t, datagramForm.fields)
}

// What is damaged, cut, or of another kind is refused, and changes nothing.
func TestDatagramDecodingRefuses(t *testing.T) {
	d := everyDatagramField()
	b, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, data []byte) {
		t.Helper()
		got, before := DatagramSnapshot{Lite: true}, DatagramSnapshot{Lite: true}
		err := got.UnmarshalBinary(data)
		if !errors.Is(err, ErrInvalidSnapshot) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", what, err)
		}
		if d := diffDatagrams(&before, &got); d != "" {
			t.Errorf("%s: the failure changed the socket:\n%s", what, d)
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
	one := d.RecvQueue[0].append(nil)
	for i := 1; i < len(one); i++ {
		hostile, err := datagramForm.append(nil, &datagramRecord{queue: one[:i]})
		if err != nil {
			t.Fatal(err)
		}
		refuse("a datagram cut", hostile)
	}
	group := d.Groups[1].append(nil)
	for i := 1; i < len(group); i++ {
		refuse("a group cut", bytes.Replace(bytes.Clone(assemble(coded(6, group[:i]...))), []byte(magic), []byte(datagramForm.magic), 1))
	}
	for what, d := range map[string]*DatagramSnapshot{
		"many sources":  {Groups: []Group{{Sources: make([]netip.Addr, maxFields+1)}}},
		"a long device": {Groups: []Group{{Device: strings.Repeat("x", 1<<16)}}},
	} {
		_, marshalErr := d.MarshalBinary()
		_, writeErr := d.WriteTo(io.Discard)
		if !errors.Is(marshalErr, ErrInvalidSnapshot) || !errors.Is(writeErr, ErrInvalidSnapshot) {
			t.Errorf("%s: MarshalBinary: %v; WriteTo: %v", what, marshalErr, writeErr)
		}
	}
}

func TestDatagramsFollowEachOther(t *testing.T) {
	testFollowEachOther(t, new(everyDatagramField()), diffDatagrams)
}

func TestDatagramValidate(t *testing.T) {
	addr, end := netip.MustParseAddr, netip.MustParseAddrPort
	testValidate(t, everyDatagramField, []breach[DatagramSnapshot]{
		{"Raw", func(d *DatagramSnapshot) { d.Ping = true }},
		{"Raw", func(d *DatagramSnapshot) { d.Raw = 253 }},
		{"Local", func(d *DatagramSnapshot) { d.Local = netip.AddrPort{} }},
		{"Local", func(d *DatagramSnapshot) { d.Local = end("[2001:db8::1%eth0]:80") }},
		{"Local", func(d *DatagramSnapshot) { d.Local = netip.AddrPortFrom(addr("fe80::1").WithZone("\xfe"), 80) }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].To = d.RecvQueue[0].To.WithZone("no device") }},
		{"Remote", func(d *DatagramSnapshot) { d.Remote = netip.AddrPortFrom(netip.Addr{}, 80) }},
		{"Remote", func(d *DatagramSnapshot) { d.Remote = end("[::]:80") }},
		{"Remote", func(d *DatagramSnapshot) { d.Remote = end("[fe80::2%eth0]:0") }},
		{"Remote", func(d *DatagramSnapshot) { d.Remote = end("192.0.2.1:80") }},
		{"Remote", func(d *DatagramSnapshot) { d.Local = end("[fe80::1%eth0]:0") }},
		{"Options.Congestion", func(d *DatagramSnapshot) { d.Options.Congestion = "cubic" }},
		{"Options.ReadShutdown", func(d *DatagramSnapshot) { d.Options.ReadShutdown = true }},
		{"Options.PeekOffset", func(d *DatagramSnapshot) { d.Options.PeekOffsetOn = false }},
		{"Options.RecvBuffer", func(d *DatagramSnapshot) { d.Options.RecvBuffer = 1 << 31 }},
		{"Options.SendBuffer", func(d *DatagramSnapshot) { d.Options.SendBuffer = 1 << 31 }},
		{"Options.BufferLock", func(d *DatagramSnapshot) { d.Options.BufferLock = 4 }},
		{"Options.Settings", func(d *DatagramSnapshot) { d.Options.Settings = []Setting{{Name: "TCP_NODELAY", Number: 1}} }},
		{"Options.Settings", func(d *DatagramSnapshot) { d.Lite = false }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups[0].Addr = addr("192.0.2.1") }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups[0].Device = "" }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups[1].Addr = addr("ff02::77%eth1") }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups[1].Sources[0] = addr("192.0.2.1") }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups[1].Sources = make([]netip.Addr, 65) }},
		{"Groups", func(d *DatagramSnapshot) { d.Lite, d.Raw, d.Options.Settings = false, 253, nil }}, // and one of IPv4
		{"Groups", func(d *DatagramSnapshot) { d.Groups = make([]Group, 257) }},
		{"Groups", func(d *DatagramSnapshot) { d.Groups = append(d.Groups[:1:1], d.Groups...) }},
		{"Remote", func(d *DatagramSnapshot) { d.Local = end("[::]:5000") }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].Segment, d.RecvQueue[0].Data = 1, make([]byte, 129) }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].From = netip.AddrPort{} }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].To = netip.Addr{} }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].To = addr("192.0.2.1") }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue[0].Data = make([]byte, 65536) }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.RecvQueue = make([]Datagram, MaxDatagrams+1) }},
		{"RecvQueue", func(d *DatagramSnapshot) { d.Lite, d.Ping, d.Options.Settings = false, true, nil }},
	}, "datagram.go")
}

func FuzzUnmarshalDatagram(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(datagramForm.magic))
	for _, d := range goldenDatagrams {
		b, err := d.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		tries := [][]byte{input}
		if len(input) > crcSize {
			tries = append(tries, sealed(input)) // past the checksum
		}
		for _, data := range tries {
			var d DatagramSnapshot
			var err error
			// A datagram takes more memory than its shortest encoding.
			if took := allocated(func() { err = d.UnmarshalBinary(data) }); took > 16*memoryFor(len(data)) {
				t.Errorf("%d bytes took %d bytes of memory", len(data), took)
			}
			if err != nil {
				if !errors.Is(err, ErrInvalidSnapshot) {
					t.Errorf("not an ErrInvalidSnapshot: %v", err)
				}
				continue
			}
			again, err := d.MarshalBinary()
			if err != nil || !bytes.Equal(data, again) {
				t.Errorf("%q was decoded, but encodes to %q: %v", data, again, err)
			}
			if err := d.Validate(); err != nil && !errors.Is(err, ErrInvalidSnapshot) {
				t.Errorf("not an ErrInvalidSnapshot: %v", err)
			}
		}
	})
}
