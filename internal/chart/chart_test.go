package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// A chart is well-formed, has what it was given in it, and nothing outside itself.
func TestSVG(t *testing.T) {
	for name, c := range map[string]Chart{
		"empty":  {Title: "nothing"},
		"linear": {Title: "a < b & c", X: "time", Y: "bytes", Lines: []Line{{Name: "one", Points: []Point{{0, 0}, {5, 1e7}}}, {Name: "two", Points: []Point{{1, 1}}, Dashed: true}}},
		"log":    {LogX: true, LogY: true, Lines: []Line{{Name: "one", Points: []Point{{1, 0.02}, {10_000, 300}}}}},
		"flat":   {LogX: true, Lines: []Line{{Name: "one", Points: []Point{{10, 5}, {10, 5}}}}},
	} {
		svg := c.SVG()
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, svg)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s: a value is not a number:\n%s", name, svg)
		}
		for _, l := range c.Lines {
			if !strings.Contains(svg, ">"+l.Name+"<") {
				t.Errorf("%s: no legend for %s", name, l.Name)
			}
		}
	}
}

func TestTicks(t *testing.T) {
	for _, a := range []axis{{0, 1, false}, {0, 7, false}, {0, 23, false}, {0, 480, false}, {1, 10_000, true}, {0.01, 1, true}} {
		if n := len(a.ticks()); n < 3 || n > 11 {
			t.Errorf("%v: %d ticks %v", a, n, a.ticks())
		}
		for _, v := range a.ticks() {
			if s := a.share(v); s < -0.001 || s > 1.001 {
				t.Errorf("%v: tick %g is at %g", a, v, s)
			}
		}
	}
}
