package main

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// A stream is one direction of the conversation: an endless sequence of bytes
// that both ends can compute, and how far one of them has come in it.
type stream struct {
	key    uint64
	offset int64
	hash   hash.Hash // of everything up to offset
	buffer []byte
}

// The keys of the two streams. Any two numbers would do.
const (
	keyToServer = 0x243f6a8885a308d3
	keyToClient = 0x13198a2e03707344
)

func newStream(key uint64) *stream { return &stream{key: key, hash: sha256.New()} }

// next gives the n bytes that follow in the stream, without going on in it. They
// are valid until the next call.
func (s *stream) next(n int) []byte {
	// Whole words, of which the first may begin before the offset.
	skip := int(s.offset % 8)
	if size := (skip+n)/8*8 + 8; len(s.buffer) < size {
		s.buffer = make([]byte, size)
	}
	word := uint64(s.offset / 8)
	for at := 0; at < skip+n; at += 8 {
		binary.LittleEndian.PutUint64(s.buffer[at:], mix(s.key+word))
		word++
	}
	return s.buffer[skip : skip+n]
}

// mix makes a number look random: the finalizer of SplitMix64, which maps
// different numbers to different ones.
func mix(x uint64) uint64 {
	x *= 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// advance goes on by bytes that are known to be the right ones.
func (s *stream) advance(data []byte) {
	s.hash.Write(data) // a hash.Hash returns no error
	s.offset += int64(len(data))
}

// check goes on by bytes that came from elsewhere.
func (s *stream) check(data []byte) error {
	want := s.next(len(data))
	if !bytes.Equal(data, want) {
		for i := range data {
			if data[i] != want[i] {
				return fmt.Errorf("byte %d is %#02x, want %#02x", s.offset+int64(i), data[i], want[i])
			}
		}
	}
	s.advance(data)
	return nil
}

// A total is how far a stream went, and the digest of all its bytes.
type total struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func (s *stream) total() total {
	return total{s.offset, hex.EncodeToString(s.hash.Sum(nil))}
}

// savedSize is the length of a saved stream.
var savedSize = func() int {
	b, err := newStream(0).AppendBinary(nil)
	if err != nil {
		panic(err) // SHA-256 can always be saved
	}
	return len(b)
}()

// AppendBinary saves where the stream is, for another process to go on.
func (s *stream) AppendBinary(b []byte) ([]byte, error) {
	b = binary.BigEndian.AppendUint64(b, uint64(s.offset))
	return s.hash.(encoding.BinaryAppender).AppendBinary(b)
}

// UnmarshalBinary goes to where another process was in the stream.
func (s *stream) UnmarshalBinary(b []byte) error {
	if len(b) != savedSize {
		return fmt.Errorf("%d bytes, want %d", len(b), savedSize)
	}
	s.offset = int64(binary.BigEndian.Uint64(b))
	return s.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(b[8:])
}
