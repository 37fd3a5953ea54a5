package main

import (
	"bytes"
	"encoding/binary"
)

// HTTP/2 frames (RFC 9113), as far as they count.
const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameWindow, frameContinuation = 0, 1, 3, 4, 6, 8, 9

	flagEnd, flagAck = 1, 1
	flagEndHeaders   = 4
	frameHeader      = 9
	firstWindow      = 65535
)

type frame []byte

func (f frame) kind() byte     { return f[3] }
func (f frame) flags() byte    { return f[4] }
func (f frame) stream() uint32 { return binary.BigEndian.Uint32(f[5:]) &^ (1 << 31) }
func (f frame) payload() []byte {
	return f[frameHeader:]
}

// ends: it is of a kind that ends a stream, and does. acks: it acknowledges.
func (f frame) ends() bool {
	return (f.kind() == frameData || f.kind() == frameHeaders) && f.flags()&flagEnd != 0
}
func (f frame) acks(kind byte) bool { return f.kind() == kind && f.flags()&flagAck != 0 }

// increment is by how much a WINDOW_UPDATE opens a window. One that is too short, which
// the other side will complain of, opens none.
func (f frame) increment() int {
	if len(f.payload()) < 4 {
		return 0
	}
	return int(binary.BigEndian.Uint32(f.payload()) &^ (1 << 31))
}

// makeFrame makes one that is of no stream.
func makeFrame(kind, flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))[1:]
	b = append(b, kind, flags)
	return append(binary.BigEndian.AppendUint32(b, 0), payload...)
}

// cutFrame takes the first frame off, if it is whole.
func cutFrame(b []byte) (frame, []byte) {
	if len(b) < frameHeader {
		return nil, b
	}
	size := frameHeader + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
	if len(b) < size {
		return nil, b
	}
	return b[:size], b[size:]
}

// An http2Conn keeps account of a connection, to know when it is idle and how to
// begin it anew in the middle.
type http2Conn struct {
	// Settings are the client's; SendWindow and RecvWindow are the connection's.
	Settings               map[uint16]uint32
	SendWindow, RecvWindow int
	// Held are frames of requests that have to wait for the next process; Last is the
	// last stream that does not.
	Held []byte
	Last uint32

	open      map[uint32]int // streams, by how many sides have not ended them
	inHeaders bool           // a header block goes on in the next frame
	holding   bool           // and is held
	unacked   int            // settings and pings of the client's that are not answered
	acked     bool           // the client knows our settings
	partial   []byte         // of the server's next frame

	// begun anew: the server's first frames are for nobody, and its first update of the
	// window is told from what the client had left when it began.
	dropSettings, dropAck, firstUpdate bool
	begunWindow                        int
	// before are the streams of which it knows nothing, up to this one.
	before uint32
}

func newHTTP2Conn() *http2Conn {
	return &http2Conn{
		Settings: map[uint16]uint32{}, SendWindow: firstWindow, RecvWindow: firstWindow, open: map[uint32]int{},
	}
}

func (h *http2Conn) idle() bool {
	return len(h.open) == 0 && h.unacked == 0 && h.acked && !h.inHeaders && len(h.partial) == 0 && !h.dropAck
}

// begin makes the client's frames with which the server's side of the connection
// begins anew.
func (h *http2Conn) begin() []byte {
	var settings []byte
	for id, value := range h.Settings {
		settings = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(settings, id), value)
	}
	b := append([]byte(preface), makeFrame(frameSettings, 0, settings)...)
	b = append(b, makeFrame(frameSettings, flagAck, nil)...)
	if more := h.SendWindow - firstWindow; more > 0 {
		b = append(b, makeFrame(frameWindow, 0, binary.BigEndian.AppendUint32(nil, uint32(more)))...)
	}
	h.open, h.before = map[uint32]int{}, h.Last
	h.acked, h.dropSettings, h.dropAck, h.firstUpdate = true, true, true, true
	h.begunWindow, h.holding = h.RecvWindow, false
	return b
}

// received passes the client's frames on. When the conn is wanted elsewhere, new
// requests are held for there.
func (h *http2Conn) received(b []byte, wanted bool, ready *[]byte) (rest []byte) {
	for {
		f, more := cutFrame(b)
		if f == nil {
			return b
		}
		b = more
		if s := f.stream(); s != 0 && s <= h.before {
			continue // of a stream that is closed
		}
		if h.hold(f, wanted) {
			h.Held = append(h.Held, f...)
			continue
		}
		*ready = append(*ready, f...)
		h.count(f)
	}
}

// hold reports whether a frame is of a request that is not begun here any more.
func (h *http2Conn) hold(f frame, wanted bool) bool {
	switch f.kind() {
	case frameContinuation:
		if h.holding {
			h.holding = f.flags()&flagEndHeaders == 0
			return true
		}
		return false
	case frameHeaders:
		if f.stream() > h.Last && (wanted || len(h.Held) > 0) {
			h.holding = f.flags()&flagEndHeaders == 0
			return true
		}
		return false
	default:
		return len(h.Held) > 0 && f.stream() > h.Last
	}
}

func (h *http2Conn) count(f frame) {
	if f.kind() == frameHeaders || f.kind() == frameContinuation {
		h.inHeaders = f.flags()&flagEndHeaders == 0
	}
	switch {
	case f.kind() == frameHeaders && f.stream() > h.Last:
		h.Last = f.stream()
		h.open[f.stream()] = 2
	case f.kind() == frameData:
		h.RecvWindow -= len(f.payload())
	case f.kind() == frameReset:
		delete(h.open, f.stream())
	case f.acks(frameSettings):
		h.acked = true
	case f.kind() == frameSettings:
		for p := f.payload(); len(p) >= 6; p = p[6:] {
			h.Settings[binary.BigEndian.Uint16(p)] = binary.BigEndian.Uint32(p[2:])
		}
		h.unacked++
	case f.kind() == framePing && f.flags()&flagAck == 0:
		h.unacked++
	case f.kind() == frameWindow && f.stream() == 0:
		h.SendWindow += f.increment()
	}
	if f.ends() {
		h.ended(f.stream())
	}
}

func (h *http2Conn) ended(stream uint32) {
	if sides, ok := h.open[stream]; ok && sides > 1 {
		h.open[stream] = sides - 1
	} else {
		delete(h.open, stream)
	}
}

// sent gives the server's frames that are to be sent, as far as they are whole.
func (h *http2Conn) sent(p []byte) (out []byte) {
	h.partial = append(h.partial, p...)
	for {
		f, rest := cutFrame(h.partial)
		if f == nil {
			h.partial = bytes.Clone(rest)
			return out
		}
		h.partial = rest
		switch {
		case f.acks(frameSettings) && h.dropAck:
			h.dropAck = false
			continue
		case f.kind() == frameSettings && f.flags()&flagAck == 0 && h.dropSettings:
			h.dropSettings = false
			continue
		case f.kind() == frameWindow && f.stream() == 0 && h.firstUpdate:
			// It opens the window from where it is at the beginning, not from where the
			// client has it.
			h.firstUpdate = false
			more := firstWindow + f.increment() - h.begunWindow
			if more <= 0 {
				continue
			}
			f = makeFrame(frameWindow, 0, binary.BigEndian.AppendUint32(nil, uint32(more)))
		}
		switch {
		case f.kind() == frameData:
			h.SendWindow -= len(f.payload())
		case f.kind() == frameReset:
			delete(h.open, f.stream())
		case f.acks(frameSettings), f.acks(framePing):
			h.unacked--
		case f.kind() == frameWindow && f.stream() == 0:
			h.RecvWindow += f.increment()
		}
		if f.ends() {
			h.ended(f.stream())
		}
		out = append(out, f...)
	}
}
