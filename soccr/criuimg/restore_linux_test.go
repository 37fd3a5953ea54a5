package criuimg_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of the time these tests, unlike fuzzing, wait for the kernel's timers,
	// not for a CPU.
	if flag.Lookup("test.fuzz").Value.String() == "" {
		if err := flag.Set("test.parallel", "32"); err != nil {
			panic(err)
		}
	}
	hosttest.Main(m)
}

// A network is two hosts with the addresses of the dumped connections: what was
// dumped is restored here, its peers are there.
type network struct {
	here, there *host.Host
	lock        *netlock.Lock // here's
}

func newNetwork(tb testing.TB) *network {
	tb.Helper()
	n := &network{}
	n.here, n.there = hosttest.Pair(tb)
	lock, err := netlock.New(netlock.WithNetNS(n.here.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lock.Close(); err != nil {
			tb.Error(err)
		}
	})
	n.lock = lock
	return n
}

// restore puts a connection into a socket of a host, which stays paused.
func restore(tb testing.TB, h *host.Host, snap *soccr.Snapshot) (*soccr.Socket, int) {
	tb.Helper()
	var fd int
	hosttest.Do(tb, h, func() (err error) {
		fd, err = soccr.NewSocket(snap)
		return err
	})
	tb.Cleanup(func() { unix.Close(fd) })
	s, err := soccr.Pause(fd)
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Restore(snap); err != nil {
		tb.Fatal(err)
	}
	return s, fd
}

func save(tb testing.TB, s *soccr.Socket) *soccr.Snapshot {
	tb.Helper()
	snap, err := s.Save()
	for errors.Is(err, soccr.ErrChanged) { // by an acknowledgement that was due
		snap, err = s.Save()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return snap
}

// lockFlow locks a connection here; a socket that never connected has none.
func (n *network) lockFlow(tb testing.TB, snap *soccr.Snapshot) {
	tb.Helper()
	if err := n.lock.LockFlow(snap.Local, snap.Remote); err != nil {
		tb.Fatal(err)
	}
}

// conn makes a conn of a socket, which then goes on.
func conn(tb testing.TB, s *soccr.Socket, fd int) *net.TCPConn {
	tb.Helper()
	if err := s.Resume(); err != nil {
		tb.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		tb.Fatal(err)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	file := os.NewFile(uintptr(own), "")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// expect reads what has to come, and then the end if nothing more may come.
func expect(tb testing.TB, who string, c net.Conn, want []byte, end bool) {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		tb.Fatalf("%s read %d of %d bytes, right: %v; %v", who, n, len(want), bytes.Equal(got[:n], want[:n]), err)
	}
	if end {
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			tb.Fatalf("%s read %d more bytes, %v; want the end", who, n, err)
		}
	}
}

// sameConnection compares a snapshot with what is saved of a socket that was
// restored from it; what may differ by the kernel's doing is left out.
func sameConnection(want, got *soccr.Snapshot) string {
	return cmp.Diff(paused(want), paused(got), sameAddr, cmp.Comparer(bytes.Equal),
		cmpopts.IgnoreFields(soccr.Snapshot{}, "Path"),
		cmpopts.IgnoreFields(soccr.Timestamp{}, "Value"), // goes on
		// The kernel's memory for the same bytes, and what it makes of it.
		cmpopts.IgnoreFields(soccr.Window{}, "RecvMemory"),
		cmpopts.IgnoreFields(soccr.Options{}, "RecvBuffer"),
		// Only its order with what is received next means anything.
		cmpopts.IgnoreFields(soccr.Window{}, "SndWl1"),
		// An acknowledgement that was due moves our window on.
		cmpopts.IgnoreFields(soccr.Window{}, "RcvWup", "RcvWnd", "RcvSsthresh"),
		cmpopts.IgnoreFields(soccr.Options{}, "Congestion"), // CRIU has none
	)
}

// paused is a snapshot without what comes with Resume.
func paused(snap *soccr.Snapshot) *soccr.Snapshot {
	p := *snap
	p.Options.NonBlocking, p.Options.Settings = false, nil
	for _, s := range snap.Options.Settings {
		if s.Name != "TCP_NODELAY" {
			p.Options.Settings = append(p.Options.Settings, s)
		}
	}
	return &p
}

// edgeKept checks that our window's edge was not taken back.
func edgeKept(t *testing.T, before, after *soccr.Snapshot) {
	t.Helper()
	edge := func(s *soccr.Snapshot) uint32 { return s.Window.RcvWup + s.Window.RcvWnd }
	if int32(edge(after)-edge(before)) < 0 {
		t.Errorf("our window's edge was taken back: %+v, then %+v", before.Window, after.Window)
	}
}

// A dumped connection goes on in a socket of the library: the socket holds what
// the image says, and a peer that is where the dumped one was gets every byte.
func TestRestoreCRIUImages(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for _, s := range read(t, criuImages(t)).Sockets {
		if s.State() == soccr.StateListen {
			continue
		}
		snap, _, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		t.Run(snap.State.String()+"/"+snap.Local.String(), func(t *testing.T) {
			t.Parallel()
			n.testGoesOn(t, snap, peerOf(snap))
		})
	}
}

// So does one of which CRIU had less to tell, before Linux 4.8 and in its youth.
func TestRestoreOldImages(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for _, s := range read(t, criuImages(t)).Sockets {
		if s.State() == soccr.StateListen || s.State() == soccr.StateClose {
			continue
		}
		now, _, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		makeOld(s)
		snap, _, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		t.Run(snap.State.String()+"/"+snap.Local.String(), func(t *testing.T) {
			t.Parallel()
			n.testGoesOn(t, snap, peerOf(now))
		})
	}
}

func (n *network) testGoesOn(t *testing.T, snap, other *soccr.Snapshot) {
	n.lockFlow(t, snap)
	socket, fd := restore(t, n.here, snap)
	again := save(t, socket)
	if snap.State == soccr.StateClose {
		if again.State != snap.State || again.Local != snap.Local || again.Remote != snap.Remote {
			t.Errorf("restored %v %v-%v", again.State, again.Local, again.Remote)
		}
		expect(t, "the closed socket", conn(t, socket, fd), nil, true)
		return
	}
	if d := sameConnection(snap, again); d != "" {
		t.Errorf("saved again, the restored socket differs (-image +socket):\n%s", d)
	}

	edgeKept(t, snap, again)

	peerSocket, peerFD := restore(t, n.there, other)
	if err := n.lock.UnlockFlow(snap.Local, snap.Remote); err != nil {
		t.Fatal(err)
	}
	peer, here := conn(t, peerSocket, peerFD), conn(t, socket, fd)
	closed := map[soccr.State]struct{ own, peers bool }{
		soccr.StateFinWait1: {own: true}, soccr.StateFinWait2: {own: true},
		soccr.StateCloseWait: {peers: true}, soccr.StateLastAck: {own: true, peers: true},
	}[snap.State]
	expect(t, "the restored socket", here, snap.RecvQueue, closed.peers)
	expect(t, "its peer", peer, snap.SendQueue, closed.own)
	last := written(2000)
	for _, way := range []struct {
		who      string
		from, to net.Conn
		closed   bool
	}{{"its peer", here, peer, closed.own}, {"the restored socket", peer, here, closed.peers}} {
		if way.closed {
			continue
		}
		if _, err := way.from.Write(last); err != nil {
			t.Fatal(err)
		}
		expect(t, way.who, way.to, last, false)
	}
}

// peerOf is the other end of a connection, which has received nothing of what is
// in the send queue.
func peerOf(snap *soccr.Snapshot) *soccr.Snapshot {
	state := map[soccr.State]soccr.State{
		soccr.StateEstablished: soccr.StateEstablished,
		soccr.StateFinWait1:    soccr.StateEstablished,
		soccr.StateFinWait2:    soccr.StateCloseWait,
		soccr.StateCloseWait:   soccr.StateFinWait2,
		soccr.StateLastAck:     soccr.StateFinWait2,
	}[snap.State]
	received := snap.SendSeq - uint32(len(snap.SendQueue))
	rcvNxt := received
	if state == soccr.StateCloseWait {
		rcvNxt++
	}
	return &soccr.Snapshot{
		State: state,
		Local: unmapped(snap.Remote), Remote: unmapped(snap.Local),
		RecvSeq: received, SendSeq: snap.RecvSeq,
		MSS: snap.MSS, SACK: snap.SACK,
		WindowScaling: snap.WindowScaling, SendScale: snap.RecvScale, RecvScale: snap.SendScale,
		Timestamp: soccr.Timestamp{Enabled: true, Value: 1},
		Window: soccr.Window{
			SndWl1: rcvNxt - 1, SndWnd: snap.Window.RcvWnd, MaxWindow: snap.Window.RcvWnd,
			RcvWnd: snap.Window.SndWnd, RcvWup: rcvNxt,
		},
	}
}

func unmapped(end netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(end.Addr().Unmap(), end.Port())
}

// A program's own connection goes on after it was in CRIU's images.
func TestLiveConnection(t *testing.T) {
	n := newNetwork(t)
	for _, addr := range []netip.Addr{hosttest.A4, hosttest.A6} {
		t.Run(addr.String(), func(t *testing.T) {
			here, peer := n.connect(t, addr)
			received, sent := written(20_000), unread(9002)
			if _, err := peer.Write(received); err != nil {
				t.Fatal(err)
			}
			expect(t, "the program", here, received[:5000], false)
			if _, err := here.Write(sent); err != nil {
				t.Fatal(err)
			}
			snap, err := soccr.Checkpoint(here, soccr.WithLock(n.lock))
			if err != nil {
				t.Fatal(err)
			}
			snap, _ = detour(t, snap)
			hosttest.Do(t, n.here, func() (err error) {
				here, err = soccr.RestoreConn(snap, soccr.WithLock(n.lock))
				return err
			})
			defer here.Close()
			if err := here.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			expect(t, "the program", here, received[5000:], false)
			expect(t, "its peer", peer, sent, true)
		})
	}
}

// connect makes a connection from there to here.
func (n *network) connect(t *testing.T, addr netip.Addr) (here, peer *net.TCPConn) {
	t.Helper()
	var listener *net.TCPListener
	hosttest.Do(t, n.here, func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		l, err := config.Listen(t.Context(), "tcp", netip.AddrPortFrom(addr, 0).String())
		if err == nil {
			listener = l.(*net.TCPListener)
		}
		return err
	})
	defer listener.Close()
	hosttest.Do(t, n.there, func() error {
		c, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			peer = c.(*net.TCPConn)
		}
		return err
	})
	here, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); peer.Close() })
	return here, peer
}

// snapshots are those that make the detour: of the dump, and of states that it
// lacks.
func snapshots(t *testing.T) map[string]*soccr.Snapshot {
	t.Helper()
	all := map[string]*soccr.Snapshot{}
	add := func(what string, from *soccr.Snapshot, change func(*soccr.Snapshot)) {
		snap := *from
		change(&snap)
		all[what+"/"+snap.Local.String()] = &snap
	}
	for _, s := range read(t, criuImages(t)).Sockets {
		if s.State() == soccr.StateListen {
			continue
		}
		snap, _, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		add(snap.State.String(), snap, func(*soccr.Snapshot) {})
		switch snap.State {
		case soccr.StateFinWait1:
			add("CLOSING", snap, func(s *soccr.Snapshot) { s.State = soccr.StateClosing })
			add("unsent FIN", snap, func(s *soccr.Snapshot) { s.UnsentFIN = true })
			add("unsent bytes and FIN", snap, func(s *soccr.Snapshot) { s.Unsent, s.UnsentFIN = 1000, true })
		case soccr.StateFinWait2:
			add("read shutdown", snap, func(s *soccr.Snapshot) { s.Options.ReadShutdown = true })
		case soccr.StateEstablished:
			add("options", snap, func(s *soccr.Snapshot) {
				s.Options = soccr.Options{
					ReuseAddr: true, NonBlocking: true,
					RecvBuffer: 200_000, SendBuffer: 300_000, BufferLock: 3, Congestion: "reno",
				}
				s.Options.Settings = kernelSettings(s)
			})
			add("not negotiated", snap, func(s *soccr.Snapshot) {
				s.WindowScaling, s.SendScale, s.RecvScale, s.SACK, s.Timestamp = false, 0, 0, false, soccr.Timestamp{}
				s.Window.RcvWnd = 60_000
			})
			add("closed window", snap, func(s *soccr.Snapshot) { s.Window.SndWnd, s.Window.RcvWnd = 0, 0 })
			add("SYN_SENT", snap, func(s *soccr.Snapshot) {
				*s = soccr.Snapshot{State: soccr.StateSynSent, Local: s.Local, Remote: s.Remote, SendSeq: s.SendSeq, Options: s.Options}
			})
			add("bound", snap, func(s *soccr.Snapshot) { *s = soccr.Snapshot{State: soccr.StateClose, Local: s.Local} })
		}
	}
	return all
}

// A socket that the library saves, and that travels as CRIU's images, comes back
// the same as one that travels without.
func TestDetour(t *testing.T) {
	n := newNetwork(t)
	for name, snap := range snapshots(t) {
		t.Run(name, func(t *testing.T) { n.testDetour(t, snap) })
	}
}

func (n *network) testDetour(t *testing.T, snap *soccr.Snapshot) {
	if snap.Remote.IsValid() {
		n.lockFlow(t, snap)
	}
	saved := n.savedFrom(t, snap)
	detoured, losses := detour(t, saved)
	without, with := n.savedFrom(t, saved), n.savedFrom(t, detoured)
	if without.Options.RecvBuffer > with.Options.RecvBuffer {
		t.Errorf("by CRIU's images the receive buffer becomes smaller: %d, without %d", with.Options.RecvBuffer, without.Options.RecvBuffer)
	}
	edgeKept(t, saved, with)
	if d := cmp.Diff(without, with,
		sameAddr, cmp.Comparer(bytes.Equal), except(losses),
		// An acknowledgement may have been due.
		cmpopts.IgnoreFields(soccr.Window{}, "RcvWup", "RcvWnd", "RcvSsthresh"),
		cmpopts.IgnoreFields(soccr.Options{}, "RecvBuffer"), // depends on RecvMemory, which CRIU has not
		cmpopts.IgnoreFields(soccr.Timestamp{}, "Value"),    // goes on
	); d != "" {
		t.Errorf("by CRIU's images the socket is another (-without +with):\n%s", d)
	}
}

// savedFrom restores a snapshot and saves the socket.
func (n *network) savedFrom(t *testing.T, snap *soccr.Snapshot) *soccr.Snapshot {
	t.Helper()
	socket, _ := restore(t, n.here, snap)
	if snap.State == soccr.StateSynSent {
		return snap // until it is resumed there is nothing to save
	}
	saved := save(t, socket)
	if err := socket.Disconnect(); err != nil {
		t.Fatal(err)
	}
	return saved
}

// except ignores the fields that CRIU has no place for.
func except(losses []criuimg.Loss) cmp.Option {
	lost := map[string]bool{}
	for _, l := range losses {
		lost[l.Field] = true
	}
	return cmp.FilterPath(func(p cmp.Path) bool {
		return lost[strings.TrimPrefix(p.String(), "*.")]
	}, cmp.Ignore())
}

// detour makes images of a snapshot, and a snapshot of the images.
func detour(t *testing.T, snap *soccr.Snapshot) (*soccr.Snapshot, []criuimg.Loss) {
	t.Helper()
	s, losses, err := criuimg.NewSocket(1, 0xabc, snap)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (&criuimg.Image{Sockets: []*criuimg.Socket{s}}).Write(dir); err != nil {
		t.Fatal(err)
	}
	if stream := critDecodes(t, dir)["tcp-stream-abc.img"]; stream != nil {
		recv, send := queuesOf(t, stream)
		if !bytes.Equal(recv, snap.RecvQueue) || !bytes.Equal(send, snap.SendQueue) {
			t.Errorf("crit finds queues of %d and %d bytes, want those of %d and %d", len(recv), len(send), len(snap.RecvQueue), len(snap.SendQueue))
		}
	}
	im := read(t, os.DirFS(dir))
	again, _, err := im.Sockets[0].Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return again, losses
}

// kernelSettings are options that CRIU has and that a connection on any kernel
// can be given.
func kernelSettings(snap *soccr.Snapshot) []soccr.Setting {
	other := map[string]bool{
		"SO_BINDTODEVICE": true, "SO_ATTACH_FILTER": true, // of which the connection would notice something
		"O_ASYNC": true, "TCP_NODELAY": true, "TCP_CORK": true, // which come with Resume
	}
	some := slices.DeleteFunc(slices.Clone(settings), func(s soccr.Setting) bool { return other[s.Name] })
	if snap.Local.Addr().Is4() {
		return slices.Concat(settings4[2:], some)
	}
	return some
}

// A dumped listener listens again, and after a detour too.
func TestRestoreListener(t *testing.T) {
	n := newNetwork(t)
	sockets := read(t, criuImages(t)).Sockets
	want, _, err := sockets[len(sockets)-1].Listener()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var l *soccr.Listener
		hosttest.Do(t, n.here, func() (err error) {
			l, err = soccr.RestoreListener(want)
			return err
		})
		hosttest.Do(t, n.there, func() error {
			c, err := net.Dial("tcp", netip.AddrPortFrom(hosttest.A4, want.Local.Port()).String())
			if err == nil {
				defer c.Close()
			}
			return err
		})
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		saved, err := soccr.CheckpointListener(l.TCPListener)
		if err != nil {
			t.Fatal(err)
		}
		if saved.Local != want.Local || saved.Backlog != 37 || saved.Multipath || len(saved.Options.Settings) > 0 {
			t.Errorf("saved again: %+v", saved)
		}
		s, _, err := criuimg.NewListener(1, 2, saved)
		if err != nil {
			t.Fatal(err)
		}
		if want, _, err = s.Listener(); err != nil {
			t.Fatal(err)
		}
	}
}
