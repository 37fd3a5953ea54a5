package criuimg_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// makeOld takes away what older CRIUs did not write, and moves the options of TCP
// to where they had them.
func makeOld(s *criuimg.Socket) {
	opts, tcp := s.Inet.Opts, s.Inet.TcpOpts
	opts.TcpKeepcnt, opts.TcpKeepidle, opts.TcpKeepintvl = tcp.Keepcnt, tcp.Keepidle, tcp.Keepintvl
	opts.SoBufLock, opts.SoRcvlowat = nil, nil
	s.Inet.TcpOpts, s.Inet.NsId, s.Inet.Shutdown, s.Inet.IpOpts = nil, nil, nil, nil
	if st := s.Stream; st != nil {
		st.Entry.Nodelay, st.Entry.Cork = tcp.Nodelay, tcp.Cork
		st.Entry.UnsqLen = nil
		st.Entry.SndWl1, st.Entry.SndWnd, st.Entry.MaxWindow, st.Entry.RcvWnd, st.Entry.RcvWup = nil, nil, nil, nil, nil
	}
}

// oldImages are the dump as an old CRIU would have left it: with inetsk.img, no
// magic of all images, and a table of descriptors for each process.
func oldImages(t *testing.T) fstest.MapFS {
	t.Helper()
	dir := fstest.MapFS{}
	put := func(name, kind string, entries ...proto.Message) []byte {
		b := binary.LittleEndian.AppendUint32(nil, magics[kind])
		for _, e := range entries {
			message := must(proto.Marshal(e))(t)
			b = binary.LittleEndian.AppendUint32(b, uint32(len(message)))
			b = append(b, message...)
		}
		dir[name] = &fstest.MapFile{Data: b, Mode: 0o600}
		return b
	}
	im := read(t, criuImages(t))
	var sockets []proto.Message
	for _, s := range im.Sockets {
		makeOld(s)
		sockets = append(sockets, s.Inet)
		if s.Stream != nil {
			put(streamName(s), "TCP_STREAM", s.Stream.Entry)
			f := dir[streamName(s)]
			f.Data = append(append(f.Data, s.Stream.RecvQueue...), s.Stream.SendQueue...)
		}
	}
	udp := proto.CloneOf(im.Sockets[0].Inet)
	udp.Id, udp.Type, udp.Proto = new(uint32(77)), new(uint32(2)), new(uint32(17))
	sockets = append(sockets, udp)
	put("inetsk.img", "INETSK", sockets...)
	var fds []proto.Message
	for _, e := range im.Tables[0].Entries {
		fds = append(fds, e)
	}
	put("fdinfo-4711.img", "FDINFO", fds...)
	im.Inventory.ImgVersion, im.Inventory.FdinfoPerId = new(uint32(1)), nil
	put("inventory.img", "INVENTORY", im.Inventory)
	return dir
}

// Images of older CRIUs are read, and written as they were.
func TestOldImages(t *testing.T) {
	dir := oldImages(t)
	im, now := read(t, dir), read(t, criuImages(t))
	if len(im.Sockets) != len(now.Sockets) {
		t.Fatalf("%d sockets, want %d", len(im.Sockets), len(now.Sockets))
	}
	for i, s := range im.Sockets {
		if s.State() == soccr.StateListen {
			continue
		}
		got, losses, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if len(losses) > 0 {
			t.Errorf("lost: %v", losses)
		}
		want, _, err := now.Sockets[i].Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		want.Unsent = 0
		if want.State != soccr.StateClose {
			rcvNxt := s.Stream.Entry.GetInqSeq()
			want.Window = soccr.Window{
				SndWl1: rcvNxt - 1, RcvWup: rcvNxt, RcvWnd: 65535,
				RcvSsthresh: 65535, Clamp: 65535 << 10, RecvMemory: uint32(len(want.RecvQueue)),
			}
		} else {
			want.Window = soccr.Window{}
		}
		if d := cmp.Diff(want, got, cmp.Comparer(bytes.Equal), sameAddr); d != "" {
			t.Errorf("%v (-want +got):\n%s", want.State, d)
		}
		if _, err := s.SetSnapshot(got); err != nil {
			t.Fatal(err)
		}
	}
	for id, holders := range im.Holders() {
		if len(holders) != 1 || !cmp.Equal(holders[0].PIDs, []uint32{4711}) {
			t.Errorf("file %d is held by %+v", id, holders)
		}
	}
	out := t.TempDir()
	if err := im.Write(out); err != nil {
		t.Fatal(err)
	}
	compareImages(t, dir, os.DirFS(out))
	critDecodes(t, out)
}

// Options that change go to where CRIU has them today, and nowhere else.
func TestOldOptionsMove(t *testing.T) {
	for _, s := range read(t, oldImages(t)).Sockets {
		if s.State() != soccr.StateEstablished {
			continue
		}
		s.Stream.Entry.Cork = new(true)
		snap, _ := snapshotOf(t, s)
		if cork, _ := snap.Options.Setting("TCP_CORK"); cork.Number != 1 {
			t.Errorf("options %v", snap.Options.Settings)
		}
		changed := *snap
		changed.Options.Settings = []soccr.Setting{{Name: "SO_KEEPALIVE", Number: 1}, {Name: "TCP_KEEPCNT", Number: 3}, {Name: "TCP_KEEPIDLE", Number: 77}}
		if _, err := s.SetSnapshot(&changed); err != nil {
			t.Fatal(err)
		}
		tcp := s.Inet.TcpOpts
		if s.Stream.Entry.Nodelay != nil || s.Inet.Opts.TcpKeepcnt != nil || tcp.GetNodelay() || tcp.GetKeepcnt() != 3 || tcp.GetKeepidle() != 77 {
			t.Errorf("stream %v, socket %v, TCP %v", s.Stream.Entry, s.Inet.Opts, tcp)
		}
		return
	}
	t.Fatal("no such connection")
}
