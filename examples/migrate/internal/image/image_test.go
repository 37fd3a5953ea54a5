package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gosoccr/gosoccr/soccr"
)

func example() *Image {
	return &Image{
		Processes: []Process{{PID: 7, Name: "server"}, {PID: 9, Name: "worker"}},
		Sockets: []Socket{
			{Kind: Listener, Holders: []Holder{{PID: 7, FD: 3}, {PID: 9, FD: 3, CloseOnExec: true}}, Listener: &soccr.ListenerSnapshot{
				Local: netip.MustParseAddrPort("10.0.0.1:80"), Backlog: 5,
			}},
			{Kind: Connection, Holders: []Holder{{PID: 9, FD: 8}}, Connection: &soccr.Snapshot{
				State: soccr.StateEstablished, Local: netip.MustParseAddrPort("10.0.0.1:80"),
				Remote: netip.MustParseAddrPort("10.0.0.2:1234"), RecvSeq: 1, SendSeq: 2, MSS: 1460, RecvQueue: []byte("hello"),
				Window: soccr.Window{SndWl1: 1, RcvWup: 1, SndWnd: 100, MaxWindow: 100, RcvWnd: 100, RcvSsthresh: 100, Clamp: 100},
			}},
			{Kind: Datagram, Holders: []Holder{{PID: 9, FD: 9}}, Datagram: &soccr.DatagramSnapshot{
				Local: netip.MustParseAddrPort("10.0.0.1:53"),
			}},
		},
		Keeper: &Keeper{Boot: "x", PID: 3, Start: 4},
	}
}

func encoded(tb testing.TB, i *Image) []byte {
	tb.Helper()
	var b bytes.Buffer
	n, err := i.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		tb.Fatalf("%v, %d bytes of %d", err, n, b.Len())
	}
	return b.Bytes()
}

var equal = []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{})}

func TestRoundTrip(t *testing.T) {
	b := encoded(t, example())
	r := bytes.NewReader(append(b, "more"...))
	var read Image
	n, err := read.ReadFrom(r)
	if err != nil || n != int64(len(b)) {
		t.Fatalf("%v, %d bytes of %d", err, n, len(b))
	}
	if diff := cmp.Diff(example(), &read, equal...); diff != "" {
		t.Error(diff)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "more" {
		t.Errorf("%q is left", rest)
	}
}

// Whatever is wrong with an image is noticed, and changes nothing.
func TestDamaged(t *testing.T) {
	good := encoded(t, example())
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		read := Image{Processes: []Process{{PID: 1}}}
		if _, err := read.ReadFrom(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d may be wrong", i)
		}
		if len(read.Processes) != 1 || read.Sockets != nil {
			t.Errorf("byte %d: %+v", i, read)
		}
		if _, err := read.ReadFrom(bytes.NewReader(good[:i])); err == nil {
			t.Errorf("%d bytes are enough", i)
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Image)
		want   error
	}{
		{"no kind", func(i *Image) { i.Sockets[0].Kind = "" }, ErrInvalid},
		{"no holder", func(i *Image) { i.Sockets[0].Holders = nil }, ErrInvalid},
		{"an unknown process", func(i *Image) { i.Sockets[0].Holders[0].PID = 8 }, ErrInvalid},
		{"a process twice", func(i *Image) { i.Processes[1].PID = 7 }, ErrInvalid},
		{"a descriptor twice", func(i *Image) { i.Sockets[1].Holders[0].FD = 3 }, ErrInvalid},
		{"a negative descriptor", func(i *Image) { i.Sockets[1].Holders[0].FD = -1 }, ErrInvalid},
		{"a large descriptor", func(i *Image) { i.Sockets[1].Holders[0].FD = maxFD }, ErrInvalid},
		{"no process", func(i *Image) { i.Processes[0].PID = 0 }, ErrInvalid},
		{"a connection that cannot be", func(i *Image) { i.Sockets[1].Connection.MSS = 0 }, soccr.ErrInvalidSnapshot},
		{"a listener that cannot be", func(i *Image) { i.Sockets[0].Listener.Local = netip.AddrPort{} }, soccr.ErrInvalidSnapshot},
	} {
		i := example()
		test.change(i)
		if err := i.Validate(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if n, err := i.WriteTo(io.Discard); err == nil || n != 0 {
			t.Errorf("%s: %d bytes were written", test.name, n)
		}
	}
}

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "directory")
	for range 2 { // the second replaces the first
		if _, err := example().Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	read, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), read, equal...); diff != "" {
		t.Error(diff)
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	bad := example()
	bad.Sockets[0].Holders = nil
	if _, err := bad.Save(dir); err == nil {
		t.Error("saved")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Error("something is left of what failed", entries, err)
	}
}

func TestVersion(t *testing.T) {
	b := encoded(t, example())
	b[len(magic)+1] = 9
	if _, err := ReadStream(bytes.NewReader(b)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "version 9") {
		t.Error(err)
	}
}

// split takes an image apart, into its list and what follows.
func split(tb testing.TB, i *Image) (list, sockets []byte) {
	tb.Helper()
	b := encoded(tb, i)
	length := binary.BigEndian.Uint32(b[len(magic)+2:])
	return b[len(magic)+6:][:length], b[len(magic)+6+int(length)+crc32.Size:]
}

func FuzzRead(f *testing.F) {
	for _, i := range []*Image{{}, example()} {
		list, sockets := split(f, i)
		f.Add(list, sockets)
	}
	f.Fuzz(func(t *testing.T, list, sockets []byte) {
		b := binary.BigEndian.AppendUint16([]byte(magic), Version)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(list))), list...)
		b = append(binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), sockets...)
		var i Image
		n, err := i.ReadFrom(bytes.NewReader(b))
		if n > int64(len(b)) {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		if err != nil {
			return
		}
		if err := i.Validate(); err != nil {
			t.Fatal(err)
		}
		var again Image
		if _, err := again.ReadFrom(bytes.NewReader(encoded(t, &i))); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&i, &again, equal...); diff != "" {
			t.Fatal(diff)
		}
	})
}
