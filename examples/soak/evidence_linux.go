package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// fail ends the soak: with an end's history, plan and state, and its latest
// snapshots, in the directory of the evidence. The first failure counts.
func (e *engine) fail(x *end, err error) error {
	e.mu.Lock()
	first := e.failure == ""
	if first {
		e.failure = fmt.Sprintf("%s: %v: %v", e.name, &x.state, err)
	}
	e.mu.Unlock()
	if !first {
		return err
	}
	e.board.Stop.Store(1)
	if broken := e.testify(x, err); broken != nil {
		fmt.Fprintln(os.Stderr, broken)
	}
	close(e.failed)
	return err
}

func (e *engine) testify(x *end, err error) error {
	base := filepath.Join(e.out, fmt.Sprintf("slot%d-life%d-%s", x.Slot, x.Life, e.name))
	var b strings.Builder
	fmt.Fprintf(&b, "%v\n%v\n\n", &x.state, err)
	out, in := x.out(), x.in()
	fmt.Fprintf(&b, "sends: %d written, %d read by the other end; receives: %d written, %d read\n\n",
		out.Written.Load(), out.Taken.Load(), in.Written.Load(), in.Taken.Load())
	if c := x.conn; c != nil {
		if info, err := infoOf(c); err == nil {
			fmt.Fprintf(&b, "%v %+v\n\n", stateOf(&info), info)
		}
	}
	plan, failed := json.MarshalIndent(x.Plan, "", "\t")
	fmt.Fprintf(&b, "%s\n\n%s\n", plan, strings.Join(x.History, "\n"))
	failed = errors.Join(failed, os.WriteFile(base+".txt", []byte(b.String()), 0o600))
	for i, snap := range x.snapshots {
		image, err := snap.MarshalBinary()
		failed = errors.Join(failed, err, os.WriteFile(fmt.Sprintf("%s-%d.snapshot", base, i), image, 0o600))
	}
	return failed
}

// Testify writes the evidence of an end that has not failed itself.
func (e *engine) Testify(slot int, _ *struct{}) error {
	x, err := e.end(slot)
	if err != nil {
		return err
	}
	return e.testify(x, errors.New("(its peer, or the wire, tells of something)"))
}
