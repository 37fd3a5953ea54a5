package soccr_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// unusual are values that no kernel has by default, for the options that are no
// switch: that is turned over.
var unusual = map[string]soccr.Setting{
	"F_SETOWN":              {Number: 0, Text: "process"}, // whoever restores it
	"F_SETSIG":              {Number: int64(unix.SIGURG)},
	"ICMPV6_FILTER":         {Bytes: append(bytes.Repeat([]byte{0xff}, 16), make([]byte, 16)...)}, // errors only
	"ICMP_FILTER":           {Number: 1 << 8},                                                     // no echo requests
	"IPV6_2292DSTOPTS":      {Number: 1},
	"IPV6_ADDR_PREFERENCES": {Number: 0x401}, // temporary, home
	"IPV6_CHECKSUM":         {Number: 6},
	"IPV6_DSTOPTS":          {Bytes: []byte{0, 0, 1, 4, 0, 0, 0, 0}},
	"IPV6_HDRINCL":          {Number: 1},
	"IPV6_HOPOPTS":          {Bytes: []byte{0, 0, 1, 4, 0, 0, 0, 0}},
	"IPV6_MINHOPCOUNT":      {Number: 3},
	"IPV6_MTU_DISCOVER":     {Number: 3},
	"IPV6_MULTICAST_HOPS":   {Number: 9},
	"IPV6_MULTICAST_IF":     {Text: "net0"},
	"IPV6_RTHDR":            {Bytes: segmentRouting},
	"IPV6_RTHDRDSTOPTS":     {Bytes: []byte{0, 0, 1, 4, 0, 0, 0, 0}},
	"IPV6_TCLASS":           {Number: 0x28},
	"IPV6_UNICAST_HOPS":     {Number: 33},
	"IPV6_UNICAST_IF":       {Text: "net0"},
	"IP_HDRINCL":            {Number: 1},
	"IP_LOCAL_PORT_RANGE":   {Number: int64(int32(-0x3cb0_0000 | 40000))}, // up to 50000
	"IP_MINTTL":             {Number: 3},
	"IP_MTU_DISCOVER":       {Number: 3},
	"IP_MULTICAST_IF":       {Text: "10.77.0.1"},
	"IP_MULTICAST_TTL":      {Number: 9},
	"IP_OPTIONS":            {Bytes: []byte{1, 1, 1, 1}},
	"IP_TOS":                {Number: 0x28},
	"IP_TTL":                {Number: 33},
	"IP_UNICAST_IF":         {Text: "net0"},
	"SO_ATTACH_FILTER":      {Bytes: []byte{0, 6, 0, 0, 0, 0, 0xff, 0xff}}, // ret 65535
	"SO_BINDTODEVICE":       {Text: "net0"},
	"SO_BUSY_POLL":          {Number: 50},
	"SO_INCOMING_CPU":       {Number: 1},
	"SO_LINGER":             {Number: 7},
	"SO_MARK":               {Number: 0x1234},
	"SO_MAX_PACING_RATE":    {Number: 123_456_789},
	"SO_PRIORITY":           {Number: 5},
	"SO_RCVLOWAT":           {Number: 3},
	"SO_RCVTIMEO":           {Number: 1_500_000},
	"SO_RESERVE_MEM":        {Number: 1 << 16},
	"SO_SNDTIMEO":           {Number: 2_500_000},
	"SO_TIMESTAMPING":       {Number: unix.SOF_TIMESTAMPING_RX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE},
	"SO_TIMESTAMPING_NEW":   {Number: unix.SOF_TIMESTAMPING_RX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE},
	"SO_TXTIME":             {Number: unix.CLOCK_MONOTONIC | 1<<32}, // SOF_TXTIME_DEADLINE_MODE
	"TCP_DEFER_ACCEPT":      {Number: 3},
	"TCP_DELACK_MAX_US":     {Number: 40_000},
	"TCP_FASTOPEN":          {Number: 5},
	"TCP_FASTOPEN_KEY":      {Bytes: []byte("sixteen bytes...")},
	"TCP_KEEPCNT":           {Number: 5},
	"TCP_KEEPIDLE":          {Number: 77},
	"TCP_KEEPINTVL":         {Number: 33},
	"TCP_LINGER2":           {Number: 7},
	"TCP_MAXSEG":            {Number: 1000},
	"TCP_NOTSENT_LOWAT":     {Number: 12345},
	"TCP_RTO_MAX_MS":        {Number: 2500},
	"TCP_RTO_MIN_US":        {Number: 80_000},
	"TCP_SAVE_SYN":          {Number: 1},
	"TCP_SYNCNT":            {Number: 3},
	"TCP_TX_DELAY":          {Number: 1000},
	"TCP_USER_TIMEOUT":      {Number: 54_321},
	"TCP_WINDOW_CLAMP":      {Number: 20_000},
	"UDPLITE_RECV_CSCOV":    {Number: 16},
	"UDPLITE_SEND_CSCOV":    {Number: 16},
	"UDP_SEGMENT":           {Number: 1000},
}

// segmentRouting is a header of one segment, the peer, without any before it.
var segmentRouting = slices.Concat([]byte{0, 2, 4, 0, 0, 0, 0, 0}, ip6.there.AsSlice())

func unusualValue(t *testing.T, row soccr.OptionRow) soccr.Setting {
	t.Helper()
	s, ok := unusual[row.Name]
	if !ok {
		if row.Max != 1 {
			t.Fatalf("%s: no unusual value is known", row.Name)
		}
		s.Number = 1 - row.Normal
	}
	s.Name = row.Name
	return s
}

// needs is what has to be set for an option to be read or set.
var needs = map[string]string{
	"SO_TIMESTAMPNS_NEW":  "SO_TIMESTAMP_NEW",
	"SO_TIMESTAMPING_NEW": "SO_TIMESTAMPING",
	"F_SETSIG":            "F_SETOWN",
	"TCP_FASTOPEN_KEY":    "TCP_FASTOPEN",
}

// setUnusual sets an option to an unusual value, or says why it cannot be set.
func setUnusual(t *testing.T, fd int, row soccr.OptionRow) (want []soccr.Setting, reason string) {
	t.Helper()
	if other, ok := needs[row.Name]; ok {
		want, _ = setUnusual(t, fd, soccr.OptionRow{Name: other, Max: 1})
	}
	s := unusualValue(t, row)
	if err := soccr.SetOption(fd, s); err != nil {
		for _, known := range []error{unix.EPERM, unix.EACCES, unix.ENOPROTOOPT, unix.EOPNOTSUPP} {
			if errors.Is(err, known) {
				return nil, err.Error()
			}
		}
		t.Fatalf("%s: %v", row.Name, err)
	}
	want = append(want, s)
	if s.Name == "IP_TOS" {
		want = append(want, soccr.Setting{Name: "SO_PRIORITY", Number: 2}) // rt_tos2priority
	}
	return want, ""
}

// missing lists those of the wanted settings that others do not have.
func missing(got, want []soccr.Setting) (diffs []string) {
	for _, w := range want {
		i := slices.IndexFunc(got, func(g soccr.Setting) bool { return g.Name == w.Name })
		var has soccr.Setting
		if i >= 0 {
			has = got[i]
		}
		if d := cmp.Diff(w, has); d != "" {
			diffs = append(diffs, d)
		}
	}
	return diffs
}

var familyBits = map[string]soccr.Sockets{"IPv4": soccr.IPv4, "IPv6": soccr.IPv6, "mapped": soccr.Mapped}

// Every option of the table is kept when a connection is moved.
func TestEveryOptionOfConnections(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		on := soccr.TCP | soccr.Connected | familyBits[f.name]
		for _, row := range soccr.OptionRows(on) {
			if !row.Kept || row.FromGone || row.Name == "IPV6_V6ONLY" { // which needs another socket
				continue
			}
			t.Run(f.name+"/"+row.Name, func(t *testing.T) {
				conn, _ := n.connect(t, f)
				var want []soccr.Setting
				var reason string
				control(t, conn, func(fd int) { want, reason = setUnusual(t, fd, row) })
				if reason != "" {
					t.Logf("%s cannot be set here: %s", row.Name, reason)
					return
				}
				snap := n.checkpoint(t, conn)
				if d := missing(snap.Options.Settings, want); d != nil {
					t.Fatalf("saved, -want +got:\n%s", d)
				}
				var lost []soccr.Loss
				moved := n.restore(t, travelled(t, snap), soccr.WithRoutes(), soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) }))
				if lost != nil {
					t.Errorf("lost: %v", lost)
				}
				control(t, moved, func(fd int) {
					got, err := soccr.ReadSettings(fd, on)
					if err != nil {
						t.Fatal(err)
					}
					if d := missing(got, want); d != nil {
						t.Errorf("restored, -want +got:\n%s", d)
					}
				})
			})
		}
	}
}

// So is every option of a listener, and of a socket that is nothing yet.
func TestEveryOptionOfOtherSockets(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name  string
		state soccr.Sockets
		move  func(t *testing.T, fd int) (saved []soccr.Setting, moved int, lost []soccr.Loss)
	}{
		{"listener", soccr.Listening, func(t *testing.T, fd int) (saved []soccr.Setting, moved int, lost []soccr.Loss) {
			if err := unix.Listen(fd, 10); err != nil {
				t.Fatal(err)
			}
			l, err := soccr.SaveListener(fd)
			if err != nil {
				t.Fatal(err)
			}
			vacate(t, fd)
			hosttest.Do(t, n.here, func() (err error) {
				moved, err = soccr.NewListenerSocket(l)
				return err
			})
			t.Cleanup(func() { unix.Close(moved) })
			if err := soccr.StartListener(moved, l, soccr.WithRoutes(), soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) })); err != nil {
				t.Fatal(err)
			}
			return l.Options.Settings, moved, lost
		}},
		{"unconnected", soccr.Unconnected, func(t *testing.T, fd int) (saved []soccr.Setting, moved int, lost []soccr.Loss) {
			s, err := soccr.Pause(fd)
			if err != nil {
				t.Fatal(err)
			}
			snap, err := s.Save()
			if err != nil {
				t.Fatal(err)
			}
			vacate(t, fd)
			restored, moved := n.pausedWith(t, travelled(t, snap), soccr.WithRoutes())
			if err := restored.Resume(); err != nil {
				t.Fatal(err)
			}
			return snap.Options.Settings, moved, restored.Losses()
		}},
	} {
		for _, f := range []family{ip4, ip6} {
			on := soccr.TCP | c.state | soccr.Dual
			if f == ip4 {
				on = soccr.TCP | c.state | soccr.IPv4
			}
			for _, row := range soccr.OptionRows(on) {
				if !row.Kept || row.FromGone {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", c.name, f.name, row.Name), func(t *testing.T) {
					fd := n.rawSocket(t, f.domain(), unix.SOCK_STREAM, 0)
					want, reason := setUnusual(t, fd, row)
					if reason != "" {
						t.Logf("%s cannot be set here: %s", row.Name, reason)
						return
					}
					if err := unix.Bind(fd, f.sockaddr(f.anyAddr(), 4242)); err != nil {
						t.Fatal(err)
					}
					saved, moved, lost := c.move(t, fd)
					if d := missing(saved, want); d != nil {
						t.Fatalf("saved, -want +got:\n%s", d)
					}
					if lost != nil {
						t.Errorf("lost: %v", lost)
					}
					got, err := soccr.ReadSettings(moved, on)
					if err != nil {
						t.Fatal(err)
					}
					if d := missing(got, want); d != nil {
						t.Errorf("restored, -want +got:\n%s", d)
					}
				})
			}
		}
	}
}

// travelled is a snapshot that was encoded and decoded.
func travelled(t *testing.T, snap *soccr.Snapshot) *soccr.Snapshot {
	t.Helper()
	b, err := snap.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var s soccr.Snapshot
	if err := s.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	return &s
}

// All at once, with queues, half-closed, and a filter that lets nothing in and
// cannot be taken away any more.
func TestAllOptionsTogether(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, peer := n.connect(t, f)
			write(t, peer, []byte("queued"))
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			inState(t, conn, soccr.StateCloseWait)
			n.lockFor(conn)(true)
			write(t, conn, []byte("not acknowledged"))
			on := soccr.TCP | soccr.Connected | familyBits[f.name]
			var want []soccr.Setting
			control(t, conn, func(fd int) {
				for _, row := range soccr.OptionRows(on) {
					switch row.Name {
					case "IPV6_V6ONLY", // is fixed
						"SO_TIMESTAMP", "SO_TIMESTAMPNS", // exclude each other
						"TCP_QUICKACK",                                                    // changes by itself when the FIN is injected
						"IPV6_RTHDR", "IPV6_HOPOPTS", "IPV6_DSTOPTS", "IPV6_RTHDRDSTOPTS": // the peer answers with an error
						continue
					}
					if !row.Kept || row.FromGone {
						continue
					}
					set, _ := setUnusual(t, fd, row)
					for _, s := range set {
						i, found := slices.BinarySearchFunc(want, s, bySettingName)
						if !found {
							want = slices.Insert(want, i, s)
						}
						want[i] = s
					}
				}
				drop := soccr.Setting{Name: "SO_ATTACH_FILTER", Bytes: []byte{0, 6, 0, 0, 0, 0, 0, 0}}
				if err := soccr.SetOption(fd, drop); err == nil {
					t.Error("a locked filter was replaced")
				}
			})
			if len(want) < 45 {
				t.Errorf("only %d options are set", len(want))
			}
			snap := n.checkpoint(t, conn)
			if d := missing(snap.Options.Settings, want); d != nil {
				t.Fatalf("saved, -want +got:\n%s", d)
			}
			// Of the filter there is another one in the snapshot: it drops all.
			for i, s := range snap.Options.Settings {
				if s.Name == "SO_ATTACH_FILTER" {
					snap.Options.Settings[i].Bytes = []byte{0, 6, 0, 0, 0, 0, 0, 0}
				}
			}
			var lost []soccr.Loss
			moved := n.restore(t, travelled(t, snap), soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) }))
			if lost != nil {
				t.Errorf("lost: %v", lost)
			}
			expect(t, "conn", moved, []byte("queued"))
			again := n.checkpoint(t, moved)
			if d := cmp.Diff(snap.Options.Settings, again.Options.Settings); d != "" {
				t.Errorf("after the move, -want +got:\n%s", d)
			}
		})
	}
}

func bySettingName(a, b soccr.Setting) int { return strings.Compare(a.Name, b.Name) }

// What the kernel itself says of values that are converted on the way.
func TestOptionsAsTheKernelHasThem(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	snap := n.checkpoint(t, conn)
	snap.Options.Settings = []soccr.Setting{
		{Name: "SO_ATTACH_FILTER", Bytes: []byte{0, 0x15, 1, 2, 0, 0, 0x12, 0x34, 0, 6, 0, 0, 0, 0, 0xff, 0xff, 0, 6, 0, 0, 0, 0, 0xff, 0xfe, 0, 6, 0, 0, 0, 0, 0xff, 0xfd}},
		{Name: "SO_BINDTODEVICE", Text: "net0"},
		{Name: "SO_LINGER", Number: 5},
		{Name: "SO_MAX_PACING_RATE", Number: 1 << 31},
		{Name: "SO_RCVTIMEO", Number: 3_250_000},
		{Name: "SO_TIMESTAMPING", Number: unix.SOF_TIMESTAMPING_RX_SOFTWARE},
	}
	moved := n.restore(t, snap)
	control(t, moved, func(fd int) {
		if l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER); err != nil || l.Onoff != 1 || l.Linger != 5 {
			t.Errorf("SO_LINGER is %+v, %v", l, err)
		}
		if v, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO); err != nil || v.Sec != 3 || v.Usec < 250_000 || v.Usec > 260_000 {
			t.Errorf("SO_RCVTIMEO is %+v, %v", v, err)
		}
		if v, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || v != "net0" {
			t.Errorf("SO_BINDTODEVICE is %q, %v", v, err)
		}
		if v, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE); strconv.IntSize == 64 && (err != nil || v != 1<<31) {
			t.Errorf("SO_MAX_PACING_RATE is %d, %v", v, err)
		}
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING); err != nil || v != unix.SOF_TIMESTAMPING_RX_SOFTWARE {
			t.Errorf("SO_TIMESTAMPING is %#x, %v", v, err)
		}
		code, size := make([]unix.SockFilter, 8), uint32(8)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER,
			uintptr(unsafe.Pointer(&code[0])), uintptr(unsafe.Pointer(&size)), 0)
		want := []unix.SockFilter{{Code: 0x15, Jt: 1, Jf: 2, K: 0x1234}, {Code: 6, K: 0xffff}, {Code: 6, K: 0xfffe}, {Code: 6, K: 0xfffd}}
		if errno != 0 || !slices.Equal(code[:size], want) {
			t.Errorf("the filter is %+v, %v", code[:size], errno)
		}
	})
}

// What this kernel does not have is lost and told of; what decides whom a socket
// talks to is not.
func TestLosses(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	snap := n.checkpoint(t, conn)
	own := snap.Options.Settings
	with := func(s soccr.Setting) *soccr.Snapshot {
		other := *snap
		other.Options.Settings = slices.Clone(own)
		i, _ := slices.BinarySearchFunc(own, s, bySettingName)
		other.Options.Settings = slices.Insert(other.Options.Settings, i, s)
		return &other
	}
	for _, c := range []struct {
		setting soccr.Setting
		want    error
	}{
		{soccr.Setting{Name: "SO_ATTACH_BPF", Number: 1}, nil},
		{soccr.Setting{Name: "SO_RCVLOWAT", Number: 1<<31 - 1}, soccr.ErrMismatch}, // beyond the buffer
		{soccr.Setting{Name: "SO_TIMESTAMPING", Number: 1 << 30}, unix.EINVAL},
	} {
		var lost []soccr.Loss
		moved := n.restore(t, with(c.setting), soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) }))
		if len(lost) != 1 || lost[0].Setting.Name != c.setting.Name || c.want != nil && !errors.Is(lost[0].Err, c.want) {
			t.Errorf("%s: lost %v", c.setting.Name, lost)
		}
		n.checkpoint(t, moved)
	}
	for _, c := range []struct {
		setting soccr.Setting
		want    error
	}{
		{soccr.Setting{Name: "SO_BINDTODEVICE", Text: "nosuch"}, unix.ENODEV},
		{soccr.Setting{Name: "IP_OPTIONS", Bytes: []byte{7, 1, 1, 1}}, unix.EINVAL},
		{soccr.Setting{Name: "SO_ATTACH_FILTER", Bytes: make([]byte, 8)}, unix.EINVAL}, // which never returns
	} {
		other := with(c.setting)
		fd := n.newSocket(t, other)
		socket, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		err = socket.Restore(other)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.setting.Name) {
			t.Errorf("%s: %v", c.setting.Name, err)
		}
		if losses := socket.Losses(); losses != nil {
			t.Errorf("%s: lost %v", c.setting.Name, losses)
		}
		unix.Close(fd)
	}
	moved := n.restore(t, snap)
	write(t, moved, []byte("ping"))
	expect(t, "peer", peer, []byte("ping"))
}

// A snapshot that was forged gets nobody signalled, unless it is trusted.
func TestOwners(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	parent := os.Getppid()
	owner := soccr.Setting{Name: "F_SETOWN", Number: int64(parent), Text: "process"}
	control(t, conn, func(fd int) {
		if err := soccr.SetOption(fd, owner); err != nil {
			t.Fatal(err)
		}
	})
	snap := n.checkpoint(t, conn)
	if d := missing(snap.Options.Settings, []soccr.Setting{owner}); d != nil {
		t.Fatalf("saved, -want +got:\n%s", d)
	}
	for _, trusted := range []bool{false, true} {
		var lost []soccr.Loss
		options := []soccr.Option{soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) })}
		if trusted {
			options = append(options, soccr.WithOwners())
		}
		moved := n.restore(t, snap, options...)
		control(t, moved, func(fd int) {
			got, err := unix.FcntlInt(uintptr(fd), unix.F_GETOWN, 0)
			if err != nil || trusted && got != parent || !trusted && got != 0 {
				t.Errorf("trusted %v: the owner is %d, %v", trusted, got, err)
			}
		})
		if len(lost) == 1 != !trusted {
			t.Errorf("trusted %v: lost %v", trusted, lost)
		}
		n.checkpoint(t, moved)
	}
}

// An eBPF program cannot be read: that it was there is in the snapshot.
func TestProgramIsMissed(t *testing.T) {
	n := newNetwork(t)
	conn, _ := n.connect(t, ip4)
	program, err := acceptAll()
	if err != nil {
		t.Logf("no eBPF program can be loaded here: %v", err)
		return
	}
	defer unix.Close(program)
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program)
	snap := n.checkpoint(t, conn)
	if _, ok := snap.Options.Setting("SO_ATTACH_BPF"); !ok {
		t.Errorf("saved %v", snap.Options.Settings)
	}
	if _, ok := snap.Options.Setting("SO_ATTACH_FILTER"); ok {
		t.Errorf("saved %v", snap.Options.Settings)
	}
	var lost []soccr.Loss
	n.restore(t, snap, soccr.WithLosses(func(l soccr.Loss) { lost = append(lost, l) }))
	if len(lost) != 1 || lost[0].Setting.Name != "SO_ATTACH_BPF" {
		t.Errorf("lost: %v", lost)
	}
}

// acceptAll loads an eBPF program for sockets: r0 = 65535; exit.
func acceptAll() (int, error) {
	code := []uint64{0xffff_0000_00b7, 0x95}
	if big := [2]byte{1, 0}; *(*uint16)(unsafe.Pointer(&big)) != 1 {
		code = []uint64{0xb7<<56 | 0xffff, 0x95 << 56}
	}
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		_             [96]byte
	}{
		unix.BPF_PROG_TYPE_SOCKET_FILTER, uint32(len(code)),
		uint64(uintptr(unsafe.Pointer(&code[0]))), uint64(uintptr(unsafe.Pointer(&license[0]))), [96]byte{},
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// SO_REUSEPORT is each socket's own, and IPV6_V6ONLY is fixed once it is bound.
func TestBoundOptions(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct{ reuse, v6only int }{{0, 0}, {0, 1}, {1, 0}, {1, 1}} {
		fd := n.rawSocket(t, unix.AF_INET6, unix.SOCK_STREAM, 0)
		for option, v := range map[[2]int]int{
			{unix.SOL_SOCKET, unix.SO_REUSEPORT}:  c.reuse,
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}: c.v6only,
		} {
			if err := unix.SetsockoptInt(fd, option[0], option[1], v); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: 4242}); err != nil {
			t.Fatal(err)
		}
		s, err := soccr.Pause(fd)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := s.Save()
		if err != nil {
			t.Fatal(err)
		}
		vacate(t, fd)
		// A host where IPv6 sockets are for IPv6 only must not change that.
		if err := n.here.Sysctl("net.ipv6.bindv6only", fmt.Sprint(1-c.v6only)); err != nil {
			t.Fatal(err)
		}
		restored, fd := n.paused(t, travelled(t, snap))
		if err := restored.Resume(); err != nil {
			t.Fatal(err)
		}
		reuse, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
		v6only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if reuse != c.reuse || v6only != c.v6only {
			t.Errorf("SO_REUSEPORT %d, IPV6_V6ONLY %d; want %+v", reuse, v6only, c)
		}
		vacate(t, fd)
	}
}

// A socket on which nothing was set has no settings.
func TestNothingIsSet(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		for _, k := range []struct {
			name                   string
			on                     soccr.Sockets
			kind, protocol, domain int
		}{
			{"TCP", soccr.TCP, unix.SOCK_STREAM, 0, 0},
			{"UDP", soccr.UDP, unix.SOCK_DGRAM, 0, 0},
			{"UDP-Lite", soccr.UDPLite, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, 0},
		} {
			domain, on := unix.AF_INET6, soccr.Dual
			if f == ip4 {
				domain, on = unix.AF_INET, soccr.IPv4
			}
			fd := n.rawSocket(t, domain, k.kind, k.protocol)
			got, err := soccr.ReadSettings(fd, k.on|on|soccr.Unconnected)
			if err != nil || got != nil {
				t.Errorf("%s %s: %v, %v", k.name, f.name, got, err)
			}
		}
	}
}
