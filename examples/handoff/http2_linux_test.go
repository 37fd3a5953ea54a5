package main

import (
	"encoding/binary"
	"testing"
)

// streamFrame is a frame of a stream.
func streamFrame(kind, flags byte, stream uint32, payload []byte) []byte {
	f := makeFrame(kind, flags, payload)
	binary.BigEndian.PutUint32(f[5:], stream)
	return f
}

func windowUpdate(more uint32) []byte {
	return makeFrame(frameWindow, 0, binary.BigEndian.AppendUint32(nil, more))
}

// What arrives for a connection that is to be handed over waits for the next process,
// which tells the client no more of a window than it has itself.
func TestHTTP2BeginsAnew(t *testing.T) {
	const serverWindow = 1 << 20
	client := func(h *http2Conn, wanted bool, frames ...[]byte) (ready []byte) {
		t.Helper()
		for _, f := range frames {
			if rest := h.received(f, wanted, &ready); len(rest) > 0 {
				t.Fatalf("%d bytes are not understood", len(rest))
			}
		}
		return ready
	}
	h := newHTTP2Conn()
	if out := h.sent(append(makeFrame(frameSettings, 0, nil), windowUpdate(serverWindow-firstWindow)...)); len(out) != 2*frameHeader+4 {
		t.Fatalf("%d bytes are sent", len(out))
	}
	client(h, false, makeFrame(frameSettings, 0, []byte{0, 4, 0, 0, 1, 0}), makeFrame(frameSettings, flagAck, nil),
		streamFrame(frameHeaders, flagEndHeaders, 1, []byte{0x82}), streamFrame(frameData, flagEnd, 1, make([]byte, 1000)))
	if h.idle() {
		t.Error("idle, with a request under way")
	}
	h.sent(makeFrame(frameSettings, flagAck, nil))
	h.sent(streamFrame(frameHeaders, flagEndHeaders|flagEnd, 1, []byte{0x88}))
	if !h.idle() {
		t.Error("not idle, after the answer")
	}
	// Half of the next request's headers.
	if ready := client(h, true, streamFrame(frameHeaders, 0, 3, []byte{0x82})); len(ready) > 0 {
		t.Errorf("%d bytes are passed on", len(ready))
	}

	begun := h.begin()
	held := h.Held
	h.Held = nil
	rest := client(h, false, held, streamFrame(frameContinuation, flagEndHeaders, 3, []byte{0x84}), streamFrame(frameData, flagEnd, 3, make([]byte, 500)),
		streamFrame(frameWindow, 0, 1, []byte{0, 0, 0, 1})) // of a stream that is closed
	if want := len(held) + frameHeader + 1 + frameHeader + 500; len(rest) != want || len(begun) == 0 {
		t.Errorf("%d bytes are passed on, want %d", len(rest), want)
	}
	out := h.sent(append(makeFrame(frameSettings, 0, nil), windowUpdate(serverWindow-firstWindow)...))
	f, more := cutFrame(out)
	if f == nil || len(more) > 0 || f.kind() != frameWindow || binary.BigEndian.Uint32(f.payload()) != 1000 {
		t.Errorf("the client is told %x, want a window that is 1000 larger", out)
	}
	if h.RecvWindow != serverWindow-500 {
		t.Errorf("the client has %d left, want %d", h.RecvWindow, serverWindow-500)
	}
	if out := h.sent(makeFrame(frameSettings, flagAck, nil)); len(out) > 0 {
		t.Errorf("an acknowledgement of settings that the client has not sent: %x", out)
	}
}
