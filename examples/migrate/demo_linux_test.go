package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// asProgram, in the environment, makes the test binary the program itself.
const asProgram = "MIGRATE_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	hosttest.Main(m)
}

// program is the program, to be run as if from a shell.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	// It makes its own namespaces, although the tests have theirs.
	cmd.Env = append(os.Environ(), "GOSOCCR_ISOLATED=", asProgram+"=1",
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // which is a second for each process
	return cmd
}

// The demo, from the outside: a small one of each kind.
func TestDemo(t *testing.T) {
	hosttest.Need(t)
	for _, test := range []struct {
		name  string
		moves int
		args  []string
	}{
		{"IPv4", 3, []string{"--duration", "800ms", "--rate", "20"}},
		{"IPv6", 3, []string{"--duration", "800ms", "--rate", "20", "-6"}},
		{"the plain way", 2, []string{"--duration", "600ms", "--rate", "20", "--plain"}},
		{"full speed", 2, []string{"--duration", "600ms", "--rate", "0"}},
		{"without a move", 0, []string{"--duration", "200ms", "--rate", "20"}},
		{"one move after the other", 10, []string{"--duration", "600ms", "--rate", "20"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			pcap := filepath.Join(t.TempDir(), "demo.pcap")
			cmd := program(t, append(test.args, "--json", "--pcap", pcap, "--moves", strconv.Itoa(test.moves))...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s%s", err, out, stderr.Bytes())
			}
			var r result
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if err := r.verdict(); err != nil {
				t.Error(err)
			}
			if r.Moves != test.moves {
				t.Errorf("%d moves, want %d", r.Moves, test.moves)
			}
			// What others read; names are part of the interface.
			var values map[string]any
			if err := json.Unmarshal(out, &values); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"moves", "bytes_sent", "bytes_received", "intact", "frozen_us", "rst", "window_retracted"} {
				if values[name] == nil {
					t.Errorf("no %s in %s", name, out)
				}
			}
			for name, n := range map[string]int{
				"frozen_us": len(r.Frozen), "pause_us": len(r.Pauses), "snapshot_bytes": len(r.Snapshots), "move_samples": len(r.MoveSamples),
			} {
				if n != r.Moves {
					t.Errorf("%d values in %s, want %d", n, name, r.Moves)
				}
			}
			for i, us := range r.Frozen {
				if us <= 0 || r.Snapshots[i] <= 0 {
					t.Errorf("move %d took %d µs with a snapshot of %d bytes", i+1, us, r.Snapshots[i])
				}
			}
			if r.BytesSent == 0 || r.BytesReceived == 0 || r.Sent.Client != r.Sent.Server || len(r.Received.Client) != 64 {
				t.Errorf("%s", out)
			}
			if len(r.SamplesSent) == 0 || len(r.SamplesSent) != len(r.SamplesReceived) {
				t.Errorf("%d and %d samples", len(r.SamplesSent), len(r.SamplesReceived))
			}
			if packets := countPackets(t, pcap); packets < 10 {
				t.Errorf("the capture has %d packets", packets)
			}
			if bytes.ContainsRune(stderr.Bytes(), '\x1b') {
				t.Error("draws, though not on a terminal")
			}
		})
	}
}

// countPackets counts the packets in a file of libpcap's format.
func countPackets(t *testing.T, path string) (n int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := reader.ReadPacketData(); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

func TestUsage(t *testing.T) {
	hosttest.Need(t)
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-h"}, 0, "-moves"},
		{[]string{"--moves", "-1"}, 2, "negative"},
		{[]string{"--moves", "9", "--duration", "400ms"}, 2, "500ms"},
		{[]string{"everything"}, 2, `"everything"`},
		{[]string{"--nonsense"}, 2, "nonsense"},
	} {
		out, err := program(t, test.args...).CombinedOutput()
		status := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if status != test.status || !strings.Contains(string(out), test.says) {
			t.Errorf("%v: status %d and %q, want %d and %q", test.args, status, out, test.status, test.says)
		}
	}
}

// However the demo is ended, no process of it is left, and so no namespace.
func TestEndsCleanly(t *testing.T) {
	hosttest.Need(t)
	for _, test := range []struct {
		name   string
		signal unix.Signal
		all    bool // sent to all processes, as a terminal does
		status int
	}{
		{"^C", unix.SIGINT, true, 130},
		{"SIGTERM", unix.SIGTERM, false, 130},
		{"SIGKILL", unix.SIGKILL, false, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := program(t, "--moves", "50", "--duration", "10s", "--rate", "20")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), "move 1 of 50") {
			}
			group := cmd.Process.Pid
			to := group
			if test.all {
				to = -group
			}
			if err := unix.Kill(to, test.signal); err != nil {
				t.Fatal(err)
			}
			rest, _ := io.ReadAll(stderr) // ends with the last process that writes there
			err = cmd.Wait()
			if cmd.ProcessState.ExitCode() != test.status {
				t.Errorf("%v, want status %d\n%s", err, test.status, rest)
			}
			deadline := time.Now().Add(5 * time.Second)
			for unix.Kill(-group, 0) == nil {
				if time.Now().After(deadline) {
					_ = unix.Kill(-group, unix.SIGKILL)
					t.Fatal("processes are left")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}
