package netlock

import (
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestNoPermission(t *testing.T) {
	hosttest.Need(t)
	fds := descriptors(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends without its rights
		done <- func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			_, err := New()
			return err
		}()
	}()
	err := <-done
	if now := descriptors(t); now != fds {
		t.Errorf("%d file descriptors, there were %d", now, fds)
	}
	var op *OpError
	if !errors.As(err, &op) || op.Op != "new" {
		t.Fatalf("%v, want an OpError of new", err)
	}
	for _, want := range []error{ErrNoPermission, unix.EPERM, fs.ErrPermission} {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
	if !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v does not name the capability", err)
	}
}

// noNetfilter has the kernel answer as one without nfnetlink: the socket's
// protocol does not exist. A seccomp filter of this thread does it.
func noNetfilter() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const number, protocol = 0, 16 + 2*8 // offsets in struct seccomp_data
	low := uint32(protocol)
	if bigEndian(1) == 1 {
		low += 4
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	filter := []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 3),
		load(low), unless(unix.NETLINK_NETFILTER, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func TestNoNFTables(t *testing.T) {
	hosttest.Need(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its filter
		done <- func() error {
			if err := noNetfilter(); err != nil {
				return err
			}
			_, err := Namespace()
			return err
		}()
	}()
	err := <-done
	for _, want := range []error{ErrNoNFTables, errors.ErrUnsupported, unix.EPROTONOSUPPORT} {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
	if !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("%v does not say what to do", err)
	}
}

// What a kernel answers that has nfnetlink and lacks something behind it.
func TestBecause(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EOPNOTSUPP:   ErrNoNFTables,
		unix.EAFNOSUPPORT: ErrNoNFTables,
		unix.ENOENT:       ErrNoNFTables,
		unix.EACCES:       ErrNoPermission,
	} {
		if err := because(errno); !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("because(%v) is %v, want both that and %v", errno, err, want)
		}
	}
	if err := because(nil); err != nil {
		t.Errorf("because(nil) is %v", err)
	}
	if err := because(unix.ENOMEM); !errors.Is(err, unix.ENOMEM) || errors.Unwrap(err) != nil {
		t.Errorf("because(ENOMEM) is %v", err)
	}
}
