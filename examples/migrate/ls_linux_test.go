package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// listed runs ls, and gives what it lists.
func listed(t *testing.T, pid int) (l listing) {
	t.Helper()
	got, stdout, stderr := status(t, inside(program(t, "ls", "-t", fmt.Sprint(pid), "--json")))
	if err := json.Unmarshal([]byte(stdout), &l); got != 0 || err != nil {
		t.Fatalf("status %d, %v: %s%s", got, err, stdout, stderr)
	}
	return l
}

func TestListFamilies(t *testing.T) {
	hosttest.Need(t)
	e := startEcho(t, "medley", "127.0.0.1:0")
	if !e.lines.Scan() {
		t.Fatal("not ready")
	}
	l := listed(t, e.pid)
	var got []string
	for _, s := range l.Sockets {
		got = append(got, fmt.Sprintf("%s %s %d %v %s", s.Protocol, s.State, len(s.Holders), s.Dump, s.Why))
		if s.Inode == 0 || s.Cookie == 0 || s.Holders[0].PID != e.pid {
			t.Errorf("%+v", s)
		}
		if s.Protocol == "tcp" && (s.Local != e.addr || s.SendQueue != 64) {
			t.Errorf("%+v, want a listener at %s", s, e.addr)
		}
	}
	slices.Sort(got)
	want := []string{
		"mptcp6 CLOSE 1 false connection is Multipath TCP",
		"netlink-raw  1 false not a TCP socket",
		"tcp LISTEN 2 true ",
		"udp CLOSE 1 true ",
		"unix-seqpacket CLOSE 1 false not a TCP socket",
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(l.Processes) != 1 || l.Processes[0].PID != e.pid || l.Processes[0].Name == "" {
		t.Errorf("%+v", l.Processes)
	}
}

// A connection that two processes have open is listed once, with its queues.
func TestListShared(t *testing.T) {
	hosttest.Need(t)
	e := startEcho(t, "forked", "127.0.0.1:0")
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var l listing
	for deadline := time.Now().Add(10 * time.Second); len(l.Processes) < 2; {
		if time.Now().After(deadline) {
			t.Fatal("there is no child")
		}
		l = listed(t, e.pid)
	}
	i := slices.IndexFunc(l.Sockets, func(s *socket) bool { return s.Peer == c.LocalAddr().String() })
	if i < 0 {
		t.Fatalf("no connection to %v in %+v", c.LocalAddr(), l)
	}
	s := l.Sockets[i]
	holds := func(h holder) bool { return h.PID == l.Processes[1].PID && h.FD == 3 }
	if s.Local != e.addr || s.State != "ESTABLISHED" || !s.Dump || len(s.Holders) < 2 || !slices.ContainsFunc(s.Holders, holds) {
		t.Errorf("%+v", s)
	}
	got, stdout, _ := status(t, inside(program(t, "ls", "-t", fmt.Sprint(e.pid))))
	if lines := strings.Count(stdout, c.LocalAddr().String()); got != 0 || lines != len(s.Holders) {
		t.Errorf("status %d, %d lines of %d:\n%s", got, lines, len(s.Holders), stdout)
	}
}

func TestListRefuses(t *testing.T) {
	hosttest.Need(t)
	e := startEcho(t, "threads", "127.0.0.1:0")
	for _, test := range []struct {
		name   string
		args   []string
		rights bool
		status int
		says   string
	}{
		{"no process", []string{"-t", "2147483647"}, true, statusFailed, "no process 2147483647"},
		{"which", nil, true, statusUsage, "-t PID"},
		{"not a number", []string{"-t", "nginx"}, true, statusUsage, "nginx"},
		{"no right", []string{"-t", fmt.Sprint(e.pid)}, false, statusFailed, "permission"},
	} {
		cmd := inside(program(t, append([]string{"ls"}, test.args...)...))
		if !test.rights { // those of a user namespace count inside it only
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 1, HostID: os.Getuid(), Size: 1}},
			}
		}
		got, stdout, stderr := status(t, cmd)
		if got != test.status || !strings.Contains(stderr, test.says) || stdout != "" {
			t.Errorf("%s: status %d, %q, %q; want %d and %q", test.name, got, stdout, stderr, test.status, test.says)
		}
	}
}
