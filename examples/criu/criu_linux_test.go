package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// scriptEnv is what the test binary does when it is started as CRIU.
const scriptEnv = "CRIU_TEST_SCRIPT"

func TestMain(m *testing.M) {
	if script := os.Getenv(scriptEnv); script != "" {
		if err := swrk(script); err != nil {
			fmt.Fprintln(os.Stderr, "scripted CRIU:", err)
			os.Exit(1)
		}
		return
	}
	hosttest.Main(m)
}

// A script is a CRIU that does nothing but talk.
type script struct {
	Request rpc.CriuReqType // that it expects
	PID     int32           // that it names in notifications
	NetNS   string          // where it looks at the lock
	Steps   []step
}

// A step notifies, and then looks whether the network is locked; or it ends.
type step struct {
	Notify string
	Locked bool // afterwards
	Fail   bool // the operation
	Die    bool // the program
}

// swrk is "criu swrk FD", with the protocol of the real one.
func swrk(text string) error {
	var s script
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	if len(os.Args) != 3 || os.Args[1] != "swrk" {
		return fmt.Errorf("called as %q", os.Args)
	}
	fd, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	conn := os.NewFile(uintptr(fd), "request")
	request, err := receive(conn)
	if err != nil {
		return err
	}
	if request.GetType() != s.Request {
		return fmt.Errorf("request %v, want %v", request.GetType(), s.Request)
	}
	if s.Request == rpc.CriuReqType_VERSION {
		return send(conn, &rpc.CriuResp{
			Type: &s.Request, Success: new(true),
			Version: &rpc.CriuVersion{MajorNumber: new(int32(4)), MinorNumber: new(int32(2)), Sublevel: new(int32(1))},
		})
	}
	if err := checkOptions(request.GetOpts()); err != nil {
		return err
	}
	for _, step := range s.Steps {
		switch {
		case step.Die:
			return errors.New("it dies")
		case step.Fail:
			return send(conn, &rpc.CriuResp{Type: &s.Request, Success: new(false), CrErrmsg: new("it fails")})
		}
		err := send(conn, &rpc.CriuResp{
			Type: new(rpc.CriuReqType_NOTIFY), Success: new(true),
			Notify: &rpc.CriuNotify{Script: &step.Notify, Pid: &s.PID},
		})
		if err != nil {
			return err
		}
		answer, err := receive(conn)
		if errors.Is(err, io.EOF) {
			return nil // the notification has failed
		}
		if err != nil {
			return err
		}
		if answer.GetType() != rpc.CriuReqType_NOTIFY || !answer.GetNotifySuccess() {
			return fmt.Errorf("answer to %s: %v", step.Notify, answer)
		}
		if locked, err := isLocked(s.NetNS); err != nil || locked != step.Locked {
			return fmt.Errorf("after %s it is locked: %v, want %v; %w", step.Notify, locked, step.Locked, err)
		}
	}
	return send(conn, &rpc.CriuResp{Type: &s.Request, Success: new(true)})
}

func checkOptions(o *rpc.CriuOpts) error {
	if o.GetNetworkLock() != rpc.CriuNetworkLockMethod_SKIP || !o.GetTcpEstablished() || !o.GetNotifyScripts() {
		return fmt.Errorf("lock %v, established %v, notify %v", o.GetNetworkLock(), o.GetTcpEstablished(), o.GetNotifyScripts())
	}
	// CRIU opens the directory by its caller's descriptor.
	_, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d/.", os.Getppid(), o.GetImagesDirFd()))
	return err
}

func receive(conn *os.File) (*rpc.CriuReq, error) {
	b := make([]byte, 1<<16)
	n, err := conn.Read(b) // a packet
	if err != nil {
		return nil, err
	}
	request := new(rpc.CriuReq)
	return request, request.UnmarshalVT(b[:n])
}

func send(conn *os.File, answer *rpc.CriuResp) error {
	b, err := answer.MarshalVT()
	if err == nil {
		_, err = conn.Write(b)
	}
	return err
}

// isLocked looks for the lock's table.
func isLocked(netns string) (bool, error) {
	ns, err := os.Open(netns)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return false, err
	}
	tables, err := conn.ListTables()
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return strings.HasPrefix(t.Name, "gosoccr-") }), err
}

// A container is a process in a network namespace of its own.
type container struct {
	host  *host.Host
	pid   int32
	netns string
}

func newContainer(t *testing.T) *container {
	t.Helper()
	h := hosttest.New(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=TestSleep")
	cmd.Env = append(os.Environ(), sleepEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	hosttest.Do(t, h, cmd.Start) // a process is where the thread is that starts it
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	pid := int32(cmd.Process.Pid)
	return &container{h, pid, fmt.Sprintf("/proc/%d/ns/net", pid)}
}

const sleepEnv = "CRIU_TEST_SLEEP"

// TestSleep is the process of a container.
func TestSleep(t *testing.T) {
	if os.Getenv(sleepEnv) == "" {
		return
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Error(err)
	}
}

// drive runs the program with a scripted CRIU; it is interrupted when it has dumped.
func drive(t *testing.T, s script, args ...string) (log string, err error) {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(scriptEnv, string(text))
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &watched{until: "until it is interrupted", found: func() {
		if locked, err := isLocked(s.NetNS); !locked || err != nil {
			t.Errorf("after the dump it is locked: %v, %v", locked, err)
		}
		stop()
	}}
	err = run(ctx, append([]string{args[0], "-criu", program}, args[1:]...), out)
	if s.NetNS != "" {
		if locked, err := isLocked(s.NetNS); locked || err != nil {
			t.Errorf("at the end it is locked: %v, %v", locked, err)
		}
	}
	return out.String(), err
}

// A watched log does something when a text is in it.
type watched struct {
	bytes.Buffer
	until string
	found func()
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Buffer.Write(b)
	if strings.Contains(string(b), w.until) {
		w.found()
	}
	return n, err
}

// The network is locked from the notification on until CRIU says otherwise, or, if the
// processes are gone, until the program is told.
func TestDump(t *testing.T) {
	c := newContainer(t)
	dir := filepath.Join(t.TempDir(), "images")
	pid := strconv.Itoa(int(c.pid))
	lock := step{Notify: "network-lock", Locked: true}
	before := step{Notify: "pre-dump"}
	for _, test := range []struct {
		name   string
		steps  []step
		args   []string
		log    string // its end
		failed string
	}{
		{"and they are gone", []step{before, lock, {Notify: "post-dump", Locked: true}}, nil, "dumped; locked until it is interrupted\n", ""},
		{"and they go on", []step{before, lock, {Notify: "network-unlock"}, {Notify: "post-resume"}}, []string{"-leave-running"}, "network-unlock\ndumped\n", ""},
		{"it fails", []step{before, lock, {Notify: "network-unlock"}, {Fail: true}}, nil, "network-unlock\n", "it fails"},
		{"it fails at once", []step{{Fail: true}}, nil, "", "it fails"},
		{"it dies", []step{before, lock, {Die: true}}, nil, "", "dump.log"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log, err := drive(t, script{Request: rpc.CriuReqType_DUMP, PID: c.pid, NetNS: c.netns, Steps: test.steps},
				append([]string{"dump", "-t", pid, "-D", dir}, test.args...)...)
			if !strings.HasSuffix(log, test.log) {
				t.Errorf("it says %q, want %q at the end", log, test.log)
			}
			if (err != nil) != (test.failed != "") || err != nil && !strings.Contains(err.Error(), test.failed) {
				t.Errorf("error %v, want %q", err, test.failed)
			}
		})
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
}

// What is restored is locked before anything is in it, be the namespace CRIU's or not.
func TestRestore(t *testing.T) {
	c := newContainer(t)
	lock := func(s string) step { return step{Notify: s, Locked: true} }
	unlock := []step{{Notify: "network-unlock"}, {Notify: "post-resume"}}
	for _, test := range []struct {
		name  string
		steps []step
		args  []string
	}{
		{"a new namespace", append([]step{{Notify: "pre-restore"}, lock("setup-namespaces"), lock("post-setup-namespaces"), lock("post-restore")}, unlock...), nil},
		{"one that was kept", append([]step{lock("pre-restore"), lock("setup-namespaces"), lock("post-setup-namespaces"), lock("post-restore")}, unlock...), []string{"-netns", c.netns}},
	} {
		t.Run(test.name, func(t *testing.T) {
			log, err := drive(t, script{Request: rpc.CriuReqType_RESTORE, PID: c.pid, NetNS: c.netns, Steps: test.steps},
				append([]string{"restore", "-D", t.TempDir()}, test.args...)...)
			if want := fmt.Sprintf("restored: process %d\n", c.pid); err != nil || !strings.HasSuffix(log, want) {
				t.Errorf("%v; it says %q, want %q at the end", err, log, want)
			}
		})
	}
}

// A lock that cannot be had is no success, and CRIU is not told that it were.
func TestNoLock(t *testing.T) {
	hosttest.Need(t)
	_, err := drive(t, script{Request: rpc.CriuReqType_DUMP, Steps: []step{{Notify: "network-lock", Locked: true}}},
		"dump", "-t", "2147483647", "-D", t.TempDir())
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
}

// While the lock is on, nothing comes to the container; afterwards it does.
func TestLockHolds(t *testing.T) {
	a, b := hosttest.Pair(t)
	var listener net.Listener
	hosttest.Do(t, a, func() (err error) {
		listener, err = net.Listen("tcp", hosttest.A4.String()+":0")
		return err
	})
	defer listener.Close()
	dial := func(timeout time.Duration) error {
		return b.Do(func() error {
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), timeout)
			if err == nil {
				err = conn.Close()
			}
			return err
		})
	}
	l := &locker{netns: fmt.Sprintf("/proc/self/fd/%d", a.FD()), log: t.Logf}
	if err := l.NetworkLock(); err != nil {
		t.Fatal(err)
	}
	if timeout, ok := errors.AsType[net.Error](dial(200 * time.Millisecond)); !ok || !timeout.Timeout() {
		t.Errorf("locked: %v, want a timeout", timeout)
	}
	if err := l.NetworkUnlock(); err != nil {
		t.Fatal(err)
	}
	if err := dial(20 * time.Second); err != nil {
		t.Errorf("unlocked: %v", err)
	}
}

func TestCheck(t *testing.T) {
	log, err := drive(t, script{Request: rpc.CriuReqType_VERSION}, "check")
	if log != "CRIU 4.2.1\n" || err != nil {
		t.Errorf("%q, %v", log, err)
	}
	if err := run(t.Context(), []string{"check", "-criu", "/bin/false"}, io.Discard); err == nil || !strings.Contains(err.Error(), "does not start") {
		t.Error(err)
	}
	for _, args := range [][]string{{"check"}, {"dump", "-t", "1", "-D", t.TempDir()}, {"restore", "-D", t.TempDir()}} {
		err := run(t.Context(), append([]string{args[0], "-criu", "no-such-criu"}, args[1:]...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), "not installed") {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range [][]string{nil, {"dump"}, {"dump", "-t", "1"}, {"restore"}, {"what"}, {"check", "more"}, {"check", "-unknown"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
