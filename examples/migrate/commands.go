package main

import (
	"os"

	"github.com/spf13/cobra"
)

// imageCommands are those that work on images, on any system.
func imageCommands(stdout, _ *os.File) []*cobra.Command {
	return []*cobra.Command{
		showCommand(stdout),
	}
}
