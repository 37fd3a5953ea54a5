package soccr_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// httpServerEnv makes the test binary an HTTP server: "listen" on the address that
// follows, or "take" over what another process hands over.
const httpServerEnv = "GOSOCCR_HTTP_SERVER"

// The descriptors by which processes hand over.
const (
	takeFD = 3
	giveFD = 4
)

// httpData is what requests and answers are parts of.
var httpData = pattern(7, 50_000)

// handoverLock is the lock of a server's process.
var handoverLock *netlock.Lock

// A handover is what one process gives to the next, beside the snapshots.
type handover struct {
	Conns []handedConn
}

// A handedConn is a connection: HTTP2 is nil for HTTP/1.1, Left was read and not
// understood.
type handedConn struct {
	Snapshot *soccr.Snapshot
	HTTP2    *http2Conn
	Left     []byte
}

// httpServer is a process.
type httpServer struct {
	served atomic.Int64 // requests

	mu       sync.Mutex
	conns    map[*served]bool
	stopping bool
	handed   []handedConn
	failed   error
	changed  *sync.Cond
}

// report is what a server tells at its end.
type report struct {
	Served                 int64 // requests
	HTTP1, HTTP2, InFlight int   // connections handed over
	Took                   time.Duration
}

func serveHTTP(mode string) error {
	var err error
	if handoverLock, err = netlock.New(); err != nil {
		return err
	}
	s := &httpServer{conns: map[*served]bool{}}
	s.changed = sync.NewCond(&s.mu)
	in := bufio.NewReader(os.Stdin)
	l := &forServer{wrap: s.wrap, stop: make(chan struct{}), quiet: make(chan struct{}), ended: make(chan struct{})}
	if addr, ok := strings.CutPrefix(mode, "listen "); ok {
		plain, err := net.Listen("tcp", addr) // Go's default: Multipath TCP
		if err != nil {
			return err
		}
		l.Listener = &soccr.Listener{TCPListener: plain.(*net.TCPListener)}
		fmt.Println(plain.Addr())
	} else if err := s.take(l, in); err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:   http.HandlerFunc(s.answer),
		Protocols: protocols,
		// Tables in which nothing fits.
		HTTP2: &http.HTTP2Config{MaxDecoderHeaderTableSize: 1, MaxEncoderHeaderTableSize: 1},
		ConnState: func(c net.Conn, state http.ConnState) {
			if c, ok := c.(*served); ok && state == http.StateIdle {
				c.idle()
			}
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()

	command, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	r := report{}
	if command == "hand over\n" {
		start := time.Now()
		if r, err = s.give(l); err != nil {
			return err
		}
		r.Took = time.Since(start)
		close(l.ended)
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
	}
	r.Served = s.served.Load()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	_, err = in.ReadString('\n') // the lock holds until the next process has its own
	return ignoreEOF(err)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// answer echoes, and takes some time.
func (s *httpServer) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	size, _ := strconv.Atoi(r.FormValue("size"))
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	w.Header().Set("Sum", fmt.Sprintf("%x", sha256.Sum256(body)))
	w.Header().Set("Process", strconv.Itoa(os.Getpid()))
	_, _ = w.Write(httpData[:min(size, len(httpData))]) // the client will say what is missing
	s.served.Add(1)
}

func (s *httpServer) wrap(conn *net.TCPConn) *served {
	c := &served{TCPConn: conn, moved: s.gone}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
	c.wanted = s.stopping
	return c
}

// gone is told when a conn was closed or handed over.
func (s *httpServer) gone(c *served, snap *soccr.Snapshot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if err != nil {
		s.failed = errors.Join(s.failed, err)
	}
	if snap != nil {
		s.handed = append(s.handed, handedConn{snap, c.two, c.raw})
	}
	s.changed.Broadcast()
}

// give hands everything over to the next process.
func (s *httpServer) give(l *forServer) (report, error) {
	// Nobody accepts any more, so that connections wait.
	close(l.stop)
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
		return report{}, err
	}
	<-l.quiet
	if err := awaitInFlight(l.TCPListener); err != nil {
		return report{}, err
	}
	s.mu.Lock()
	s.stopping = true
	for c := range s.conns {
		go c.want()
	}
	s.mu.Unlock()
	listener, err := soccr.CheckpointListener(l.TCPListener, soccr.WithInFlight(soccr.KeepInFlight), soccr.WithLock(handoverLock))
	if err != nil {
		return report{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 {
		s.changed.Wait()
	}
	if s.failed != nil {
		return report{}, s.failed
	}
	out := os.NewFile(giveFD, "next process")
	defer out.Close()
	if _, err := listener.WriteTo(out); err != nil {
		return report{}, err
	}
	r := report{InFlight: len(listener.Pending)}
	for _, h := range s.handed {
		if h.HTTP2 != nil {
			r.HTTP2++
		} else {
			r.HTTP1++
		}
	}
	return r, json.NewEncoder(out).Encode(handover{s.handed})
}

// awaitInFlight waits until a connection waits to be accepted.
func awaitInFlight(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		var saved error
		if err := raw.Control(func(fd uintptr) { _, saved = soccr.SaveListener(int(fd)) }); err != nil {
			return err
		}
		if errors.Is(saved, soccr.ErrInFlight) {
			return nil
		}
	}
	return errors.New("nobody connects")
}

// take goes on with what another process hands over.
func (s *httpServer) take(l *forServer, in *bufio.Reader) error {
	from := bufio.NewReader(os.NewFile(takeFD, "process before"))
	var listener soccr.ListenerSnapshot
	if _, err := listener.ReadFrom(from); err != nil {
		return err
	}
	var all handover
	if err := json.NewDecoder(from).Decode(&all); err != nil {
		return err
	}
	// The lock of the process before goes with it.
	var flows []netlock.Flow
	for _, snap := range listener.Pending {
		flows = append(flows, netlock.Flow{Local: snap.Local, Remote: snap.Remote})
	}
	for _, h := range all.Conns {
		flows = append(flows, netlock.Flow{Local: h.Snapshot.Local, Remote: h.Snapshot.Remote})
	}
	if err := handoverLock.Add(flows...); err != nil {
		return err
	}
	if err := handoverLock.LockListener(listener.Local); err != nil {
		return err
	}
	fmt.Println("locked")
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	var err error
	if l.Listener, err = soccr.RestoreListener(&listener, soccr.WithLock(handoverLock)); err != nil {
		return err
	}
	l.taken = make(chan net.Conn, len(all.Conns))
	for _, h := range all.Conns {
		conn, err := soccr.RestoreConn(h.Snapshot, soccr.WithLock(handoverLock))
		if err != nil {
			return err
		}
		c := s.wrap(conn)
		if c.two = h.HTTP2; c.two != nil {
			c.ready = c.two.begin()
			held := c.two.Held
			c.two.Held = nil
			c.raw = c.two.received(append(held, h.Left...), false, &c.ready)
		}
		l.taken <- c
	}
	return nil
}

// serverProcess is a server as the test sees it.
type serverProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	pid    string
}

func (n *network) startServer(t *testing.T, mode string, take, give *os.File) *serverProcess {
	t.Helper()
	p := &serverProcess{t: t, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), httpServerEnv+"="+mode)
	p.cmd.Stderr = os.Stderr
	p.cmd.ExtraFiles = []*os.File{take, give}
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.stdout = stdin, bufio.NewReader(stdout)
	hosttest.Do(t, n.here, p.cmd.Start) // a process is where the thread is that starts it
	take.Close()
	give.Close() // or who takes would wait for what a dead process gives
	p.pid = strconv.Itoa(p.cmd.Process.Pid)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // if it has not ended
		_ = p.cmd.Wait()
	})
	return p
}

func (p *serverProcess) says() string {
	p.t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		p.t.Fatalf("process %s: %v", p.pid, err)
	}
	return strings.TrimSpace(line)
}

func (p *serverProcess) tell(command string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.stdin, command); err != nil {
		p.t.Fatal(err)
	}
}

// report is the server's last word.
func (p *serverProcess) report() (r report) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.says()), &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *serverProcess) end() {
	p.t.Helper()
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("process %s: %v", p.pid, err)
	}
}

// An httpClient asks again and again, and fails the test if there is no answer.
type httpClient struct {
	kind      string
	transport *http.Transport
	workers   int

	dialed, asked atomic.Int64
	slowest       time.Duration

	mu        sync.Mutex
	processes map[string]int // which have answered
}

func (n *network) httpClients() (all []*httpClient) {
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
			c := &httpClient{kind: kind.name, workers: kind.workers, processes: map[string]int{}}
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!kind.twice)
			protocols.SetUnencryptedHTTP2(kind.twice)
			c.transport = &http.Transport{
				Protocols: protocols, DisableKeepAlives: kind.closes, DisableCompression: true,
				DialContext: func(_ context.Context, network, addr string) (conn net.Conn, err error) {
					c.dialed.Add(1)
					err = n.there.Do(func() error {
						conn, err = net.DialTimeout(network, addr, 10*time.Second)
						return err
					})
					return conn, err
				},
			}
			all = append(all, c)
		}
	}
	return all
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
	size, body := rand.IntN(len(httpData)), httpData[rand.IntN(len(httpData)):]
	answer, err := client.Post(fmt.Sprintf("%s/?size=%d", url, size), "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	got, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || !bytes.Equal(got, httpData[:size]) || answer.Header.Get("Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
		return fmt.Errorf("a wrong answer: %v, %d bytes of %d", answer.Status, len(got), size)
	}
	c.asked.Add(1)
	c.mu.Lock()
	c.processes[answer.Header.Get("Process")]++
	c.slowest = max(c.slowest, time.Since(start))
	c.mu.Unlock()
	return nil
}

// A server of net/http goes from process to process under load: its listener, its
// connections, and those that wait to be accepted. No request fails, and no client
// with a connection that is kept alive, of HTTP/1.1 or HTTP/2, needs another one.
func TestHTTPServerMoves(t *testing.T) {
	n := newNetwork(t)
	const processes = 4
	var pipes [processes][2]*os.File // from each process to the next
	for i := range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pipes[i] = [2]*os.File{r, w}
		t.Cleanup(func() { r.Close(); w.Close() }) // if they are not closed yet
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	current := n.startServer(t, "listen 10.77.0.1:0", null, pipes[0][1])
	url := "http://" + current.says()
	pids := []string{current.pid}

	stop := make(chan struct{})
	failures := make(chan error, 100)
	clients := n.httpClients()
	var running sync.WaitGroup
	for _, c := range clients {
		// net/http takes for granted that its HTTP/2 clients know the table's size from
		// the first request on; so the first one is alone.
		if err := c.ask(url); err != nil {
			t.Fatal(err)
		}
		for range c.workers {
			running.Go(func() {
				if err := c.run(url, stop); err != nil {
					failures <- fmt.Errorf("%s: %w", c.kind, err)
				}
			})
		}
	}
	busy := func() { // until each has been answered by the process, and more
		eventually(t, "all are answered by process "+current.pid, func() bool {
			select {
			case err := <-failures:
				t.Fatal(err)
			default:
			}
			for _, c := range clients {
				c.mu.Lock()
				count := c.processes[current.pid]
				c.mu.Unlock()
				if count < 5 {
					return false
				}
			}
			return true
		})
	}
	var total int64
	for i := 1; i < processes; i++ {
		next := n.startServer(t, "take", pipes[i-1][0], pipes[i][1])
		busy()
		current.tell("hand over")
		if got := next.says(); got != "locked" {
			t.Fatalf("process %s says %q", next.pid, got)
		}
		r := current.report()
		current.end()
		next.tell("go on")
		t.Logf("process %s has served %d requests, and handed %d connections of HTTP/1.1, %d of HTTP/2 and %d in flight over in %v",
			current.pid, r.Served, r.HTTP1, r.HTTP2, r.InFlight, r.Took)
		if r.HTTP1 < 8 || r.HTTP2 != 3 || r.InFlight == 0 {
			t.Errorf("handed over: %+v", r)
		}
		total += r.Served
		current = next
		pids = append(pids, current.pid)
	}
	busy()
	close(stop)
	running.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	current.tell("stop")
	total += current.report().Served
	current.end()

	var asked int64
	slowest := map[string]time.Duration{}
	for _, c := range clients {
		asked += c.asked.Load()
		slowest[c.kind] = max(slowest[c.kind], c.slowest)
		if dialed := c.dialed.Load(); dialed != 1 && !c.transport.DisableKeepAlives {
			t.Errorf("a client of %s has made %d connections", c.kind, dialed)
		}
		if got := slices.Sorted(maps.Keys(c.processes)); !slices.Equal(got, slices.Sorted(slices.Values(pids))) {
			t.Errorf("a client of %s was answered by %v", c.kind, got)
		}
		c.transport.CloseIdleConnections()
	}
	if asked != total {
		t.Errorf("%d requests were answered, %d were served", asked, total)
	}
	t.Logf("%d requests; the slowest took %v", asked, slowest)
}
