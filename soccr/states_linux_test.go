package soccr_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/soccr"
)

// A load is what waits in the queues when a connection is moved.
type load struct {
	name string
	// received bytes wait in the receive queue; sent ones left and were not
	// acknowledged; unsent ones never left.
	received, sent, unsent int
}

var loads = []load{
	{"empty", 0, 0, 0},
	{"received", 5000, 0, 0},
	{"sent", 0, 4321, 0},
	{"unsent", 0, 0, 7777},
	{"all", 3000, 2345, 100_000},
}

// A stage brings a connection into a state; the bytes of the load are there
// before conn's FIN. The peer is deaf when sent bytes or our FIN must stay
// unacknowledged, the flow locked when they must stay unsent.
type stage struct {
	state soccr.State
	// peerFIN and ownFIN: who has shut down writing before the move; inTime: our
	// FIN is acknowledged.
	peerFIN, ownFIN, acked bool
}

var stages = []stage{
	{soccr.StateEstablished, false, false, false},
	{soccr.StateCloseWait, true, false, false},
	{soccr.StateFinWait1, false, true, false},
	{soccr.StateFinWait2, false, true, true},
	{soccr.StateClosing, true, true, false},
	{soccr.StateLastAck, true, true, false},
	{soccr.StateClose, true, true, true},
}

// TestStates moves a connection in every state, over every family, with every
// kind of load, and finishes it: nothing is lost, and the peer sees no RST.
func TestStates(t *testing.T) {
	n := newNetwork(t)
	for _, stage := range stages {
		for _, f := range families {
			for _, load := range loads {
				if stage.acked && load.sent+load.unsent > 0 {
					continue // all that was written is acknowledged
				}
				t.Run(stage.state.String()+"/"+f.name+"/"+load.name, func(t *testing.T) {
					t.Parallel()
					n.testState(t, f, stage, load)
				})
			}
		}
	}
}

// bytes are those of a load.
func (l load) bytes() (received, sent, unsent []byte) {
	return pattern(1, l.received), pattern(2, l.sent), pattern(3, l.unsent)
}

// reach makes a connection that is in a state, with a load.
func (n *network) reach(t *testing.T, f family, stage stage, load load) (conn, peer *net.TCPConn, lock func(bool)) {
	t.Helper()
	conn, peer = n.connect(t, f)
	lock = n.lockFor(conn)
	if load.unsent > 16<<10 {
		setInt(t, conn, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*load.unsent) // no buffer grows while it is locked
	}

	received, sent, unsent := load.bytes()
	write(t, peer, received)
	eventually(t, "the bytes have arrived", func() bool { return ioctl(t, conn, unix.SIOCINQ) == load.received })

	closePeer := func() {
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	// In CLOSING the FINs cross; else the peer's comes first.
	if stage.peerFIN && stage.state != soccr.StateClosing {
		closePeer()
		inState(t, conn, soccr.StateCloseWait)
	}
	if !stage.acked {
		deafen(t, peer)
	}
	write(t, conn, sent)
	eventually(t, "the bytes have left", func() bool {
		return ioctl(t, conn, unix.SIOCOUTQ) == load.sent && ioctl(t, conn, unix.SIOCOUTQNSD) == 0
	})
	if load.unsent > 0 {
		lock(true)
		write(t, conn, unsent)
	}
	if stage.ownFIN {
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	if stage.state == soccr.StateClosing {
		inState(t, conn, soccr.StateFinWait1)
		lock(false) // the unsent bytes may leave now, to a peer that ignores them
		closePeer()
	}
	inState(t, conn, stage.state)
	return conn, peer, lock
}

func (n *network) testState(t *testing.T, f family, stage stage, load load) {
	conn, peer, lock := n.reach(t, f, stage, load)
	received, sent, unsent := load.bytes()
	live := info(t, conn)
	snap := n.checkpoint(t, conn)
	if stage.state == soccr.StateClosing {
		// What left meanwhile depends on how fast the peer's FIN was.
		load.sent, load.unsent = len(snap.SendQueue)-snap.Unsent, snap.Unsent
	}
	if len(snap.RecvQueue) != load.received || snap.Unacked() != load.sent || snap.Unsent != load.unsent {
		t.Fatalf("saved %d received, %d sent, %d unsent bytes; want %+v", len(snap.RecvQueue), snap.Unacked(), snap.Unsent, load)
	}

	s, fd := n.paused(t, snap)
	if got := fdInfo(t, fd); got.State != live.State || got.Snd_mss != live.Snd_mss && stage.state != soccr.StateClose {
		t.Errorf("restored state %v, sending MSS %d; want %v, %d", soccr.State(got.State), got.Snd_mss, stage.state, live.Snd_mss)
	}
	again, err := s.Save()
	if errors.Is(err, soccr.ErrChanged) { // by an acknowledgement that was due
		again, err = s.Save()
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffSnapshots(snap, again); diff != "" {
		t.Errorf("saved again, the restored socket differs (-first +second):\n%s", diff)
	}
	if edge := func(w soccr.Window) uint32 { return w.RcvWup + w.RcvWnd }; int32(edge(again.Window)-edge(snap.Window)) < 0 {
		t.Errorf("our window's edge was taken back: %+v, then %+v", snap.Window, again.Window)
	}
	lock(false)
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	restored := n.fileConn(t, fd)

	if !stage.acked {
		undeafen(t, peer)
	}
	expect(t, "conn", restored, received)
	expect(t, "peer", peer, append(sent, unsent...))
	n.finish(t, restored, peer, stage)
}

// finish closes what is still open, after a last word each way.
func (n *network) finish(t *testing.T, conn, peer *net.TCPConn, stage stage) {
	if !stage.ownFIN {
		last := pattern(4, 999)
		write(t, conn, last)
		expect(t, "peer", peer, last)
		// Or the acknowledgement of the FIN may overtake this one, which then finds
		// the socket gone and draws a RST.
		eventually(t, "the last word is acknowledged", func() bool { return ioctl(t, conn, unix.SIOCOUTQ) == 0 })
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	expectEOF(t, "peer", peer)
	if !stage.peerFIN {
		last := pattern(5, 2222)
		write(t, peer, last)
		expect(t, "conn", conn, last)
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	expectEOF(t, "conn", conn)
	if err := getInt(t, peer, unix.SOL_SOCKET, unix.SO_ERROR); err != 0 {
		t.Errorf("the peer's socket has error %v", unix.Errno(err))
	}
	if soccr.State(info(t, conn).State) != soccr.StateClose {
		eventually(t, "the connection is closed", func() bool {
			state := soccr.State(info(t, conn).State)
			return state == soccr.StateClose || state == soccr.StateTimeWait
		})
	}
}

// lockFor locks and unlocks the flow of a conn.
func (n *network) lockFor(conn *net.TCPConn) func(bool) {
	local, remote := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	return func(on bool) {
		do := n.lock.UnlockFlow
		if on {
			do = n.lock.LockFlow
		}
		if err := do(local, remote); err != nil {
			panic(err)
		}
	}
}

// diffSnapshots compares what was saved with what is saved after a restore; left
// out is what may differ by design.
func diffSnapshots(first, second *soccr.Snapshot) string {
	return cmp.Diff(first, second,
		cmpopts.EquateComparable(first.Local, netip.Prefix{}),
		cmp.Comparer(bytes.Equal), // cmp would compare byte by byte
		// It goes on, and a socket without scaling says that it scales by 0.
		cmpopts.IgnoreFields(soccr.Timestamp{}, "Value"),
		cmpopts.IgnoreFields(soccr.Snapshot{}, "WindowScaling"),
		// An acknowledgement that was due moves our window on.
		cmpopts.IgnoreFields(soccr.Window{}, "RcvWup", "RcvWnd"),
		// The same bytes in other buffers, and what is kept free for them.
		cmpopts.IgnoreFields(soccr.Window{}, "RecvMemory", "RcvSsthresh", "SndWl1"),
		cmpopts.IgnoreFields(soccr.Options{}, "RecvBuffer", "NonBlocking"),
		cmpopts.IgnoreSliceElements(func(s soccr.Setting) bool { return s.Name == "TCP_NODELAY" || s.Name == "TCP_CORK" }),
	)
}
