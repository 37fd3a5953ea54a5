package soccr

import (
	"encoding/json"
	"errors"
	"testing"
)

// FuzzJSON reads snapshots of all kinds that somebody has written, or edited, by hand:
// what is valid says the same in both encodings.
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
		tryJSON(t, text, diff)
		tryJSON(t, text, diffListeners)
		tryJSON(t, text, diffDatagrams)
	})
}

func tryJSON[T any, P travelling[T]](t *testing.T, text []byte, diff func(want, got P) string) {
	want := P(new(T))
	if json.Unmarshal(text, want) != nil {
		return
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
