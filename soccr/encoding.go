package soccr

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"slices"
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
// for an address and port: port (2), address (4 or 16), zone. Settings follow
// each other, each as name, number (8), text and bytes, of which all but the
// number have their length (2) before them.
//
// This is a connection's. Other kinds of snapshots begin with other letters, have
// fields of their own, and other parts than queues behind them, or none.
//
// A snapshot has one encoding only. A reader refuses tags it does not know: what
// they mean cannot be restored. New fields get new tags, so that snapshots
// without them keep their encoding.
const (
	version    = 1
	headerSize = 24
	crcSize    = 4
	maxFields  = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A codec appends one field of a T to what is encoded, unless it is zero, and reads
// it back; read reports whether the value is one that append produces.
type codec[T any] struct {
	tag    uint16
	append func([]byte, *T) []byte
	read   func(*T, []byte) bool
}

// number codes an unsigned integer in its full width.
func number[T any, N ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int64](tag uint16, field func(*T) *N) codec[T] {
	size := binary.Size(*new(N))
	return codec[T]{tag,
		func(b []byte, s *T) []byte {
			v := *field(s)
			if v == 0 {
				return b
			}
			var wide [8]byte
			binary.BigEndian.PutUint64(wide[:], uint64(v))
			return append(b, wide[8-size:]...)
		},
		func(s *T, b []byte) bool {
			if len(b) != size {
				return false
			}
			var wide [8]byte
			copy(wide[8-size:], b)
			v := N(binary.BigEndian.Uint64(wide[:]))
			*field(s) = v
			return v != 0
		}}
}

func boolean[T any](tag uint16, field func(*T) *bool) codec[T] {
	return codec[T]{tag,
		func(b []byte, s *T) []byte {
			if !*field(s) {
				return b
			}
			return append(b, 1)
		},
		func(s *T, b []byte) bool {
			*field(s) = true
			return len(b) == 1 && b[0] == 1
		}}
}

func text[T any](tag uint16, field func(*T) *string) codec[T] {
	return codec[T]{tag,
		func(b []byte, s *T) []byte { return append(b, *field(s)...) },
		func(s *T, b []byte) bool {
			*field(s) = string(b)
			return len(b) > 0
		}}
}

// end codes an address and port. The address's length tells IPv4 addresses (4)
// from IPv6 and IPv4-mapped ones (16); a zone may follow the latter.
func end[T any](tag uint16, field func(*T) *netip.AddrPort) codec[T] {
	return codec[T]{tag,
		func(b []byte, s *T) []byte {
			v := *field(s)
			if v == (netip.AddrPort{}) {
				return b
			}
			b = binary.BigEndian.AppendUint16(b, v.Port())
			b, _ = v.Addr().AppendBinary(b) // does not fail
			return b
		},
		func(s *T, b []byte) bool {
			if len(b) < 2 {
				return false
			}
			var addr netip.Addr
			err := addr.UnmarshalBinary(b[2:])
			*field(s) = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b))
			return err == nil && *field(s) != (netip.AddrPort{})
		}}
}

// settingList codes a list of options.
func settingList[T any](tag uint16, field func(*T) *[]Setting) codec[T] {
	return codec[T]{tag,
		func(b []byte, s *T) []byte {
			for _, setting := range *field(s) {
				b = appendSized(b, setting.Name)
				b = binary.BigEndian.AppendUint64(b, uint64(setting.Number))
				b = appendSized(b, setting.Text)
				b = appendSized(b, setting.Bytes)
			}
			return b
		},
		func(s *T, b []byte) bool {
			all := field(s)
			for len(b) > 0 {
				var setting Setting
				var name, text []byte
				if name, b = cutShared(b); len(b) < 8 {
					return false
				}
				setting.Number, b = int64(binary.BigEndian.Uint64(b)), b[8:]
				if text, b = cutShared(b); b == nil {
					return false
				}
				if setting.Bytes, b = cutSized(b); b == nil {
					return false
				}
				if o, known := optionIndex[string(name)]; known {
					setting.Name = options[o].name // needs no memory of its own
				} else {
					setting.Name = string(name)
				}
				setting.Text = string(text)
				*all = append(*all, setting)
			}
			return len(*all) > 0
		}}
}

// appendSized appends bytes after their length. A length that does not fit is one
// of more bytes than a field may have, which is found out later.
func appendSized[B string | []byte](b []byte, value B) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(value))), value...)
}

// cutSized returns what appendSized has written, or nil, and what follows; that
// is nil, unlike an empty rest, if the bytes end too early.
func cutSized(b []byte) (value, rest []byte) {
	value, rest = cutShared(b)
	return bytes.Clone(value), rest
}

// cutShared is cutSized without a copy.
func cutShared(b []byte) (value, rest []byte) {
	if len(b) < 2 {
		return nil, nil
	}
	size := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; size > len(b) {
		return nil, nil
	}
	if size > 0 {
		value = b[:size]
	}
	return value, b[size:]
}

// The fields, by tag. A tag is never used for anything else again.
var fields = byTag([]codec[Snapshot]{
	number(1, func(s *Snapshot) *State { return &s.State }),
	end(2, func(s *Snapshot) *netip.AddrPort { return &s.Local }),
	end(3, func(s *Snapshot) *netip.AddrPort { return &s.Remote }),
	{4,
		func(b []byte, s *Snapshot) []byte {
			if s.Unsent == 0 {
				return b
			}
			return binary.BigEndian.AppendUint32(b, uint32(s.Unsent))
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
}, optionFields(func(s *Snapshot) *Options { return &s.Options }), []codec[Snapshot]{
	md5KeyList(41, func(s *Snapshot) *[]MD5Key { return &s.MD5Keys }),
	number(64, func(s *Snapshot) *uint32 { return &s.Path.RTT }),
	number(65, func(s *Snapshot) *uint32 { return &s.Path.RTTVar }),
	number(66, func(s *Snapshot) *uint32 { return &s.Path.MinRTT }),
	number(67, func(s *Snapshot) *uint32 { return &s.Path.RTO }),
	number(68, func(s *Snapshot) *uint32 { return &s.Path.Cwnd }),
	number(69, func(s *Snapshot) *uint32 { return &s.Path.Ssthresh }),
	number(70, func(s *Snapshot) *uint64 { return &s.Path.PacingRate }),
	number(71, func(s *Snapshot) *uint32 { return &s.Path.Idle }),
	number(72, func(s *Snapshot) *int64 { return &s.Path.Saved }),
	boolean(73, func(s *Snapshot) *bool { return &s.Reset }),
})

// optionFields are those of the Options that are a part of a T.
func optionFields[T any](options func(*T) *Options) []codec[T] {
	return []codec[T]{
		boolean(25, func(s *T) *bool { return &options(s).ReuseAddr }),
		boolean(26, func(s *T) *bool { return &options(s).NonBlocking }),
		boolean(33, func(s *T) *bool { return &options(s).PeekOffsetOn }),
		number(34, func(s *T) *uint32 { return &options(s).PeekOffset }),
		text(35, func(s *T) *string { return &options(s).Congestion }),
		number(36, func(s *T) *uint32 { return &options(s).RecvBuffer }),
		number(37, func(s *T) *uint32 { return &options(s).SendBuffer }),
		number(38, func(s *T) *uint8 { return &options(s).BufferLock }),
		boolean(39, func(s *T) *bool { return &options(s).ReadShutdown }),
		settingList(40, func(s *T) *[]Setting { return &options(s).Settings }),
		boolean(42, func(s *T) *bool { return &options(s).Foreign }),
	}
}

// byTag joins lists of fields and puts them in the order of the encoding.
func byTag[T any](lists ...[]codec[T]) []codec[T] {
	return slices.SortedFunc(slices.Values(slices.Concat(lists...)), func(a, b codec[T]) int { return cmp.Compare(a.tag, b.tag) })
}

// A form is how one kind of snapshot is encoded.
type form[T any] struct {
	magic  string
	fields []codec[T]
	parts  [2]part[T] // what follows the fields, if anything
}

// A part is bytes whose length is in the header; the zero part is always empty.
type part[T any] struct {
	name  string
	bytes func(*T) *[]byte
	limit uint32
}

const magic = "\x89SOCCR\r\n"

var connectionForm = form[Snapshot]{magic, fields, [2]part[Snapshot]{
	{"receive queue", func(s *Snapshot) *[]byte { return &s.RecvQueue }, MaxQueue},
	{"send queue", func(s *Snapshot) *[]byte { return &s.SendQueue }, MaxQueue},
}}

func (p part[T]) of(v *T) []byte {
	if p.bytes == nil {
		return nil
	}
	return *p.bytes(v)
}

// appendHead appends the header and the fields: all but the parts and checksum.
func (f *form[T]) appendHead(b []byte, v *T) ([]byte, error) {
	start := len(b)
	b = append(b, f.magic...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = append(b, 0, 0, 0, 0) // the fields' length, known below
	for _, p := range f.parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.of(v))))
	}
	for i := range f.fields {
		before := len(b)
		b = binary.BigEndian.AppendUint16(b, f.fields[i].tag)
		b = append(b, 0, 0) // the value's length
		value := len(b)
		if b = f.fields[i].append(b, v); len(b) == value {
			b = b[:before]
			continue
		}
		binary.BigEndian.PutUint16(b[value-2:], uint16(len(b)-value))
	}
	// A value whose own length overflowed is too long for this as well.
	size := len(b) - start - headerSize
	if size > maxFields {
		return b[:start], fmt.Errorf("%w: its fields take %d bytes, more than %d", ErrInvalidSnapshot, size, maxFields)
	}
	binary.BigEndian.PutUint32(b[start+12:], uint32(size))
	return b, nil
}

func (f *form[T]) append(b []byte, v *T) ([]byte, error) {
	start := len(b)
	b, err := f.appendHead(b, v)
	if err != nil {
		return b, err
	}
	for _, p := range f.parts {
		b = append(b, p.of(v)...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli)), nil
}

// write writes what append appends, without copying the parts.
func (f *form[T]) write(w io.Writer, v *T) (written int64, err error) {
	head, err := f.appendHead(make([]byte, 0, 512), v)
	if err != nil {
		return 0, err
	}
	sum := crc32.New(castagnoli)
	for _, part := range [][]byte{head, f.parts[0].of(v), f.parts[1].of(v)} {
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

// encodable reports what does not fit into the lengths, or would not be read back.
func (s *Snapshot) encodable() error {
	for _, n := range [...]struct {
		field string
		bytes int
	}{{"RecvQueue", len(s.RecvQueue)}, {"SendQueue", len(s.SendQueue)}, {"Unsent", s.Unsent}} {
		if n.bytes < 0 || n.bytes > MaxQueue {
			return &FieldError{Field: n.field, Want: "at most MaxQueue bytes", Got: n.bytes, Err: ErrInvalidSnapshot}
		}
	}
	return nil
}

// AppendBinary implements encoding.BinaryAppender. It does not validate, and
// fails only for what has no place in the format, with ErrInvalidSnapshot:
// queues beyond MaxQueue, Unsent outside 0 to MaxQueue, names and settings of
// 64 KB.
func (s *Snapshot) AppendBinary(b []byte) ([]byte, error) {
	if err := s.encodable(); err != nil {
		return b, err
	}
	return connectionForm.append(b, s)
}

// MarshalBinary implements encoding.BinaryMarshaler: version 1 of the format,
// with a checksum. The result holds the queues: see Snapshot on secrecy.
func (s *Snapshot) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, 512+len(s.RecvQueue)+len(s.SendQueue)))
}

// WriteTo implements io.WriterTo: it writes what MarshalBinary returns, without
// copying the queues.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	if err := s.encodable(); err != nil {
		return 0, err
	}
	return connectionForm.write(w, s)
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler. The data must be one
// whole snapshot, with nothing behind it, and is not kept. It checks the form
// and the checksum, not whether the snapshot makes sense: Validate does. On
// error, which is an ErrInvalidSnapshot, s is unchanged.
func (s *Snapshot) UnmarshalBinary(data []byte) error {
	var read Snapshot
	if err := unmarshal(data, &read); err != nil {
		return err
	}
	*s = read
	return nil
}

// DecodeShared reads a snapshot from the beginning of the data, which several may
// follow in, and returns what is behind it. The queues are not copied: they are parts
// of data, which must not be changed as long as they are in use. At the end of the
// data the error is io.EOF; else it is as UnmarshalBinary's, and s unchanged.
func (s *Snapshot) DecodeShared(data []byte) (rest []byte, err error) {
	var read Snapshot
	in := &summingReader{data: data, shared: true}
	if err := connectionForm.readRecord(in, &read); err != nil {
		return data, err
	}
	*s = read
	return in.data, nil
}

// unmarshal reads a snapshot of any kind that is all of the data.
func unmarshal(data []byte, into io.ReaderFrom) error {
	r := bytes.NewReader(data)
	if _, err := into.ReadFrom(r); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: no data", ErrInvalidSnapshot)
		}
		return err
	}
	if r.Len() > 0 {
		return fmt.Errorf("%w: %d bytes follow its end", ErrInvalidSnapshot, r.Len())
	}
	return nil
}

// ReadFrom reads one snapshot, up to its end and no further, so that several
// can follow each other in a stream. Unlike most io.ReaderFrom it does not read
// until the stream ends; at its end it returns io.EOF. Memory is taken as bytes
// arrive, whatever lengths a hostile header claims. On error s is unchanged; a
// malformed snapshot is an ErrInvalidSnapshot.
func (s *Snapshot) ReadFrom(r io.Reader) (int64, error) {
	var read Snapshot
	n, err := connectionForm.read(r, &read)
	if err == nil {
		*s = read
	}
	return n, err
}

func (f *form[T]) read(r io.Reader, v *T) (int64, error) {
	in := &summingReader{from: r}
	err := f.readRecord(in, v)
	return in.count, err
}

func (f *form[T]) readRecord(in *summingReader, v *T) error {
	head, err := in.next(headerSize)
	if err != nil {
		return err
	}
	if string(head[:8]) != f.magic {
		return fmt.Errorf("%w: it does not begin like one", ErrInvalidSnapshot)
	}
	if v := binary.BigEndian.Uint32(head[8:]); v != version {
		return fmt.Errorf("%w: its version is %d, this program reads version %d", ErrInvalidSnapshot, v, version)
	}
	coded, err := in.part("fields", binary.BigEndian.Uint32(head[12:]), maxFields)
	if err != nil {
		return err
	}
	for i, p := range f.parts {
		b, err := in.part(p.name, binary.BigEndian.Uint32(head[16+4*i:]), p.limit)
		if err != nil {
			return err
		}
		if len(b) > 0 {
			*p.bytes(v) = b
		}
	}
	want := in.sum
	sum, err := in.next(crcSize)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(sum) != want {
		return fmt.Errorf("%w: its checksum is wrong: it was damaged on the way", ErrInvalidSnapshot)
	}
	return f.readFields(coded, v)
}

func (f *form[T]) readFields(b []byte, v *T) error {
	known := f.fields
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
		if !known[0].read(v, b[:size]) {
			return fmt.Errorf("%w: field %d has a value that it cannot have, of %d bytes", ErrInvalidSnapshot, tag, size)
		}
		known, b = known[1:], b[size:]
	}
	return nil
}

// A summingReader reads parts of known length and sums what it read.
type summingReader struct {
	from  io.Reader
	sum   uint32
	count int64

	data   []byte // instead of from, if shared
	shared bool
}

// part reads a part of the length that the header gives.
func (r *summingReader) part(name string, size, limit uint32) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%w: the length of its %s is %d bytes, more than %d", ErrInvalidSnapshot, name, size, limit)
	}
	return r.next(int(size))
}

// next reads exactly size bytes, into memory that grows with what arrives. The
// stream may end before the first byte of all, which is io.EOF.
func (r *summingReader) next(size int) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	if r.shared {
		return r.cut(size)
	}
	const atOnce = 64 << 10
	b := make([]byte, min(size, atOnce))
	for filled := 0; ; {
		n, err := io.ReadFull(r.from, b[filled:])
		r.count += int64(n)
		if err != nil {
			if r.count > 0 {
				err = endedEarly(err)
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
	r.sum = crc32.Update(r.sum, castagnoli, b)
	return b, nil
}

// cut is next for data that are there already.
func (r *summingReader) cut(size int) ([]byte, error) {
	switch {
	case len(r.data) == 0 && r.count == 0:
		return nil, io.EOF
	case len(r.data) < size:
		return nil, endedEarly(io.ErrUnexpectedEOF)
	}
	b := r.data[:size:size]
	r.data = r.data[size:]
	r.count += int64(size)
	r.sum = crc32.Update(r.sum, castagnoli, b)
	return b, nil
}

// endedEarly says that a stream must not end where it did.
func endedEarly(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrInvalidSnapshot) {
		return fmt.Errorf("%w: it ends too early: %w", ErrInvalidSnapshot, io.ErrUnexpectedEOF)
	}
	return err
}
