package criuimg_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"testing"
	"testing/fstest"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	tcpstream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// Seeds are small, because go test tries to make everything smaller that it finds.

func FuzzReadStream(f *testing.F) {
	s, _ := newSocket(f, full())
	b := must(s.Stream.MarshalBinary())(f)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		var s *criuimg.Stream
		var err error
		if took := allocated(func() { s, err = criuimg.ReadStream(bytes.NewReader(data)) }); took > memoryFor(len(data)) {
			t.Errorf("%d bytes took %d bytes of memory", len(data), took)
		}
		if err != nil {
			if !errors.Is(err, criuimg.ErrInvalidImage) {
				t.Errorf("not an ErrInvalidImage: %v", err)
			}
			return
		}
		var again criuimg.Stream
		if err := again.UnmarshalBinary(must(s.MarshalBinary())(t)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, &again, protocmp.Transform()); d != "" {
			t.Errorf("written and read again (-first +second):\n%s", d)
		}
	})
}

// someFiles are a file that is no socket, a connection and a listener.
func someFiles(f *testing.F) []proto.Message {
	regular, isSocket := fdinfo.FdTypes_REG, fdinfo.FdTypes_INETSK
	s, _ := newSocket(f, full())
	listener := clone(s).Inet
	listener.Id, listener.Ino, listener.State = new(uint32(9)), new(uint32(9)), new(uint32(soccr.StateListen))
	return []proto.Message{
		&fdinfo.FileEntry{Type: &regular, Id: new(uint32(1))},
		&fdinfo.FileEntry{Type: &isSocket, Id: s.Inet.Id, Isk: s.Inet},
		&fdinfo.FileEntry{Type: &isSocket, Id: listener.Id, Isk: listener},
	}
}

func FuzzReadFiles(f *testing.F) {
	seed := image(f, "FILES", someFiles(f)...).Data
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Fuzz(func(t *testing.T, files []byte) { tryRead(t, map[string][]byte{"files.img": files}) })
}

func FuzzReadInetSk(f *testing.F) {
	s, _ := newSocket(f, full())
	seed := image(f, "INETSK", s.Inet).Data
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Fuzz(func(t *testing.T, sockets []byte) { tryRead(t, map[string][]byte{"inetsk.img": sockets}) })
}

// FuzzReadProcesses reads the images around the sockets.
func FuzzReadProcesses(f *testing.F) {
	kind := fdinfo.FdTypes_INETSK
	table := image(f, "FDINFO",
		&fdinfo.FdinfoEntry{Id: new(uint32(7)), Flags: new(uint32(1)), Type: &kind, Fd: new(uint32(3))}).Data
	inventory := must(fs.ReadFile(criuImages(f), "inventory.img"))(f)
	core := appendEntry(image(f, "CORE").Data, []byte{8, 5, 0x2a, 1, 0})
	f.Add(table, inventory, image(f, "IDS", ids(2)).Data, core)
	f.Add(table[:len(table)-2], inventory[:20], image(f, "IDS").Data, core[:9])
	files := image(f, "FILES", someFiles(f)...).Data
	f.Fuzz(func(t *testing.T, table, inventory, ids, core []byte) {
		tryRead(t, map[string][]byte{
			"files.img": files, "fdinfo-2.img": table, "inventory.img": inventory, "ids-3.img": ids, "core-3.img": core,
		})
	})
}

// tryRead reads a directory, and if that can be done writes it and reads it again.
func tryRead(t *testing.T, images map[string][]byte) {
	dir, size := fstest.MapFS{}, 0
	for name, data := range images {
		dir[name] = &fstest.MapFile{Data: data, Mode: 0o600}
		size += len(data)
	}
	var im *criuimg.Image
	var err error
	if took := allocated(func() { im, err = criuimg.Read(dir) }); took > memoryFor(size) {
		t.Errorf("%d bytes took %d bytes of memory", size, took)
	}
	if err != nil {
		if !errors.Is(err, criuimg.ErrInvalidImage) {
			t.Errorf("not an ErrInvalidImage: %v", err)
		}
		return
	}
	for _, s := range im.Sockets {
		tryBoth(t, s)
	}
	im.Holders()
	first, second := t.TempDir(), t.TempDir()
	if err := im.Write(first); err != nil {
		t.Fatal(err)
	}
	if err := read(t, os.DirFS(first)).Write(second); err != nil {
		t.Fatal(err)
	}
	compareImages(t, os.DirFS(first), os.DirFS(second))
	to, back := there()
	if n, err := im.Map(to); err == nil && n > 0 {
		if _, err := im.Map(back); err != nil {
			t.Errorf("what was mapped cannot be mapped back: %v", err)
		}
	}
}

// FuzzSocket makes snapshots of entries, whatever is in them.
func FuzzSocket(f *testing.F) {
	s, _ := newSocket(f, full())
	f.Add(must(proto.Marshal(s.Inet))(f), must(proto.Marshal(s.Stream.Entry))(f), 8, 10)
	makeOld(s)
	f.Add(must(proto.Marshal(s.Inet))(f), must(proto.Marshal(s.Stream.Entry))(f), 0, 10)
	f.Add(must(proto.Marshal(s.Inet))(f), []byte{}, 0, 0)
	f.Fuzz(func(t *testing.T, inet, stream []byte, received, sent int) {
		s := &criuimg.Socket{Inet: &inetsk.InetSkEntry{}}
		if err := proto.Unmarshal(inet, s.Inet); err != nil {
			return
		}
		if len(stream) > 0 {
			e := &tcpstream.TcpStreamEntry{}
			if err := proto.Unmarshal(stream, e); err != nil {
				return
			}
			received, sent = max(received, 0)&0xfff, max(sent, 0)&0xfff
			s.Stream = &criuimg.Stream{Entry: e, RecvQueue: make([]byte, received), SendQueue: make([]byte, sent)}
			e.InqLen, e.OutqLen = new(uint32(received)), new(uint32(sent))
		}
		tryBoth(t, s)
	})
}

// tryBoth makes a snapshot of entries and entries of the snapshot.
func tryBoth(t *testing.T, s *criuimg.Socket) {
	t.Helper()
	if s.State() == soccr.StateListen {
		before := clone(s)
		if l, _, err := s.Listener(); err == nil {
			if _, err := s.SetListener(l); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(before, s, protocmp.Transform()); d != "" {
				t.Errorf("its own snapshot changes a listener (-before +after):\n%s", d)
			}
		}
	}
	snap, losses, err := s.Snapshot()
	if err != nil {
		for _, known := range []error{criuimg.ErrInvalidImage, criuimg.ErrNoStream, soccr.ErrInvalidSnapshot, soccr.ErrState} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Fatalf("unknown error %v", err)
	}
	for _, l := range losses {
		_ = l.String()
	}
	if err := snap.Validate(); err != nil {
		t.Fatal(err)
	}
	before := clone(s)
	if _, err := s.SetSnapshot(snap); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, s, protocmp.Transform()); d != "" {
		t.Errorf("its own snapshot changes a socket (-before +after):\n%s", d)
	}
	fresh, lost, err := criuimg.NewSocket(1, 2, snap)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := fresh.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(snap, again); (d != "") != (len(lost) > 0) {
		t.Errorf("lost: %v, but (-want +got):\n%s", lost, d)
	}
}
