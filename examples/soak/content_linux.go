package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// A content is what flows in one direction of a connection: bytes that follow from
// its seed and their offset, so that each can be checked wherever it arrives. It has
// no period, so that a byte out of place is told from a right one.
type content uint64

func (c content) word(n uint64) uint64 { return mix(uint64(c) + n*0x9e3779b97f4a7c15) }

// mix is the finalizer of splitmix64: every bit depends on every other.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill writes what belongs at an offset.
func (c content) fill(b []byte, offset int64) {
	var word [8]byte
	for len(b) > 0 {
		binary.LittleEndian.PutUint64(word[:], c.word(uint64(offset)/8))
		n := copy(b, word[offset%8:])
		b, offset = b[n:], offset+int64(n)
	}
}

// check compares what arrived at an offset with what belongs there; scratch is of
// the same length. The error tells where else in the first total bytes it belongs.
func (c content) check(got, scratch []byte, offset, total int64) error {
	c.fill(scratch, offset)
	if bytes.Equal(got, scratch) {
		return nil
	}
	i := 0
	for got[i] == scratch[i] {
		i++
	}
	at := offset + int64(i)
	text := fmt.Sprintf("byte %d is %#x, want %#x", at, got[i], scratch[i])
	if sample := got[i:min(i+32, len(got))]; len(sample) >= 8 {
		if from := c.find(sample, total); from >= 0 {
			return fmt.Errorf("%s: what came belongs at %d, %+d bytes off", text, from, from-at)
		}
	}
	return fmt.Errorf("%s: what came belongs nowhere in this stream", text)
}

func (c content) find(sample []byte, total int64) int64 {
	all := make([]byte, total)
	c.fill(all, 0)
	return int64(bytes.Index(all, sample))
}
