package wire

import (
	"io"
	"sync"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// A Packet is a captured IP packet: the headers, or all of it if it is short. Data
// is the capture's, until the function that was given it returns.
type Packet struct {
	Time time.Time
	Data []byte
	Size int // of the whole packet
}

// A Recorder remembers the headers of the latest packets, to be looked at when
// something has gone wrong. Its methods may be called concurrently.
type Recorder struct {
	mu      sync.Mutex
	packets []record
	next    int
	full    bool
}

type record struct {
	time time.Time
	size int
	kept int
	data [maxHeaders]byte
}

// NewRecorder makes a recorder that remembers so many packets.
func NewRecorder(packets int) *Recorder { return &Recorder{packets: make([]record, packets)} }

// Add remembers a packet, in place of the oldest one.
func (r *Recorder) Add(p Packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := &r.packets[r.next]
	to.time, to.size, to.kept = p.Time, p.Size, copy(to.data[:], p.Data)
	if r.next++; r.next == len(r.packets) {
		r.next, r.full = 0, true
	}
}

// WriteTo writes the packets in the format of libpcap, cut short after the headers:
// what tcpdump -r, tshark and others read.
func (r *Recorder) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counted := &countingWriter{to: w}
	pcap := pcapgo.NewWriterNanos(counted)
	if err := pcap.WriteFileHeader(maxHeaders, layers.LinkTypeRaw); err != nil {
		return counted.n, err
	}
	ordered := r.packets[:r.next]
	if r.full {
		ordered = append(append([]record{}, r.packets[r.next:]...), ordered...)
	}
	for i := range ordered {
		p := &ordered[i]
		info := gopacket.CaptureInfo{Timestamp: p.time, CaptureLength: p.kept, Length: p.size}
		if err := pcap.WritePacket(info, p.data[:p.kept]); err != nil {
			return counted.n, err
		}
	}
	return counted.n, nil
}

type countingWriter struct {
	to io.Writer
	n  int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.n += int64(n)
	return n, err
}
