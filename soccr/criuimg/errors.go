package criuimg

import (
	"errors"

	"github.com/gosoccr/gosoccr/soccr"
)

// The reasons for which images are refused, to be compared with errors.Is.
var (
	// ErrInvalidImage: the data are not an image that CRIU writes.
	ErrInvalidImage = errors.New("invalid CRIU image")
	// ErrNoStream: a connection's tcp-stream image is not there. A dump with
	// --tcp-close has none: its connections come back closed.
	ErrNoStream = errors.New("the connection has no tcp-stream image")
)

// invalid names the field of an entry that is wrong.
func invalid(field, want string, got any) error {
	return &soccr.FieldError{Field: field, Want: want, Got: got, Err: ErrInvalidImage}
}
