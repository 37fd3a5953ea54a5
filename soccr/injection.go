package soccr

import (
	"errors"
	"fmt"
	"strings"

	"github.com/gosoccr/gosoccr/rawfin"
)

// A door is where segments enter.
type door struct {
	link     bool // at the link layer of the loopback device, not through OUTPUT
	unmarked bool
	remarked bool // with another mark
}

// An InjectionError says that a segment which stands for the peer's did not reach
// the socket that is being restored, by any way: what was tried, and which rules
// of the host's firewall are to blame. errors.Is finds [ErrInjection] and what the
// kernel answered; EPERM means that OUTPUT dropped the segment.
type InjectionError struct {
	Segment  rawfin.Segment
	Mark     uint32 // of the segment, unless an attempt says otherwise
	Attempts []Attempt

	// Drops are the verdicts that dropped the segment, as in "rule 7 of chain ip
	// filter KUBE-FIREWALL". Where there are none, Unexplained says why.
	Drops       []string
	Unexplained error
}

// An Attempt is one way by which a segment did not reach its socket.
type Attempt struct {
	Way string
	Err error // nil: the kernel has taken the segment, and the socket did not change
}

// String gives the way and what came of it.
func (a Attempt) String() string {
	if a.Err == nil {
		return a.Way + ": silence"
	}
	if dropped, ok := errors.AsType[*rawfin.DroppedError](a.Err); ok {
		return fmt.Sprintf("%s: %v in OUTPUT", a.Way, dropped.Err)
	}
	return fmt.Sprintf("%s: %v", a.Way, a.Err)
}

// Error tells all of it.
func (e *InjectionError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %v with mark %#x", ErrInjection, e.Segment.Flags, e.Mark)
	if len(e.Drops) > 0 {
		fmt.Fprintf(&b, " was dropped by %s", strings.Join(e.Drops, " and by "))
	} else if e.Unexplained != nil {
		fmt.Fprintf(&b, " was dropped, by what is not known: %v", e.Unexplained)
	}
	for i, a := range e.Attempts {
		fmt.Fprintf(&b, "%s%v", [...]string{"; tried ", ", "}[min(i, 1)], a)
	}
	return b.String()
}

// Unwrap gives ErrInjection, the attempts' errors and Unexplained.
func (e *InjectionError) Unwrap() []error {
	all := []error{ErrInjection}
	for _, a := range e.Attempts {
		if a.Err != nil {
			all = append(all, a.Err)
		}
	}
	if e.Unexplained != nil {
		all = append(all, e.Unexplained)
	}
	return all
}

// Why there is no explanation.
var (
	errNoExplainer = errors.New("there is no lock (WithLock) that could find out")
	errNoDrop      = errors.New("no chain of nftables drops it; what is left are the rules of iptables-legacy, " +
		"reverse path filtering, and programs attached to the device, the cgroup or the socket")
)
