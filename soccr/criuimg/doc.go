// Package criuimg converts between the images of CRIU (https://criu.org) and
// snapshots of package soccr, both ways: a connection that CRIU dumped can be
// restored by soccr, and one that soccr saved can be put into images that CRIU
// restores. The images are read and written everywhere, not only on Linux.
//
// # A directory of images
//
// [Read] reads what a dump tells of TCP sockets into an [Image]: its sockets, and
// which file descriptors of which processes hold them. [Image.Write] writes it
// back, byte for byte as it was except for what was changed.
//
//	image, err := criuimg.Read(os.DirFS("/var/lib/dump"))
//	…
//	for _, s := range image.Sockets {
//		snapshot, losses, err := s.Snapshot() // or s.Listener(), in LISTEN
//		…
//		snapshot.Local = netip.AddrPortFrom(elsewhere, snapshot.Local.Port())
//		losses, err = s.SetSnapshot(snapshot)
//		…
//	}
//	err = image.Write("/var/lib/dump")
//
// [Image.Map] gives all sockets over IP other addresses, ports and devices, UDP's
// and those in states of no interest here too.
//
// # Entries
//
// Who has a container of his own has go-criu's messages: a [Socket] is the entry
// of a socket and, of a connection, a [Stream], which is its tcp-stream image.
// [Socket.Snapshot] makes a snapshot of them, [Socket.SetSnapshot] changes what a
// snapshot says otherwise, and [NewSocket] makes entries of a snapshot alone,
// with the same bytes as CRIU's. For listeners there are [Socket.Listener],
// [Socket.SetListener] and [NewListener].
//
// # What is lost
//
// A conversion that loses something returns it as a [Loss]. Nothing of a socket
// that was read is lost as long as its entries are kept and changed by
// SetSnapshot.
//
// A snapshot has, and CRIU has no place for:
//
//	UnsentFIN              told by unsent bytes before it; without them it counts as sent
//	Reset                  the program is not told that its connection was reset
//	Timestamp.Value        even for milliseconds, odd for microseconds, as the kernel has it
//	Window.RcvSsthresh     the window grows on from what it is
//	Window.Clamp           as large as the scale lets the peer be told
//	Window.RecvMemory      that of the bytes, without overhead
//	Path                   the connection finds out again
//	Options.Congestion     the host's default
//	Options.PeekOffsetOn   off
//	Options.PeekOffset
//	Options.Foreign        the address has to be on the host, or IP_FREEBIND set
//	Options.Settings       CRIU has those listed below
//	Pending                of a listener: CRIU would need a descriptor for each
//	HalfOpen
//	Multipath              CRIU does not restore Multipath TCP
//
// MD5Keys make SetSnapshot fail: CRIU would restore the connection without them.
//
// The Settings that CRIU has are SO_ATTACH_FILTER, SO_BINDTODEVICE, SO_BROADCAST,
// SO_DONTROUTE, SO_KEEPALIVE, SO_LINGER, SO_MARK, SO_NO_CHECK, SO_OOBINLINE,
// SO_PRIORITY, SO_RCVLOWAT, SO_RCVTIMEO, SO_REUSEPORT, SO_SNDTIMEO, TCP_CORK,
// TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY, O_ASYNC; of IPv4
// IP_FREEBIND, IP_PKTINFO, IP_TOS, IP_TTL; of IPv6 IPV6_FREEBIND,
// IPV6_RECVPKTINFO, IPV6_V6ONLY.
//
// CRIU has, and a snapshot has no place for:
//
//	inet_sk.flags             other flags of the file than O_NONBLOCK and O_ASYNC
//	inet_sk.backlog           of a connection: how much was in the send queue
//	inet_sk.shutdown          where it contradicts the state
//	tcp_stream.opt_mask       bits that tell what happened, not what was agreed on
//	tcp_stream.timestamp      the lowest bit, which tells the clock's resolution
//	ip_opts.ttl               of AF_INET6, which CRIU does not write either
//	ip_opts.tos
//	ip_opts_raw.hdrincl       and the rest of what belongs to raw sockets
//	sk_opts.so_passcred       means nothing to TCP
//	sk_opts.so_passsec
//
// and the socket's numbers, its network namespace (ns_id) and who gets its
// signals (fown), which stay with the Socket: they are numbers of the dump, and
// mean other things elsewhere.
//
// What CRIU did not write, because it was older or its kernel was, has a value
// in the snapshot with which the connection goes on: without unsq_len, all bytes
// count as sent; without a window (Linux before 4.8), ours is 65,535 bytes wide
// and the peer's is closed until it answers the probe that ends the restore.
//
// # Numbers
//
// CRIU's sequence numbers are the kernel's, which count FINs; a snapshot's do not.
// CRIU takes a window that the kernel had; TCP_REPAIR_WINDOW refuses some of them,
// which soccr corrects and CRIU does not.
//
// # Images are untrusted
//
// Whatever is in an image, reading it neither panics nor takes more memory than a
// bounded multiple of the bytes that arrive. What is malformed is an
// [ErrInvalidImage]; a connection that the kernel could not have is refused by
// Socket.Snapshot. Images hold the bytes in the queues: they are as secret as the
// connections, and written with mode 0600.
package criuimg
