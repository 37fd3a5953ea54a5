package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// A counter shows on a terminal how far something has come that takes long.
type counter struct {
	to    *os.File // or nil
	what  string
	shown time.Time
}

func newCounter(stderr *os.File, what string) *counter {
	c := &counter{what: what, shown: time.Now()}
	if term.IsTerminal(int(stderr.Fd())) {
		c.to = stderr
	}
	return c
}

// count shows n of all, but not more often than somebody can read.
func (c *counter) count(n, all int) {
	const pause = 100 * time.Millisecond
	if c.to == nil || time.Since(c.shown) < pause {
		return
	}
	c.shown = time.Now()
	fmt.Fprintf(c.to, "\r%s %d of %d \x1b[K", c.what, n, all)
}

// done makes room for what comes next.
func (c *counter) done() {
	if c.to != nil {
		fmt.Fprint(c.to, "\r\x1b[K")
	}
}
