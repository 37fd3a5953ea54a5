package soccr

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
)

// FuzzJSON reads snapshots of all kinds that somebody has written, or edited, by hand:
// what is valid says the same in both
// encodings, and whatever it is, it can be mapped, or not.
func FuzzJSON(f *testing.F) {
	seed := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, g := range goldens {
		seed(&g.snap)
	}
	for _, l := range goldenListeners {
		seed(&l)
	}
	for _, d := range goldenDatagrams {
		seed(&d)
	}
	f.Add([]byte(`{"Pending":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := &Mapping{
			Local:   []AddrRule{{From: netip.MustParsePrefix("192.0.2.0/24"), To: netip.MustParsePrefix("198.51.100.0/24")}},
			Remote:  []AddrRule{{FromPort: 5000, ToPort: 5001}},
			Devices: map[string]string{"eth0": "eth1"},
		}
		tryJSON(t, text, diff, m.Apply)
		tryJSON(t, text, diffListeners, m.ApplyListener)
		tryJSON(t, text, diffDatagrams, m.ApplyDatagram)
	})
}

func tryJSON[T any, P travelling[T]](t *testing.T, text []byte, diff func(want, got P) string, apply func(P) (P, error)) {
	want := P(new(T))
	if json.Unmarshal(text, want) != nil {
		return
	}
	if mapped, err := apply(want); err == nil && mapped.Validate() != nil {
		t.Errorf("mapped to what is not valid: %v", mapped.Validate())
	} else if err != nil && !errors.Is(err, ErrInvalidSnapshot) && !errors.Is(err, ErrInvalidMapping) {
		t.Errorf("neither ErrInvalidSnapshot nor ErrInvalidMapping: %v", err)
	}
	encoded, encodeErr := want.MarshalBinary()
	if err := want.Validate(); err != nil {
		if !errors.Is(err, ErrInvalidSnapshot) || encodeErr != nil && !errors.Is(encodeErr, ErrInvalidSnapshot) {
			t.Errorf("not an ErrInvalidSnapshot: %v, %v", err, encodeErr)
		}
		return
	}
	got := P(new(T))
	if err := errors.Join(encodeErr, got.UnmarshalBinary(encoded)); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if d := diff(want, got); d != "" {
		t.Errorf("binary, -want +got:\n%s", d)
	}
	again, err := json.Marshal(want)
	got = P(new(T))
	if err := errors.Join(err, json.Unmarshal(again, got)); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if d := diff(want, got); d != "" {
		t.Errorf("JSON, -want +got:\n%s", d)
	}
}
