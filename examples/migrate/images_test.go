package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// criuDump is a directory with the images of a real dump.
func criuDump(t *testing.T) (dir string) {
	t.Helper()
	z, err := zip.OpenReader("../../testdata/criu-4.2/images.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir = t.TempDir()
	if err := os.CopyFS(dir, z); err != nil {
		t.Fatal(err)
	}
	for _, e := range dirEntries(t, dir) {
		if err := os.Chmod(filepath.Join(dir, e.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// someImage is an image of ours, saved.
func someImage(t *testing.T, change func(*image.Image)) (dir string) {
	t.Helper()
	i := &image.Image{
		Processes: []image.Process{{PID: 7, Name: "server"}, {PID: 9, Name: "worker"}},
		Sockets: []image.Socket{
			{Kind: image.Listener, Holders: []image.Holder{{PID: 7, FD: 3}, {PID: 9, FD: 3, CloseOnExec: true}}, Listener: &soccr.ListenerSnapshot{
				Local: netip.MustParseAddrPort("10.0.0.1:80"), Backlog: 5, Options: soccr.Options{RecvBuffer: 131072, SendBuffer: 16384},
			}},
			{Kind: image.Connection, Holders: []image.Holder{{PID: 9, FD: 8}}, Connection: &soccr.Snapshot{
				State: soccr.StateEstablished, Local: netip.MustParseAddrPort("10.0.0.1:80"),
				Remote: netip.MustParseAddrPort("10.0.0.2:1234"), RecvSeq: 1, SendSeq: 2, MSS: 1460, RecvQueue: []byte("hello"),
				Window:  soccr.Window{SndWl1: 1, RcvWup: 1, SndWnd: 100, MaxWindow: 100, RcvWnd: 100, RcvSsthresh: 100, Clamp: 65535, RecvMemory: 5},
				Options: soccr.Options{RecvBuffer: 131072, SendBuffer: 16384, Congestion: "cubic"},
			}},
		},
	}
	if change != nil {
		change(i)
	}
	dir = t.TempDir()
	if _, err := i.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tool runs a command.
func tool(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), "output"))
		if err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	status = run(args, files[0], files[1])
	var texts [2]string
	for i, f := range files {
		b, err := os.ReadFile(f.Name())
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		texts[i] = string(b)
	}
	return status, texts[0], texts[1]
}

func mustTool(t *testing.T, args ...string) (stdout string) {
	t.Helper()
	status, stdout, stderr := tool(t, args...)
	if status != 0 || stderr != "" {
		t.Fatalf("%q: status %d, %s%s", args, status, stdout, stderr)
	}
	return stdout
}

func load(t *testing.T, dir string) *image.Image {
	t.Helper()
	i, err := image.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func readCRIU(t *testing.T, dir string) *criuimg.Image {
	t.Helper()
	im, err := criuimg.Read(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

var sameImage = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})}

// contents are the files of a directory, by name.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, e := range dirEntries(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(b)
	}
	return files
}

func dirEntries(t *testing.T, dir string) []fs.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// private checks that nobody else can read what is in a directory.
func private(t *testing.T, dir string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		return
	}
	for _, e := range dirEntries(t, dir) {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// show reads what CRIU has dumped.
func TestShowCRIU(t *testing.T) {
	dir := criuDump(t)
	text := mustTool(t, "show", "-D", dir)
	for _, want := range []string{
		"note: no ids-*.img tells whose fdinfo-2.img is: it stands as process 2",
		"LISTEN  0.0.0.0:8088, backlog 37",
		"ESTABLISHED  10.77.0.1:44842 -> 10.77.0.2:9001",
		"LAST_ACK  [fd77::1]:42498 -> [fd77::2]:9004",
		"  received       3000 bytes not read yet",
		"  held by        process 2 as descriptor 3\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	var all struct {
		Format  string
		Sockets []struct {
			Connection *struct{ RecvQueue []byte }
			Listener   *soccr.ListenerSnapshot
		}
	}
	if err := json.Unmarshal([]byte(mustTool(t, "show", "-D", dir, "--json")), &all); err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, s := range all.Sockets {
		if s.Connection != nil {
			bytes += len(s.Connection.RecvQueue)
		}
	}
	if all.Format != "criu" || len(all.Sockets) != 19 || bytes != 3*5000+3*3000 {
		t.Errorf("format %q, %d sockets, %d unread bytes", all.Format, len(all.Sockets), bytes)
	}

	// One that cannot be restored is shown all the same.
	if err := os.Remove(filepath.Join(dir, "tcp-stream-14f054.img")); err != nil {
		t.Fatal(err)
	}
	status, text, _ := tool(t, "show", "-D", dir)
	if status != statusPartly || !strings.Contains(text, "  refused        "+criuimg.ErrNoStream.Error()) || !strings.Contains(text, "backlog 37") {
		t.Errorf("status %d\n%s", status, text)
	}
}

// What is exported and imported again is what it was, but for what was said to be
// lost.
func TestExportImport(t *testing.T) {
	from := someImage(t, nil)
	there, back := filepath.Join(t.TempDir(), "criu"), filepath.Join(t.TempDir(), "back")
	var report conversion
	if err := json.Unmarshal([]byte(mustTool(t, "export", "-D", from, "-o", there, "--json")), &report); err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, l := range report.Losses {
		fields = append(fields, l.Field)
	}
	if d := cmp.Diff([]string{"name", "name", "Options.Congestion"}, fields); d != "" || report.Converted != 2 {
		t.Errorf("%d sockets; lost (-want +got):\n%s", report.Converted, d)
	}
	private(t, there)
	if text := mustTool(t, "import", "-D", there, "-o", back); !strings.HasPrefix(text, "2 sockets written to ") {
		t.Error(text)
	}
	private(t, back)
	want := load(t, from)
	for i := range want.Processes {
		want.Processes[i].Name = ""
	}
	want.Sockets[1].Connection.Options.Congestion = ""
	got := load(t, back)
	if d := cmp.Diff(want, got, sameImage); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	// A dump that is there stays.
	if status, _, stderr := tool(t, "export", "-D", from, "-o", there); status != statusFailed || !strings.Contains(stderr, "files.img already") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// A real dump becomes an image of ours, and of that the same entries again.
func TestImportDump(t *testing.T) {
	dump := criuDump(t)
	back, again := t.TempDir(), filepath.Join(t.TempDir(), "criu")
	mustTool(t, "import", "-D", dump, "-o", back)
	mustTool(t, "export", "-D", back, "-o", again)
	want, got := contents(t, dump), contents(t, again)
	for name, text := range want {
		if strings.HasPrefix(name, "tcp-stream-") {
			found := false
			for other, text2 := range got {
				found = found || strings.HasPrefix(other, "tcp-stream-") && text == text2
			}
			if !found {
				t.Errorf("%s has not come back", name)
			}
		}
	}
	if len(load(t, back).Sockets) != 19 {
		t.Errorf("%d sockets, want 19", len(load(t, back).Sockets))
	}
	before, after := readCRIU(t, dump), readCRIU(t, again)
	for i, s := range before.Sockets {
		if h, g := before.Holders()[s.Inet.GetId()], after.Holders()[after.Sockets[i].Inet.GetId()]; h[0].FD != g[0].FD {
			t.Errorf("descriptor %d became %d", h[0].FD, g[0].FD)
		}
	}
}

// What cannot be converted is refused, and the rest is converted.
func TestConversionInPart(t *testing.T) {
	signed := someImage(t, func(i *image.Image) {
		i.Sockets[1].Connection.MD5Keys = []soccr.MD5Key{{Peers: netip.MustParsePrefix("10.0.0.2/32"), Key: []byte("secret")}}
	})
	to := filepath.Join(t.TempDir(), "criu")
	status, text, _ := tool(t, "export", "-D", signed, "-o", to)
	if status != statusPartly || !strings.Contains(text, "refused  ESTABLISHED 10.0.0.1:80 -> 10.0.0.2:1234: ") || strings.Contains(text, "secret") {
		t.Errorf("status %d, %s", status, text)
	}
	if im := readCRIU(t, to); len(im.Sockets) != 1 {
		t.Errorf("%d sockets", len(im.Sockets))
	}
	dump := criuDump(t)
	im := readCRIU(t, dump)
	im.Tables[0].Entries = slices.DeleteFunc(im.Tables[0].Entries, func(e *fdinfo.FdinfoEntry) bool {
		return e.GetId() == im.Sockets[0].Inet.GetId() // which nobody holds then
	})
	if err := im.Write(dump); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dump, "tcp-stream-14f055.img")); err != nil {
		t.Fatal(err)
	}
	status, text, _ = tool(t, "import", "-D", dump, "-o", filepath.Join(t.TempDir(), "image"))
	if status != statusPartly || !strings.Contains(text, "17 sockets written") ||
		!strings.Contains(text, "no descriptor stands for it") || !strings.Contains(text, criuimg.ErrNoStream.Error()) {
		t.Errorf("status %d, %s", status, text)
	}
	status, text, _ = tool(t, "lint", "-D", dump)
	if status != statusPartly || !strings.Contains(text, "no descriptor stands for it") || !strings.Contains(text, criuimg.ErrNoStream.Error()) {
		t.Errorf("lint: status %d, %s", status, text)
	}
}

// rewrite changes an image of ours in place, or into another directory.
func TestRewriteOurs(t *testing.T) {
	dir := someImage(t, nil)
	before := contents(t, dir)
	to := filepath.Join(t.TempDir(), "moved")
	mustTool(t, "rewrite", "-D", dir, "-o", to, "--map-local", "10.0.0.0/24=192.0.2.0/24", "--map-remote", ":1234=:4321")
	if d := cmp.Diff(before, contents(t, dir)); d != "" {
		t.Errorf("the source has changed:\n%s", d)
	}
	want := load(t, dir)
	want.Sockets[0].Listener.Local = netip.MustParseAddrPort("192.0.2.1:80")
	want.Sockets[1].Connection.Local = netip.MustParseAddrPort("192.0.2.1:80")
	want.Sockets[1].Connection.Remote = netip.MustParseAddrPort("10.0.0.2:4321")
	if d := cmp.Diff(want, load(t, to), sameImage); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	text := mustTool(t, "rewrite", "-D", dir, "--map-remote", "10.0.0.2=192.0.2.9", "--json")
	if text != `{"format":"migrate","sockets":2,"changed":1}`+"\n" {
		t.Error(text)
	}
	if remote := load(t, dir).Sockets[1].Connection.Remote; remote.String() != "192.0.2.9:1234" {
		t.Errorf("the peer is %v", remote)
	}
	private(t, dir)
	if len(dirEntries(t, dir)) != 1 {
		t.Errorf("more than the image is there: %v", dirEntries(t, dir))
	}
}

// Sockets of UDP are rewritten, and CRIU's images of them not written.
func TestUDPInImages(t *testing.T) {
	dir := someImage(t, func(i *image.Image) {
		i.Sockets = append(i.Sockets, image.Socket{Kind: image.Datagram, Holders: []image.Holder{{PID: 7, FD: 9}}, Datagram: &soccr.DatagramSnapshot{
			Local: netip.MustParseAddrPort("10.0.0.1:53"),
		}})
	})
	mustTool(t, "lint", "-D", dir)
	if text := mustTool(t, "rewrite", "-D", dir, "--map-local", ":53=:5353"); text != "1 of 3 sockets changed\n" {
		t.Error(text)
	}
	if local := load(t, dir).Sockets[2].Datagram.Local; local.String() != "10.0.0.1:5353" {
		t.Errorf("it is at %v", local)
	}
	status, text, _ := tool(t, "export", "-D", dir, "-o", filepath.Join(t.TempDir(), "criu"))
	if status != statusPartly || !strings.Contains(text, "refused  UDP 10.0.0.1:5353: only sockets of TCP") {
		t.Errorf("status %d, %s", status, text)
	}
}

// rewrite changes CRIU's images in place, or all of a dump into another directory.
func TestRewriteCRIU(t *testing.T) {
	dir := criuDump(t)
	for name, text := range map[string]string{"pages-1.img": "memory", "dump.log": "log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := contents(t, dir)
	to := filepath.Join(t.TempDir(), "moved")
	args := []string{"--map-local", "10.77.0.1=192.0.2.1", "--map-local", "fd77::/64=2001:db8::/64", "--map-remote", "fd77::2=2001:db8::2"}
	text := mustTool(t, append([]string{"rewrite", "-D", dir, "-o", to}, args...)...)
	if text != "18 of 19 sockets changed\n" { // and a listener for all addresses
		t.Error(text)
	}
	if d := cmp.Diff(before, contents(t, dir)); d != "" {
		t.Errorf("the source has changed:\n%s", d)
	}
	private(t, to)
	mustTool(t, append([]string{"rewrite", "-D", dir}, args...)...)
	private(t, dir)
	if d := cmp.Diff(contents(t, dir), contents(t, to)); d != "" {
		t.Errorf("in place and elsewhere differ:\n%s", d)
	}
	for name, text := range contents(t, to) {
		if changed := text != before[name]; changed != (name == "files.img") {
			t.Errorf("%s has changed: %v", name, changed)
		}
	}
	for _, s := range readCRIU(t, dir).Sockets[:18] {
		local, err := s.Local()
		if err != nil || local.Addr().Unmap().String() != "192.0.2.1" && local.Addr().String() != "2001:db8::1" {
			t.Errorf("%v, %v", local, err)
		}
	}
	mustTool(t, "rewrite", "-D", dir, "--map-local", "192.0.2.1=10.77.0.1", "--map-local", "2001:db8::/64=fd77::/64", "--map-remote", "2001:db8::2=fd77::2")
	if d := cmp.Diff(before, contents(t, dir)); d != "" {
		t.Errorf("and back again, it is another dump:\n%s", d)
	}
}

// What fails changes nothing and leaves nothing behind.
func TestRewriteFails(t *testing.T) {
	ours, dump := someImage(t, nil), criuDump(t)
	for _, dir := range []string{ours, dump} {
		before, parent := contents(t, dir), t.TempDir()
		to := filepath.Join(parent, "to")
		for _, test := range []struct {
			what   string
			args   []string
			status int
			stderr string
		}{
			{"nothing matches", []string{"--map-local", "192.0.2.200=192.0.2.201"}, statusFailed, "no rule matches"},
			{"nothing matches, elsewhere", []string{"--map-local", "192.0.2.200=192.0.2.201", "-o", to}, statusFailed, "no rule matches"},
			{"no such address", []string{"--map-local", "10.0.0.0/8=224.0.0.0/8"}, statusFailed, soccr.ErrInvalidSnapshot.Error()},
			{"no rules", nil, statusUsage, "change what?"},
			{"no rule", []string{"--map-local", "10.0.0.1"}, statusUsage, "OLD=NEW"},
			{"sizes", []string{"--map-local", "10.0.0.0/8=10.0.0.0/16"}, statusUsage, "same family and length"},
			{"it is there", []string{"--map-local", "10.0.0.0/8=11.0.0.0/8", "-o", parent}, statusFailed, "exists already"},
			{"no room", []string{"--map-local", "10.0.0.0/8=11.0.0.0/8", "-o", filepath.Join(parent, "no", "where", "\x00")}, statusFailed, ""},
		} {
			status, stdout, stderr := tool(t, append([]string{"rewrite", "-D", dir}, test.args...)...)
			if status != test.status || stdout != "" || !strings.Contains(stderr, test.stderr) {
				t.Errorf("%s: status %d, want %d; %s%s", test.what, status, test.status, stdout, stderr)
			}
			if d := cmp.Diff(before, contents(t, dir)); d != "" {
				t.Errorf("%s: it has changed:\n%s", test.what, d)
			}
			if entries := dirEntries(t, parent); len(entries) > 0 {
				t.Errorf("%s: left behind: %v", test.what, entries)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(dump, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	status, _, stderr := tool(t, "rewrite", "-D", dump, "--map-local", "10.0.0.0/8=11.0.0.0/8", "-o", filepath.Join(parent, "to"))
	if status != statusFailed || !strings.Contains(stderr, "neither a file nor a link") || len(dirEntries(t, parent)) > 0 {
		t.Errorf("status %d, %s, %v", status, stderr, dirEntries(t, parent))
	}
}

// lint finds what would be refused, by whom, and why.
func TestLint(t *testing.T) {
	if text := mustTool(t, "lint", "-D", criuDump(t)); text != "19 sockets, 0 reasons to refuse\n" {
		t.Errorf("of a dump that CRIU restores: %s", text)
	}
	if text := mustTool(t, "lint", "-D", someImage(t, nil)); text != "2 sockets, 0 reasons to refuse\n" {
		t.Errorf("of an image: %s", text)
	}
	for _, test := range []struct {
		what   string
		change func(*criuimg.Image)
		want   finding // Text is a part of it
	}{
		{"a window", func(im *criuimg.Image) {
			e := im.Sockets[0].Stream.Entry
			e.SndWl1 = new(e.GetInqSeq() + e.GetRcvWnd() + 1)
		}, finding{"ESTABLISHED 10.77.0.1:44842 -> 10.77.0.2:9001", byCRIU, true, "snd_wl1 is behind"}},
		{"the last number of a window", func(im *criuimg.Image) {
			e := im.Sockets[0].Stream.Entry
			e.SndWl1 = new(e.GetInqSeq() + e.GetRcvWnd())
		}, finding{}},
		{"another window", func(im *criuimg.Image) {
			e := im.Sockets[0].Stream.Entry
			e.MaxWindow = new(e.GetSndWnd() - 1)
		}, finding{"ESTABLISHED 10.77.0.1:44842 -> 10.77.0.2:9001", byCRIU, true, "max_window"}},
		{"a scale", func(im *criuimg.Image) { im.Sockets[0].Stream.Entry.SndWscale = new(uint32(15)) },
			finding{"ESTABLISHED 10.77.0.1:44842 -> 10.77.0.2:9001", byUs, true, "snd_wscale is 15"}},
		{"one flow twice", func(im *criuimg.Image) {
			im.Sockets[1].Inet.SrcPort, im.Sockets[1].Inet.DstPort = im.Sockets[0].Inet.SrcPort, im.Sockets[0].Inet.DstPort
		}, finding{By: byUs, Refused: true, Text: "another socket of the image has its addresses and ports: ESTABLISHED 10.77.0.1:44842"}},
		{"in another namespace", func(im *criuimg.Image) {
			im.Sockets[1].Inet.SrcPort, im.Sockets[1].Inet.DstPort = im.Sockets[0].Inet.SrcPort, im.Sockets[0].Inet.DstPort
			im.Sockets[1].Inet.NsId = new(uint32(77))
		}, finding{}},
		{"ECN", func(im *criuimg.Image) {
			im.Sockets[0].Stream.Entry.OptMask = new(im.Sockets[0].Stream.Entry.GetOptMask() | 8)
		},
			finding{"ESTABLISHED 10.77.0.1:44842 -> 10.77.0.2:9001", byUs, false, "ECN"}},
	} {
		dir := criuDump(t)
		im := readCRIU(t, dir)
		test.change(im)
		if err := im.Write(dir); err != nil {
			t.Fatal(err)
		}
		status, stdout, _ := tool(t, "lint", "-D", dir, "--json")
		var got struct {
			Sockets, Refused int
			Findings         []finding
		}
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatal(err)
		}
		wantStatus, wantRefused, wantFindings := 0, 0, 1
		if test.want.Refused {
			wantStatus, wantRefused = statusPartly, 1
		}
		if test.want == (finding{}) {
			wantFindings = 0
		}
		if status != wantStatus || got.Refused != wantRefused || len(got.Findings) != wantFindings || got.Sockets != 19 {
			t.Errorf("%s: status %d, %s", test.what, status, stdout)
			continue
		}
		if wantFindings == 0 {
			continue
		}
		f := got.Findings[0]
		if test.want.Socket != "" && f.Socket != test.want.Socket || f.By != test.want.By || f.Refused != test.want.Refused || !strings.Contains(f.Text, test.want.Text) {
			t.Errorf("%s: got %+v", test.what, f)
		}
		if _, text, _ := tool(t, "lint", "-D", dir); !strings.Contains(text, test.want.Text) || test.want.Refused != strings.Contains(text, "refused by "+test.want.By) {
			t.Errorf("%s, for people: %s", test.what, text)
		}
	}
	twice := someImage(t, func(i *image.Image) {
		i.Sockets = append(i.Sockets, image.Socket{Kind: image.Listener, Holders: []image.Holder{{PID: 7, FD: 5}}, Listener: i.Sockets[0].Listener})
	})
	if status, text, _ := tool(t, "lint", "-D", twice); status != statusPartly || !strings.Contains(text, "refused by gosoccr  LISTEN 10.0.0.1:80") {
		t.Errorf("status %d, %s", status, text)
	}
	shared := someImage(t, func(i *image.Image) {
		i.Sockets[0].Listener.Options.Settings = []soccr.Setting{{Name: "SO_REUSEPORT", Number: 1}}
		i.Sockets = append(i.Sockets, image.Socket{Kind: image.Listener, Holders: []image.Holder{{PID: 7, FD: 5}}, Listener: i.Sockets[0].Listener})
	})
	mustTool(t, "lint", "-D", shared)
}

// What is no image is said to be none, by all commands.
func TestNoImage(t *testing.T) {
	empty, broken, dump := t.TempDir(), criuDump(t), criuDump(t)
	if err := os.WriteFile(filepath.Join(broken, "files.img"), []byte("not an image at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	for _, args := range [][]string{
		{"show"}, {"lint"}, {"rewrite", "--map-local", ":1=:2"}, {"export", "-o", to}, {"import", "-o", to},
	} {
		for _, dir := range []string{empty, broken, filepath.Join(empty, "nowhere")} {
			if status, stdout, stderr := tool(t, append(args, "-D", dir)...); status != statusFailed || stdout != "" || stderr == "" {
				t.Errorf("%q of %s: status %d, %s%s", args, dir, status, stdout, stderr)
			}
		}
		if status, _, stderr := tool(t, args...); status != statusUsage || !strings.Contains(stderr, "-D DIR") {
			t.Errorf("%q: status %d, %s", args, status, stderr)
		}
	}
	if status, _, stderr := tool(t, "export", "-D", dump, "-o", to); status != statusFailed || !strings.Contains(stderr, "migrate import") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if status, _, stderr := tool(t, "rewrite", "-D", dump, "-o", "-", "--map-local", "10.0.0.0/8=11.0.0.0/8"); status != statusFailed || !strings.Contains(stderr, "pipe") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if _, err := os.Stat(to); err == nil {
		t.Errorf("%s was made", to)
	}
}

// Images go through pipes.
func TestPipe(t *testing.T) {
	status, stdout, stderr := tool(t, "import", "-D", criuDump(t), "-o", "-", "--json")
	if status != 0 || !strings.HasPrefix(stderr, `{"converted":19,`) {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var i image.Image
	if _, err := i.ReadFrom(bytes.NewReader([]byte(stdout))); err != nil || len(i.Sockets) != 19 {
		t.Fatal(err, len(i.Sockets))
	}
	in, err := os.Open(filepath.Join(someImage(t, nil), image.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	before := os.Stdin
	os.Stdin = in
	defer func() { os.Stdin = before }()
	status, stdout, _ = tool(t, "rewrite", "-D", "-", "-o", "-", "--map-local", ":80=:8080")
	var rewritten image.Image
	if _, err := rewritten.ReadFrom(strings.NewReader(stdout)); status != 0 || err != nil || rewritten.Sockets[0].Listener.Local.Port() != 8080 {
		t.Errorf("status %d, %v", status, err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if text := mustTool(t, "lint", "-D", "-"); !strings.HasPrefix(text, "2 sockets, 0") {
		t.Error(text)
	}
}
