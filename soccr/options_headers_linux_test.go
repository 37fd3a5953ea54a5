package soccr_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gosoccr/gosoccr/soccr"
)

var headers = flag.String("headers", "", "write testdata/options.txt anew from the kernel's headers in this directory")

// optionsFile lists what the kernel's headers define. To write it anew for
// another kernel: make headers_install in its source, and then
//
//	go test ./soccr -run TestHeaders -headers DIR/usr/include
const optionsFile = "testdata/options.txt"

// headerFiles are where options are defined. That of the architecture may have
// other numbers than asm-generic's for a few.
var headerFiles = []string{"asm-generic/socket.h", "linux/in.h", "linux/in6.h", "linux/tcp.h", "linux/udp.h"}

// excluded are the constants that are no option to keep, and why. A name with a
// star at its end stands for all that begin like it.
var excluded = []struct{ names, why string }{
	{"SO_REUSEADDR SO_PEEK_OFF SO_SNDBUF SO_RCVBUF SO_BUF_LOCK TCP_CONGESTION", "is a field of Options"},
	{"SO_SNDBUFFORCE SO_RCVBUFFORCE", "is another way to set SO_SNDBUF and SO_RCVBUF"},
	{"SO_TYPE SO_PROTOCOL SO_DOMAIN SO_ACCEPTCONN SO_PEERNAME SO_COOKIE SO_NETNS_COOKIE SO_MEMINFO SO_INCOMING_NAPI_ID SO_BPF_EXTENSIONS",
		"tells what a socket is, and cannot be set"},
	{"SO_ERROR", "is an error that waits to be read, and cannot be set"},
	{"SO_PEERCRED SO_PEERGROUPS SO_PEERPIDFD SO_PEERSEC SO_PASSCRED SO_PASSSEC SO_PASSPIDFD SO_PASSRIGHTS SO_INQ", "is for Unix sockets"},
	{"SO_NOFCS", "is for packet sockets"},
	{"IP_ROUTER_ALERT IPV6_ROUTER_ALERT IPV6_ROUTER_ALERT_ISOLATE", "is for raw sockets, and cannot be read"},
	{"SO_DEBUG", "is for debugging the kernel"},
	{"SO_BSDCOMPAT SO_SNDLOWAT SO_SECURITY_AUTHENTICATION SO_SECURITY_ENCRYPTION_* TCP_THIN_DUPACK", "has no effect"},
	{"SO_GET_FILTER", "reads SO_ATTACH_FILTER"},
	{"SO_DETACH_FILTER SO_DETACH_BPF SO_DETACH_REUSEPORT_BPF", "undoes another"},
	{"SO_ATTACH_REUSEPORT_CBPF SO_ATTACH_REUSEPORT_EBPF", "cannot be read, nor whether it is set"},
	{"SO_CNX_ADVICE", "is advice of the moment"},
	{"SO_BUSY_POLL_BUDGET", "cannot be read"},
	{"SO_BINDTOIFINDEX", "is SO_BINDTODEVICE by another name"},
	{"SO_RCVTIMEO_OLD SO_RCVTIMEO_NEW SO_SNDTIMEO_OLD SO_SNDTIMEO_NEW", "is SO_RCVTIMEO or SO_SNDTIMEO in another form"},
	{"SO_TIMESTAMP_OLD SO_TIMESTAMPNS_OLD SO_TIMESTAMPING_OLD", "is what SO_TIMESTAMP, SO_TIMESTAMPNS and SO_TIMESTAMPING stand for"},
	{"SO_DEVMEM_*", "belongs to memory of a device, which is not moved"},

	{"TCP_INFO TCP_CC_INFO TCP_SAVED_SYN TCP_IS_MPTCP", "tells how the connection is, and cannot be set"},
	{"TCP_REPAIR TCP_REPAIR_* TCP_QUEUE_SEQ TCP_TIMESTAMP", "is how a connection is moved, or a value for that"},
	{"TCP_MD5SIG TCP_MD5SIG_EXT", "is kept as MD5Keys"},
	{"TCP_AO_ADD_KEY TCP_AO_DEL_KEY TCP_AO_INFO TCP_AO_GET_KEYS TCP_AO_REPAIR", "belongs to TCP-AO: such connections are refused"},
	{"TCP_ULP", "attaches a layer: such connections are refused"},
	{"TCP_ZEROCOPY_RECEIVE", "is a way to read"},
	{"TCP_CM_INQ", "is TCP_INQ by another name"},
	{"TCP_MSS_* TCP_MD5SIG_* TCP_AO_MAXKEYLEN TCP_AO_KEYF_* TCP_ACCECN_* TCP_RECEIVE_ZEROCOPY_* TCP_ENCAP_*", "is a value, not an option"},

	{"UDP_CORK UDP_ENCAP", "belongs to what waits to be sent, or to the kernel: such sockets are refused"},
	{"UDP_ENCAP_*", "is a value, not an option"},

	{"IP_MTU IP_PROTOCOL IPV6_MTU IPV6_PATHMTU", "tells how the way is, or another thing than was set"},
	{"IP_IPSEC_POLICY IP_XFRM_POLICY IPV6_IPSEC_POLICY IPV6_XFRM_POLICY", "cannot be read"},
	{"IP_RECVRETOPTS IP_RECVORIGDSTADDR IPV6_RECVORIGDSTADDR", "is IP_RETOPTS, IP_ORIGDSTADDR or IPV6_ORIGDSTADDR by another name"},
	{"IP_ADD_* IP_DROP_* IP_BLOCK_SOURCE IP_UNBLOCK_SOURCE IP_MSFILTER MCAST_* IPV6_ADD_MEMBERSHIP IPV6_DROP_MEMBERSHIP IPV6_JOIN_ANYCAST IPV6_LEAVE_ANYCAST",
		"is a membership: a socket does not tell its groups"},
	{"IP_PMTUDISC_* IP_DEFAULT_* IPV6_FL_* IPV6_FLOWINFO_FLOWLABEL IPV6_FLOWINFO_PRIORITY IPV6_PRIORITY_* IPV6_TLV_* IPV6_PMTUDISC_* IPV6_PREFER_SRC_*", "is a value, not an option"},
	{"IPV6_ADDRFORM", "changes a socket's family"},
	{"IPV6_NEXTHOP IPV6_AUTHHDR IPV6_USE_MIN_MTU", "is not implemented by Linux"},
	{"IPV6_FLOWLABEL_MGR", "leases flow labels from the host"},
	{"IPV6_PKTINFO IPV6_HOPLIMIT", "cannot be read"},
}

// probes are rows of the table only to save time.
var probes = []string{"IP_PKTOPTIONS", "IPV6_2292PKTOPTIONS"}

var definition = regexp.MustCompile(`(?m)^#\s*define\s+((?:SO|TCP|IP|IPV6|MCAST|UDP|UDPLITE)_[A-Z0-9_]+)\s+([A-Za-z0-9_-]+)`)

// readHeaders reads all constants from the headers below a directory.
func readHeaders(t *testing.T, dir string) map[string]int {
	t.Helper()
	text := make(map[string]string)
	for _, name := range headerFiles {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range definition.FindAllStringSubmatch(string(b), -1) {
			if _, twice := text[m[1]]; !twice {
				text[m[1]] = m[2]
			}
		}
	}
	all := make(map[string]int)
	for name, value := range text {
		for text[value] != "" {
			value = text[value]
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(value, "U"), 0, 64)
		if err != nil {
			t.Fatalf("%s is %q: %v", name, value, err)
		}
		all[name] = int(n)
	}
	return all
}

// readList reads what readHeaders found in the headers of a newer kernel.
func readList(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile(optionsFile)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]int)
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var name string
		var number int
		if _, err := fmt.Sscan(lines.Text(), &name, &number); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		all[name] = number
	}
	return all
}

func writeList(t *testing.T, all map[string]int) {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "# What %s define.\n", strings.Join(headerFiles, ", "))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintln(&b, name, all[name])
	}
	if err := os.WriteFile(optionsFile, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every option that the kernel's headers name is kept, or there is a reason.
func TestHeaders(t *testing.T) {
	if *headers != "" {
		writeList(t, readHeaders(t, *headers))
	}
	all := readList(t)
	if len(all) < 300 {
		t.Errorf("only %d constants in %s", len(all), optionsFile)
	}
	installed := "/usr/include"
	if _, err := os.Stat(filepath.Join(installed, headerFiles[0])); !errors.Is(err, fs.ErrNotExist) {
		for name, number := range readHeaders(t, installed) {
			if n, ok := all[name]; ok && n != number {
				t.Errorf("%s is %d in %s, and %d in %s", name, number, installed, n, optionsFile)
			}
			all[name] = number
		}
	} else {
		t.Logf("no headers in %s", installed)
	}
	rows := soccr.AllOptionRows()
	reasons := make(map[string]string)
	used := make(map[string]bool)
	for _, e := range excluded {
		for pattern := range strings.FieldsSeq(e.names) {
			prefix, isPattern := strings.CutSuffix(pattern, "*")
			for name := range all {
				if _, kept := rows[name]; !kept && (name == pattern || isPattern && strings.HasPrefix(name, prefix)) {
					used[pattern] = true
					if reasons[name] == "" { // the first one counts
						reasons[name] = e.why
					}
				}
			}
			if !used[pattern] {
				t.Errorf("%s is excluded, but there is none that is not kept", pattern)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		number, kept := rows[name]
		why, isExcluded := reasons[name]
		switch {
		case !kept && !isExcluded:
			t.Errorf("%s (%d) is neither kept nor excluded with a reason", name, all[name])
		case kept && number != all[name]:
			t.Errorf("%s is %d in the table, and %d in the headers", name, number, all[name])
		case kept && slices.Contains(probes, name):
			t.Logf("%s: tells whether others are set", name)
		case kept:
			t.Logf("%s: kept", name)
		default:
			t.Logf("%s: %s", name, why)
		}
	}
	for name := range rows {
		if _, ok := all[name]; !ok && !strings.HasPrefix(name, "UDPLITE_") && !strings.HasPrefix(name, "ICMP") { // in no header for programs, or in none of these
			t.Errorf("%s is in no header", name)
		}
	}
}
