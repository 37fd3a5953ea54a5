package main

import "time"

// demoConfig is what the command line says about the demo.
type demoConfig struct {
	ipv6     bool
	moves    int
	rate     int64         // bytes to send per second each way; 0 is as fast as it goes
	duration time.Duration // how long the connection works
	plain    bool          // restore without what makes the connection go on at once
	pcap     string        // the file for what the client's wire has seen; "": none
}

const (
	// leastInterval leaves a connection some time to work between two moves.
	leastInterval = 50 * time.Millisecond
	// sampleTime is how often throughput is looked at.
	sampleTime = 50 * time.Millisecond
)

// interval is the time between two moves, before the first and after the last.
func (c demoConfig) interval() time.Duration { return c.duration / time.Duration(c.moves+1) }

// A progress is how far the demo has come.
type progress struct {
	config        demoConfig
	client        string
	service       string
	host          string // which has the connection
	elapsed       time.Duration
	moves         []move
	sent          []int64 // bytes per sampleTime
	received      []int64
	sampledAtMove []int // how many samples there were at each move

	totalSent, totalReceived int64 // in the samples
}

// A move is what is known of one.
type move struct {
	from, to string
	// When the program was stopped on the one host, and when it ran again on the
	// other, in nanoseconds of the clock that all processes share.
	stopped, resumed int64
	luggage          luggage
}

// sample takes the throughput since the last sample. Samples that were missed
// share it, so that there is one for each sampleTime.
func (p *progress) sample(elapsed time.Duration, sent, received int64) {
	p.elapsed = elapsed
	missing := int64(elapsed/sampleTime) - int64(len(p.sent))
	sent, received = sent-p.totalSent, received-p.totalReceived
	for ; missing > 0; missing-- {
		p.sent = append(p.sent, sent/missing)
		p.received = append(p.received, received/missing)
		p.totalSent += sent / missing
		p.totalReceived += received / missing
		sent -= sent / missing
		received -= received / missing
	}
}

// frozen is how long the program was stopped.
func (m move) frozen() time.Duration { return time.Duration(m.resumed - m.stopped) }

// luggage is how much went over with a connection, in bytes.
type luggage struct {
	RecvQueue int // received and not read by the program yet
	SendQueue int // written and not acknowledged by the client yet
	Snapshot  int // all of it
}

// A view shows the demo while it runs.
type view interface {
	update(*progress) // after each sample
	moved(*progress)  // after each move
	done()
}

// serverNames are the hosts between which the connection moves.
var serverNames = [2]string{"host A", "host B"}
