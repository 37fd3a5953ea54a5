package diag

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/tcpinfo"
)

// numbered is a zoner for messages whose devices are not here.
func numbered(ifindex uint32) string { return strconv.FormatUint(uint64(ifindex), 10) }

// recorded are the messages that TestMessages keeps.
func recorded(tb testing.TB) map[string][]byte {
	tb.Helper()
	paths, err := filepath.Glob("testdata/messages/*.bin")
	if err != nil || len(paths) == 0 {
		tb.Fatal("no recorded messages: ", err)
	}
	messages := make(map[string][]byte)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		messages[filepath.Base(path)] = b
	}
	return messages
}

func FuzzDecode(f *testing.F) {
	for _, b := range recorded(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b, numbered)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || !reflect.DeepEqual(s, Socket{}) {
				t.Fatalf("%+v, %v", s, err)
			}
			return
		}
		if !s.Local.IsValid() || !s.Remote.IsValid() {
			t.Fatalf("%v->%v", s.Local, s.Remote)
		}
		for _, key := range s.MD5 {
			if !key.Peers.IsValid() || len(key.Key) == 0 {
				t.Fatalf("%+v", key)
			}
		}
		// What was decoded makes a request for the same socket.
		again := request(s.Family, 0, DetailAll, s.id())
		if got, want := again[8:8+idInterface], b[4:4+idInterface]; s.Local.Addr().Is6() && string(got) != string(want) {
			t.Fatalf("%x, want %x", got, want)
		}
	})
}

func TestDecodeCut(t *testing.T) {
	for name, b := range recorded(t) {
		for n := range b {
			// What is cut to a slice of its own cannot be read beyond its end.
			s, err := decode(b[:n:n], numbered)
			if n < messageSize && err == nil {
				t.Errorf("%s: %d bytes: %+v", name, n, s)
			}
		}
	}
}

func TestDecodeMalformed(t *testing.T) {
	base := make([]byte, messageSize)
	base[0] = unix.AF_INET
	attr := func(typ uint16, value ...byte) []byte {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: typ, Data: value}})
		if err != nil {
			t.Fatal(err)
		}
		return append(base[:messageSize:messageSize], b...)
	}
	key := func(family, bits, size byte) []byte {
		b := make([]byte, md5Size)
		b[0], b[1] = family, bits
		if bigEndian {
			b[3] = size
		} else {
			b[2] = size
		}
		return attr(attrMD5, b...)
	}
	for _, c := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"nothing", nil, false},
		{"base", base, true},
		{"cut base", base[:messageSize-1], false},
		{"unknown family", make([]byte, messageSize), false},
		{"trailing bytes", append(base[:messageSize:messageSize], 1, 2, 3), true},
		{"attribute without length", append(base[:messageSize:messageSize], 0, 0, 0, 0), false},
		{"attribute beyond the end", append(base[:messageSize:messageSize], 0xff, 0xff, 0, 0), false},
		{"unknown attribute", attr(999, 1, 2, 3), true},
		{"empty mark", attr(attrMark), false},
		{"short mark", attr(attrMark, 1, 2, 3), false},
		{"long mark", attr(attrMark, 1, 2, 3, 4, 5), true},
		{"empty traffic class", attr(attrTClass), false},
		{"short cgroup", attr(attrCgroupID, 1, 2, 3, 4), false},
		{"short info", attr(attrInfo, 1), false},
		{"empty memory", attr(attrMemory), true},
		{"empty options", attr(attrSockOpt), true},
		{"unterminated name", attr(attrCongestion, 'r', 'e', 'n', 'o'), true},
		{"broken upper layer protocol", attr(attrULP, 0xff, 0, 1, 0), false},
		{"part of an MD5 key", attr(attrMD5, 1, 2, 3), true},
		{"removed MD5 key", key(0, 0, 0), true},
		{"MD5 key", key(unix.AF_INET, 32, 80), true},
		{"long MD5 key", key(unix.AF_INET, 32, 81), false},
		{"long prefix of an MD5 key", key(unix.AF_INET, 33, 80), false},
		{"MD5 key of an unknown family", key(1, 0, 80), false},
	} {
		_, err := decode(c.b, numbered)
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := decode(attr(attrInfo, 1), numbered); !errors.Is(err, tcpinfo.ErrShort) {
		t.Errorf("short info: %v", err)
	}
}

func TestBitFieldsOfBothByteOrders(t *testing.T) {
	b := []byte{0b00000100, 0b00000001}
	for n, want := range map[int]bool{0: false, 2: true, 5: false, 8: true, 10: false, 16: false} {
		if bit(b, n, false) != want {
			t.Errorf("little endian, bit %d: %v", n, !want)
		}
	}
	for n, want := range map[int]bool{0: false, 2: false, 5: true, 8: false, 15: true, 16: false} {
		if bit(b, n, true) != want {
			t.Errorf("big endian, bit %d: %v", n, !want)
		}
	}
}

// A message that says the listing is inconsistent cannot be had from the kernel
// at will.
func TestInterrupted(t *testing.T) {
	message := func(flags netlink.HeaderFlags, typ netlink.HeaderType, request netlink.Message) netlink.Message {
		data := make([]byte, messageSize)
		data[0] = unix.AF_INET
		return netlink.Message{
			Header: netlink.Header{Type: typ, Flags: netlink.Multi | flags, Sequence: request.Header.Sequence, PID: nltest.PID},
			Data:   data,
		}
	}
	for _, c := range []struct {
		name    string
		answers func(request netlink.Message) []netlink.Message
		want    error
		n       int
	}{
		{"consistent", func(r netlink.Message) []netlink.Message {
			return []netlink.Message{message(0, unix.SOCK_DIAG_BY_FAMILY, r), message(0, unix.SOCK_DIAG_BY_FAMILY, r)}
		}, nil, 2},
		{"interrupted", func(r netlink.Message) []netlink.Message {
			return []netlink.Message{message(netlink.DumpInterrupted, unix.SOCK_DIAG_BY_FAMILY, r), message(0, unix.SOCK_DIAG_BY_FAMILY, r)}
		}, ErrInterrupted, 2},
		{"another type", func(r netlink.Message) []netlink.Message {
			return []netlink.Message{message(0, unix.SOCK_DIAG_BY_FAMILY, r), message(0, 77, r)}
		}, ErrMalformed, 1},
		{"another request's answer", func(r netlink.Message) []netlink.Message {
			r.Header.Sequence++
			return []netlink.Message{message(0, unix.SOCK_DIAG_BY_FAMILY, r)}
		}, ErrMalformed, 0},
	} {
		nl := nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
			if len(requests) == 0 { // asked for the end of the listing
				return []netlink.Message{{Header: netlink.Header{Type: netlink.Done, Flags: netlink.Multi}, Data: make([]byte, 4)}}, nil
			}
			return c.answers(requests[0]), nil
		})
		n := 0
		more, err := stream(nl, nil, func(Socket) (bool, error) { n++; return true, nil })
		if !errors.Is(err, c.want) || more != (c.want == nil) || n != c.n {
			t.Errorf("%s: %d sockets, %v, %v", c.name, n, more, err)
		}
	}
}

// This kernel can destroy sockets, others say that they cannot.
func TestDestroyUnsupported(t *testing.T) {
	c := &Conn{nl: nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
		return nltest.Error(int(unix.EOPNOTSUPP), requests)
	})}
	err := c.Destroy(Socket{Family: IPv4})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "CONFIG_INET_DIAG_DESTROY") {
		t.Error(err)
	}
}

// A kernel without the module for a protocol says that there is no socket.
func TestProbe(t *testing.T) {
	nl, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := probe(nl, IPv4, ProtocolTCP); err != nil {
		t.Error(err)
	}
	const nobodys = 253 // a protocol number for experiments (RFC 3692)
	if err := probe(nl, IPv4, nobodys); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}
