package proc

import (
	"math"
	"time"
)

// waits are the calls with a timeout in milliseconds that were made again for a
// thread, of each thread the last.
type waits map[int]wait

// A wait is a call that was made again with a timeout.
type wait struct {
	timeout int32
	since   time.Time
}

// again gives the timeout with which a thread is to wait again that was stopped at
// a certain time while it waited with a timeout. If it is the one that it was
// given by the last such call, what has passed since is taken off.
//
// When a call began that was never made again is not known, so nothing is taken
// off. It gets one millisecond more, by which it is known the next time: a program
// waits again and again with the same timeout.
func (w waits) again(tid int, timeout int32, stopped, now time.Time) int32 {
	if timeout <= 0 { // forever, or not at all
		delete(w, tid)
		return timeout
	}
	last, ok := w[tid]
	switch {
	case ok && last.timeout == timeout:
		passed := stopped.Sub(last.since).Milliseconds()
		timeout = int32(max(int64(timeout)-passed, 0))
	case timeout < math.MaxInt32:
		timeout++
	}
	w[tid] = wait{timeout, now}
	return timeout
}
