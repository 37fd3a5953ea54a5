package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
)

// Every socket has its old descriptor, if that is free, and one of those from 3 on,
// without gaps.
func TestArrange(t *testing.T) {
	for _, test := range []struct {
		name    string
		numbers []int
		fds     []int // from 3 on, which socket, or -1
	}{
		{"none", nil, nil},
		{"in place", []int{3, 4}, []int{0, 1}},
		{"in another order", []int{4, 3}, []int{1, 0}},
		{"behind a gap", []int{5}, []int{0, -1, 0}},
		{"far away", []int{100, 3}, append(append([]int{1, 0}, slices.Repeat([]int{-1}, 95)...), 0)},
		{"standard streams", []int{0, 2}, []int{0, 1}},
		{"twice the same", []int{3, 3}, []int{0, 1}},
		{"between", []int{0, 4, 9}, []int{0, 1, 2, -1, -1, -1, 2}},
	} {
		var sockets []*restoredSocket
		for _, n := range test.numbers {
			sockets = append(sockets, &restoredSocket{Socket: &image.Socket{Kind: image.Connection}, number: n})
		}
		a, err := arrange(sockets)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var got []int
		for _, s := range a.fds[3:] {
			got = append(got, slices.Index(sockets, s))
		}
		if !slices.Equal(got, test.fds) || len(a.names) < len(sockets) {
			t.Errorf("%s: %v with names %v, want %v", test.name, got, a.names, test.fds)
		}
	}
}

func TestParseRule(t *testing.T) {
	p := netip.MustParsePrefix
	for _, test := range []struct {
		text string
		want soccr.AddrRule
		ok   bool
	}{
		{"10.0.0.1=10.0.0.2", soccr.AddrRule{From: p("10.0.0.1/32"), To: p("10.0.0.2/32")}, true},
		{"10.1.0.0/16=10.2.0.0/16", soccr.AddrRule{From: p("10.1.0.0/16"), To: p("10.2.0.0/16")}, true},
		{"10.0.0.1:80=10.0.0.1:8080", soccr.AddrRule{From: p("10.0.0.1/32"), To: p("10.0.0.1/32"), FromPort: 80, ToPort: 8080}, true},
		{"[fd00::1]:80=[fd00::2]:81", soccr.AddrRule{From: p("fd00::1/128"), To: p("fd00::2/128"), FromPort: 80, ToPort: 81}, true},
		{"fd00::1=fd00::2", soccr.AddrRule{From: p("fd00::1/128"), To: p("fd00::2/128")}, true},
		{":80=:81", soccr.AddrRule{FromPort: 80, ToPort: 81}, true},
		{"10.0.0.1", soccr.AddrRule{}, false},
		{"10.0.0.1=", soccr.AddrRule{}, false},
		{":x=:80", soccr.AddrRule{}, false},
		{":80x=:80", soccr.AddrRule{}, false},
	} {
		got, err := parseRule(test.text)
		if (err == nil) != test.ok || test.ok && got != test.want {
			t.Errorf("%s: %+v, %v", test.text, got, err)
		}
	}
}
