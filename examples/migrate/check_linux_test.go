package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// inside makes the program run where the tests do, rather than in namespaces of
// its own.
func inside(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, "GOSOCCR_ISOLATED=1")
	return cmd
}

// status runs a command and gives its exit status and what it printed.
func status(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return status, out.String(), complaints.String()
}

func TestCheck(t *testing.T) {
	hosttest.Need(t)
	// What this kernel lacks, or was built without.
	mayMiss := map[string]bool{"timestamps in microseconds": true}
	got, stdout, stderr := status(t, inside(program(t, "check", "--json")))
	var r checkResult
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("%v in %s%s", err, stdout, stderr)
	}
	want := 0
	for _, a := range r.Abilities {
		switch {
		case a.OK:
		case mayMiss[a.Name]:
			want = statusPartly
		default:
			t.Errorf("%s is missing: %s", a.Name, a.Missing)
		}
	}
	if got != want || len(r.Abilities) != len(probes) || r.Kernel != kernelRelease() {
		t.Errorf("status %d, want %d; %s", got, want, stdout)
	}
}

// In a user namespace inside that of the network, nothing of the network may be
// changed; but everybody may look, and trace his own children.
func TestCheckWithoutRights(t *testing.T) {
	hosttest.Need(t)
	cmd := inside(program(t, "check"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	got, stdout, stderr := status(t, cmd)
	if got != statusFailed {
		t.Errorf("status %d, want %d: %s%s", got, statusFailed, stdout, stderr)
	}
	for _, line := range []string{
		"-- repair mode", "-- half-closed states", "-- raw sockets", "-- packet sockets", "-- nftables", "-- sock_destroy",
		"ok sock_diag", "ok pidfd_getfd", "ok ptrace", "ok user namespaces",
		"\nmissing: repair mode, repair window, half-closed states, ", "CAP_NET_ADMIN",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("no %q in\n%s", line, stdout)
		}
	}
}

func TestCheckStatus(t *testing.T) {
	for _, test := range []struct {
		name      string
		abilities []ability
		want      int
	}{
		{"all", []ability{{OK: true}, {OK: true, basic: true}}, 0},
		{"one less", []ability{{OK: false}, {OK: true, basic: true}}, statusPartly},
		{"none", []ability{{OK: false}, {OK: false, basic: true}}, statusFailed},
	} {
		if got := (&checkResult{Abilities: test.abilities}).status(); got != test.want {
			t.Errorf("%s: status %d, want %d", test.name, got, test.want)
		}
	}
}

// Nobody answers with a RST what a connection that is made to try things acknowledges,
// be it after a while (TCP_DELACK_MAX).
func TestProbedConnectionStays(t *testing.T) {
	hosttest.Need(t)
	t.Parallel()
	for _, state := range []soccr.State{soccr.StateEstablished, soccr.StateCloseWait} {
		err := withConnection(func(s *soccr.Snapshot) { s.State = state }, func(_ int, s *soccr.Socket) error {
			time.Sleep(250 * time.Millisecond)
			if now, err := s.State(); err != nil || now != state {
				t.Errorf("%v is %v: %v", state, now, err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v: %v", state, err)
		}
	}
}
