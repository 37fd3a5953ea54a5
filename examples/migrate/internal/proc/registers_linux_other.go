//go:build linux && !amd64 && !arm64

package proc

import (
	"errors"
	"fmt"
	"runtime"
)

// registers are not known on this processor.
type registers struct{}

var callInstruction []byte

var errProcessor = fmt.Errorf("on %s: %w", runtime.GOARCH, errors.ErrUnsupported)

func registersOf(int) (registers, error)                         { return registers{}, errProcessor }
func (registers) give(int) error                                 { return errProcessor }
func (r registers) calling(uint64, uintptr, [5]uint64) registers { return r }
func (registers) result() int64                                  { return -1 }
func (registers) native() bool                                   { return true }
func (registers) waits() bool                                    { return false }
