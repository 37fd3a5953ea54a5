package soccr

import (
	"fmt"
	"strings"
)

// A PreflightError is all that Preflight has found.
type PreflightError struct {
	Problems []*OpError
}

// Error tells all problems.
func (e *PreflightError) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "soccr: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n\t%v", p)
	}
	return b.String()
}

// Unwrap gives the problems.
func (e *PreflightError) Unwrap() []error {
	all := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		all[i] = p
	}
	return all
}
