package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/internal/wire"
)

// A judge watches the wire of the peers' host, and looks at every segment of every
// connection.
type judge struct {
	capture  *wire.Capture
	recorder *wire.Recorder
	accuse   func(slot int, err error)

	mu     sync.Mutex
	flows  map[netip.AddrPort]*watched // by the moved end, on the wire
	totals wire.Sent                   // of the connections that are over, both ends
	closed int                         // windows that the kernel has closed for want of memory
}

// A watched flow is a connection that is looked at.
type watched struct {
	slot    int
	since   time.Time // what came before is not looked at
	checker *wire.Checker
	faults  int
	guilty  bool
}

func newJudge(peers, packets int, accuse func(slot int, err error)) (*judge, error) {
	j := &judge{recorder: wire.NewRecorder(packets), accuse: accuse, flows: map[netip.AddrPort]*watched{}}
	err := netns.Do(peers, func() (err error) {
		j.capture, err = wire.WatchPackets(device, j.look)
		return err
	})
	return j, err
}

func (j *judge) look(p wire.Packet) {
	j.recorder.Add(p)
	s, ok := p.Segment()
	if !ok {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	w := j.flows[s.Src]
	if w == nil {
		w = j.flows[s.Dst]
	}
	if w == nil || w.guilty || s.Time.Before(w.since) {
		return
	}
	w.checker.Add(s)
	if n := w.checker.FaultCount(); n > w.faults {
		w.faults = n
		j.weigh(w)
	}
}

// weigh looks at a fault. One the kernel may commit by itself: see wire.Sent.
func (j *judge) weigh(w *watched) {
	r := w.checker.Report()
	if last := r.Faults[len(r.Faults)-1]; last.What == wire.WindowTakenBack && last.Segment.Window == 0 {
		j.closed++
		return
	}
	w.guilty = true
	go j.accuse(w.slot, r.Err())
}

// watch begins to look at a connection, from its handshake on.
func (j *judge) watch(slot int, flow wire.Flow) { j.begin(slot, flow) }

// watchFrom begins to look at one that is in the midst of it: its ends will send and
// have acknowledged these numbers.
func (j *judge) watchFrom(slot int, flow wire.Flow, a, b uint32) {
	now := time.Now()
	j.begin(slot, flow,
		wire.Segment{Time: now, Src: flow.A, Dst: flow.B, Flags: wire.ACK, Seq: a, Ack: b},
		wire.Segment{Time: now, Src: flow.B, Dst: flow.A, Flags: wire.ACK, Seq: b, Ack: a})
}

func (j *judge) begin(slot int, flow wire.Flow, segments ...wire.Segment) {
	w := &watched{slot: slot, since: time.Now(), checker: wire.NewChecker(flow)}
	for _, s := range segments {
		w.checker.Add(s)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flows[flow.B] = w
}

// over ends that. What was sent, and never seen on the wire, is an error.
func (j *judge) over(end netip.AddrPort) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := j.flows[end]
	delete(j.flows, end)
	r := w.checker.Report()
	for _, s := range []*wire.Sent{&r.A, &r.B} {
		j.totals.Segments += s.Segments
		j.totals.Bytes += s.Bytes
		j.totals.RetransmittedSegments += s.RetransmittedSegments
		j.totals.RetransmittedBytes += s.RetransmittedBytes
		j.totals.Overtaken += s.Overtaken
		j.totals.LateRSTs += s.LateRSTs
	}
	if missing := r.A.Missing + r.B.Missing; missing > 0 {
		return fmt.Errorf("%d bytes were never on the wire: %v", missing, r)
	}
	return nil
}

// lateRSTs are those that answered the second of two acknowledgements of the last FIN,
// because the first had ended the connection.
func (j *judge) lateRSTs() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	late := int64(j.totals.LateRSTs)
	for _, w := range j.flows {
		r := w.checker.Report()
		late += int64(r.A.LateRSTs + r.B.LateRSTs)
	}
	return late
}

// write writes the latest packets to a file.
func (j *judge) write(dir string) (path string, err error) {
	path = filepath.Join(dir, "latest.pcap")
	return path, j.recorder.WriteFile(path)
}

// stop ends the capture. One that has lost packets has not seen all.
func (j *judge) stop() (lost uint64, err error) { return j.capture.Stop() }

func (j *judge) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.totals
	return fmt.Sprintf("%d segments with %d bytes, %d bytes again in %d segments, %d segments overtaken; %d windows closed by the kernel for want of memory; %d RSTs when all was read",
		t.Segments, t.Bytes, t.RetransmittedBytes, t.RetransmittedSegments, t.Overtaken, j.closed, t.LateRSTs)
}
