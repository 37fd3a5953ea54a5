package soccr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A chunkReader reads snapshots one behind the other as they are encoded, a few at
// a time, into large blocks of memory that they then share.
type chunkReader struct {
	from  io.Reader
	block []byte // what was read and not handed out yet
	ended error
}

const (
	blockSize = 256 << 10
	perChunk  = 32
	// trusted is what a snapshot that says it is large gets at once; beyond that,
	// memory is taken as bytes arrive.
	trusted = 8 << 20
)

// next gives the next encoded snapshots, and io.EOF with the last of them or with
// none.
func (c *chunkReader) next() (encoded [][]byte, err error) {
	for len(encoded) < perChunk {
		size, err := recordSize(c.block)
		if err != nil {
			return encoded, err
		}
		if size > 0 && len(c.block) >= size {
			encoded = append(encoded, c.block[:size:size])
			c.block = c.block[size:]
			continue
		}
		if c.ended != nil {
			if len(c.block) > 0 {
				return encoded, endedEarly(c.ended)
			}
			return encoded, c.ended
		}
		if len(encoded) > 0 && cap(c.block) < max(size, headerSize) {
			return encoded, nil // a large one goes into a block of its own
		}
		c.fill(size)
	}
	return encoded, nil
}

// fill reads more, after moving a snapshot that does not fit to a new block.
func (c *chunkReader) fill(size int) {
	if have := len(c.block); cap(c.block) == have {
		grown := make([]byte, have, max(blockSize, min(size, max(2*have, trusted))))
		copy(grown, c.block)
		c.block = grown
	}
	n, err := c.from.Read(c.block[len(c.block):cap(c.block)])
	c.block = c.block[:len(c.block)+n]
	if err != nil {
		c.ended = err
	} else if n == 0 {
		c.ended = io.ErrNoProgress
	}
}

// recordSize is how many bytes an encoded snapshot has, by its header, or 0 if that
// is not there yet.
func recordSize(b []byte) (int, error) {
	if len(b) < headerSize {
		return 0, nil
	}
	if string(b[:len(magic)]) != magic {
		return 0, fmt.Errorf("%w: it does not begin like one", ErrInvalidSnapshot)
	}
	size := int64(headerSize + crcSize)
	for _, p := range [...]struct {
		at    int
		limit uint32
	}{{12, maxFields}, {16, MaxQueue}, {20, MaxQueue}} {
		n := binary.BigEndian.Uint32(b[p.at:])
		if n > p.limit {
			return 0, fmt.Errorf("%w: one of its parts has %d bytes, more than %d", ErrInvalidSnapshot, n, p.limit)
		}
		size += int64(n)
	}
	if int64(int(size)) != size {
		return 0, errors.Join(ErrInvalidSnapshot, errors.ErrUnsupported) // of 32 bits
	}
	return int(size), nil
}
