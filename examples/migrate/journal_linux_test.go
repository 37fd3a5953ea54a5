package main

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// Wherever a record is torn, all records before it are read, and nothing of it.
func TestJournalTorn(t *testing.T) {
	t.Parallel()
	j, err := newJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer j.file.Close()
	length := func() int64 {
		n, err := j.file.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	snap := &soccr.Snapshot{
		State: soccr.StateClose, Local: netip.MustParseAddrPort("127.0.0.1:80"), Remote: netip.MustParseAddrPort("127.0.0.1:81"),
		RecvQueue: []byte("queue"), SendQueue: []byte{},
	}
	if err := j.note(note{cookie: 1, first: actResume, then: actEnd, set: overwritten{true, -1}}, note{cookie: 2, first: actResume}); err != nil {
		t.Fatal(err)
	}
	before := length()
	if err := j.note(note{cookie: 2, first: actRestore, then: actFinish, set: overwritten{false, 7}, kept: snap}); err != nil {
		t.Fatal(err)
	}
	after := length()
	whole := make([]byte, after)
	if _, err := j.file.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) *remains {
		t.Helper()
		if err := j.clear(); err != nil {
			t.Fatal(err)
		}
		if _, err := j.file.Write(b); err != nil {
			t.Fatal(err)
		}
		r, err := j.read()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := read(whole)
	if len(r.notes) != 2 || r.notes[0].set != (overwritten{true, -1}) || r.notes[0].then != actEnd ||
		r.notes[1].first != actRestore || r.notes[1].then != actFinish || r.notes[1].set.peekOffset != 7 || r.notes[1].kept == nil {
		t.Fatalf("%+v", r)
	}
	if got := string(r.notes[1].kept.RecvQueue); got != "queue" {
		t.Errorf("%q", got)
	}
	for n := before; n < after; n++ {
		if r := read(whole[:n]); len(r.notes) != 2 || r.notes[1].first != actResume || r.notes[1].kept != nil {
			t.Fatalf("%d bytes of %d: %+v", n, after, r)
		}
		torn := append([]byte(nil), whole...)
		torn[n] ^= 1
		if r := read(torn); r.notes[1].first != actResume {
			t.Fatalf("byte %d changed: %+v", n, r)
		}
	}
}

// There is no way back once a file is not there any more.
func TestJournalCommit(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "half")
	for _, test := range []struct {
		file      string
		there     bool
		committed bool
	}{{"", false, true}, {file, true, false}, {file, false, true}} {
		j, err := newJournal()
		if err != nil {
			t.Fatal(err)
		}
		if test.there {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.commit(test.file); err != nil {
			t.Fatal(err)
		}
		r, err := j.read()
		if err != nil || r.committed != test.committed {
			t.Errorf("%+v: %v, %v", test, r.committed, err)
		}
		if err := unix.Access(file, unix.F_OK); err == nil {
			t.Error("the half of an image is left")
		}
		_ = j.file.Close()
	}
}

// BenchmarkJournal notes a thousand connections: that they are paused, and what they hold.
func BenchmarkJournal(b *testing.B) {
	snap := &soccr.Snapshot{
		State: soccr.StateEstablished, Local: netip.MustParseAddrPort("127.0.0.1:80"), Remote: netip.MustParseAddrPort("127.0.0.1:81"),
		RecvQueue: make([]byte, 1000), SendQueue: make([]byte, 1000), MSS: 1000,
	}
	j, err := newJournal()
	if err != nil {
		b.Fatal(err)
	}
	defer j.file.Close()
	paused := make([]note, 1000)
	for b.Loop() {
		err := j.note(paused...)
		for i := range paused {
			err = errors.Join(err, j.note(note{cookie: uint64(i), first: actRestore, then: actFinish, kept: snap}))
		}
		if err = errors.Join(err, j.clear()); err != nil {
			b.Fatal(err)
		}
	}
}
