//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "soak: connections can be moved on Linux only")
	os.Exit(1)
}
