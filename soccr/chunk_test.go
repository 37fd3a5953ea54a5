package soccr

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// What a chunkReader hands out is what is in the stream, however it arrives, and
// shares its memory.
func TestChunkReader(t *testing.T) {
	var stream []byte
	var want []Snapshot
	for round := range 20 {
		for _, g := range goldens {
			s := g.snap
			if round%7 == 3 {
				s.RecvQueue = bytes.Repeat([]byte{byte(round)}, 100_000*round)
			}
			stream = append(stream, marshal(t, &s)...)
			want = append(want, s)
		}
	}
	for name, r := range map[string]io.Reader{
		"whole":       bytes.NewReader(stream),
		"in halves":   iotest.HalfReader(bytes.NewReader(stream)),
		"end at once": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readChunks(r)
			if !errors.Is(err, io.EOF) || len(got) != len(want) {
				t.Fatalf("%d snapshots, %v, want %d", len(got), err, len(want))
			}
			for i := range got {
				if d := diff(&want[i], &got[i]); d != "" {
					t.Fatalf("snapshot %d: -want +got:\n%s", i, d)
				}
			}
		})
	}
	for name, bad := range map[string][]byte{
		"cut":      stream[:len(stream)-1],
		"in front": stream[:10],
		"garbage":  append(bytes.Clone(stream[:len(marshal(t, &want[0]))]), bytes.Repeat([]byte{'x'}, 100)...),
		"too long": append([]byte(magic), bytes.Repeat([]byte{0xff}, 100)...),
	} {
		if _, err := readChunks(bytes.NewReader(bad)); !errors.Is(err, ErrInvalidSnapshot) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	failure := errors.New("broken line")
	if _, err := readChunks(iotest.ErrReader(failure)); !errors.Is(err, failure) {
		t.Error(err)
	}
	if _, err := readChunks(silent{}); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }

func readChunks(r io.Reader) (all []Snapshot, err error) {
	in := chunkReader{from: r}
	for err == nil {
		var encoded [][]byte
		encoded, err = in.next()
		for _, b := range encoded {
			var s Snapshot
			rest, err := s.DecodeShared(b)
			if err != nil {
				return all, err
			}
			if len(rest) > 0 {
				return all, errors.New("bytes are left")
			}
			all = append(all, s)
		}
	}
	return all, err
}

func TestDecodeShared(t *testing.T) {
	s := goldens[0].snap
	s.RecvQueue = []byte("received")
	data := marshal(t, &s)
	var got Snapshot
	rest, err := got.DecodeShared(append(bytes.Clone(data), "more"...))
	if err != nil || string(rest) != "more" {
		t.Fatalf("%q, %v", rest, err)
	}
	if _, err := got.DecodeShared(data); err != nil {
		t.Fatal(err)
	}
	got.RecvQueue[0] = 'R'
	if !bytes.Contains(data, []byte("Received")) {
		t.Error("the queue was copied")
	}
	if _, err := got.DecodeShared(nil); !errors.Is(err, io.EOF) {
		t.Errorf("got %v at the end, want EOF", err)
	}
}

// FuzzChunks: a stream is read in chunks as it is read one by one, in bounded
// memory.
func FuzzChunks(f *testing.F) {
	for _, g := range goldens {
		b := marshal(f, &g.snap)
		f.Add(b)
		f.Add(append(bytes.Clone(b), b[:len(b)-1]...))
		f.Add(append(bytes.Clone(b), b...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		var one []Snapshot
		r := bytes.NewReader(stream)
		var oneErr error
		for oneErr == nil {
			var s Snapshot
			if _, oneErr = s.ReadFrom(r); oneErr == nil {
				one = append(one, s)
			}
		}
		var all []Snapshot
		var err error
		if took := allocated(func() { all, err = readChunks(bytes.NewReader(stream)) }); took > memoryFor(len(stream))+2*blockSize+trusted {
			t.Errorf("%d bytes took %d bytes of memory", len(stream), took)
		}
		if errors.Is(err, io.EOF) != errors.Is(oneErr, io.EOF) || err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrInvalidSnapshot) {
			t.Fatalf("%v in chunks, %v one by one", err, oneErr)
		}
		if errors.Is(err, io.EOF) && len(all) != len(one) {
			t.Fatalf("%d in chunks, %d one by one", len(all), len(one))
		}
		for i := range min(len(all), len(one)) {
			if d := diff(&one[i], &all[i]); d != "" {
				t.Fatalf("snapshot %d: -one by one +in chunks:\n%s", i, d)
			}
		}
	})
}
