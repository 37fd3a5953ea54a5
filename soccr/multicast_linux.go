package soccr

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A socket does not tell which groups it has joined, but whether it has joined one
// (MCAST_MSFILTER). So it is asked about each that anybody on its host has joined.

const (
	mcastJoinGroup = 42 // MCAST_JOIN_GROUP
	mcastMSFilter  = 48 // MCAST_MSFILTER
	mcastInclude   = 1  // MCAST_INCLUDE
)

// sockaddrStorage is struct sockaddr_storage, aligned like a long.
type sockaddrStorage struct {
	_    [0]uintptr
	data [128]byte
}

func storageOf(addr netip.Addr) (s sockaddrStorage) {
	if addr.Is4() {
		binary.NativeEndian.PutUint16(s.data[:], unix.AF_INET)
		copy(s.data[4:], addr.AsSlice())
	} else {
		binary.NativeEndian.PutUint16(s.data[:], unix.AF_INET6)
		copy(s.data[8:], addr.AsSlice())
	}
	return s
}

func (s *sockaddrStorage) addr() netip.Addr {
	if binary.NativeEndian.Uint16(s.data[:]) == unix.AF_INET {
		return netip.AddrFrom4([4]byte(s.data[4:8]))
	}
	return netip.AddrFrom16([16]byte(s.data[8:24]))
}

// groupRequest is struct group_req.
type groupRequest struct {
	device uint32
	group  sockaddrStorage
}

// groupFilter is struct group_filter.
type groupFilter struct {
	groupRequest
	mode    uint32
	count   uint32
	sources [maxSources]sockaddrStorage
}

func (f *groupFilter) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(f)), unsafe.Sizeof(*f))
}

func groupLevel(group netip.Addr) int {
	if group.Is4() {
		return unix.IPPROTO_IP
	}
	return unix.IPPROTO_IPV6
}

// joined is a membership of the host.
type joined struct {
	device uint32
	group  netip.Addr
}

// readGroups reads which groups a socket has joined, sorted.
func readGroups(fd int, inet6 bool) (groups []Group, err error) {
	var all []joined
	err = inNetNS(fd, func() (err error) {
		if all, err = hostGroups("/proc/thread-self/net/igmp", parseIGMP); err == nil && inet6 {
			var more []joined
			more, err = hostGroups("/proc/thread-self/net/igmp6", parseIGMP6)
			all = append(all, more...)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, j := range all {
		f := groupFilter{groupRequest: groupRequest{j.device, storageOf(j.group)}, count: maxSources}
		_, err := sockopt.Get(fd, groupLevel(j.group), mcastMSFilter, f.bytes())
		if errors.Is(err, unix.EADDRNOTAVAIL) || lacking(err) {
			continue // another socket's: raw ones of IPv6 join no groups of IPv4
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", j.group, err)
		}
		if f.count > maxSources {
			return nil, fmt.Errorf("%v has %d sources, more than %d", j.group, f.count, maxSources)
		}
		g := Group{Addr: j.group, Only: f.mode == mcastInclude}
		if g.Device, err = deviceName(fd, int(j.device)); err != nil {
			return nil, err
		}
		for i := range f.sources[:f.count] {
			g.Sources = append(g.Sources, f.sources[i].addr())
		}
		groups = append(groups, g)
	}
	return sortedGroups(groups), nil
}

// sortedGroups is a sorted copy.
func sortedGroups(groups []Group) []Group {
	groups = slices.Clone(groups)
	for i := range groups {
		groups[i].Sources = slices.SortedFunc(slices.Values(groups[i].Sources), netip.Addr.Compare)
	}
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Device, b.Device))
	})
	return groups
}

func sameGroup(a, b Group) bool {
	return a.Addr == b.Addr && a.Device == b.Device && a.Only == b.Only && slices.Equal(a.Sources, b.Sources)
}

// joinGroups makes a socket a member of groups again.
func joinGroups(fd int, groups []Group) error {
	for _, g := range groups {
		if err := joinGroup(fd, &g); err != nil {
			return fmt.Errorf("%v on %s: %w", g.Addr, g.Device, because(joinReasons.of(err), err))
		}
	}
	return nil
}

// joinReasons: a host bounds how many groups a socket may join, and from how many
// sources (net.ipv4.igmp_max_memberships, igmp_max_msf, net.ipv6.mld_max_msf).
var joinReasons = reasons{unix.ENOBUFS: ErrOption, unix.EINVAL: ErrOption}

func joinGroup(fd int, g *Group) error {
	index, err := deviceIndex(fd, g.Device)
	if err != nil {
		return because(ErrAddrNotAvailable, err)
	}
	request := groupRequest{uint32(index), storageOf(g.Addr)}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&request)), unsafe.Sizeof(request))
	if err := sockopt.Set(fd, groupLevel(g.Addr), mcastJoinGroup, b); err != nil || !g.Only && len(g.Sources) == 0 {
		return err
	}
	f := groupFilter{groupRequest: request, count: uint32(len(g.Sources))}
	if g.Only {
		f.mode = mcastInclude
	}
	for i, source := range g.Sources {
		f.sources[i] = storageOf(source)
	}
	size := unsafe.Offsetof(f.sources) + uintptr(len(g.Sources))*unsafe.Sizeof(f.sources[0])
	return sockopt.Set(fd, groupLevel(g.Addr), mcastMSFilter, f.bytes()[:size])
}

// hostGroups reads what a host has joined, of the calling thread's namespace.
func hostGroups(path string, parse func([]byte) []joined) ([]joined, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) { // a kernel without multicast, or without IPv6
		return nil, nil
	}
	return parse(b), err
}

// parseIGMP reads /proc/net/igmp: a line for a device, and behind it one for each
// group, in hexadecimal digits of the host's byte order.
func parseIGMP(b []byte) (all []joined) {
	var device uint32
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if !strings.HasPrefix(lines.Text(), "\t") {
			index, _ := strconv.ParseUint(words[0], 10, 31) // 0 for the first line
			device = uint32(index)
			continue
		}
		if group, err := strconv.ParseUint(words[0], 16, 32); err == nil && device != 0 {
			var addr [4]byte
			binary.NativeEndian.PutUint32(addr[:], uint32(group))
			all = append(all, joined{device, netip.AddrFrom4(addr)})
		}
	}
	return all
}

// parseIGMP6 reads /proc/net/igmp6: index, device, group, and more.
func parseIGMP6(b []byte) (all []joined) {
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 3 {
			continue
		}
		device, err := strconv.ParseUint(words[0], 10, 31)
		group, bad := hex.DecodeString(words[2])
		if err == nil && bad == nil && len(group) == 16 {
			all = append(all, joined{uint32(device), netip.AddrFrom16([16]byte(group))})
		}
	}
	return all
}
