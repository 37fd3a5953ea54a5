package soccr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/netip"
)

// A snapshot in binary form, version 1, all numbers in network byte order:
//
//	 0  8  magic, which a transfer as text would damage
//	 8  4  version
//	12  4  length of the fields
//	16  4  length of the receive queue
//	20  4  length of the send queue
//	24     the fields, by rising tag: tag (2), length of the value (2), value;
//	       a field with its zero value is left out
//	       the receive queue, the send queue
//	 …  4  CRC-32C of everything before
//
// A value is a number in its field's full width, 1 for true, a text's bytes, or,
// for an address and port: port (2), address (4 or 16), zone.
//
// A snapshot has one encoding only. A reader refuses tags it does not know: what
// they mean cannot be restored. New fields get new tags, so that snapshots
// without them keep their encoding.
const (
	magic      = "\x89SOCCR\r\n"
	version    = 1
	headerSize = 24
	crcSize    = 4
	maxFields  = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A codec writes one field, unless it is zero, and reads it back; read reports
// whether the value is one that write produces.
type codec struct {
	tag   uint16
	write func(*Snapshot) []byte
	read  func(*Snapshot, []byte) bool
}

// number codes an unsigned integer in its full width.
func number[T ~uint8 | ~uint16 | ~uint32](tag uint16, field func(*Snapshot) *T) codec {
	size := binary.Size(*new(T))
	return codec{tag,
		func(s *Snapshot) []byte {
			v := *field(s)
			if v == 0 {
				return nil
			}
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], uint32(v))
			return b[4-size:]
		},
		func(s *Snapshot, b []byte) bool {
			if len(b) != size {
				return false
			}
			var wide [4]byte
			copy(wide[4-size:], b)
			v := T(binary.BigEndian.Uint32(wide[:]))
			*field(s) = v
			return v != 0
		}}
}

func boolean(tag uint16, field func(*Snapshot) *bool) codec {
	return codec{tag,
		func(s *Snapshot) []byte {
			if !*field(s) {
				return nil
			}
			return []byte{1}
		},
		func(s *Snapshot, b []byte) bool {
			*field(s) = true
			return len(b) == 1 && b[0] == 1
		}}
}

func text(tag uint16, field func(*Snapshot) *string) codec {
	return codec{tag,
		func(s *Snapshot) []byte { return []byte(*field(s)) },
		func(s *Snapshot, b []byte) bool {
			*field(s) = string(b)
			return len(b) > 0
		}}
}

// end codes an address and port. The address's length tells IPv4 addresses (4)
// from IPv6 and IPv4-mapped ones (16); a zone may follow the latter.
func end(tag uint16, field func(*Snapshot) *netip.AddrPort) codec {
	return codec{tag,
		func(s *Snapshot) []byte {
			v := *field(s)
			if v == (netip.AddrPort{}) {
				return nil
			}
			b := binary.BigEndian.AppendUint16(nil, v.Port())
			return append(append(b, v.Addr().AsSlice()...), v.Addr().Zone()...)
		},
		func(s *Snapshot, b []byte) bool {
			if len(b) < 2 {
				return false
			}
			var addr netip.Addr
			err := addr.UnmarshalBinary(b[2:])
			*field(s) = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b))
			return err == nil && *field(s) != (netip.AddrPort{})
		}}
}

// The fields, by tag. A tag is never used for anything else again.
var fields = []codec{
	number(1, func(s *Snapshot) *State { return &s.State }),
	end(2, func(s *Snapshot) *netip.AddrPort { return &s.Local }),
	end(3, func(s *Snapshot) *netip.AddrPort { return &s.Remote }),
	{4,
		func(s *Snapshot) []byte {
			if s.Unsent == 0 {
				return nil
			}
			return binary.BigEndian.AppendUint32(nil, uint32(s.Unsent))
		},
		func(s *Snapshot, b []byte) bool {
			if len(b) != 4 {
				return false
			}
			v := binary.BigEndian.Uint32(b)
			s.Unsent = int(v & maxInt)
			return 0 < v && v <= MaxQueue
		}},
	boolean(5, func(s *Snapshot) *bool { return &s.UnsentFIN }),
	number(6, func(s *Snapshot) *uint32 { return &s.RecvSeq }),
	number(7, func(s *Snapshot) *uint32 { return &s.SendSeq }),
	number(8, func(s *Snapshot) *uint32 { return &s.MSS }),
	boolean(9, func(s *Snapshot) *bool { return &s.WindowScaling }),
	number(10, func(s *Snapshot) *uint8 { return &s.SendScale }),
	number(11, func(s *Snapshot) *uint8 { return &s.RecvScale }),
	boolean(12, func(s *Snapshot) *bool { return &s.SACK }),
	boolean(13, func(s *Snapshot) *bool { return &s.ECN }),
	boolean(14, func(s *Snapshot) *bool { return &s.Timestamp.Enabled }),
	boolean(15, func(s *Snapshot) *bool { return &s.Timestamp.Microseconds }),
	number(16, func(s *Snapshot) *uint32 { return &s.Timestamp.Value }),
	number(17, func(s *Snapshot) *uint32 { return &s.Window.SndWl1 }),
	number(18, func(s *Snapshot) *uint32 { return &s.Window.SndWnd }),
	number(19, func(s *Snapshot) *uint32 { return &s.Window.MaxWindow }),
	number(20, func(s *Snapshot) *uint32 { return &s.Window.RcvWnd }),
	number(21, func(s *Snapshot) *uint32 { return &s.Window.RcvWup }),
	number(22, func(s *Snapshot) *uint32 { return &s.Window.RcvSsthresh }),
	number(23, func(s *Snapshot) *uint32 { return &s.Window.Clamp }),
	number(24, func(s *Snapshot) *uint32 { return &s.Window.RecvMemory }),
	boolean(25, func(s *Snapshot) *bool { return &s.Options.ReuseAddr }),
	boolean(26, func(s *Snapshot) *bool { return &s.Options.NonBlocking }),
	boolean(27, func(s *Snapshot) *bool { return &s.Options.NoDelay }),
	boolean(28, func(s *Snapshot) *bool { return &s.Options.Cork }),
	boolean(29, func(s *Snapshot) *bool { return &s.Options.KeepAlive }),
	number(30, func(s *Snapshot) *uint32 { return &s.Options.KeepIdle }),
	number(31, func(s *Snapshot) *uint32 { return &s.Options.KeepInterval }),
	number(32, func(s *Snapshot) *uint32 { return &s.Options.KeepCount }),
	boolean(33, func(s *Snapshot) *bool { return &s.Options.PeekOffsetOn }),
	number(34, func(s *Snapshot) *uint32 { return &s.Options.PeekOffset }),
	text(35, func(s *Snapshot) *string { return &s.Options.Congestion }),
	number(36, func(s *Snapshot) *uint32 { return &s.Options.RecvBuffer }),
	number(37, func(s *Snapshot) *uint32 { return &s.Options.SendBuffer }),
	number(38, func(s *Snapshot) *uint8 { return &s.Options.BufferLock }),
	boolean(39, func(s *Snapshot) *bool { return &s.Options.ReadShutdown }),
}

// appendHead appends the header and the fields: all but queues and checksum.
func (s *Snapshot) appendHead(b []byte) ([]byte, error) {
	// What does not fit into the lengths, or would not be read back.
	for _, n := range [...]struct {
		field string
		bytes int
	}{{"RecvQueue", len(s.RecvQueue)}, {"SendQueue", len(s.SendQueue)}, {"Unsent", s.Unsent}} {
		if n.bytes < 0 || n.bytes > MaxQueue {
			return b, &FieldError{Field: n.field, Want: "at most MaxQueue bytes", Got: n.bytes, Err: ErrInvalidSnapshot}
		}
	}
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = append(b, 0, 0, 0, 0) // the fields' length, known below
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.RecvQueue)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.SendQueue)))
	for _, f := range fields {
		if value := f.write(s); len(value) > 0 {
			b = binary.BigEndian.AppendUint16(b, f.tag)
			b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
			b = append(b, value...)
		}
	}
	// A value whose own length overflowed is too long for this as well.
	size := len(b) - start - headerSize
	if size > maxFields {
		return b[:start], fmt.Errorf("%w: its fields take %d bytes, more than %d", ErrInvalidSnapshot, size, maxFields)
	}
	binary.BigEndian.PutUint32(b[start+12:], uint32(size))
	return b, nil
}

// AppendBinary implements encoding.BinaryAppender. It does not validate, and
// fails only for what has no place in the format, with ErrInvalidSnapshot:
// queues beyond MaxQueue, Unsent outside 0 to MaxQueue, names of 64 KB.
func (s *Snapshot) AppendBinary(b []byte) ([]byte, error) {
	start := len(b)
	b, err := s.appendHead(b)
	if err != nil {
		return b, err
	}
	b = append(b, s.RecvQueue...)
	b = append(b, s.SendQueue...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli)), nil
}

// MarshalBinary implements encoding.BinaryMarshaler: version 1 of the format,
// with a checksum. The result holds the queues: see Snapshot on secrecy.
func (s *Snapshot) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, 512+len(s.RecvQueue)+len(s.SendQueue)))
}

// WriteTo implements io.WriterTo: it writes what MarshalBinary returns, without
// copying the queues.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	head, err := s.appendHead(make([]byte, 0, 512))
	if err != nil {
		return 0, err
	}
	sum := crc32.New(castagnoli)
	var written int64
	for _, part := range [][]byte{head, s.RecvQueue, s.SendQueue} {
		if len(part) == 0 {
			continue
		}
		sum.Write(part) // a hash.Hash returns no error
		n, err := w.Write(part)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	n, err := w.Write(sum.Sum(nil))
	return written + int64(n), err
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler. The data must be one
// whole snapshot, with nothing behind it, and is not kept. It checks the form
// and the checksum, not whether the snapshot makes sense: Validate does. On
// error, which is an ErrInvalidSnapshot, s is unchanged.
func (s *Snapshot) UnmarshalBinary(data []byte) error {
	r := bytes.NewReader(data)
	var read Snapshot
	if _, err := read.ReadFrom(r); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: no data", ErrInvalidSnapshot)
		}
		return err
	}
	if r.Len() > 0 {
		return fmt.Errorf("%w: %d bytes follow its end", ErrInvalidSnapshot, r.Len())
	}
	*s = read
	return nil
}

// ReadFrom reads one snapshot, up to its end and no further, so that several
// can follow each other in a stream. Unlike most io.ReaderFrom it does not read
// until the stream ends; at its end it returns io.EOF. Memory is taken as bytes
// arrive, whatever lengths a hostile header claims. On error s is unchanged; a
// malformed snapshot is an ErrInvalidSnapshot.
func (s *Snapshot) ReadFrom(r io.Reader) (int64, error) {
	in := &summingReader{from: r, sum: crc32.New(castagnoli)}
	head, err := in.next(headerSize)
	if err != nil {
		return in.count, err
	}
	if string(head[:8]) != magic {
		return in.count, fmt.Errorf("%w: it does not begin like one", ErrInvalidSnapshot)
	}
	if v := binary.BigEndian.Uint32(head[8:]); v != version {
		return in.count, fmt.Errorf("%w: its version is %d, this program reads version %d", ErrInvalidSnapshot, v, version)
	}
	var read Snapshot
	var coded []byte
	for _, part := range [...]struct {
		name        string
		into        *[]byte
		size, limit uint32
	}{
		{"fields", &coded, binary.BigEndian.Uint32(head[12:]), maxFields},
		{"receive queue", &read.RecvQueue, binary.BigEndian.Uint32(head[16:]), MaxQueue},
		{"send queue", &read.SendQueue, binary.BigEndian.Uint32(head[20:]), MaxQueue},
	} {
		if part.size > part.limit {
			return in.count, fmt.Errorf("%w: the length of its %s is %d bytes, more than %d", ErrInvalidSnapshot, part.name, part.size, part.limit)
		}
		if *part.into, err = in.next(int(part.size)); err != nil {
			return in.count, err
		}
	}
	want := in.sum.Sum32()
	sum, err := in.next(crcSize)
	if err != nil {
		return in.count, err
	}
	if binary.BigEndian.Uint32(sum) != want {
		return in.count, fmt.Errorf("%w: its checksum is wrong: it was damaged on the way", ErrInvalidSnapshot)
	}
	if err := read.readFields(coded); err != nil {
		return in.count, err
	}
	*s = read
	return in.count, nil
}

func (s *Snapshot) readFields(b []byte) error {
	known := fields
	for len(b) > 0 {
		if len(b) < 4 {
			return fmt.Errorf("%w: its fields end too early", ErrInvalidSnapshot)
		}
		tag, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if b = b[4:]; size > len(b) {
			return fmt.Errorf("%w: field %d ends too early", ErrInvalidSnapshot, tag)
		}
		for len(known) > 0 && known[0].tag < tag {
			known = known[1:]
		}
		if len(known) == 0 || known[0].tag != tag {
			return fmt.Errorf("%w: field %d is unknown or out of order: was it made by a newer version?", ErrInvalidSnapshot, tag)
		}
		if !known[0].read(s, b[:size]) {
			return fmt.Errorf("%w: field %d cannot have the value %.16x", ErrInvalidSnapshot, tag, b[:size])
		}
		known, b = known[1:], b[size:]
	}
	return nil
}

// A summingReader reads parts of known length and sums what it read.
type summingReader struct {
	from  io.Reader
	sum   hash.Hash32
	count int64
}

// next reads exactly size bytes, into memory that grows with what arrives. The
// stream may end before the first byte of all, which is io.EOF.
func (r *summingReader) next(size int) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	const atOnce = 64 << 10
	b := make([]byte, min(size, atOnce))
	for filled := 0; ; {
		n, err := io.ReadFull(r.from, b[filled:])
		r.count += int64(n)
		if err != nil {
			if r.count > 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
				err = fmt.Errorf("%w: it ends too early: %w", ErrInvalidSnapshot, io.ErrUnexpectedEOF)
			}
			return nil, err
		}
		filled += n
		if filled == size {
			break
		}
		grown := make([]byte, min(size, 2*filled))
		copy(grown, b)
		b = grown
	}
	r.sum.Write(b) // a hash.Hash returns no error
	return b, nil
}
