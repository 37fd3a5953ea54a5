// Package netlock keeps packets away from TCP connections while they are moved.
//
// A connection must receive nothing between the moment its state is read and the
// moment its new socket goes on: what arrives at the old socket is acknowledged
// and lost, and what arrives when there is no socket is answered with a RST. Nor
// must it send anything. A [Lock] drops the packets of given flows, in both
// directions and without an answer to anybody, so that to the peer they are lost
// on the way; it sends them again once the lock is gone.
//
//	lock, err := netlock.New()
//	...
//	defer lock.Close()
//	err = lock.Add(netlock.Flow{Local: local, Remote: remote})
//
// A *Lock is the Locker that package soccr asks for. Many flows are locked in little
// time if they were named before ([Lock.Prepare]). [Namespace] locks all that a
// network namespace sends and receives.
//
// # Listeners
//
// While a listener is moved, the kernel would answer a SYN with a RST, and the
// client would give up. [Lock.LockListener] drops the SYN instead, and the client
// tries again after a second. Nothing else is dropped: handshakes under way come to
// their end, and connections go on.
//
// # In the kernel
//
// A Lock is one nftables table of its own, in the inet family, with a unique name
// that begins with "gosoccr-". Its base chains are at the hooks prerouting and output,
// before those of conntrack and of everything else that knows connections, so
// that no entry ages or turns invalid by packets that the sockets never see.
// "nft list ruleset" shows all of it.
//
// A packet that is dropped on its way out fails with EPERM inside the kernel's
// TCP, which therefore does not count its data as sent. Programs do not see that
// error.
//
// A packet that has passed the hooks when [Lock.Add] returns may still be on its
// way to the socket on another processor, for some microseconds. Who reads the
// socket's state has to make sure, by reading its sequence numbers again at the
// end, that nothing has moved meanwhile; package soccr does.
//
// # Injected segments
//
// To bring a new socket into a half-closed state, the peer's FIN or its last
// acknowledgement is injected (package rawfin). Such segments have a packet mark
// and stay on the loopback device; the lock lets those of its flows through there,
// untracked by conntrack, and keeps what the socket answers. It cannot overrule
// another table that drops them: another mark may get through ([Lock.AllowMark]),
// which package soccr tries, and [Explain] and [Lock.ExplainInjected] name the rule
// that is to blame.
//
// # Conntrack and strict firewalls
//
// Many firewalls accept what conntrack calls new or established, and drop the
// rest. Two things about a moved connection are then in question: whether an
// injected segment gets in, and whether the connection goes on afterwards, on a
// host whose conntrack has not seen its handshake. The kernel's rules are these
// (tcp_new, and the table tcp_conntracks):
//
//   - Without an entry, a plain acknowledgement or data, from either end, is NEW
//     and makes an entry, as long as net.netfilter.nf_conntrack_tcp_loose is 1,
//     which it is by default. A FIN is INVALID.
//   - What resuming an established connection sends first, a window probe, is such
//     an acknowledgement: the connection goes on. One that is half-closed may have
//     only a FIN to send or to receive.
//   - A segment that is not tracked is neither NEW nor ESTABLISHED.
//
// So package soccr, when it restores a half-closed connection, has [Lock.TrackFlow]
// make an entry, and if no injected segment arrives, tries again with
// [Lock.TrackInjected]. With that, connections in all states go on behind such a
// firewall, be they moved within the host or to another one. In two cases the
// caller has to call [Lock.Track] for all connections, established ones too,
// before they are unlocked: on a host where nf_conntrack_tcp_loose is 0, and
// behind a firewall that takes nothing for new but a SYN.
//
// If several locks hold a flow, all of them have to track its injected segments.
// The entries of connections whose addresses a host translates (NAT) are not
// carried over to another host.
//
// # Lifetime
//
// A lock never outlives its owner, unless its owner has an heir ([Lock.SyscallConn]),
// and its timeout in no case. Its table belongs to a netlink socket of the
// process that made it, and the kernel removes it when that socket closes, be it
// because the process was killed. Nobody else can change such a table: "nft flush
// ruleset" leaves it alone. This takes Linux 5.12. On older kernels a killed
// owner's lock ends by its timeout, and the next [New] in that network namespace
// removes what is left.
//
// The timeout is there on every kernel: the lock holds as long as the elements of
// a set, its lease, have time left, and the owner renews that by itself. An owner
// that is stopped for longer than the timeout finds that it has lost the lock;
// every later call says so with [ErrLost], and the lock stays off.
//
// Several locks can hold the same flow, which is free when the last of them lets
// it go. Within one lock, adding a flow twice is the same as adding it once.
//
// # What is not covered
//
// ICMP errors about a flow still arrive; TCP takes them as hints. Packets that
// bypass netfilter are not seen: those redirected by XDP, tc or sockmap programs,
// those of a flowtable's fast path on a router, and those that cross a bridge
// without being routed (unless br_netfilter is on). Conntrack zones are not known
// to [Lock.Track]. In a VRF there is no way for injected segments: half-closed
// connections cannot be restored there.
//
// # Requirements
//
// Linux with nftables (CONFIG_NF_TABLES, NF_TABLES_INET, NFT_CT) and CAP_NET_ADMIN
// in the user namespace that owns the network namespace. Elsewhere every function
// returns an error for which errors.Is(err, errors.ErrUnsupported) holds.
package netlock
