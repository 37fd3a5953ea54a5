package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gosoccr/gosoccr/soccr"
)

// What the front and a backend say to each other of one connection, on a connection
// between them:
//
//	front → backend   how much was read of the first request, and that; the snapshot
//	backend → front   ready: the flow is locked there as well
//	front → backend   go: the client's packets go there
//	backend → front   the end of the stream, when the connection is over
const (
	sayReady byte = 'r'
	sayGo    byte = 'g'
)

// A parcel is a connection on its way: a snapshot, and what the front has read.
type parcel struct {
	head     []byte
	snapshot *soccr.Snapshot
}

func (p *parcel) writeTo(w io.Writer) error {
	out := bufio.NewWriter(w)
	_, err := out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p.head))))
	if err == nil {
		_, err = out.Write(p.head)
	}
	if err == nil {
		_, err = p.snapshot.WriteTo(out)
	}
	return errors.Join(err, out.Flush())
}

// readParcel reads no further than the parcel.
func readParcel(r io.Reader) (*parcel, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxHead {
		return nil, fmt.Errorf("a first request of %d bytes", n)
	}
	p := &parcel{head: make([]byte, n), snapshot: new(soccr.Snapshot)}
	if _, err := io.ReadFull(r, p.head); err != nil {
		return nil, err
	}
	_, err := p.snapshot.ReadFrom(r)
	return p, err
}

// await reads a word of one byte.
func await(r io.Reader, word byte) error {
	var got [1]byte
	if _, err := io.ReadFull(r, got[:]); err != nil {
		return fmt.Errorf("wait for %q: %w", word, err)
	}
	if got[0] != word {
		return fmt.Errorf("got %q instead of %q", got[0], word)
	}
	return nil
}
