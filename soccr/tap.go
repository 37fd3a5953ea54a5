package soccr

import (
	"net/netip"
	"sync"

	"github.com/gosoccr/gosoccr/internal/wire"
)

// A Tap keeps what peers send while their flows are locked, so that it can be
// delivered, unchanged, to the restored sockets. Without one it is lost, and the
// peers send it again when their timers say so, after 0.2 s and more. A tap sees
// one network namespace and holds up to 16 MB for each IP version, in the kernel;
// what comes beyond that is lost all the same.
//
// Checkpoint and RestoreConn use it when given [WithTap]. If the connection goes
// on in another process or on another host, [Tap.Take] gives the packets that are
// to travel along, and [WithPackets] takes them there, beside that host's own tap.
//
// A Tap's methods may be called from several goroutines at once.
type Tap struct {
	mu      sync.Mutex
	sockets [2]tapSocket // for IPv4 and IPv6
	caught  map[flow]*catch
}

// A tapSocket is a packet socket that holds the TCP packets which arrive for some
// ports, as they are before any packet filter sees them.
type tapSocket struct {
	fd       int
	protocol uint16
	ports    []uint16
	bound    bool
}

// A flow is a connection's two ends as packets have them: without zones, and IPv4
// where addresses are mapped.
type flow struct{ local, remote netip.AddrPort }

func flowOf(local, remote netip.AddrPort) flow { return flow{unmapped(local), unmapped(remote)} }

func unmapped(end netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(end.Addr().Unmap().WithZone(""), end.Port())
}

// A catch is what has come for one flow.
type catch struct {
	packets [][]byte
	seen    map[wire.Segment]bool // a bridge or a bond shows each packet twice
}

// missing reports whether a packet has something to say to a restored connection
// that has received so many bytes since: most of what a tap has caught before the
// lock closed was received after all. Delivered again, it would be answered.
func (s *Snapshot) missing(packet []byte, received uint64) bool {
	p, ok := wire.Parse(packet, len(packet))
	if !ok || p.ICMP || p.Flags.Has(wire.SYN) || flowOf(s.Local, s.Remote) != (flow{p.Dst, p.Src}) {
		return false
	}
	end := p.Seq + uint32(p.Len)
	if p.Flags.Has(wire.FIN) {
		end++
	}
	if end != p.Seq {
		return int32(end-s.rcvNxt()-uint32(received)) > 0
	}
	return p.Flags.Has(wire.RST) || int32(p.Ack-s.sndUna()) >= 0
}
