package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/repaird/repair"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// repairdEnv makes the test binary the program.
const repairdEnv = "REPAIRD_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(repairdEnv) != "" {
		main()
		return
	}
	hosttest.Main(m)
}

// unconfined serves within the tests' own process.
func unconfined(*os.File) error { return nil }

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
	go func() { done <- run(ctx, args, io.Discard, unconfined) }()
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
	if err := run(ctx, args, io.Discard, unconfined); err == nil || !strings.Contains(err.Error(), "in use") {
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
		done <- run(t.Context(), []string{"-connect", "-socket", path, "-uid", fmt.Sprint(os.Getuid())}, io.Discard, unconfined)
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
		if err := run(t.Context(), args, io.Discard, unconfined); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-socket", path, "-uid", "1"}, io.Discard, unconfined); err == nil {
		t.Error("a file in the place of the socket: no error")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// It keeps CAP_NET_ADMIN, and nothing else, for good.
func TestConfined(t *testing.T) {
	hosttest.Need(t)
	path := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command("/proc/self/exe", "-socket", path, "-uid", fmt.Sprint(os.Getuid()))
	cmd.Env = append(os.Environ(), repairdEnv+"=1")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // if it has not ended
	fd, client := tcpSocket(t), repair.Client{Path: path}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		err := client.SetRepair(fd, unix.TCP_REPAIR_ON)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	netAdmin := fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN)
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for field, want := range map[string]string{"CapPrm": netAdmin, "CapEff": netAdmin, "NoNewPrivs": "1"} {
			if !strings.Contains(string(status), "\n"+field+":\t"+want+"\n") {
				t.Errorf("%s is not %s in\n%s", field, want, status)
			}
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || said.Len() > 0 {
		t.Errorf("%v: %s", err, &said)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
