package criuimg

import (
	"bytes"
	"fmt"
	"io"

	tcpstream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"

	"github.com/gosoccr/gosoccr/soccr"
)

// A Stream is an image tcp-stream-*.img: a connection's entry, and behind it the
// bytes of both queues, whose lengths the entry tells.
type Stream struct {
	Entry                *tcpstream.TcpStreamEntry
	RecvQueue, SendQueue []byte
}

// ReadStream reads a tcp-stream image, to the end of r. Memory is taken as bytes
// arrive, whatever lengths a hostile entry claims. A malformed image is an
// ErrInvalidImage.
func ReadStream(r io.Reader) (*Stream, error) {
	d, err := newDecoder(r, kindStream)
	if err != nil {
		return nil, err
	}
	return d.stream()
}

func (d *decoder) stream() (*Stream, error) {
	message, err := d.entry()
	if err != nil {
		return nil, ended(err)
	}
	s := &Stream{Entry: &tcpstream.TcpStreamEntry{}}
	if err := unmarshal(message, s.Entry); err != nil {
		return nil, err
	}
	for _, q := range s.queues() {
		if q.entry > soccr.MaxQueue {
			return nil, fmt.Errorf("%w: its %s is %d, more than %d", ErrInvalidImage, q.field, q.entry, soccr.MaxQueue)
		}
		if *q.bytes, err = d.bytes(int(q.entry)); err != nil {
			return nil, err
		}
	}
	return s, d.end()
}

// A streamQueue is a queue's length as the entry tells it, and its bytes.
type streamQueue struct {
	field string
	entry uint32
	bytes *[]byte
}

// queues are in the order in which their bytes follow the entry.
func (s *Stream) queues() [2]streamQueue {
	return [...]streamQueue{
		{"inq_len", s.Entry.GetInqLen(), &s.RecvQueue},
		{"outq_len", s.Entry.GetOutqLen(), &s.SendQueue},
	}
}

// check makes sure that the entry tells the lengths of the queues.
func (s *Stream) check() error {
	if s.Entry == nil {
		return fmt.Errorf("%w: the stream has no entry", ErrInvalidImage)
	}
	for _, q := range s.queues() {
		if uint64(q.entry) != uint64(len(*q.bytes)) {
			return invalid("tcp_stream."+q.field, fmt.Sprintf("%d, as many as there are", len(*q.bytes)), q.entry)
		}
	}
	return nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler; see [ReadStream]. On
// error s is unchanged.
func (s *Stream) UnmarshalBinary(data []byte) error {
	read, err := ReadStream(bytes.NewReader(data))
	if err == nil {
		*s = *read
	}
	return err
}

// MarshalBinary implements encoding.BinaryMarshaler: an image of
// version 2. It fails if the entry does not tell the lengths of the queues, or
// lacks a required field.
func (s *Stream) MarshalBinary() ([]byte, error) {
	var b bytes.Buffer
	_, err := s.WriteTo(&b)
	return b.Bytes(), err
}

// WriteTo implements io.WriterTo: it writes what MarshalBinary returns, without
// copying the queues.
func (s *Stream) WriteTo(w io.Writer) (int64, error) { return s.writeTo(w, true) }

func (s *Stream) writeTo(w io.Writer, common bool) (int64, error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	e := newEncoder(kindStream, common)
	if err := e.message(s.Entry); err != nil {
		return 0, err
	}
	var written int64
	for _, part := range [][]byte{e.Bytes(), s.RecvQueue, s.SendQueue} {
		n, err := w.Write(part)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
