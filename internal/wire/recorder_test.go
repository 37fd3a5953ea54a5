package wire_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// A recorder has the latest packets, in order, as others read them.
func TestRecorder(t *testing.T) {
	begin := time.Unix(1e9, 123456789)
	for _, test := range []struct{ added, want int }{{0, 0}, {3, 3}, {5, 5}, {12, 5}} {
		r := wire.NewRecorder(5)
		for i := range test.added {
			data := bytes.Repeat([]byte{byte(i)}, 100*i)
			r.Add(wire.Packet{Time: begin.Add(time.Duration(i)), Data: data, Size: 2 * len(data)})
		}
		var file bytes.Buffer
		if n, err := r.WriteTo(&file); err != nil || n != int64(file.Len()) {
			t.Fatalf("%d bytes of %d, %v", n, file.Len(), err)
		}
		pcap, err := pcapgo.NewReader(&file)
		if err != nil || pcap.LinkType() != layers.LinkTypeRaw {
			t.Fatal(pcap.LinkType(), err)
		}
		i := test.added - test.want
		for ; ; i++ {
			data, info, err := pcap.ReadPacketData()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !info.Timestamp.Equal(begin.Add(time.Duration(i))) || info.Length != 200*i || len(data) != min(100*i, 120) {
				t.Errorf("packet %d: %+v, %d bytes", i, info, len(data))
			}
			if len(data) > 0 && data[0] != byte(i) {
				t.Errorf("packet %d is number %d", i, data[0])
			}
		}
		if i != test.added {
			t.Errorf("the last one is number %d of %d", i, test.added)
		}
	}
}
