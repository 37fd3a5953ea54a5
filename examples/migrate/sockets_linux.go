package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/diag"
	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/internal/tcpinfo"
	"github.com/gosoccr/gosoccr/soccr"
)

// A socket is one that a program has open, whatever its family.
type socket struct {
	Holders   []holder `json:"holders"`
	Inode     uint32   `json:"inode"`
	Cookie    uint64   `json:"cookie"`
	Protocol  string   `json:"protocol"`
	State     string   `json:"state,omitempty"` // of families that have connections
	RecvQueue int      `json:"recv_queue"`      // bytes; connections that wait to be accepted, if it listens
	SendQueue int      `json:"send_queue"`      // bytes; the backlog, if it listens
	Local     string   `json:"local"`
	Peer      string   `json:"peer,omitempty"`
	// IdleMS is the time since data has come or gone (TCP), in milliseconds.
	IdleMS int64 `json:"idle_ms,omitempty"`
	// Dump is whether it can be dumped, and Why why not.
	Dump bool   `json:"dump"`
	Why  string `json:"why,omitempty"`

	fd    int // ours
	state soccr.State
}

// A holder is a descriptor that stands for a socket.
type holder struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// tcp reports whether it is a TCP socket, and not one of Multipath TCP.
func (s *socket) tcp() bool { return s.Protocol == "tcp" || s.Protocol == "tcp6" }

// datagram reports whether it is a UDP or UDP-Lite socket.
func (s *socket) datagram() bool { return strings.HasPrefix(s.Protocol, "udp") }

// A collection is what some processes have open together.
type collection struct {
	pids    []int
	sockets []*socket // in the order in which they were found
	byInode map[uint32]*socket
}

// openSockets duplicates the sockets of some processes, one descriptor for each,
// and looks at them. The caller closes the collection.
func openSockets(pids []int, thief *proc.Thief) (_ *collection, err error) {
	p := &collection{pids: pids, byInode: map[uint32]*socket{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for _, pid := range pids {
		for h, err := range diag.HeldBy(pid) {
			if errors.Is(err, fs.ErrNotExist) {
				break // it has ended
			}
			if err != nil {
				return nil, fmt.Errorf("look into process %d (%s): %w", pid, proc.Name(pid), err)
			}
			s := p.byInode[h.Inode]
			if s == nil {
				fd, err := thief.Duplicate(pid, h.FD)
				if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
					continue // it has been closed, or the process has ended
				}
				if err != nil {
					return nil, err
				}
				s = &socket{Inode: h.Inode, fd: fd}
				p.byInode[h.Inode] = s
				p.sockets = append(p.sockets, s)
			}
			s.Holders = append(s.Holders, holder{h.PID, h.FD})
		}
	}
	for _, s := range p.sockets {
		if err := s.look(); err != nil {
			return nil, fmt.Errorf("look at descriptor %d of process %d: %w", s.Holders[0].FD, s.Holders[0].PID, err)
		}
	}
	return p, nil
}

// close gives our descriptors up.
func (p *collection) close() error {
	var err error
	for _, s := range p.sockets {
		err = errors.Join(err, unix.Close(s.fd))
	}
	p.sockets, p.byInode = nil, nil
	return err
}

// look fills in what the kernel says of a socket.
func (s *socket) look() error {
	domain, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	protocol, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	if s.Cookie, err = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return err
	}
	s.Protocol = protocolName(domain, kind, protocol)
	// What a family does not have stays empty.
	if local, err := unix.Getsockname(s.fd); err == nil {
		s.Local = addrText(local)
	}
	connected := false
	if peer, err := unix.Getpeername(s.fd); err == nil {
		s.Peer, connected = addrText(peer), true
	}
	s.RecvQueue, _ = unix.IoctlGetInt(s.fd, unix.SIOCINQ)
	s.SendQueue, _ = unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	listens, _ := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case s.tcp():
		return s.lookTCP()
	case listens != 0:
		s.state = soccr.StateListen
	case connected:
		s.state = soccr.StateEstablished
	default:
		s.state = soccr.StateClose
	}
	if slices.Contains([]int{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX, unix.AF_VSOCK}, domain) {
		s.State = s.state.String()
	}
	if s.Dump = s.datagram(); !s.Dump {
		s.refuse(soccr.Movable(s.fd))
	}
	return nil
}

func (s *socket) lookTCP() error {
	info, err := tcpinfo.Get(s.fd)
	if err != nil {
		return err
	}
	s.state = soccr.State(info.State)
	s.State = s.state.String()
	if s.state == soccr.StateListen { // tcp_get_info gives these other meanings
		s.RecvQueue, s.SendQueue = int(info.Unacked), int(info.Sacked)
	} else {
		s.IdleMS = int64(min(info.Last_data_recv, info.Last_data_sent))
	}
	s.refuse(soccr.Movable(s.fd))
	return nil
}

func (s *socket) refuse(err error) {
	if s.Dump = err == nil; s.Dump {
		return
	}
	if failure, ok := errors.AsType[*soccr.OpError](err); ok {
		err = failure.Err
	}
	s.Why = err.Error()
}

// families are named as ss(8) and the headers do.
var families = map[int]string{
	unix.AF_UNIX: "unix", unix.AF_NETLINK: "netlink", unix.AF_PACKET: "packet", unix.AF_VSOCK: "vsock",
	unix.AF_ALG: "alg", unix.AF_XDP: "xdp", unix.AF_CAN: "can", unix.AF_BLUETOOTH: "bluetooth",
}

var types = map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "dgram", unix.SOCK_SEQPACKET: "seqpacket", unix.SOCK_RAW: "raw"}

var protocols = map[int]string{
	unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_UDPLITE: "udplite", unix.IPPROTO_MPTCP: "mptcp",
	unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmp",
}

// protocolName names a kind of socket in a word: "tcp6", "unix-dgram".
func protocolName(domain, kind, protocol int) string {
	typ := cmp.Or(types[kind], strconv.Itoa(kind))
	if domain != unix.AF_INET && domain != unix.AF_INET6 {
		return cmp.Or(families[domain], "family-"+strconv.Itoa(domain)) + "-" + typ
	}
	name := cmp.Or(protocols[protocol], "ip-"+strconv.Itoa(protocol))
	if kind == unix.SOCK_RAW {
		name = "raw"
	}
	if domain == unix.AF_INET6 {
		name += "6"
	}
	return name
}

// addrText writes an address for people.
func addrText(addr unix.Sockaddr) string {
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		return addrPort(a).String()
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return netip.AddrPortFrom(addr, uint16(a.Port)).String()
	case *unix.SockaddrUnix:
		return a.Name
	case *unix.SockaddrNetlink:
		return fmt.Sprintf("port %d", a.Pid)
	default:
		return ""
	}
}

// age shows a time in one unit.
func age(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", ms)
	case d < 100*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 100*time.Hour:
		return d.Truncate(time.Second).String()
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}
