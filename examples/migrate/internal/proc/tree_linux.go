package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree gives a process and all its descendants, parents first. Processes that come
// and go meanwhile may be among them or not, unless the tree is frozen.
func Tree(root int) ([]int, error) {
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		children, err := childrenOf(tree[i])
		if gone(err) && i > 0 {
			continue
		}
		if gone(err) {
			return nil, fmt.Errorf("no process %d", root)
		}
		if err != nil {
			return nil, err
		}
		tree = append(tree, children...)
	}
	return tree, nil
}

// childrenOf needs CONFIG_PROC_CHILDREN, which every distribution has.
func childrenOf(pid int) (children []int, err error) {
	threads, err := Threads(pid)
	if err != nil {
		return nil, err
	}
	for _, tid := range threads {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(content)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(children, child) { // it may have got another parent meanwhile
				children = append(children, child)
			}
		}
	}
	return children, nil
}

// Threads gives the threads of a process that have not ended.
func Threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var threads []int
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		if state := stateOf(pid, tid); state != 'Z' && state != 'X' {
			threads = append(threads, tid)
		}
	}
	return threads, nil
}

// stateOf is a thread's state by its letter, as ps(1) shows it: 'X' if it is gone.
func stateOf(pid, tid int) byte {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	// The name before it may contain anything.
	i := bytes.LastIndexByte(content, ')')
	if err != nil || i < 0 || len(content) < i+3 {
		return 'X'
	}
	return content[i+2]
}

// Name is what a process calls itself, or its number.
func Name(pid int) string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return strconv.Itoa(pid)
	}
	return strings.TrimSpace(string(content))
}

// Parent is a process's parent, or 0.
func Parent(pid int) int { return statusNumber(pid, "PPid") }

// statusNumber reads a number in /proc/PID/status.
func statusNumber(pid int, field string) int {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(value))
			return n
		}
	}
	return 0
}

// gone reports that a process or thread has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }
