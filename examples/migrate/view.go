package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"
)

// newView gives the view that suits a file: one that draws for a terminal, and
// lines for everything else.
func newView(file *os.File) view {
	if fd := int(file.Fd()); term.IsTerminal(fd) && os.Getenv("TERM") != "dumb" {
		return &drawing{to: file, width: func() int {
			width, _, err := term.GetSize(fd)
			if err != nil {
				return 80
			}
			return width
		}}
	}
	return &log{to: file}
}

// A log is a view for files and pipes: a line for each move.
type log struct {
	to    io.Writer
	begun bool
}

func (l *log) update(p *progress) {
	if !l.begun {
		l.begun = true
		fmt.Fprintf(l.to, "client %s talks to %s, which is on %s\n", p.client, p.service, p.host)
	}
}

func (l *log) moved(p *progress) {
	l.update(p)
	m := p.moves[len(p.moves)-1]
	fmt.Fprintf(l.to, "%5.2f s  move %d of %d: %s → %s, stopped for %s, snapshot of %s (%s received, %s sent)\n",
		p.elapsed.Seconds(), len(p.moves), p.config.moves, m.from, m.to, short(m.frozen().Microseconds()),
		size(int64(m.luggage.Snapshot)), size(int64(m.luggage.RecvQueue)), size(int64(m.luggage.SendQueue)))
}

func (l *log) done() {}

// A drawing is a view for terminals, drawn anew each time over the old one.
type drawing struct {
	to    io.Writer
	width func() int
	lines int // drawn last time
}

// What terminals understand.
const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	clearBelow = "\x1b[J"
	noWrap     = "\x1b[?7l" // so that what is too wide stays one line
	wrap       = "\x1b[?7h"
	bold       = "\x1b[1m"
	dim        = "\x1b[2m"
	green      = "\x1b[32m"
	yellow     = "\x1b[33m"
	plain      = "\x1b[0m"
)

func (d *drawing) moved(p *progress) { d.update(p) }

func (d *drawing) update(p *progress) {
	const margin = 30 // what is beside the bars
	columns := min(max(d.width()-margin, 10), 80)
	b := &lines{}
	b.add("")
	b.add("  %s%s%s ⇄ %s%s%s on %s", bold, p.client, plain, bold, p.service, plain, hosts(p))
	b.add("")
	b.add("  %s  %s %4.1f s  %d of %d moves", label("progress"), bar(p, columns), p.elapsed.Seconds(), len(p.moves), p.config.moves)
	b.add("")
	most := int64(1)
	sent, received := p.columns(p.sent, columns), p.columns(p.received, columns)
	most = max(most, slices.Max(sent), slices.Max(received))
	b.add("  %s  %s %s", label("sent"), sparkline(sent, most), rate(p.sent))
	b.add("  %s  %s %s", label("received"), sparkline(received, most), rate(p.received))
	b.add("  %s  %s%s%s", label("moves"), yellow, marks(p, columns), plain)
	if n := len(p.moves); n > 0 {
		m := p.moves[n-1]
		b.add("  %s  %s → %s, stopped for %s, snapshot %s", label("last"), m.from, m.to,
			short(m.frozen().Microseconds()), size(int64(m.luggage.Snapshot)))
	}
	up := ""
	if d.lines > 0 {
		up = fmt.Sprintf("\x1b[%dA", d.lines)
	}
	d.lines = strings.Count(string(b.text), "\n")
	fmt.Fprint(d.to, hideCursor, noWrap, up, "\r", clearBelow, string(b.text), wrap)
}

// done leaves the last drawing where it is.
func (d *drawing) done() {
	if d.lines > 0 {
		fmt.Fprint(d.to, showCursor, "\n")
	}
}

func label(text string) string { return fmt.Sprintf("%s%-8s%s", dim, text, plain) }

// hosts shows both hosts, the one that has the connection marked.
func hosts(p *progress) string {
	var b strings.Builder
	for _, name := range serverNames {
		if name == p.host {
			fmt.Fprintf(&b, " %s%s● %s%s", bold, green, name, plain)
		} else {
			fmt.Fprintf(&b, " %s○ %s%s", dim, name, plain)
		}
	}
	return b.String()
}

// bar shows how much of the time has passed.
func bar(p *progress, columns int) string {
	full := min(int(int64(columns)*int64(p.elapsed)/int64(p.config.duration)), columns)
	return green + strings.Repeat("█", full) + plain + dim + strings.Repeat("░", columns-full) + plain
}

// column says where in the time of the demo a sample is shown.
func (p *progress) column(sample, columns int) int {
	samples := int(p.config.duration/sampleTime) + 1
	return min(sample*columns/samples, columns-1)
}

// columns puts samples together, a column the average of those that fall into
// it, and -1 before the first.
func (p *progress) columns(samples []int64, columns int) []int64 {
	values := slices.Repeat([]int64{-1}, columns)
	counts := make([]int64, columns)
	for i, v := range samples {
		c := p.column(i, columns)
		values[c] = max(values[c], 0) + v
		counts[c]++
	}
	for c, n := range counts {
		if n > 0 {
			values[c] /= n
		}
	}
	return values
}

// sparkline shows each value as a bar of eight possible heights, the largest one
// for most.
func sparkline(values []int64, most int64) string {
	heights := []rune("▁▂▃▄▅▆▇█")
	line := make([]rune, len(values))
	for i, v := range values {
		line[i] = ' '
		if v >= 0 {
			line[i] = heights[min(v*int64(len(heights))/most, int64(len(heights)-1))]
		}
	}
	return string(line)
}

// marks points at the columns with moves in them.
func marks(p *progress, columns int) string {
	line := []rune(strings.Repeat(" ", columns))
	for _, sample := range p.sampledAtMove {
		line[p.column(sample, columns)] = '▲'
	}
	return string(line)
}

// rate is how much goes through per second, over the last half second.
func rate(samples []int64) string {
	recent := samples[max(0, len(samples)-int(500*time.Millisecond/sampleTime)):]
	if len(recent) == 0 {
		return ""
	}
	var sum int64
	for _, v := range recent {
		sum += v
	}
	return size(sum*int64(time.Second/sampleTime)/int64(len(recent))) + "/s"
}
