// Package rawfin crafts one TCP segment and delivers it to a socket of this
// host, as if the peer of its connection had sent it, or to the peer.
//
// The kernel can put a socket into the middle of a connection (TCP_REPAIR), but
// only into ESTABLISHED. The states after it are reached the way they always
// are: by the peer's FIN, or by its acknowledgement of ours. This package
// supplies that segment while the real peer is kept away.
//
// # Use
//
// [Open] an [Injector], fill in a [Segment] whose Src is the peer and whose Dst
// is the local socket, and [Injector.Inject] it. With rcv_nxt and write_seq of
// the socket as R and S, neither counting a FIN, a socket goes from ESTABLISHED
// to
//
//	CLOSE_WAIT  by FIN|ACK, Seq R, Ack S
//	FIN_WAIT2   by shutdown, then ACK, Seq R, Ack S+1
//	CLOSING     by shutdown, then FIN|ACK, Seq R, Ack S
//	LAST_ACK    by FIN|ACK, Seq R, Ack S, then shutdown
//
// where shutdown is shutdown(SHUT_WR) in repair mode, with TCP_REPAIR_QUEUE set
// to the send queue: our FIN then counts as sent, and is not. Outside of repair
// mode it is sent; and if a packet filter drops it, it does not count as sent
// (tcp_write_xmit), so that the acknowledgement of it is ignored.
//
// # What is promised
//
// An injected segment itself stays on this host: it goes out of and comes back in on the
// loopback device, and Inject refuses one for an address that is not local.
// What the socket answers (it acknowledges a FIN) is sent to the real peer like
// everything it sends; whoever does not want that keeps it back with a packet
// filter.
//
// Inject returns nil when the kernel has taken the segment. As a rule the
// socket has by then processed it, but nothing reports that: a filter on the
// way in drops silently (wg-quick sets one up, for the addresses of a tunnel
// that is the default route), as do a filter on the socket itself
// (SO_ATTACH_FILTER) and TCP, for a segment outside the window or without the
// signature that TCP_MD5SIG or TCP-AO demands. Callers look at the socket's
// state (TCP_INFO).
//
// Reverse path filtering, and routes that do not lead to the peer, are no
// obstacle: the segment comes in with the route it went out with. A socket
// bound to a device (SO_BINDTODEVICE) gets the segment if that device has the
// local address. One in a VRF does not: its addresses are not those of the
// loopback device.
//
// # The other way
//
// [Injector.Send] sends a segment to the peer, in the socket's stead, for what the
// kernel does not say by itself: a window probe in other states than ESTABLISHED,
// for example. Its Src is the local socket, its Dst the peer. With a sequence number
// that the peer has acknowledged it changes nothing there, and is answered.
//
// # Packet filters
//
// The segment passes OUTPUT, then PREROUTING and INPUT, with the packet mark
// [DefaultMark], unless [WithMark] says otherwise, so that rules can tell it
// from the peer's packets. If a rule drops it in OUTPUT, Inject notices and
// returns a [*DroppedError]; [WithLink] is a way around OUTPUT. Connection
// tracking may classify the segment as INVALID or as NEW, since it is not in the
// place where the peer's packets come from; a notrack rule for the mark avoids
// both.
//
// # Rights
//
// Raw sockets need CAP_NET_RAW, and marks need CAP_NET_ADMIN (since Linux 5.17
// CAP_NET_RAW is enough), both in the user namespace that owns the network
// namespace; otherwise Open returns a [*PermissionError]. Only Linux has what
// Open needs; elsewhere it returns [errors.ErrUnsupported], while
// [Segment.AppendTo] works everywhere.
package rawfin
