package criuimg_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// there is a mapping to another host, and back its inverse.
func there() (there, back *soccr.Mapping) {
	rules := func(pairs ...string) (to, from []soccr.AddrRule) {
		for i := 0; i < len(pairs); i += 2 {
			a, b := netip.MustParseAddr(pairs[i]), netip.MustParseAddr(pairs[i+1])
			to, from = append(to, soccr.MapAddr(a, b)), append(from, soccr.MapAddr(b, a))
		}
		return to, from
	}
	there, back = &soccr.Mapping{}, &soccr.Mapping{}
	there.Local, back.Local = rules("10.77.0.1", "192.0.2.1", "fd77::1", "2001:db8::1", "fe80::1", "fe80::a")
	there.Remote, back.Remote = rules("10.77.0.2", "198.51.100.2", "fd77::2", "2001:db8::2")
	there.Local = append(there.Local, soccr.AddrRule{FromPort: 8088, ToPort: 80})
	back.Local = append(back.Local, soccr.AddrRule{FromPort: 80, ToPort: 8088})
	there.Devices, back.Devices = map[string]string{"net0": "eth7"}, map[string]string{"eth7": "net0"}
	return there, back
}

// All sockets of a dump get other addresses, and nothing else changes: back again,
// the images are what they were, to the byte.
func TestMap(t *testing.T) {
	images, dir := criuImages(t), t.TempDir()
	im := read(t, images)
	to, from := there()
	if n, err := im.Map(to); n != len(im.Sockets) || err != nil {
		t.Fatalf("%d sockets of %d, %v", n, len(im.Sockets), err)
	}
	if err := im.Write(dir); err != nil {
		t.Fatal(err)
	}
	mapped := read(t, os.DirFS(dir))
	for i, s := range read(t, images).Sockets {
		local, remote := must(s.Local())(t), must(s.Remote())(t)
		wantLocal, wantRemote := to.Ends(local, remote)
		if l, r := must(mapped.Sockets[i].Local())(t), must(mapped.Sockets[i].Remote())(t); l != wantLocal || r != wantRemote || l == local {
			t.Errorf("%v-%v became %v-%v", local, remote, l, r)
		}
	}
	for _, name := range must(fs.Glob(images, "*.img"))(t) {
		same := bytes.Equal(must(fs.ReadFile(images, name))(t), must(os.ReadFile(dir+"/"+name))(t))
		if same != (name != "files.img") {
			t.Errorf("%s is the same: %v", name, same)
		}
	}
	if n, err := mapped.Map(from); n != len(im.Sockets) || err != nil {
		t.Fatal(n, err)
	}
	if err := mapped.Write(dir); err != nil {
		t.Fatal(err)
	}
	compareImages(t, images, os.DirFS(dir))
}

// What is not TCP, what has no stream, and devices are mapped too; what the mapping
// does not name stays, and what is no socket.
func TestMapOthers(t *testing.T) {
	udp := func(local string, id uint32) *inetsk.InetSkEntry {
		s, _ := newSocket(t, &soccr.Snapshot{State: soccr.StateClose, Local: netip.MustParseAddrPort(local)})
		s.Inet.Type, s.Inet.Proto, s.Inet.Id, s.Inet.Ino = new(uint32(2)), new(uint32(17)), new(id), new(id)
		return s.Inet
	}
	connected, _ := newSocket(t, full())
	streamless, _ := newSocket(t, full4())
	connected.Inet.Id, connected.Inet.Ino = new(uint32(21)), new(uint32(21))
	streamless.Inet.SrcAddr = []uint32{0x01004d0a} // 10.77.0.1
	isSocket, regular := fdinfo.FdTypes_INETSK, fdinfo.FdTypes_REG
	file := func(inet *inetsk.InetSkEntry) proto.Message {
		return &fdinfo.FileEntry{Type: &isSocket, Id: inet.Id, Isk: inet}
	}
	entries := []proto.Message{
		&fdinfo.FileEntry{Type: &regular, Id: new(uint32(1))},
		file(udp("10.77.0.1:53", 2)), file(udp("203.0.113.9:53", 3)), file(udp("[fe80::1%net0]:53", 4)),
		file(connected.Inet), file(streamless.Inet),
	}
	stream := must(connected.Stream.MarshalBinary())(t)
	inets := []proto.Message{udp("10.77.0.1:67", 30)}
	dir := fstest.MapFS{
		"files.img": image(t, "FILES", entries...), "inetsk.img": image(t, "INETSK", inets...),
		"tcp-stream-15.img": {Data: stream, Mode: 0o600},
	}
	im, out := read(t, dir), t.TempDir()
	to, from := there()
	if n, err := im.Map(to); n != 5 || err != nil {
		t.Fatalf("%d sockets, %v; want 5", n, err)
	}
	if err := im.Write(out); err != nil {
		t.Fatal(err)
	}
	decoded := critDecodes(t, out)
	var got []string
	for _, e := range append(decoded["files.img"].Entries[1:], decoded["inetsk.img"].Entries...) {
		inet, ok := e.Message.(*inetsk.InetSkEntry)
		if !ok {
			inet = e.Message.(*fdinfo.FileEntry).Isk
		}
		s := &criuimg.Socket{Inet: inet}
		got = append(got, must(s.Local())(t).String()+" "+inet.GetIfname()+", "+inet.GetOpts().GetSoBoundDev())
	}
	want := []string{
		"192.0.2.1:53 , ", "203.0.113.9:53 , ", "[fe80::a%eth7]:53 eth7, ",
		"[fe80::a%eth7]:80 eth7, eth7", "192.0.2.1:1 , eth7", "192.0.2.1:67 , ",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	from.Local = from.Local[:3] // without the port
	if _, err := im.Map(from); err != nil {
		t.Fatal(err)
	}
	if err := im.Write(out); err != nil {
		t.Fatal(err)
	}
	compareImages(t, dir, os.DirFS(out))
}

// A mapping that fails changes nothing.
func TestMapFails(t *testing.T) {
	multicast := &soccr.Mapping{Local: []soccr.AddrRule{soccr.MapAddr(netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("224.0.0.1"))}}
	invalid := &soccr.Mapping{Local: []soccr.AddrRule{{From: netip.MustParsePrefix("10.0.0.0/8")}}}
	for _, test := range []struct {
		m    *soccr.Mapping
		want error
	}{{multicast, soccr.ErrInvalidSnapshot}, {invalid, soccr.ErrInvalidMapping}} {
		im := read(t, criuImages(t))
		if n, err := im.Map(test.m); n != 0 || !errors.Is(err, test.want) {
			t.Errorf("%d sockets, %v; want %v", n, err, test.want)
		}
		if d := cmp.Diff(read(t, criuImages(t)).Sockets, im.Sockets, protocmp.Transform()); d != "" {
			t.Errorf("sockets have changed (-want +got):\n%s", d)
		}
	}
	isSocket := fdinfo.FdTypes_INETSK
	s, _ := newSocket(t, full4())
	s.Inet.Proto, s.Inet.SrcAddr = new(uint32(17)), nil
	im := read(t, fstest.MapFS{"files.img": image(t, "FILES", &fdinfo.FileEntry{Type: &isSocket, Id: s.Inet.Id, Isk: s.Inet})})
	to, _ := there()
	if _, err := im.Map(to); !errors.Is(err, criuimg.ErrInvalidImage) || !strings.Contains(err.Error(), "src_addr") {
		t.Errorf("a UDP socket without an address: %v", err)
	}
}
