package proc

import (
	"fmt"
	"os"
)

// UsesIOUring reports whether a process has an io_uring instance open. What it has
// asked for there, the kernel does also while the process is stopped.
func UsesIOUring(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && link == "anon_inode:[io_uring]" {
			return true
		}
	}
	return false
}
