//go:build !linux

package main

import (
	"os"

	"github.com/spf13/cobra"
)

// commands need Linux.
func commands(_, _ *os.File) []*cobra.Command { return nil }

const idleRole = "check-child"

func idle() {}
