package soccr

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// A queue that is too long is refused before anything of it is read.
func TestQueuesBeyondMaxQueue(t *testing.T) {
	// Memory that is never touched takes none.
	queue, err := unix.Mmap(-1, 0, MaxQueue+1, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(queue); err != nil {
			t.Error(err)
		}
	}()
	for field, set := range map[string]func(*Snapshot){
		"RecvQueue": func(s *Snapshot) { s.RecvQueue = queue },
		"SendQueue": func(s *Snapshot) { s.SendQueue = queue },
	} {
		s := everyField()
		set(&s)
		_, writeErr := s.WriteTo(io.Discard)
		_, appendErr := s.AppendBinary(nil)
		for name, err := range map[string]error{"Validate": s.Validate(), "WriteTo": writeErr, "AppendBinary": appendErr} {
			wrong, ok := errors.AsType[*FieldError](err)
			if !ok || wrong.Field != field || !errors.Is(err, ErrInvalidSnapshot) {
				t.Errorf("%s of a long %s: %v", name, field, err)
			}
		}
	}
}
