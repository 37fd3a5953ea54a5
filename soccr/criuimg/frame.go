package criuimg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/checkpoint-restore/go-criu/v8/magic"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// An image is a sequence of little-endian words and of entries:
//
//	4  magic of all images (IMG_COMMON), but not in inventory.img, nor where
//	   that tells version 1
//	4  magic of this kind of image
//	   the entries: length (4), a protobuf message of that length, and behind it,
//	   in some kinds of images, bytes whose number the message tells
//
// The kinds, by the names of their magics.
const (
	kindCore      = "CORE"
	kindFdinfo    = "FDINFO"
	kindFiles     = "FILES"
	kindIDs       = "IDS"
	kindInetSk    = "INETSK"
	kindInventory = "INVENTORY"
	kindStream    = "TCP_STREAM"
	kindAll       = "IMG_COMMON"
)

var magics = magic.LoadMagic().ByName

// Limits of what is read.
const (
	// maxEntry is the most bytes of an entry. One of files.img can hold all that
	// a process watches by inotify.
	maxEntry = 16 << 20
	// maxMessage is the most bytes of an entry that is decoded: the largest is a
	// socket with a filter of 4,096 instructions. Decoded, a hostile message can
	// take a hundred times its size.
	maxMessage = 256 << 10
	// atOnce is how much memory is taken before the bytes are there.
	atOnce = 64 << 10
)

// A decoder reads an image from its beginning.
type decoder struct {
	from io.Reader
}

func newDecoder(r io.Reader, kind string) (*decoder, error) {
	d := &decoder{from: r}
	for _, want := range [...]uint32{uint32(magics[kindAll]), uint32(magics[kind])} {
		got, err := d.word()
		if err != nil {
			return nil, ended(err)
		}
		if got == uint32(magics[kind]) {
			break
		}
		if got != want {
			return nil, fmt.Errorf("%w: its magic is %#x, that of %s images is %#x", ErrInvalidImage, got, kind, magics[kind])
		}
	}
	return d, nil
}

// word reads a number; the image may end before it, which is io.EOF.
func (d *decoder) word() (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(d.from, b[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = ended(err)
		}
		return 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// bytes reads exactly size bytes, into memory that grows with what arrives.
func (d *decoder) bytes(size int) (b []byte, err error) {
	if size == 0 {
		return nil, nil
	}
	if size <= atOnce {
		b = make([]byte, size)
		_, err = io.ReadFull(d.from, b)
	} else if b, err = io.ReadAll(io.LimitReader(d.from, int64(size))); err == nil && len(b) < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, ended(err)
	}
	return b, nil
}

// ended explains an end of the data where there should be more.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early: %w", ErrInvalidImage, io.ErrUnexpectedEOF)
	}
	return err
}

// entry reads the message of the next entry; at the end of the image, io.EOF.
func (d *decoder) entry() ([]byte, error) {
	size, err := d.word()
	if err != nil {
		return nil, err
	}
	if size > maxEntry {
		return nil, fmt.Errorf("%w: an entry of %d bytes, more than %d", ErrInvalidImage, size, maxEntry)
	}
	return d.bytes(int(size))
}

// only reads the message of an image that has one entry and nothing else.
func (d *decoder) only(m proto.Message) error {
	b, err := d.entry()
	if err != nil {
		return ended(err)
	}
	if err := unmarshal(b, m); err != nil {
		return err
	}
	return d.end()
}

// end makes sure that the image ends here.
func (d *decoder) end() error {
	var b [1]byte
	switch _, err := io.ReadFull(d.from, b[:]); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: bytes follow its end", ErrInvalidImage)
}

func unmarshal(b []byte, m proto.Message) error {
	if len(b) > maxMessage {
		return fmt.Errorf("%w: a %s of %d bytes, more than %d", ErrInvalidImage, m.ProtoReflect().Descriptor().Name(), len(b), maxMessage)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	return nil
}

// number finds an integer field in a message without decoding the rest.
func number(message []byte, field protowire.Number) (v uint64, ok bool) {
	value, ok := find(message, field, protowire.VarintType)
	v, _ = protowire.ConsumeVarint(value)
	return v, ok
}

// part finds a message or text in a message, which is nil if it is not there.
func part(message []byte, field protowire.Number) []byte {
	value, _ := find(message, field, protowire.BytesType)
	b, _ := protowire.ConsumeBytes(value)
	return b
}

// find finds the value of a field, the last one if there are several.
func find(message []byte, field protowire.Number, kind protowire.Type) (value []byte, ok bool) {
	for len(message) > 0 {
		n, k, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil, false
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(n, k, message); size < 0 {
			return nil, false
		}
		if n == field && k == kind {
			value, ok = message[:size], true
		}
		message = message[size:]
	}
	return value, ok
}

// An encoder writes an image into memory.
type encoder struct{ bytes.Buffer }

func newEncoder(kind string, common bool) *encoder {
	e := &encoder{}
	if common && kind != kindInventory {
		e.word(uint32(magics[kindAll]))
	}
	e.word(uint32(magics[kind]))
	return e
}

func (e *encoder) word(v uint32) { e.Write(binary.LittleEndian.AppendUint32(nil, v)) }

// entry appends an entry's message.
func (e *encoder) entry(message []byte) {
	e.word(uint32(len(message)))
	e.Write(message)
}

// message appends an entry's message. It fails if a required field is missing.
func (e *encoder) message(m proto.Message) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	e.entry(b)
	return nil
}
