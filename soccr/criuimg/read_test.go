package criuimg_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// image puts an image together.
func image(tb testing.TB, kind string, entries ...proto.Message) *fstest.MapFile {
	tb.Helper()
	var b []byte
	if kind != "INVENTORY" {
		b = binary.LittleEndian.AppendUint32(b, magics["IMG_COMMON"])
	}
	b = binary.LittleEndian.AppendUint32(b, magics[kind])
	for _, e := range entries {
		b = appendEntry(b, must(proto.Marshal(e))(tb))
	}
	return &fstest.MapFile{Data: b, Mode: 0o600}
}

func appendEntry(b, message []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(message))), message...)
}

// copyOf are the dump's images, to be changed.
func copyOf(tb testing.TB, dir fs.FS) fstest.MapFS {
	tb.Helper()
	files := fstest.MapFS{}
	for _, entry := range must(fs.ReadDir(dir, "."))(tb) {
		files[entry.Name()] = &fstest.MapFile{Data: must(fs.ReadFile(dir, entry.Name()))(tb), Mode: 0o600}
	}
	return files
}

func ids(files uint32) *criucore.TaskKobjIdsEntry {
	return &criucore.TaskKobjIdsEntry{VmId: new(uint32(1)), FilesId: &files, FsId: new(uint32(1)), SighandId: new(uint32(1))}
}

// Processes can share their descriptors, and hold a socket twice.
func TestHolders(t *testing.T) {
	dir := copyOf(t, criuImages(t))
	dir["ids-4712.img"] = image(t, "IDS", ids(2))
	dir["ids-815.img"] = image(t, "IDS", ids(2))
	dir["ids-900.img"] = image(t, "IDS", ids(12))
	dir["ids-07.img"], dir["ids-.img"], dir["ids-x.img"] = &fstest.MapFile{}, &fstest.MapFile{}, &fstest.MapFile{} // none of CRIU's
	kind, file := fdinfo.FdTypes_INETSK, fdinfo.FdTypes_REG
	dir["fdinfo-12.img"] = image(t, "FDINFO",
		&fdinfo.FdinfoEntry{Id: new(uint32(6)), Flags: new(uint32(1)), Type: &kind, Fd: new(uint32(77))},
		&fdinfo.FdinfoEntry{Id: new(uint32(6)), Flags: new(uint32(0)), Type: &file, Fd: new(uint32(78))})
	im := read(t, dir)
	want := []criuimg.Holder{
		{Table: 2, PIDs: []uint32{815, 4712}, FD: 3},
		{Table: 12, PIDs: []uint32{900}, FD: 77, CloseOnExec: true},
	}
	if d := cmp.Diff(want, im.Holders()[6]); d != "" {
		t.Errorf("holders of file 6 (-want +got):\n%s", d)
	}
}

// The core images tell the machine, and with it the order of an address's bytes.
func TestMachine(t *testing.T) {
	for machine, big := range map[criucore.CoreEntryMarch]bool{criucore.CoreEntry_S390: true, criucore.CoreEntry_AARCH64: false} {
		dir := copyOf(t, criuImages(t))
		core := protowire.AppendTag(nil, 5, protowire.BytesType) // of no interest
		core = protowire.AppendBytes(core, make([]byte, 100_000))
		core = protowire.AppendTag(core, 1, protowire.VarintType)
		core = protowire.AppendVarint(core, uint64(machine))
		dir["core-815.img"] = image(t, "CORE")
		dir["core-815.img"].Data = appendEntry(dir["core-815.img"].Data, core)
		for _, s := range read(t, dir).Sockets {
			if s.BigEndian != big {
				t.Errorf("%v: big-endian %v, want %v", machine, s.BigEndian, big)
			}
		}
	}
}

// They tell the names of processes, too.
func TestNames(t *testing.T) {
	dir := copyOf(t, criuImages(t))
	for pid, name := range map[string]string{"815": "server", "816": strings.Repeat("x", 16), "817": ""} {
		task := protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), []byte(name))
		core := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)
		core = protowire.AppendBytes(protowire.AppendTag(core, 3, protowire.BytesType), task)
		file := image(t, "CORE")
		file.Data = appendEntry(file.Data, core)
		dir["core-"+pid+".img"] = file
	}
	if d := cmp.Diff(map[uint32]string{815: "server"}, read(t, dir).Names); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Sockets can be removed and appended.
func TestRemoveAndAppend(t *testing.T) {
	for name, dir := range map[string]fs.FS{"files.img": criuImages(t), "inetsk.img": oldImages(t)} {
		t.Run(name, func(t *testing.T) {
			im := read(t, dir)
			removed := im.Sockets[3]
			im.Sockets = slices.Delete(im.Sockets, 3, 4)
			id := im.NextID()
			if id != 29 && name == "files.img" || id != 78 && name == "inetsk.img" {
				t.Errorf("the next id is %d", id)
			}
			added, _, err := criuimg.NewSocket(id, 0xabc, full())
			if err != nil {
				t.Fatal(err)
			}
			im.Sockets = append(im.Sockets, added)
			out := t.TempDir()
			for range 2 { // what was appended once is not appended again
				if err := im.Write(out); err != nil {
					t.Fatal(err)
				}
			}
			critDecodes(t, out)
			again := read(t, os.DirFS(out))
			var want, got []uint32
			for _, s := range im.Sockets {
				want = append(want, s.Inet.GetIno())
			}
			for _, s := range again.Sockets {
				got = append(got, s.Inet.GetIno())
			}
			if !slices.Equal(want, got) || slices.Contains(got, removed.Inet.GetIno()) {
				t.Errorf("sockets %v, want %v", got, want)
			}
			snap, _ := snapshotOf(t, again.Sockets[len(again.Sockets)-1])
			if d := diff(full(), snap); d != "" {
				t.Errorf("what was appended (-want +got):\n%s", d)
			}
		})
	}
}

// Images are replaced all or not at all.
func TestWriteFails(t *testing.T) {
	im := read(t, criuImages(t))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "files.img"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := im.Sockets[len(im.Sockets)-2]
	for name, f := range map[string]struct{ do, undo func() }{
		"queue":    {func() { *broken.Stream.Entry.InqLen++ }, func() { *broken.Stream.Entry.InqLen-- }},
		"required": {func() { broken.Inet.Fown.Pid = nil }, func() { broken.Inet.Fown.Pid = new(uint32(0)) }},
	} {
		f.do()
		err := im.Write(dir)
		f.undo()
		if !errors.Is(err, criuimg.ErrInvalidImage) {
			t.Errorf("%s: %v", name, err)
		}
		entries := must(os.ReadDir(dir))(t)
		if b, err := os.ReadFile(filepath.Join(dir, "files.img")); len(entries) != 1 || string(b) != "before" {
			t.Errorf("%s: %d files; files.img is %q, %v", name, len(entries), b, err)
		}
	}
	id := broken.Inet.Id
	for _, other := range []uint32{im.Sockets[0].Inet.GetId(), 1} { // a socket's, a regular file's
		broken.Inet.Id = &other
		if err := im.Write(dir); !errors.Is(err, criuimg.ErrInvalidImage) {
			t.Errorf("two files with the id %d: %v", other, err)
		}
	}
	broken.Inet.Id = id
	if err := im.Write(dir); err != nil {
		t.Error(err)
	}
	if err := im.Write(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// What is not an image is refused, and the error names it.
func TestMalformedImages(t *testing.T) {
	for name, f := range map[string]struct {
		file   string
		change func([]byte) []byte
	}{
		"empty":                {"files.img", func([]byte) []byte { return nil }},
		"half a magic":         {"files.img", func(b []byte) []byte { return b[:6] }},
		"other magic":          {"files.img", func(b []byte) []byte { b[5]++; return b }},
		"of another kind":      {"fdinfo-2.img", func(b []byte) []byte { copy(b[4:], image(t, "FILES").Data[4:]); return b }},
		"half a length":        {"files.img", func(b []byte) []byte { return b[:10] }},
		"half an entry":        {"files.img", func(b []byte) []byte { return b[:len(b)-3] }},
		"huge entry":           {"files.img", func(b []byte) []byte { return append(b, 0, 0, 0, 0x7f) }},
		"no type":              {"files.img", func(b []byte) []byte { return append(b, 0, 0, 0, 0) }},
		"not protobuf":         {"fdinfo-2.img", func(b []byte) []byte { return appendEntry(b, []byte{0xff}) }},
		"twice the same":       {"files.img", func(b []byte) []byte { return append(b, b[8:]...) }},
		"half a stream":        {"tcp-stream-14f054.img", func(b []byte) []byte { return b[:len(b)-1] }},
		"more than a stream":   {"tcp-stream-14f054.img", func(b []byte) []byte { return append(b, 0) }},
		"no stream":            {"tcp-stream-14f054.img", func(b []byte) []byte { return b[:8] }},
		"two inventories":      {"inventory.img", func(b []byte) []byte { return append(b, b[4:]...) }},
		"inventory, truncated": {"inventory.img", func(b []byte) []byte { return b[:len(b)-1] }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyOf(t, criuImages(t))
			dir[f.file].Data = f.change(dir[f.file].Data)
			_, err := criuimg.Read(dir)
			var path *fs.PathError
			if !errors.Is(err, criuimg.ErrInvalidImage) || !errors.As(err, &path) || path.Path != f.file {
				t.Errorf("%v, want an ErrInvalidImage of %s", err, f.file)
			}
		})
	}
	dir := copyOf(t, criuImages(t))
	dir["inventory.img"].Mode = fs.ModeNamedPipe
	if _, err := criuimg.Read(dir); !errors.Is(err, criuimg.ErrInvalidImage) {
		t.Errorf("a pipe: %v", err)
	}
	delete(dir, "files.img")
	delete(dir, "inventory.img")
	if _, err := criuimg.Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no sockets: %v", err)
	}
}

// A connection can lack its stream, as after --tcp-close.
func TestMissingStream(t *testing.T) {
	dir := copyOf(t, criuImages(t))
	delete(dir, "tcp-stream-14f054.img")
	listener := "tcp-stream-14f08a.img"
	dir[listener] = dir["tcp-stream-14f055.img"] // which nobody would read
	im := read(t, dir)
	if last := im.Sockets[len(im.Sockets)-1]; streamName(last) != listener || last.Stream != nil {
		t.Errorf("the last socket, of stream %s, has %v", streamName(last), last.Stream)
	}
	if _, _, err := im.Sockets[0].Snapshot(); !errors.Is(err, criuimg.ErrNoStream) {
		t.Errorf("%v, want ErrNoStream", err)
	}
	if err := im.Write(t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestStream(t *testing.T) {
	whole := must(fs.ReadFile(criuImages(t), "tcp-stream-14f055.img"))(t)
	var s criuimg.Stream
	if err := s.UnmarshalBinary(whole); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.RecvQueue, unread(9002)) || !bytes.Equal(s.SendQueue, written(4321)) {
		t.Errorf("queues of %d and %d bytes", len(s.RecvQueue), len(s.SendQueue))
	}
	if b, err := s.MarshalBinary(); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("%d bytes, %v; want the %d of the image", len(b), err, len(whole))
	}
	if err := s.UnmarshalBinary(whole[1:]); err == nil || len(s.RecvQueue) != 5000 {
		t.Errorf("%v; the stream has %d received bytes", err, len(s.RecvQueue))
	}
	for n := range whole {
		if n > 100 && n%97 != 0 {
			continue
		}
		if _, err := criuimg.ReadStream(bytes.NewReader(whole[:n])); !errors.Is(err, criuimg.ErrInvalidImage) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
		broken := errors.New("broken")
		r := io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken))
		if _, err := criuimg.ReadStream(r); !errors.Is(err, broken) || errors.Is(err, criuimg.ErrInvalidImage) {
			t.Errorf("a reader that breaks after %d bytes: %v", n, err)
		}
	}
	if _, err := criuimg.ReadStream(iotest.OneByteReader(bytes.NewReader(whole))); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
	if _, err := new(criuimg.Stream).MarshalBinary(); !errors.Is(err, criuimg.ErrInvalidImage) {
		t.Errorf("an empty stream: %v", err)
	}
}

// Hostile lengths cost no memory.
func TestHostileLengths(t *testing.T) {
	s, _ := newSocket(t, full())
	s.Stream.Entry.InqLen, s.Stream.Entry.OutqLen = new(uint32(soccr.MaxQueue)), new(uint32(soccr.MaxQueue))
	small, _ := newSocket(t, full())
	large := must(proto.Marshal(small.Stream.Entry))(t) // but for its size, valid
	large = protowire.AppendBytes(protowire.AppendTag(large, 1023, protowire.BytesType), make([]byte, 300<<10))
	for name, b := range map[string][]byte{
		"queues":  image(t, "TCP_STREAM", s.Stream.Entry).Data,
		"entry":   append(image(t, "TCP_STREAM").Data, 0, 0, 0xff, 0),
		"message": slices.Concat(appendEntry(image(t, "TCP_STREAM").Data, large), small.Stream.RecvQueue, small.Stream.SendQueue),
	} {
		took := allocated(func() {
			if _, err := criuimg.ReadStream(bytes.NewReader(b)); !errors.Is(err, criuimg.ErrInvalidImage) {
				t.Errorf("%s: %v", name, err)
			}
		})
		if took > memoryFor(len(b)) {
			t.Errorf("%s: %d bytes took %d bytes of memory", name, len(b), took)
		}
	}
	zeros := &countingReader{}
	if _, err := criuimg.ReadStream(io.MultiReader(bytes.NewReader(image(t, "TCP_STREAM").Data), bytes.NewReader([]byte{0, 0, 0, 0x7f}), zeros)); !errors.Is(err, criuimg.ErrInvalidImage) || zeros.n > 0 {
		t.Errorf("an entry of 2 GB: %v, after %d bytes", err, zeros.n)
	}
	s.Stream.Entry.InqLen = new(uint32(soccr.MaxQueue + 1))
	_, err := criuimg.ReadStream(bytes.NewReader(image(t, "TCP_STREAM", s.Stream.Entry).Data))
	if !errors.Is(err, criuimg.ErrInvalidImage) || !strings.Contains(err.Error(), "inq_len") {
		t.Errorf("a queue that is too long: %v", err)
	}
}

// A countingReader gives zeros, and counts them.
type countingReader struct{ n int }

func (r *countingReader) Read(b []byte) (int, error) {
	clear(b)
	r.n += len(b)
	return len(b), nil
}

// allocated is how much memory f takes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// memoryFor bounds what may be taken for an image: some at once, and a multiple of
// what arrives, because a message in memory is larger than its bytes.
func memoryFor(size int) uint64 { return 1<<20 + 200*uint64(size) }
