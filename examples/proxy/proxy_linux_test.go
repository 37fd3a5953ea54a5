package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// programEnv makes the test binary the program.
const programEnv = "PROXY_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) == "" {
		hosttest.Main(m)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], http.HandlerFunc(answer), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// answer says who answers, and as much as is asked for.
func answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Process", strconv.Itoa(os.Getpid()))
	if size, _ := strconv.Atoi(r.FormValue("size")); size > 0 {
		body = bytes.Repeat([]byte("x"), size)
	}
	_, _ = w.Write(body) // the client will say what is missing
}

// A site is a front with two backends, and a host of clients, all on one switch.
type site struct {
	t              *testing.T
	clients, front *host.Host
	a, b           string // the backends' processes
	frontCmd       *exec.Cmd
	dialed         atomic.Int64

	mu  sync.Mutex
	log []string
}

const virtual = "10.77.0.10" // the address that clients know

func newSite(t *testing.T) *site {
	s := &site{t: t}
	sw, err := host.NewSwitch()
	if err != nil {
		hosttest.Need(t)
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close() })
	var hosts [4]*host.Host
	for i := range hosts {
		h := hosttest.New(t)
		hosts[i] = h
		steps := []error{
			sw.Plug(h, "net0"),
			h.AddAddr("net0", netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", i+1))),
			h.Sysctl("net.ipv4.conf.all.rp_filter", "0"),
			h.Sysctl("net.ipv4.conf.net0.rp_filter", "0"),
		}
		switch i {
		case 1: // the front
			steps = append(steps, h.AddAddr("net0", netip.MustParsePrefix(virtual+"/32")),
				h.Sysctl("net.ipv4.ip_forward", "1"),
				h.Sysctl("net.ipv4.conf.all.send_redirects", "0"), h.Sysctl("net.ipv4.conf.net0.send_redirects", "0"))
		case 2, 3: // the backends have the address, too, and do not tell
			steps = append(steps, h.Sysctl("net.ipv4.conf.all.arp_ignore", "1"), h.Sysctl("net.ipv4.conf.all.arp_announce", "2"),
				h.AddAddr("lo", netip.MustParsePrefix(virtual+"/32")))
		}
		if err := errors.Join(steps...); err != nil {
			t.Fatal(err)
		}
	}
	s.clients, s.front = hosts[0], hosts[1]
	_, s.a = s.program(hosts[2], "-control", "10.77.0.3:7000")
	_, s.b = s.program(hosts[3], "-control", "10.77.0.4:7000")

	// One that reads and does not want to.
	var refuser net.Listener
	hosttest.Do(t, hosts[3], func() (err error) {
		refuser, err = net.Listen("tcp", "10.77.0.4:7001")
		return err
	})
	t.Cleanup(func() { refuser.Close() })
	go func() {
		for {
			c, err := refuser.Accept()
			if err != nil {
				return
			}
			_, _ = readParcel(c)
			c.Close()
		}
	}()
	s.frontCmd, _ = s.program(s.front, "-listen", virtual+":80",
		"-backend", "/a=10.77.0.3:7000", "-backend", "/b=10.77.0.4:7000",
		"-backend", "/dead=10.77.0.3:7999", "-backend", "/refuser=10.77.0.4:7001")
	return s
}

// program starts the program on a host, and waits until it says its process.
func (s *site) program(h *host.Host, args ...string) (cmd *exec.Cmd, pid string) {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	cmd.Stderr = w
	hosttest.Do(s.t, h, cmd.Start) // a process is where the thread is that starts it
	w.Close()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // if it has not ended
		_ = cmd.Wait()                       // connections may be under way
		r.Close()
	})
	in := bufio.NewScanner(r)
	if !in.Scan() {
		s.t.Fatalf("%q has ended", args)
	}
	words := strings.Fields(in.Text())
	if len(words) < 2 || words[0] != "process" {
		s.t.Fatal(in.Text())
	}
	go func() {
		for in.Scan() {
			s.mu.Lock()
			s.log = append(s.log, in.Text())
			s.mu.Unlock()
		}
	}()
	return cmd, words[1]
}

// logged waits until a program has said something.
func (s *site) logged(text string) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		log := strings.Join(s.log, "\n")
		s.mu.Unlock()
		if strings.Contains(log, text) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("nobody says %q:\n%s", text, log)
		}
	}
}

func (s *site) dial(_ context.Context, network, addr string) (conn net.Conn, err error) {
	s.dialed.Add(1)
	err = s.clients.Do(func() error {
		conn, err = net.DialTimeout(network, addr, 10*time.Second)
		return err
	})
	return conn, err
}

// client is a client of HTTP/1.1 or HTTP/2, with one connection.
func (s *site) client(twice bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!twice)
	protocols.SetUnencryptedHTTP2(twice)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Protocols: protocols, DisableCompression: true, DialContext: s.dial}}
}

// ask gives the answer, and the process that gave it.
func ask(client *http.Client, path, body string) (answer, process string, status int, err error) {
	r, err := client.Post("http://"+virtual+path, "text/plain", strings.NewReader(body))
	if err != nil {
		return "", "", 0, err
	}
	b, err := io.ReadAll(r.Body)
	return string(b), r.Header.Get("Process"), r.StatusCode, errors.Join(err, r.Body.Close())
}

// Clients talk to the front's address and are answered by the backend of their first
// request, on the connection that the front has accepted.
func TestProxy(t *testing.T) {
	s := newSite(t)
	var clients sync.WaitGroup
	for i := range 12 {
		path, process := "/a", s.a
		if i%2 == 1 {
			path, process = "/b", s.b
		}
		clients.Go(func() {
			client := s.client(i%4 >= 2)
			defer client.CloseIdleConnections()
			for n := range 20 {
				body := strings.Repeat(fmt.Sprintf("%d of %d. ", n, i), 1+100*n)
				got, by, status, err := ask(client, path+"/x", body)
				if err != nil || status != http.StatusOK || got != body || by != process {
					t.Errorf("client %d, request %d: %d bytes of %d by %s, want by %s; status %d, %v", i, n, len(got), len(body), by, process, status, err)
					return
				}
			}
		})
	}
	clients.Wait()
	if n := s.dialed.Load(); n != 12 {
		t.Errorf("12 clients have made %d connections", n)
	}
	// The rules go with the connections.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		rules, err := s.front.Netlink().RuleList(unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, r := range rules {
			if r.Priority == flowPriority {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d rules are left", left)
		}
	}
}

// A raw stream is handed over, too, and goes on without the front.
func TestRawStream(t *testing.T) {
	s := newSite(t)
	conn, err := s.dial(t.Context(), "tcp", virtual+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := in.ReadString('\n'); got != line || err != nil {
			t.Fatalf("got %q, %v; want %q", got, err, line)
		}
	}
	say("/b is where I want to go\n")
	for i := range 100 {
		say(fmt.Sprintf("line %d\n", i))
	}
	if err := s.frontCmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.frontCmd.Wait(); err == nil {
		t.Error("it has not been killed")
	}
	for i := range 100 {
		say(fmt.Sprintf("line %d, and the front is dead\n", i))
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(in); len(b) != 0 || err != nil {
		t.Errorf("at the end: %q, %v", b, err)
	}
}

// The answer goes to the client directly, not by the front.
func TestDirectReply(t *testing.T) {
	s := newSite(t)
	sent := func() uint64 {
		link, err := s.front.Netlink().LinkByName("net0")
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().Statistics.TxBytes + link.Attrs().Statistics.RxBytes
	}
	before := sent()
	const size = 20 << 20
	got, by, status, err := ask(s.client(false), "/a?size="+strconv.Itoa(size), "")
	if err != nil || status != http.StatusOK || by != s.a || len(got) != size {
		t.Fatalf("%d bytes by %s; status %d, %v", len(got), by, status, err)
	}
	if through := sent() - before; through > size/4 {
		t.Errorf("the front has seen %d bytes of an answer of %d", through, size)
	}
}

// Who cannot be handed over is told by the front, which then has the connection back.
func TestNoBackend(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		path   string
		status int
		log    string
	}{
		{"/nowhere", http.StatusNotFound, "nobody serves"},
		{"/dead", http.StatusBadGateway, "connection refused"},
		{"/refuser", http.StatusBadGateway, "wait for 'r'"},
	} {
		_, by, status, err := ask(s.client(false), test.path, "body")
		if err != nil || status != test.status || by != "" {
			t.Errorf("%s: status %d by %q, %v", test.path, status, by, err)
		}
		s.logged(test.log)
	}
	if got, by, _, err := ask(s.client(true), "/b", "still there"); got != "still there" || by != s.b || err != nil {
		t.Errorf("afterwards: %q by %s, %v", got, by, err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-listen", "x"}, {"-control", "x", "-listen", "y"}, {"-backend", "/a=b"}, {"-listen", "x", "-backend", "a=b"},
		{"-control", "x", "-backend", "/a=b"}, {"-control", "x", "more"}, {"-unknown"},
	} {
		if err := run(t.Context(), args, nil, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
