package main

import (
	"os"
	"testing"
	"time"
)

// A counter shows how far something has come, though not more often than can be read,
// and nothing but on a terminal.
func TestCounter(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	silent := newCounter(file, "saved")
	silent.shown = time.Time{}
	silent.count(1, 10)
	silent.done()
	c := &counter{to: file, what: "saved"}
	for n := range 5 {
		c.count(n+1, 10)
	}
	c.shown = time.Time{}
	c.count(6, 10)
	c.done()
	got, err := os.ReadFile(file.Name())
	const erase = "\x1b[K"
	if want := "\rsaved 1 of 10 " + erase + "\rsaved 6 of 10 " + erase + "\r" + erase; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
