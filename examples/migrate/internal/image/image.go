// Package image keeps what migrate has dumped of a program: its sockets, as package
// soccr encodes them, and which descriptors stand for them.
//
// An image is one stream of bytes that tells its own length:
//
//	"\x89MIGRATE"        8 bytes
//	version              2 bytes, big endian: 1
//	length of the list   4 bytes, big endian
//	the list             JSON: processes, and each socket's kind and holders
//	checksum             4 bytes: CRC-32C of all before
//	the sockets          one after the other, as soccr's MarshalBinary writes them,
//	                     each with a checksum of its own
//
// An image is as secret as what the sockets have received and are to send, and
// whoever reads one need not trust it.
package image

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/gosoccr/gosoccr/soccr"
)

// Version is that of the images that are written, and the only one that is read.
const Version = 1

const (
	magic = "\x89MIGRATE"
	// maxList is the longest list that is read; maxFD the largest descriptor, which
	// is what the kernel allows (fs.nr_open).
	maxList = 64 << 20
	maxFD   = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrInvalid is the error for what is no image.
var ErrInvalid = errors.New("not an image")

// An Image is what was dumped of a program.
type Image struct {
	// Processes are those that had the sockets, the first one first.
	Processes []Process `json:"processes"`
	Sockets   []Socket  `json:"sockets"`
	// Keeper keeps the connections locked on the host where they were dumped.
	Keeper *Keeper `json:"keeper,omitempty"`
}

// A Process is one that was dumped.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

// A Socket is one that was dumped. Of its contents, the one of its kind is there.
type Socket struct {
	Kind    Kind     `json:"kind"`
	Holders []Holder `json:"holders"`

	Connection *soccr.Snapshot         `json:"-"`
	Listener   *soccr.ListenerSnapshot `json:"-"`
	Datagram   *soccr.DatagramSnapshot `json:"-"`
}

// A Kind tells how a socket is encoded.
type Kind string

// The kinds of sockets.
const (
	Connection Kind = "connection" // a soccr.Snapshot
	Listener   Kind = "listener"   // a soccr.ListenerSnapshot
	Datagram   Kind = "datagram"   // a soccr.DatagramSnapshot
)

// A Holder is a descriptor that stood for a socket.
type Holder struct {
	PID         int  `json:"pid"`
	FD          int  `json:"fd"`
	CloseOnExec bool `json:"close_on_exec,omitempty"`
}

// A Keeper is a process of this program, as long as it lives.
type Keeper struct {
	Boot  string `json:"boot"` // of which boot of the kernel
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // since that boot, in ticks of the kernel's clock
}

// codec is how a socket is written and read.
type codec interface {
	io.WriterTo
	io.ReaderFrom
	Validate() error
}

// content makes, or finds, what is to be written and read of a socket.
func (s *Socket) content() (codec, error) {
	switch s.Kind {
	case Connection:
		if s.Connection == nil {
			s.Connection = new(soccr.Snapshot)
		}
		return s.Connection, nil
	case Listener:
		if s.Listener == nil {
			s.Listener = new(soccr.ListenerSnapshot)
		}
		return s.Listener, nil
	case Datagram:
		if s.Datagram == nil {
			s.Datagram = new(soccr.DatagramSnapshot)
		}
		return s.Datagram, nil
	default:
		return nil, fmt.Errorf("%w: a socket of kind %q", ErrInvalid, s.Kind)
	}
}

// Validate reports what is wrong with an image, as an ErrInvalid, or with one of its
// sockets, as a soccr.ErrInvalidSnapshot.
func (i *Image) Validate() error {
	if err := i.validateList(); err != nil {
		return err
	}
	for n := range i.Sockets {
		content, err := i.Sockets[n].content()
		if err != nil {
			return err
		}
		if err := content.Validate(); err != nil {
			return fmt.Errorf("socket %d: %w", n, err)
		}
	}
	return nil
}

func (i *Image) validateList() error {
	pids := map[int]bool{}
	for _, p := range i.Processes {
		if p.PID <= 0 || pids[p.PID] {
			return fmt.Errorf("%w: process %d", ErrInvalid, p.PID)
		}
		pids[p.PID] = true
	}
	held := map[[2]int]bool{}
	for n := range i.Sockets {
		s := &i.Sockets[n]
		if !slices.Contains([]Kind{Connection, Listener, Datagram}, s.Kind) {
			return fmt.Errorf("%w: a socket of kind %q", ErrInvalid, s.Kind)
		}
		if len(s.Holders) == 0 {
			return fmt.Errorf("%w: socket %d has no descriptor", ErrInvalid, n)
		}
		for _, h := range s.Holders {
			key := [2]int{h.PID, h.FD}
			if !pids[h.PID] || h.FD < 0 || h.FD >= maxFD || held[key] {
				return fmt.Errorf("%w: descriptor %d of process %d", ErrInvalid, h.FD, h.PID)
			}
			held[key] = true
		}
	}
	return nil
}

// WriteTo implements io.WriterTo.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	if err := i.Validate(); err != nil {
		return 0, err
	}
	list, err := json.Marshal(i)
	if err != nil {
		return 0, err
	}
	if len(list) > maxList {
		return 0, fmt.Errorf("%w: a list of %d bytes", ErrInvalid, len(list))
	}
	b := binary.BigEndian.AppendUint16([]byte(magic), Version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	b = append(b, list...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	n, err := w.Write(b)
	written := int64(n)
	for s := range i.Sockets {
		if err != nil {
			break
		}
		var content codec
		if content, err = i.Sockets[s].content(); err == nil {
			var n int64
			n, err = content.WriteTo(w)
			written += n
		}
	}
	return written, err
}

// ReadFrom reads one image, and no further. Nothing changes if it fails.
func (i *Image) ReadFrom(r io.Reader) (int64, error) {
	var read Image
	count, err := read.readList(r)
	if err != nil {
		return count, err
	}
	for s := range read.Sockets {
		content, err := read.Sockets[s].content()
		if err != nil {
			return count, err
		}
		n, err := content.ReadFrom(r)
		count += n
		if err != nil {
			return count, fmt.Errorf("socket %d: %w", s, err)
		}
	}
	if err := read.Validate(); err != nil {
		return count, err
	}
	*i = read
	return count, nil
}

func (i *Image) readList(r io.Reader) (count int64, err error) {
	header := make([]byte, len(magic)+6)
	n, err := io.ReadFull(r, header)
	count = int64(n)
	if err != nil {
		return count, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	version, length := binary.BigEndian.Uint16(header[len(magic):]), binary.BigEndian.Uint32(header[len(magic)+2:])
	switch {
	case string(header[:len(magic)]) != magic:
		return count, fmt.Errorf("%w: it begins with %q", ErrInvalid, header[:len(magic)])
	case version != Version:
		return count, fmt.Errorf("%w of version %d, but of version %d", ErrInvalid, Version, version)
	case length > maxList:
		return count, fmt.Errorf("%w: a list of %d bytes", ErrInvalid, length)
	}
	// Memory grows with what really comes.
	var rest bytes.Buffer
	copied, err := io.CopyN(&rest, r, int64(length)+crc32.Size)
	count += copied
	if err != nil {
		return count, fmt.Errorf("%w: %w", ErrInvalid, io.ErrUnexpectedEOF)
	}
	list, sum := rest.Bytes()[:length], binary.BigEndian.Uint32(rest.Bytes()[length:])
	if got := crc32.Update(crc32.Checksum(header, castagnoli), castagnoli, list); got != sum {
		return count, fmt.Errorf("%w: wrong checksum", ErrInvalid)
	}
	decoder := json.NewDecoder(bytes.NewReader(list))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(i); err != nil {
		return count, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if decoder.More() {
		return count, fmt.Errorf("%w: more than one list", ErrInvalid)
	}
	return count, i.validateList()
}
