package diag_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestHolders(t *testing.T) {
	h := hosttest.New(t)
	l := listen(t, h, "tcp", "127.0.0.1:0", nil)
	conn := dial(t, h, l.Addr().String(), nil)
	s, err := open(t, h).Lookup(local(conn), remote(conn))
	if err != nil {
		t.Fatal(err)
	}

	// The socket has two file descriptors here and one in another process.
	fd, second := -1, -1
	mustControl(t, conn, func(n int) (err error) {
		fd = n
		second, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	defer unix.Close(second)
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), holdEnv+"=1")
	child.ExtraFiles = []*os.File{file}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	ours := []diag.Holder{{s.Inode, os.Getpid(), fd}, {s.Inode, os.Getpid(), second}}
	theirs := diag.Holder{Inode: s.Inode, PID: child.Process.Pid, FD: 3}
	holds := func(h diag.Holder) bool { return h.Inode == s.Inode }
	scan := func() (found []diag.Holder) {
		for h, err := range diag.Holders() {
			if err != nil {
				// Other users' processes, when the tests are run by an ordinary one.
				if h.PID == 0 || h.FD != 0 || h.Inode != 0 || !errors.Is(err, fs.ErrPermission) {
					t.Errorf("%+v: %v", h, err)
				}
				continue
			}
			if holds(h) {
				found = append(found, h)
			}
		}
		return found
	}
	found := scan()
	for _, want := range append(ours, theirs) {
		if !slices.Contains(found, want) {
			t.Errorf("%+v is not among %+v", want, found)
		}
	}
	if len(found) != 3 {
		t.Errorf("found %+v, want 3", found)
	}

	held := func(pid int) (found []diag.Holder, err error) {
		for h, err := range diag.HeldBy(pid) {
			if err != nil {
				return found, err
			}
			if holds(h) {
				found = append(found, h)
			}
		}
		return found, nil
	}
	if found, err := held(child.Process.Pid); err != nil || !slices.Equal(found, []diag.Holder{theirs}) {
		t.Errorf("the child holds %+v, %v, want %+v", found, err, theirs)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if found, err := held(child.Process.Pid); !errors.Is(err, fs.ErrNotExist) || len(found) != 0 {
		t.Errorf("a process that has ended holds %+v, %v", found, err)
	}
	if found := scan(); len(found) != 2 {
		t.Errorf("after the child's end: %+v, want 2", found)
	}

	// Both may be left early.
	before := openFDs(t)
	for _, err := range diag.Holders() {
		t.Log("left after the first:", err) // which may be a process that nobody may look at
		break
	}
	for _, err := range diag.HeldBy(os.Getpid()) {
		if err != nil {
			t.Error(err)
		}
		break
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}

// Processes that may not be traced are reported, and do not end the pass.
func TestHoldersForbidden(t *testing.T) {
	h := hosttest.New(t)
	l := listen(t, h, "tcp", "127.0.0.1:0", nil)
	s := collect(t, open(t, h), diag.Filter{})[0]
	readable := false
	mustControl(t, l, func(fd int) error {
		// Do's thread ends with this function, and its lack of rights with it.
		return h.Do(func() error {
			_ = unix.Setfsuid(65534) // fails in a user namespace, where pid 1 is out of reach anyway
			none := [2]unix.CapUserData{}
			if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
				return err
			}
			if _, err := os.ReadDir("/proc/1/fd"); !errors.Is(err, fs.ErrPermission) {
				readable = true
				return nil
			}
			forbidden, found := false, false
			for h, err := range diag.Holders() {
				forbidden = forbidden || h == diag.Holder{PID: 1} && errors.Is(err, fs.ErrPermission)
				found = found || h == diag.Holder{Inode: s.Inode, PID: os.Getpid(), FD: fd} && err == nil
			}
			if !forbidden || !found {
				t.Errorf("pid 1 reported: %v, our own socket found: %v", forbidden, found)
			}
			return nil
		})
	})
	if readable {
		t.Skip("pid 1 is no other user's process")
	}
}
