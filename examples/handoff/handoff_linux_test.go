package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
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

// The variables that make the test binary the server, and a successor that dies.
const (
	serverEnv = "HANDOFF_TEST_SERVER"
	deadEnv   = "HANDOFF_TEST_DIES"
)

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) == "" {
		hosttest.Main(m)
		return
	}
	if os.Getenv(deadEnv) != "" && os.Getenv(successorEnv) != "" {
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], http.HandlerFunc(answer), os.Stderr)
	fmt.Fprintf(os.Stderr, "process %d: served %d\n", os.Getpid(), served.Load())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// data is what requests and answers are parts of.
var data = func() []byte {
	b := make([]byte, 50_000)
	for i := range b {
		b[i] = byte(7*i + i/251)
	}
	return b
}()

var served atomic.Int64 // requests

// answer echoes, and takes some time.
func answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	size, _ := strconv.Atoi(r.FormValue("size"))
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	w.Header().Set("Sum", fmt.Sprintf("%x", sha256.Sum256(body)))
	w.Header().Set("Process", strconv.Itoa(os.Getpid()))
	_, _ = w.Write(data[:min(size, len(data))]) // the client will say what is missing
	served.Add(1)
}

// A servers is a server as the test sees it: a process, and those that follow it.
type servers struct {
	t     *testing.T
	lines chan string
	pids  []int
	total int64 // requests that those that ended have served
}

// start starts a server on a host.
func start(t *testing.T, h *host.Host, env []string, args ...string) *servers {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(append(os.Environ(), serverEnv+"=1"), env...)
	cmd.Stderr = w
	hosttest.Do(t, h, cmd.Start) // a process is where the thread is that starts it
	s := &servers{t: t, lines: make(chan string, 1000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(s.lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	go func() { _ = cmd.Wait() }() // the first one ends when it has handed over
	t.Cleanup(func() {
		for _, pid := range s.pids[max(0, len(s.pids)-1):] {
			_ = unix.Kill(pid, unix.SIGKILL) // if it has not ended
		}
		_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
		<-read
		r.Close()
	})
	return s
}

// next takes the next line in, of a process; ok is false at the end of all.
func (s *servers) next(timeout <-chan time.Time) (said string, ok bool) {
	s.t.Helper()
	select {
	case line, ok := <-s.lines:
		rest, _ := strings.CutPrefix(line, "process ")
		pidText, said, _ := strings.Cut(rest, ": ")
		pid, err := strconv.Atoi(pidText)
		if !ok || err != nil {
			return line, ok
		}
		if said == "serves" {
			s.pids = append(s.pids, pid)
		}
		if number, ok := strings.CutPrefix(said, "served "); ok {
			n, _ := strconv.ParseInt(number, 10, 64)
			s.total += n
		}
		return said, true
	case <-timeout:
		s.t.Fatal("gave up waiting for the server")
		return "", false
	}
}

// await waits for a line with a text, and gives what follows it.
func (s *servers) await(text string) string {
	s.t.Helper()
	for timeout := time.After(30 * time.Second); ; {
		said, ok := s.next(timeout)
		if !ok {
			s.t.Fatalf("the server has ended before it said %q", text)
		}
		if after, ok := strings.CutPrefix(said, text); ok {
			return after
		}
		s.t.Log(said)
	}
}

// end ends the server and waits until all its processes have.
func (s *servers) end() {
	s.t.Helper()
	s.signal(unix.SIGTERM)
	s.drain()
}

func (s *servers) drain() {
	s.t.Helper()
	for timeout := time.After(30 * time.Second); ; {
		said, ok := s.next(timeout)
		if !ok {
			return
		}
		s.t.Log(said)
	}
}

func (s *servers) pid() int { return s.pids[len(s.pids)-1] }

func (s *servers) signal(sig unix.Signal) {
	s.t.Helper()
	if err := unix.Kill(s.pid(), sig); err != nil {
		s.t.Fatal(err)
	}
}

// A clientHost is the host of the clients.
type clientHost struct {
	t    *testing.T
	host *host.Host

	clients  []*httpClient
	stop     chan struct{}
	failures chan error
	running  sync.WaitGroup
	lines    atomic.Int64
}

// begin has clients of all kinds ask without end.
func begin(t *testing.T, h *host.Host, httpAddr, linesAddr string) *clientHost {
	t.Helper()
	c := &clientHost{t: t, host: h, stop: make(chan struct{}), failures: make(chan error, 100)}
	c.clients = c.httpClients()
	url := "http://" + httpAddr
	for _, client := range c.clients {
		// net/http takes for granted that its HTTP/2 clients know the table's size from
		// the first request on; so the first one is alone.
		if err := client.ask(url); err != nil {
			t.Fatal(err)
		}
		for range client.workers {
			c.running.Go(func() {
				if err := client.run(url, c.stop); err != nil {
					c.failures <- fmt.Errorf("%s: %w", client.kind, err)
				}
			})
		}
	}
	for range 3 {
		var conn net.Conn
		hosttest.Do(t, h, func() (err error) {
			conn, err = net.Dial("tcp", linesAddr)
			return err
		})
		c.running.Go(func() {
			defer conn.Close()
			if err := c.count(conn); err != nil {
				c.failures <- fmt.Errorf("lines: %w", err)
			}
		})
	}
	return c
}

// count sends lines, in pieces, and checks that each is answered once and in order.
func (c *clientHost) count(conn net.Conn) error {
	in := bufio.NewReader(conn)
	for n := 1; ; n++ {
		select {
		case <-c.stop:
			return nil
		default:
		}
		if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
			return err
		}
		for _, piece := range []string{"line ", strconv.Itoa(n * n), "\n"} {
			if _, err := conn.Write([]byte(piece)); err != nil {
				return err
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%d line %d\n", n, n*n); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		c.lines.Add(1)
	}
}

// busy waits until each client has been answered by the process, and more.
func (c *clientHost) busy(pid int) {
	c.t.Helper()
	lines := c.lines.Load()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-c.failures:
			c.t.Fatal(err)
		default:
		}
		least := 5
		for _, client := range c.clients {
			client.mu.Lock()
			least = min(least, client.processes[strconv.Itoa(pid)])
			client.mu.Unlock()
		}
		if least == 5 && c.lines.Load() > lines+5 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("gave up waiting until all were answered by process %d", pid)
		}
	}
}

// end ends the clients, and checks that none has noticed anything.
func (c *clientHost) end(pids []int) (asked int64) {
	c.t.Helper()
	close(c.stop)
	c.running.Wait()
	close(c.failures)
	for err := range c.failures {
		c.t.Error(err)
	}
	var want []string
	for _, pid := range pids {
		want = append(want, strconv.Itoa(pid))
	}
	slices.Sort(want)
	slowest := map[string]time.Duration{}
	for _, client := range c.clients {
		asked += client.asked.Load()
		slowest[client.kind] = max(slowest[client.kind], client.slowest)
		if ended := client.ended.Load(); ended > 0 && !client.transport.DisableKeepAlives {
			c.t.Errorf("of a client of %s %d connections were ended, the last by: %v", client.kind, ended, client.endedBy.Load())
		}
		if got := slices.Sorted(maps.Keys(client.processes)); !slices.Equal(got, want) {
			c.t.Errorf("a client of %s was answered by %v, want %v", client.kind, got, want)
		}
		client.transport.CloseIdleConnections()
	}
	c.t.Logf("%d requests, %d lines; the slowest request took %v", asked, c.lines.Load(), slowest)
	return asked
}

// An httpClient asks again and again, and fails the test if there is no answer.
type httpClient struct {
	kind      string
	transport *http.Transport
	workers   int

	asked   atomic.Int64
	slowest time.Duration

	// ended are the connections that the server has ended, or the network. The client
	// may end one itself, where it has had an answer long before it knows that all of
	// the request is written (http.Transport waits 50 ms).
	ended   atomic.Int64
	endedBy atomic.Value

	mu        sync.Mutex
	processes map[string]int // which have answered
}

func (c *clientHost) httpClients() (all []*httpClient) {
	for _, kind := range []struct {
		name           string
		count, workers int
		twice          bool // HTTP/2
		closes         bool
	}{
		{"HTTP/1.1", 8, 1, false, false},
		{"HTTP/2", 3, 4, true, false},
		{"a connection each", 4, 1, false, true},
	} {
		for range kind.count {
			client := &httpClient{kind: kind.name, workers: kind.workers, processes: map[string]int{}}
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!kind.twice)
			protocols.SetUnencryptedHTTP2(kind.twice)
			client.transport = &http.Transport{
				Protocols: protocols, DisableKeepAlives: kind.closes, DisableCompression: true,
				DialContext: func(_ context.Context, network, addr string) (conn net.Conn, err error) {
					err = c.host.Do(func() error {
						conn, err = net.DialTimeout(network, addr, 10*time.Second)
						return err
					})
					return keptConn{conn, client}, err
				},
			}
			all = append(all, client)
		}
	}
	return all
}

// A keptConn tells its client when somebody else ends it.
type keptConn struct {
	net.Conn
	client *httpClient
}

func (k keptConn) Read(b []byte) (int, error)  { return k.tell(k.Conn.Read(b)) }
func (k keptConn) Write(b []byte) (int, error) { return k.tell(k.Conn.Write(b)) }

func (k keptConn) tell(n int, err error) (int, error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		k.client.ended.Add(1)
		k.client.endedBy.Store(err.Error())
	}
	return n, err
}

// run asks until stop is closed.
func (c *httpClient) run(url string, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
			if err := c.ask(url); err != nil {
				return err
			}
		}
	}
}

// ask sends a request and checks the answer.
func (c *httpClient) ask(url string) error {
	client := &http.Client{Transport: c.transport, Timeout: 15 * time.Second}
	start := time.Now()
	size, body := rand.IntN(len(data)), data[rand.IntN(len(data)):]
	answer, err := client.Post(fmt.Sprintf("%s/?size=%d", url, size), "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	got, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || !bytes.Equal(got, data[:size]) || answer.Header.Get("Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
		return fmt.Errorf("a wrong answer: %v, %d bytes of %d", answer.Status, len(got), size)
	}
	c.asked.Add(1)
	c.mu.Lock()
	c.processes[answer.Header.Get("Process")]++
	c.slowest = max(c.slowest, time.Since(start))
	c.mu.Unlock()
	return nil
}

// A server goes from process to process under load: its listeners, its connections,
// and those that wait to be accepted. No request fails, none is served twice, and no
// client with a connection that is kept, of HTTP/1.1, HTTP/2 or lines, needs another.
func TestToProcesses(t *testing.T) {
	here, there := hosttest.Pair(t)
	s := start(t, here, nil, "-http", "10.77.0.1:8080", "-lines", "10.77.0.1:8081")
	s.await("serves")
	c := begin(t, there, "10.77.0.1:8080", "10.77.0.1:8081")
	for range 3 {
		c.busy(s.pid())
		s.signal(unix.SIGUSR2)
		t.Log("handed over" + s.await("handed over"))
		s.await("serves")
	}
	c.busy(s.pid())
	asked := c.end(s.pids)
	s.end()
	if asked != s.total {
		t.Errorf("%d requests were answered, %d were served", asked, s.total)
	}
	if len(s.pids) != 4 {
		t.Errorf("processes %v", s.pids)
	}
}

// If the next process cannot be had, the server has everything back.
func TestNextProcessDies(t *testing.T) {
	here, there := hosttest.Pair(t)
	s := start(t, here, []string{deadEnv + "=1"}, "-http", "10.77.0.1:8080", "-lines", "10.77.0.1:8081")
	s.await("serves")
	c := begin(t, there, "10.77.0.1:8080", "10.77.0.1:8081")
	for _, test := range []struct {
		signal unix.Signal
		why    string
	}{
		{unix.SIGUSR2, ""}, // what is written to a dead process may fail, or be lost
		{unix.SIGUSR1, "nobody is named by -next"},
		{unix.SIGUSR2, ""},
	} {
		c.busy(s.pid())
		s.signal(test.signal)
		if why := s.await("serves on: "); !strings.HasPrefix(why, test.why) {
			t.Error(why)
		}
	}
	c.busy(s.pid())
	asked := c.end(s.pids)
	s.end()
	if asked != s.total {
		t.Errorf("%d requests were answered, %d were served", asked, s.total)
	}
}

// A server goes to another host, with its address.
func TestToHost(t *testing.T) {
	sw, err := host.NewSwitch()
	if err != nil {
		hosttest.Need(t)
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close() })
	var hosts [3]*host.Host
	for i := range hosts {
		hosts[i] = hosttest.New(t)
		if err := sw.Plug(hosts[i], "net0"); err != nil {
			t.Fatal(err)
		}
		if err := hosts[i].AddAddr("net0", netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	const address = "10.77.0.10/24"
	if err := hosts[0].AddAddr("net0", netip.MustParsePrefix(address)); err != nil {
		t.Fatal(err)
	}
	const httpAddr, linesAddr = "10.77.0.10:8080", "10.77.0.10:8081"
	next := start(t, hosts[1], nil, "-from", "10.77.0.2:7000", "-move-address", address+"@net0")
	next.await("waits")
	s := start(t, hosts[0], nil, "-http", httpAddr, "-lines", linesAddr, "-next", "10.77.0.2:7000", "-move-address", address+"@net0")
	s.await("serves")
	c := begin(t, hosts[2], httpAddr, linesAddr)
	c.busy(s.pid())
	s.signal(unix.SIGUSR1)
	next.await("serves")
	c.busy(next.pid())
	asked := c.end([]int{s.pid(), next.pid()})
	next.end()
	s.drain()
	if total := s.total + next.total; asked != total {
		t.Errorf("%d requests were answered, %d were served", asked, total)
	}
}
