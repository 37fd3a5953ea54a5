// Package repair switches the repair mode of sockets (TCP_REPAIR) for programs
// that may not do so themselves. The protocol is that of passt-repair(1): over a
// Unix stream socket come requests of one byte, the value of TCP_REPAIR, with up to
// 253 file descriptors (SCM_RIGHTS). Each is answered with the same byte when it is
// done for all of them. A request that is refused changes nothing, and ends the
// connection without an answer.
package repair

import (
	"errors"
	"time"
)

// The commands, which are the values of TCP_REPAIR as bytes.
const (
	On         byte = 1
	Off        byte = 0    // an established socket sends a window probe
	OffNoProbe byte = 0xff // −1
)

// MaxFDs is the most descriptors that the kernel lets travel with one request.
const MaxFDs = 253 // SCM_MAX_FD

// ErrRefused says that the helper has closed the connection instead of answering.
var ErrRefused = errors.New("the repair helper refuses")

// A Client asks the helper at a path. It is a soccr.Repairer.
type Client struct {
	Path    string
	Timeout time.Duration // for one request; 0 is 5 seconds
}

const defaultTimeout = 5 * time.Second
