package main

import (
	"reflect"
	"strings"
	"testing"
)

// Everything that can be wrong makes the demo fail.
func TestVerdict(t *testing.T) {
	good := func() *result {
		return &result{Intact: true, Moves: 1, Frozen: []int64{1500}, Pauses: []int64{2500}, Snapshots: []int{1000}}
	}
	if err := good().verdict(); err != nil {
		t.Errorf("all is well: %v", err)
	}
	for _, field := range []string{
		"RST", "WindowRetracted", "TimestampsBack", "AcksBack", "AcksOfUnsent", "ICMPErrors", "CaptureLost",
	} {
		r := good()
		switch f := reflect.ValueOf(r).Elem().FieldByName(field); f.Kind() {
		case reflect.Int:
			f.SetInt(1)
		default:
			f.SetUint(1)
		}
		if r.verdict() == nil {
			t.Errorf("all is well, with %s", field)
		}
	}
	r := good()
	r.Intact = false
	if r.verdict() == nil {
		t.Error("all is well, with bytes lost")
	}

	for _, test := range []struct {
		r    *result
		want string
	}{{good(), "noticed nothing"}, {r, "FAILED"}} {
		var text strings.Builder
		if err := test.r.print(&text); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text.String(), test.want) {
			t.Errorf("no %q in\n%s", test.want, text.String())
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 9_994: "9.99 kB", 9_996: "10.0 kB", 99_960: "100 kB",
		999_499: "999 kB", 999_500: "1.00 MB", 1_234_000_000: "1.23 GB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
