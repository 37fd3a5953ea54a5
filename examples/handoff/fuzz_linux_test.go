package main

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gosoccr/gosoccr/soccr"
)

// FuzzFrames: whatever a client and the server say, and however it arrives, it is passed
// on as it is until the connection is wanted elsewhere, and then what it has said stays.
func FuzzFrames(f *testing.F) {
	settings := makeFrame(frameSettings, 0, []byte{0, 4, 0, 1, 0, 0})
	request := streamFrame(frameHeaders, flagEndHeaders|flagEnd, 1, []byte{0x82})
	f.Add(bytes.Join([][]byte{settings, makeFrame(frameSettings, flagAck, nil), windowUpdate(1 << 20), request}, nil), uint8(20), uint8(40))
	f.Add(bytes.Join([][]byte{settings, streamFrame(frameHeaders, 0, 3, []byte{0x82}), streamFrame(frameContinuation, flagEndHeaders, 3, nil)}, nil), uint8(9), uint8(30))
	f.Add(makeFrame(frameWindow, 0, nil), uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, input []byte, cut, wanted uint8) {
		h := newHTTP2Conn()
		var ready []byte
		at, want := min(int(cut), len(input)), min(int(wanted), len(input))
		rest := h.received(input[:at], at > want, &ready)
		rest = h.received(append(bytes.Clone(rest), input[at:]...), true, &ready)
		if got := len(ready) + len(h.Held) + len(rest); got != len(input) {
			t.Errorf("%d bytes of %d are left", got, len(input))
		}
		out := h.sent(input[:at])
		out = append(out, h.sent(input[at:])...)
		if !bytes.HasPrefix(input, out) {
			t.Errorf("the server's %x became %x", input, out)
		}
		_ = h.idle()
		// And the next process.
		_ = h.begin()
		held := h.Held
		h.Held = nil
		h.received(held, false, &ready)
		h.sent(input)
	})
}

// FuzzReceive reads what another process hands over.
func FuzzReceive(f *testing.F) {
	end := netip.MustParseAddrPort
	snap := &soccr.Snapshot{State: soccr.StateEstablished, Local: end("192.0.2.1:80"), Remote: end("192.0.2.2:5000"), MSS: 1400}
	a := &all{luggage{map[kind]*soccr.ListenerSnapshot{kindHTTP: {Local: end("192.0.2.1:80"), Backlog: 1}}, 1},
		[]handed{{Kind: kindHTTP, Snapshot: snap, HTTP2: newHTTP2Conn()}}}
	var b bytes.Buffer
	if err := newTalk(&b).send(a); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := newTalk(bytes.NewBuffer(data)).receive()
		if err != nil {
			return
		}
		if got := len(a.flows()); got < len(a.conns) || len(a.ports()) != len(a.Listeners) {
			t.Errorf("%d flows of %d connections, %d ports of %d listeners", got, len(a.conns), len(a.ports()), len(a.Listeners))
		}
		for _, h := range a.conns {
			if h.HTTP2 != nil {
				(&httpConn{}).resume(&h)
			}
		}
	})
}
