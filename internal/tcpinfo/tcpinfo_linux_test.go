package tcpinfo

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

func TestMain(m *testing.M) { hosttest.Main(m) }

func TestScalesOfBothByteOrders(t *testing.T) {
	if snd, rcv := scales(0x7e, false); snd != 0xe || rcv != 0x7 {
		t.Errorf("little endian: %d, %d", snd, rcv)
	}
	if snd, rcv := scales(0x7e, true); snd != 0x7 || rcv != 0xe {
		t.Errorf("big endian: %d, %d", snd, rcv)
	}
}

// The offsets are the kernel's, on machines with and without 8-byte alignment
// of 64-bit integers.
func TestLayout(t *testing.T) {
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"scales", scalesOffset, 6},
		{"rto", unsafe.Offsetof(unix.TCPInfo{}.Rto), 8},
		{"pacing_rate", unsafe.Offsetof(unix.TCPInfo{}.Pacing_rate), 104},
		{"bytes_sent", unsafe.Offsetof(unix.TCPInfo{}.Bytes_sent), 200},
		{"rcv_wnd", unsafe.Offsetof(unix.TCPInfo{}.Rcv_wnd), 232},
	} {
		if f.got != f.want {
			t.Errorf("tcpi_%s is at %d, want %d", f.name, f.got, f.want)
		}
	}
}

// FuzzParse: what the kernel, whichever it is, does not say is zero.
func FuzzParse(f *testing.F) {
	f.Add(make([]byte, minSize))
	f.Add(bytes.Repeat([]byte{0xff}, unix.SizeofTCPInfo))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Parse(b)
		if (err != nil) != (len(b) < int(minSize)) || err != nil && !errors.Is(err, ErrShort) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil && (info.SndWscale > 0xf || info.RcvWscale > 0xf) {
			t.Errorf("scales of %d and %d", info.SndWscale, info.RcvWscale)
		}
		known := min(len(b), unix.SizeofTCPInfo)
		if got := info.bytes(); !bytes.Equal(got[:known], b[:known]) || bytes.ContainsFunc(got[known:], func(r rune) bool { return r != 0 }) {
			t.Errorf("%x became %x", b, got)
		}
	})
}

func TestParseAnyLength(t *testing.T) {
	whole := bytes.Repeat([]byte{0x22}, unix.SizeofTCPInfo+64)
	for n := range len(whole) + 1 {
		info, err := Parse(whole[:n])
		if n < 7 {
			if !errors.Is(err, ErrShort) {
				t.Errorf("%d bytes: %v, want ErrShort", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if info.State != 0x22 || info.Options != 0x22 || info.SndWscale != 2 || info.RcvWscale != 2 {
			t.Errorf("%d bytes: %+v", n, info)
		}
		// The last field of an old kernel, whole or missing.
		if want := uint32(0x22222222); n >= 104 && info.Total_retrans != want || n <= 100 && info.Total_retrans != 0 {
			t.Errorf("%d bytes: total_retrans %#x", n, info.Total_retrans)
		}
		if n >= 236 != (info.Rcv_wnd == 0x22222222) {
			t.Errorf("%d bytes: rcv_wnd %#x", n, info.Rcv_wnd)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	b := make([]byte, unix.SizeofTCPInfo)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Parse(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The hosts have receive buffers of different sizes and scale by different
// amounts, so that the two directions cannot be confused.
func TestGet(t *testing.T) {
	a, b := hosttest.Pair(t)
	if err := a.Sysctl("net.ipv4.tcp_rmem", "4096 131072 60000000"); err != nil {
		t.Fatal(err)
	}
	if err := b.Sysctl("net.ipv4.tcp_rmem", "4096 131072 200000"); err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	hosttest.Do(t, b, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(hosttest.B4, 0).String())
		return err
	})
	defer listener.Close()
	var conn net.Conn
	hosttest.Do(t, a, func() (err error) {
		conn, err = net.Dial("tcp", listener.Addr().String())
		return err
	})
	defer conn.Close()
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()

	ours, theirs := get(t, conn), get(t, peer)
	if ours.State != 1 {
		t.Errorf("state %d, want ESTABLISHED", ours.State)
	}
	if want := uint8(OptTimestamps | OptSACK | OptWScale); ours.Options&want != want {
		t.Errorf("options %#x, want %#x among them", ours.Options, want)
	}
	if ours.RcvWscale <= ours.SndWscale {
		t.Errorf("the larger buffer scales by %d, the smaller by %d", ours.RcvWscale, ours.SndWscale)
	}
	if ours.SndWscale != theirs.RcvWscale || ours.RcvWscale != theirs.SndWscale {
		t.Errorf("scales %d/%d here, %d/%d there", ours.SndWscale, ours.RcvWscale, theirs.SndWscale, theirs.RcvWscale)
	}
}

func TestGetOfNoSocket(t *testing.T) {
	if _, err := Get(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("%v, want EBADF", err)
	}
}

func get(t *testing.T, c net.Conn) Info {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info Info
	var getErr error
	if err := raw.Control(func(fd uintptr) { info, getErr = Get(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if getErr != nil {
		t.Fatal(getErr)
	}
	return info
}
