//go:build !linux

package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"
)

// commands: all others need Linux.
func commands(stdout, stderr *os.File) []*cobra.Command { return imageCommands(stdout, stderr) }

const (
	idleRole    = "check-child"
	inheritRole = "restore-child"
)

func idle() {}

func inherit([]string) error { return errors.ErrUnsupported }
