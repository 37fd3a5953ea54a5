package main

import (
	"os"

	"github.com/spf13/cobra"
)

// imageCommands are those that work on images, on any system.
func imageCommands(stdout, stderr *os.File) []*cobra.Command {
	return []*cobra.Command{
		showCommand(stdout),
		lintCommand(stdout),
		rewriteCommand(stdout, stderr),
		exportCommand(stdout),
		importCommand(stdout, stderr),
	}
}
