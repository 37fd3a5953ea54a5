// Package chart draws line charts as SVG, for reports of measurements.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// A Chart has an axis each way and some lines.
type Chart struct {
	Title, X, Y string // what the axes show, with units
	LogX, LogY  bool
	Lines       []Line
}

// A Line is drawn through its points, in their order.
type Line struct {
	Name   string
	Points []Point
	Dashed bool
}

// A Point has positive coordinates where the axis is logarithmic.
type Point struct{ X, Y float64 }

const (
	width, height            = 720, 400
	left, right, top, bottom = 70, 190, 40, 50
)

// colors can be told apart by most, on white and on black.
var colors = [...]string{"#0077bb", "#ee7733", "#009988", "#cc3311", "#ee3377", "#888888"}

// SVG draws the chart; it has neither scripts nor fonts of its own.
func (c *Chart) SVG() string {
	x, y := c.axis(c.LogX, func(p Point) float64 { return p.X }), c.axis(c.LogY, func(p Point) float64 { return p.Y })
	atX := func(v float64) float64 { return left + x.share(v)*(width-left-right) }
	atY := func(v float64) float64 { return height - bottom - y.share(v)*(height-top-bottom) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#444">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2 float64) {
		fmt.Fprintf(&b, `<path d="M%.1f %.1fL%.1f %.1f" stroke="#ddd"/>`+"\n", x1, y1, x2, y2)
	}
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="15">%s</text>`+"\n", left, html.EscapeString(c.Title))
	for _, v := range x.ticks() {
		line(atX(v), top, atX(v), height-bottom)
		text(atX(v), height-bottom+18, "middle", short(v))
	}
	for _, v := range y.ticks() {
		line(left, atY(v), width-right, atY(v))
		text(left-6, atY(v)+4, "end", short(v))
	}
	text(left+(width-left-right)/2, height-12, "middle", c.X)
	fmt.Fprintf(&b, `<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (height+top-bottom)/2, html.EscapeString(c.Y))
	for i, l := range c.Lines {
		color, dash := colors[i%len(colors)], ""
		if l.Dashed {
			dash = ` stroke-dasharray="6 4"`
		}
		var path []string
		for _, p := range l.Points {
			path = append(path, fmt.Sprintf("%.1f %.1f", atX(p.X), atY(p.Y)))
		}
		fmt.Fprintf(&b, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(path, "L"), color, dash)
		at := float64(top + 10 + 20*i)
		fmt.Fprintf(&b, `<path d="M%d %.1fh24" stroke="%s" stroke-width="2"%s/>`+"\n", width-right+12, at, color, dash)
		text(width-right+42, at+4, "start", l.Name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// An axis goes from low to high; those of a logarithmic one are powers of 10.
type axis struct {
	low, high float64
	log       bool
}

func (c *Chart) axis(log bool, of func(Point) float64) axis {
	a := axis{low: math.Inf(1), high: math.Inf(-1), log: log}
	for _, l := range c.Lines {
		for _, p := range l.Points {
			a.low, a.high = min(a.low, of(p)), max(a.high, of(p))
		}
	}
	switch {
	case a.low > a.high: // no points
		a.low, a.high = 1, 10
	case log:
		a.low, a.high = math.Floor(math.Log10(a.low)), math.Ceil(math.Log10(a.high))
		if a.low == a.high {
			a.high++
		}
		a.low, a.high = math.Pow(10, a.low), math.Pow(10, a.high)
	default:
		a.low = min(a.low, 0)
		if a.high == a.low {
			a.high++
		}
	}
	return a
}

// share is where a value is on the axis, from 0 to 1.
func (a axis) share(v float64) float64 {
	if a.log {
		return math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return (v - a.low) / (a.high - a.low)
}

func (a axis) ticks() (all []float64) {
	if a.log {
		for v := a.low; v < a.high*1.5; v *= 10 {
			all = append(all, v)
		}
		return all
	}
	decade := math.Pow(10, math.Floor(math.Log10(a.high-a.low)))
	step := decade
	for _, part := range []float64{0.1, 0.2, 0.5} {
		if (a.high-a.low)/(decade*part) <= 10 {
			step = decade * part
			break
		}
	}
	for v := math.Ceil(a.low/step) * step; v <= a.high*1.0001; v += step {
		all = append(all, v)
	}
	return all
}

func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}
