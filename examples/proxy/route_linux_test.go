package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/gosoccr/gosoccr/soccr"
)

// http2Request is how a client of HTTP/2 begins.
func http2Request(t testing.TB, path string) []byte {
	t.Helper()
	frame := func(kind, flags byte, stream uint32, payload []byte) []byte {
		size := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))[1:]
		return slices.Concat(size, []byte{kind, flags}, binary.BigEndian.AppendUint32(nil, stream), payload)
	}
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", path}, {"long", strings.Repeat("x", 20000)}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	const priority, padding = "\x00\x00\x00\x00\x10", "\x00\x00\x00"
	block := headers.Bytes()
	first := slices.Concat([]byte{byte(len(padding))}, []byte(priority), block[:100], []byte(padding))
	return slices.Concat([]byte(http2Preface),
		frame(4, 0, 0, []byte{0, 4, 0, 16, 0, 0}), // SETTINGS_INITIAL_WINDOW_SIZE
		frame(8, 0, 0, []byte{0, 16, 0, 0}),       // WINDOW_UPDATE
		frame(frameHeaders, flagPadded|flagPriority|1, 1, first),
		frame(frameContinuation, 0, 1, block[100:7000]),
		frame(frameContinuation, flagEndHeaders, 1, block[7000:]))
}

// The path is found as soon as it is there, and not before.
func TestPathOf(t *testing.T) {
	for name, head := range map[string]string{
		"HTTP/1.1": "POST /a/b?c HTTP/1.1\r\n",
		"HTTP/2":   string(http2Request(t, "/a/b?c")),
		"a line":   "/a/b?c hello\n",
	} {
		for n := range len(head) {
			if path, err := pathOf([]byte(head[:n])); !errors.Is(err, errMore) {
				t.Fatalf("%s, %d bytes: %q, %v", name, n, path, err)
			}
		}
		if path, err := pathOf([]byte(head + "more")); path != "/a/b?c" || err != nil {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
	for _, head := range []string{"hello\n", "\n", http2Preface + "\x00\x00\x05\x01\x0c\x00\x00\x00\x01\xff\xff\xff\xff\xff"} {
		if path, err := pathOf([]byte(head)); err == nil || errors.Is(err, errMore) {
			t.Errorf("%q: %q, %v", head, path, err)
		}
	}
	for path, want := range map[string]string{"/a/b/c": "/a", "/a?x=/y": "/a", "/": "/", "/a": "/a", "": "", "//": "/"} {
		if got := firstPart(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func FuzzPathOf(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add(http2Request(f, "/"))
	f.Fuzz(func(_ *testing.T, head []byte) {
		path, _ := pathOf(head)
		_ = firstPart(path)
	})
}

// FuzzReadParcel reads what a front sends, which is not to be trusted with memory.
func FuzzReadParcel(f *testing.F) {
	snap := &soccr.Snapshot{State: soccr.StateEstablished, Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("192.0.2.2:5000"), MSS: 1400}
	for _, head := range []string{"", "GET / HTTP/1.1\r\n"} {
		var b bytes.Buffer
		if err := (&parcel{head: []byte(head), snapshot: snap}).writeTo(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		p, err := readParcel(r)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := p.writeTo(&again); err != nil || !bytes.Equal(again.Bytes(), data[:len(data)-r.Len()]) {
			t.Errorf("written again: %x, %v; want %x", again.Bytes(), err, data[:len(data)-r.Len()])
		}
	})
}
