package wire

import (
	"errors"
	"io"
	"os"
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

// Segment is the TCP segment in it, or the ICMP error about one, if that is what it is.
func (p Packet) Segment() (Segment, bool) {
	s, ok := Parse(p.Data, p.Size)
	s.Time = p.Time
	return s, ok
}

// A Recorder remembers the headers of the latest packets, to be looked at when
// something has gone wrong. Its methods may be called concurrently.
type Recorder struct {
	mu      sync.Mutex
	packets ring[record]
}

type record struct {
	time time.Time
	size int
	kept int
	data [maxHeaders]byte
}

// NewRecorder makes a recorder that remembers so many packets.
func NewRecorder(packets int) *Recorder { return &Recorder{packets: newRing[record](packets)} }

// Add remembers a packet, in place of the oldest one.
func (r *Recorder) Add(p Packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := r.packets.next()
	to.time, to.size, to.kept = p.Time, p.Size, copy(to.data[:], p.Data)
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
	for p := range r.packets.all() {
		info := gopacket.CaptureInfo{Timestamp: p.time, CaptureLength: p.kept, Length: p.size}
		if err := pcap.WritePacket(info, p.data[:p.kept]); err != nil {
			return counted.n, err
		}
	}
	return counted.n, nil
}

// WriteFile writes them to a file of that name, which only its owner may read.
func (r *Recorder) WriteFile(name string) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = r.WriteTo(file)
	return errors.Join(err, file.Close())
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
