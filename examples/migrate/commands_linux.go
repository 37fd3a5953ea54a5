package main

import (
	"os"

	"github.com/spf13/cobra"
)

// commands are those that work on live programs, and those for images.
func commands(stdout, stderr *os.File) []*cobra.Command {
	return append([]*cobra.Command{
		checkCommand(stdout),
		lsCommand(stdout),
		swapCommand(stdout, stderr),
		dumpCommand(stdout, stderr),
		restoreCommand(stdout, stderr),
	}, imageCommands(stdout, stderr)...)
}
