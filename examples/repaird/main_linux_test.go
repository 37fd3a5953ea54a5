package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/repaird/repair"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

func tcpSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// It serves until it is stopped, and takes the place of one that was killed.
func TestRun(t *testing.T) {
	hosttest.Need(t)
	path := filepath.Join(t.TempDir(), "socket")
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(stale, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Close(stale)

	ctx, stop := context.WithCancel(t.Context())
	args := []string{"-socket", path, "-uid", fmt.Sprintf("4711,%d", os.Getuid())}
	done := make(chan error)
	go func() { done <- run(ctx, args, io.Discard) }()
	fd, client := tcpSocket(t), repair.Client{Path: path}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := client.SetRepair(fd, unix.TCP_REPAIR_ON)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v; want a socket that anybody may write to", info.Mode(), err)
	}
	if err := run(ctx, args, io.Discard); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// It can come to who needs it, as passt wants it.
func TestConnect(t *testing.T) {
	hosttest.Need(t)
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error)
	go func() {
		done <- run(t.Context(), []string{"-connect", "-socket", path, "-uid", fmt.Sprint(os.Getuid())}, io.Discard)
	}()
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := conn.WriteMsgUnix([]byte{repair.On}, unix.UnixRights(tcpSocket(t)), nil); err != nil {
			t.Fatal(err)
		}
		var answer [1]byte
		if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[0] != repair.On {
			t.Errorf("answer %d, %v", answer[0], err)
		}
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-socket", "x"}, {"-uid", "1"}, {"-socket", "x", "-uid", "root"}, {"-socket", "x", "-uid", "-1"},
		{"-socket", "x", "-uid", "1", "more"}, {"-unknown"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-socket", path, "-uid", "1"}, io.Discard); err == nil {
		t.Error("a file in the place of the socket: no error")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
}
