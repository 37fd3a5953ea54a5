package rawfin_test

import (
	"errors"
	"fmt"
	"log"
	"net/netip"

	"github.com/gosoccr/gosoccr/rawfin"
)

// The segment can be looked at, or sent by other means, on any system.
func ExampleSegment_AppendTo() {
	packet, err := rawfin.Segment{
		Src:   netip.MustParseAddrPort("192.0.2.1:443"),
		Dst:   netip.MustParseAddrPort("192.0.2.2:40000"),
		Seq:   1000,
		Ack:   2000,
		Flags: rawfin.FIN | rawfin.ACK,
	}.AppendTo(nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("IP  %x\nTCP %x\n", packet[:20], packet[20:])
	// Output:
	// IP  4500002800004000ff06f7cbc0000201c0000202
	// TCP 01bb9c40000003e8000007d050110000821c0000
}

// A socket that was restored as ESTABLISHED, but that the peer had already sent
// a FIN to, gets that FIN again.
func ExampleInjector_Inject() {
	var (
		peer, local = netip.MustParseAddrPort("192.0.2.1:443"), netip.MustParseAddrPort("192.0.2.2:40000")
		rcvNxt      = uint32(1000)  // TCP_QUEUE_SEQ of the receive queue
		writeSeq    = uint32(2000)  // TCP_QUEUE_SEQ of the send queue
		sndWnd      = uint32(65536) // TCP_REPAIR_WINDOW
		sndWscale   = 7             // TCP_INFO
	)
	injector, err := rawfin.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer injector.Close()

	err = injector.Inject(rawfin.Segment{
		Src: peer, Dst: local,
		Seq: rcvNxt, Ack: writeSeq,
		Window: uint16(sndWnd >> sndWscale),
		Flags:  rawfin.FIN | rawfin.ACK,
	})
	if dropped, ok := errors.AsType[*rawfin.DroppedError](err); ok {
		log.Fatalf("let packets with mark %#x out to the loopback device: %v", dropped.Mark, err)
	}
	if err != nil {
		log.Fatal(err)
	}
	// The socket is in CLOSE_WAIT: see TCP_INFO.
}
