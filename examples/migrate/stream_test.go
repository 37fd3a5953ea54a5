package main

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// However a stream is cut, it is the same stream.
func TestStream(t *testing.T) {
	whole := bytes.Clone(newStream(1).next(5000))
	if bytes.Equal(whole, newStream(2).next(5000)) {
		t.Fatal("streams with different keys are the same")
	}
	s, check := newStream(1), newStream(1)
	random := rand.New(rand.NewPCG(1, 2))
	for s.offset < 4000 {
		data := s.next(random.IntN(50))
		if !bytes.Equal(data, whole[s.offset:][:len(data)]) {
			t.Fatalf("differs at %d", s.offset)
		}
		if err := check.check(data); err != nil {
			t.Fatal(err)
		}
		s.advance(data)
		s = saved(t, s)
	}
	if s.total() != check.total() {
		t.Errorf("%v sent, %v received", s.total(), check.total())
	}
}

// saved is what another process makes of the stream.
func saved(t *testing.T, s *stream) *stream {
	t.Helper()
	b, err := s.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	other := newStream(s.key)
	if err := other.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	return other
}

// Bytes that are lost, doubled or changed are noticed, and where.
func TestStreamNotices(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(data []byte) []byte
		want  string
	}{
		{"changed", func(b []byte) []byte { b[300]++; return b }, "byte 300 is"},
		{"lost", func(b []byte) []byte { return append(b[:100], b[101:]...) }, "byte 100 is"},
		{"doubled", func(b []byte) []byte { return append(b[:100:100], b[99:]...) }, "byte 100 is"},
	} {
		data := bytes.Clone(newStream(keyToClient).next(1000))
		err := newStream(keyToClient).check(test.spoil(data))
		if err == nil || !bytes.HasPrefix([]byte(err.Error()), []byte(test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	s := newStream(1)
	b.SetBytes(chunk)
	for b.Loop() {
		s.advance(s.next(chunk))
	}
}
