package soccr

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// A datagramKind is what socket(2) is asked for.
type datagramKind struct{ family, style, protocol int }

// kindReasons: raw sockets take CAP_NET_RAW, ping sockets a group that is allowed
// them (net.ipv4.ping_group_range).
var kindReasons = reasons{unix.EPERM: ErrNoPermission, unix.EACCES: ErrNoPermission}

// kind is what the socket was made as. What is not known yet counts as IPv4.
func (d *DatagramSnapshot) kind() datagramKind {
	k := datagramKind{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}
	if d.Local.Addr().Is6() {
		k.family = unix.AF_INET6
	}
	switch {
	case d.Lite:
		k.protocol = unix.IPPROTO_UDPLITE
	case d.Ping && k.family == unix.AF_INET:
		k.protocol = unix.IPPROTO_ICMP
	case d.Ping:
		k.protocol = unix.IPPROTO_ICMPV6
	case d.Raw != 0:
		k.style, k.protocol = unix.SOCK_RAW, int(d.Raw)
	}
	return k
}

// readKind finds out what a socket was made as, and an address of its family.
func (d *DatagramSnapshot) readKind(fd int) error {
	var k datagramKind
	for _, o := range [...]struct {
		option int
		value  *int
	}{{unix.SO_DOMAIN, &k.family}, {unix.SO_TYPE, &k.style}, {unix.SO_PROTOCOL, &k.protocol}} {
		var err error
		if *o.value, err = sockopt.GetInt(fd, unix.SOL_SOCKET, o.option); err != nil {
			if errors.Is(err, unix.ENOTSOCK) {
				err = because(ErrNotUDP, err)
			}
			return err
		}
	}
	d.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if k.family == unix.AF_INET6 {
		d.Local = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	if k.style == unix.SOCK_RAW {
		d.Raw = uint8(k.protocol)
	} else {
		d.Lite = k.protocol == unix.IPPROTO_UDPLITE
		d.Ping = k.protocol == unix.IPPROTO_ICMP || k.protocol == unix.IPPROTO_ICMPV6
	}
	if d.kind() != k {
		return ErrNotUDP
	}
	return nil
}

// ends reads both addresses of a socket of this kind.
func (d *DatagramSnapshot) ends(fd int) (local, remote netip.AddrPort, err error) {
	if local, err = localAddr(fd); err != nil {
		return local, remote, err
	}
	if d.Raw != 0 { // which has its protocol in the place of the port (inet_create)
		local = netip.AddrPortFrom(local.Addr(), 0)
	}
	if remote, err = remoteAddr(fd, local); err == nil && !remote.IsValid() && !d.isUDP() {
		remote, err = d.portless(fd, local)
	}
	return local, remote, err
}

// portless reads whom a socket is connected to that may have no port there: of
// such a one, the kernel says that it is not connected (inet_getname).
func (d *DatagramSnapshot) portless(fd int, local netip.AddrPort) (remote netip.AddrPort, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return remote, err
	}
	table := "icmp"
	if d.Raw != 0 {
		table = "raw"
	}
	if local.Addr().Is6() {
		table += "6"
	}
	err = inNetNS(fd, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			return fmt.Errorf("whom it is connected to: %w", err)
		}
		remote = portlessRemote(b, stat.Ino)
		return nil
	})
	if remote.Addr().IsLinkLocalUnicast() {
		remote = netip.AddrPortFrom(remote.Addr().WithZone(local.Addr().Zone()), 0)
	}
	return remote, err
}

// portlessRemote finds a socket's peer in /proc/net/raw and the like: a line for
// each, with number, local end, remote end, and in the tenth place the inode. An
// address is written as words of the host's byte order.
func portlessRemote(b []byte, inode uint64) netip.AddrPort {
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 10 || words[9] != strconv.FormatUint(inode, 10) {
			continue
		}
		digits, _, _ := strings.Cut(words[2], ":")
		addr, err := hex.DecodeString(digits)
		if err != nil || len(addr)%4 != 0 {
			continue
		}
		for i := 0; i < len(addr); i += 4 {
			binary.NativeEndian.PutUint32(addr[i:], binary.BigEndian.Uint32(addr[i:]))
		}
		if a, ok := netip.AddrFromSlice(addr); ok && !a.IsUnspecified() {
			return netip.AddrPortFrom(a, 0)
		}
	}
	return netip.AddrPort{}
}
