package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func someProgress() *progress {
	p := &progress{
		config:  demoConfig{moves: 2, duration: 3 * time.Second},
		client:  "10.0.0.1:1000",
		service: "10.0.0.9:2000",
		host:    serverNames[0],
	}
	p.sample(500*time.Millisecond, 1e6, 2e6)
	p.moves = append(p.moves, move{
		from: serverNames[0], to: serverNames[1],
		stopped: 1e9, resumed: 1e9 + 1_500_000, luggage: luggage{RecvQueue: 10, SendQueue: 2000, Snapshot: 3000},
	})
	p.sampledAtMove = append(p.sampledAtMove, len(p.sent))
	p.host = serverNames[1]
	return p
}

// There is a sample for each sampleTime, even if nobody looked in time.
func TestSample(t *testing.T) {
	p := someProgress()
	p.sample(520*time.Millisecond, 1_000_007, 2e6)
	p.sample(700*time.Millisecond, 1_000_017, 2e6)
	if got := fmt.Sprint(p.sent[:10]); len(p.sent) != 14 || got != fmt.Sprint(strings.Fields(strings.Repeat("100000 ", 10))) {
		t.Errorf("%d samples: %v", len(p.sent), p.sent)
	}
	if got := fmt.Sprint(p.sent[10:]); got != "[4 4 4 5]" {
		t.Errorf("last samples %s", got)
	}
}

func TestLog(t *testing.T) {
	var text strings.Builder
	l := &log{to: &text}
	p := someProgress()
	l.update(p)
	l.moved(p)
	l.done()
	const want = `client 10.0.0.1:1000 talks to 10.0.0.9:2000, which is on host B
 0.50 s  move 1 of 2: host A → host B, stopped for 1.50 ms, snapshot of 3.00 kB (10 B received, 2.00 kB sent)
`
	if text.String() != want {
		t.Errorf("%s", text.String())
	}
}

func TestDrawing(t *testing.T) {
	var text strings.Builder
	d := &drawing{to: &text, width: func() int { return 72 }}
	p := someProgress()
	d.update(p)
	first := text.String()
	text.Reset()
	d.moved(p)
	second := text.String()
	d.done()

	drawn := strings.Count(first, "\n")
	if up := fmt.Sprintf("\x1b[%dA", drawn); !strings.Contains(second, up) {
		t.Errorf("does not go back %d lines: %q", drawn, second)
	}
	if !strings.HasSuffix(text.String(), showCursor+"\n") {
		t.Error("the cursor stays hidden")
	}
	for _, sequence := range []string{hideCursor, noWrap, wrap, clearBelow, bold, dim, green, yellow, plain} {
		first = strings.ReplaceAll(first, sequence, "")
	}
	// Lines may end in blanks, which nobody sees.
	got := ""
	for line := range strings.Lines(strings.TrimPrefix(first, "\r")) {
		got += strings.TrimRight(line, " \n") + "\n"
	}
	const want = `
  10.0.0.1:1000 ⇄ 10.0.0.9:2000 on  ○ host A ● host B

  progress  ███████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  0.5 s  1 of 2 moves

  sent      ▅▅▅▅▅▅▅                                    2.00 MB/s
  received  ███████                                    4.00 MB/s
  moves           ▲
  last      host A → host B, stopped for 1.50 ms, snapshot 3.00 kB
`
	if got != want {
		t.Errorf("draws\n%s\nwant\n%s", got, want)
	}
}

func TestSparkline(t *testing.T) {
	if got := sparkline([]int64{-1, 0, 1, 4, 7, 8}, 8); got != " ▁▂▅██" {
		t.Errorf("%q", got)
	}
}
