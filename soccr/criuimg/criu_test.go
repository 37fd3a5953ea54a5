package criuimg_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/magic"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

const dumped = "../../testdata/criu-4.2/"

// criuImages are the images of a real dump.
func criuImages(tb testing.TB) fs.FS {
	tb.Helper()
	z, err := zip.OpenReader(dumped + "images.zip")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { z.Close() })
	return z
}

func read(tb testing.TB, dir fs.FS) *criuimg.Image {
	tb.Helper()
	im, err := criuimg.Read(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return im
}

// A seen socket is one that ss(8) listed before the dump.
type seen struct {
	state         soccr.State
	recvQ, sendQ  int
	local, remote netip.AddrPort
}

// ss reads its listing, by inode.
func ss(tb testing.TB) map[uint32]seen {
	tb.Helper()
	text, err := os.ReadFile(dumped + "ss.txt")
	if err != nil {
		tb.Fatal(err)
	}
	states := map[string]soccr.State{
		"LISTEN": soccr.StateListen, "ESTAB": soccr.StateEstablished, "FIN-WAIT-1": soccr.StateFinWait1,
		"FIN-WAIT-2": soccr.StateFinWait2, "CLOSE-WAIT": soccr.StateCloseWait, "LAST-ACK": soccr.StateLastAck,
	}
	sockets := map[uint32]seen{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		state, ok := states[f[0]]
		if !ok {
			continue // the head
		}
		s := seen{state: state}
		_, rest, _ := strings.Cut(line, "ino:")
		ino, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := fmt.Sscan(f[1], &s.recvQ); err != nil {
			tb.Fatal(err)
		}
		if _, err := fmt.Sscan(f[2], &s.sendQ); err != nil {
			tb.Fatal(err)
		}
		s.local = netip.MustParseAddrPort(f[3])
		if f[4] != "0.0.0.0:*" {
			s.remote = netip.MustParseAddrPort(f[4])
		}
		sockets[uint32(ino)] = s
	}
	return sockets
}

// written and unread are what the dumped program wrote, and had not read, by the
// peer's port.
func written(n int) []byte {
	return bytesOf(n, func(i int) byte { return byte(31*i + i/251) })
}

func unread(port uint16) []byte {
	switch port {
	case 9002:
		return bytesOf(5000, func(i int) byte { return byte(7*i + 3) })
	case 9004:
		return bytesOf(3000, func(i int) byte { return byte(5*i + 1) })
	}
	return nil
}

func bytesOf(n int, f func(int) byte) []byte {
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = f(i)
	}
	return b
}

// Every socket of a real dump decodes to what ss(8) said of it.
func TestCRIUImages(t *testing.T) {
	im, listed := read(t, criuImages(t)), ss(t)
	holders := im.Holders()
	if len(listed) != 16 || len(im.Sockets) != len(listed)+3 {
		t.Fatalf("%d sockets, of which ss listed %d; want 19 and 16", len(im.Sockets), len(listed))
	}
	for _, s := range im.Sockets {
		local, err := s.Local()
		if err != nil {
			t.Fatal(err)
		}
		remote, err := s.Remote()
		if err != nil {
			t.Fatal(err)
		}
		t.Run(local.String()+"-"+remote.String(), func(t *testing.T) {
			want, open := listed[s.Inet.GetIno()]
			if !open { // closed before ss looked
				want = seen{state: soccr.StateClose, local: local, remote: remote}
				if remote.Port() != 9003 {
					t.Errorf("the peer of a closed connection is %v, want its port 9003", remote)
				}
			}
			if s.State() != want.state || local != want.local || remote != want.remote {
				t.Errorf("%v %v-%v, want %v %v-%v", s.State(), local, remote, want.state, want.local, want.remote)
			}
			// fds from 3 on, in the order of files.img; one in between is a file.
			if h := holders[s.Inet.GetId()]; len(h) != 1 || h[0].Table != 2 || h[0].FD != s.Inet.GetId()-3 || h[0].CloseOnExec {
				t.Errorf("held by %+v, want fd %d of table 2", h, s.Inet.GetId()-3)
			}
			if want.state == soccr.StateListen {
				l, losses, err := s.Listener()
				if err != nil || len(losses) > 0 {
					t.Fatal(losses, err)
				}
				want := &soccr.ListenerSnapshot{Local: want.local, Backlog: 37, Options: soccr.Options{RecvBuffer: 131072, SendBuffer: 16384}}
				if d := cmp.Diff(want, l, sameAddr); d != "" {
					t.Errorf("listener (-want +got):\n%s", d)
				}
				return
			}
			snap, _, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			checkSnapshot(t, snap, want)
		})
	}
}

func checkSnapshot(t *testing.T, snap *soccr.Snapshot, want seen) {
	t.Helper()
	if snap.State != want.state || snap.Local != want.local || snap.Remote != want.remote {
		t.Errorf("%v %v-%v, want %v %v-%v", snap.State, snap.Local, snap.Remote, want.state, want.local, want.remote)
	}
	// ss counts FINs.
	recvFIN, sendFIN := 0, 0
	switch want.state {
	case soccr.StateCloseWait:
		recvFIN = 1
	case soccr.StateFinWait1:
		sendFIN = 1
	case soccr.StateLastAck:
		recvFIN, sendFIN = 1, 1
	}
	sent := written(max(want.sendQ-sendFIN, 0))
	if !bytes.Equal(snap.SendQueue, sent) {
		t.Errorf("send queue of %d bytes, want the %d that were written", len(snap.SendQueue), len(sent))
	}
	received := unread(want.remote.Port())
	if len(received) != want.recvQ-recvFIN {
		t.Fatalf("this test expects %d unread bytes, ss %d", len(received), want.recvQ-recvFIN)
	}
	if !bytes.Equal(snap.RecvQueue, received) {
		t.Errorf("receive queue of %d bytes, want the %d that were not read", len(snap.RecvQueue), len(received))
	}
	if len(sent) == 0 && snap.SendQueue != nil || len(received) == 0 && snap.RecvQueue != nil {
		t.Error("an empty queue is not nil")
	}
	idle := want.state == soccr.StateEstablished
	if partly := 0 < snap.Unsent && snap.Unsent < len(snap.SendQueue); partly != idle || snap.UnsentFIN {
		t.Errorf("%d of %d bytes and a FIN (%v) were not sent", snap.Unsent, len(snap.SendQueue), snap.UnsentFIN)
	}
	mss := uint32(1460)
	if snap.Local.Addr().Is6() && !snap.Mapped() {
		mss = 1440
	}
	if snap.MSS != mss || !snap.WindowScaling || snap.SendScale != 10 || snap.RecvScale != 10 || !snap.SACK || snap.ECN {
		t.Errorf("MSS %d, scaling %v %d %d, SACK %v, ECN %v; want %d, true 10 10, true, false",
			snap.MSS, snap.WindowScaling, snap.SendScale, snap.RecvScale, snap.SACK, snap.ECN, mss)
	}
	if ts := snap.Timestamp; !ts.Enabled || ts.Microseconds || ts.Value == 0 {
		t.Errorf("timestamps %+v", ts)
	}
	o := snap.Options
	var settings []soccr.Setting
	if idle {
		settings = []soccr.Setting{{Name: "SO_KEEPALIVE", Number: 1}, {Name: "TCP_KEEPIDLE", Number: 77}, {Name: "TCP_NODELAY", Number: 1}}
	}
	if d := cmp.Diff(settings, o.Settings); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
	if o.RecvBuffer != 131072 || o.SendBuffer != 69120 || o.BufferLock != 0 || o.ReuseAddr || o.ReadShutdown {
		t.Errorf("options %+v", o)
	}
}

// What was read is written as it was: every image, every byte.
func TestWriteWhatWasRead(t *testing.T) {
	images := criuImages(t)
	im, dir := read(t, images), t.TempDir()
	for _, s := range im.Sockets {
		// A snapshot made of the entries changes nothing in them.
		if s.State() == soccr.StateListen {
			l, _, err := s.Listener()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.SetListener(l); err != nil {
				t.Fatal(err)
			}
			continue
		}
		snap, _, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetSnapshot(snap); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Write(dir); err != nil {
		t.Fatal(err)
	}
	compareImages(t, images, os.DirFS(dir))
	for _, entry := range must(os.ReadDir(dir))(t) {
		if info := must(entry.Info())(t); info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", entry.Name(), info.Mode())
		}
	}
}

// compareImages compares two directories.
func compareImages(t *testing.T, want, got fs.FS) {
	t.Helper()
	names := func(dir fs.FS) (names []string) {
		for _, entry := range must(fs.ReadDir(dir, "."))(t) {
			names = append(names, entry.Name())
		}
		return names
	}
	if d := cmp.Diff(names(want), names(got)); d != "" {
		t.Fatalf("images (-want +got):\n%s", d)
	}
	for _, name := range names(want) {
		if !bytes.Equal(must(fs.ReadFile(want, name))(t), must(fs.ReadFile(got, name))(t)) {
			t.Errorf("%s is different", name)
		}
	}
}

// must is the value of a call that cannot fail here.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

// A snapshot alone is enough to write what CRIU wrote.
func TestEncodeAsCRIU(t *testing.T) {
	for _, s := range read(t, criuImages(t)).Sockets {
		again, losses := rewritten(t, s)
		if len(losses) > 0 {
			t.Errorf("lost from CRIU's entries: %v", losses)
		}
		again.Inet.NsId = s.Inet.NsId // which namespace it is in, nobody tells
		if d := cmp.Diff(s, again, protocmp.Transform()); d != "" {
			t.Errorf("%v of socket %d (-want +got):\n%s", s.State(), s.Inet.GetIno(), d)
		}
		if !bytes.Equal(must(proto.Marshal(s.Inet))(t), must(proto.Marshal(again.Inet))(t)) {
			t.Errorf("%v of socket %d has other bytes", s.State(), s.Inet.GetIno())
		}
		if s.Stream != nil && !bytes.Equal(must(s.Stream.MarshalBinary())(t), must(again.Stream.MarshalBinary())(t)) {
			t.Errorf("%v of socket %d: the stream has other bytes", s.State(), s.Inet.GetIno())
		}
	}
}

// rewritten is made of nothing but a socket's snapshot.
func rewritten(t *testing.T, s *criuimg.Socket) (*criuimg.Socket, []criuimg.Loss) {
	t.Helper()
	if s.State() == soccr.StateListen {
		l, losses, err := s.Listener()
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := criuimg.NewListener(s.Inet.GetId(), s.Inet.GetIno(), l)
		return must(again, err)(t), losses
	}
	snap, losses := snapshotOf(t, s)
	again, _, err := criuimg.NewSocket(s.Inet.GetId(), s.Inet.GetIno(), snap)
	return must(again, err)(t), losses
}

var magics = func() map[string]uint32 {
	numbers := map[string]uint32{}
	for name, v := range magic.LoadMagic().ByName {
		numbers[name] = uint32(v)
	}
	return numbers
}()

func streamName(s *criuimg.Socket) string { return fmt.Sprintf("tcp-stream-%x.img", s.Inet.GetIno()) }

var sameAddr = cmpopts.EquateComparable(netip.AddrPort{})
