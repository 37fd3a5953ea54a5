package diag

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holders finds out which processes hold which sockets, of every kind and in
// every network namespace: one pass over /proc, whose cost is that of reading
// the open files of all processes. Callers match the inodes with those of
// [Conn.Sockets].
//
// A process that cannot be looked at yields its error, with a Holder that has
// only the PID, and the pass goes on: other users' processes take the right to
// trace them (CAP_SYS_PTRACE). Processes that end meanwhile are passed over. A
// pair with neither PID nor socket says that /proc cannot be read.
//
// A socket may be held without a file descriptor too: by a message on its way
// (SCM_RIGHTS), by io_uring, or by the kernel itself.
func Holders() iter.Seq2[Holder, error] {
	return func(yield func(Holder, error) bool) {
		for name, err := range entries("/proc") {
			if err != nil {
				yield(Holder{}, err)
				return
			}
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue // not a process
			}
			for h, err := range HeldBy(pid) {
				if gone(err) {
					break
				}
				if !yield(h, err) {
					return
				}
			}
		}
	}
}

// HeldBy finds out which sockets one process holds. If it cannot be looked at,
// the last pair is the error, with a Holder that has only the PID:
// fs.ErrNotExist if there is no such process, fs.ErrPermission if it may not be
// traced.
func HeldBy(pid int) iter.Seq2[Holder, error] {
	return func(yield func(Holder, error) bool) {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		var link [64]byte
		for name, err := range entries(dir) {
			if err != nil {
				yield(Holder{PID: pid}, err)
				return
			}
			fd, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			n, err := unix.Readlink(dir+"/"+name, link[:])
			if err != nil {
				if gone(err) {
					continue // closed meanwhile
				}
				yield(Holder{PID: pid}, &fs.PathError{Op: "readlink", Path: dir + "/" + name, Err: err})
				return
			}
			inode, ok := socketInode(string(link[:n]))
			if ok && !yield(Holder{Inode: inode, PID: pid, FD: fd}, nil) {
				return
			}
		}
	}
}

// gone reports that a process, or its file descriptor, has ended: opening what is
// in its directory gives ENOENT, reading it ESRCH.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

// socketInode reads "socket:[12345]".
func socketInode(link string) (uint32, bool) {
	rest, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutSuffix(rest, "]")
	inode, err := strconv.ParseUint(digits, 10, 32)
	return uint32(inode), ok && err == nil
}

// entries reads the names in a directory, some at a time.
func entries(dir string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		d, err := os.Open(dir)
		if err != nil {
			yield("", err)
			return
		}
		defer d.Close()
		for {
			names, err := d.Readdirnames(256)
			for _, name := range names {
				if !yield(name, nil) {
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield("", err)
				return
			}
		}
	}
}
