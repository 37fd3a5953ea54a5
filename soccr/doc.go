// Package soccr takes an established TCP connection out of one socket and puts
// it into another, in another process, network namespace or host, while the peer
// notices nothing. It works on Linux, by TCP_REPAIR. Elsewhere the functions that
// need the kernel return [errors.ErrUnsupported]; snapshots can be read, checked
// and written everywhere.
//
// # A program's own connections
//
// [Checkpoint] takes the connection out of a net.TCPConn and closes it silently;
// [RestoreConn] makes another net.TCPConn of the [Snapshot], which may have
// travelled as bytes in between ([Snapshot.MarshalBinary]).
//
// # Checkpointers
//
// They have file descriptors, of programs that they have stopped: [Pause],
// [Socket.Save], and then [Socket.Resume], if the program is to go on, or
// [Socket.Disconnect]. For the other way: [NewSocket], Pause, [Socket.Restore],
// Resume. Who has a format of his own finds the finer steps as methods of
// [Socket]: a queue, its sequence number, the window, what was negotiated, the
// timestamp. docs/embedding.md of this module is a guide: the order of steps, who
// owns what, namespaces and threads, rights, failures and the way back.
//
// # Listeners
//
// A listener has a [ListenerSnapshot]: [CheckpointListener] and [RestoreListener]
// for a program's own, [SaveListener], [AcceptAll], [NewListenerSocket] and
// [StartListener] for descriptors. What is established but not accepted yet is
// refused, kept, reset or dropped, as the caller says ([WithInFlight]). What is
// kept cannot be put back into the kernel's queue: the restored [Listener] hands
// it out first. A lock that is a [ListenLocker] lets clients wait, rather than be
// refused, while nobody listens, and handshakes that are under way come to their
// end first.
//
// # Not connected, and not any more
//
// Sockets that were never connected come back bound as they were, connections that
// are being made send their SYN again, and what was closed or reset is found so by
// its program, data that it had not read before. The one thing that cannot be asked
// without taking it away is which error waits (SO_ERROR): it comes back as
// ECONNRESET. To put a closed one back on its own host ends its TIME_WAIT there, if it
// has timestamps: what its peer may still send is then answered with a RST. Without
// timestamps it cannot come back there until TIME_WAIT is over, after a minute
// (ErrAddrInUse). What it had not read is in the snapshot in any case.
// A connection that shall not go on can come back as closed, with or
// without a word to its peer ([WithClosed], [WithReset], [ResetPeer]).
//
// # Other hosts, other addresses
//
// [Preflight] tells what on the host at hand would keep snapshots from being
// restored, before anything is touched. A [Mapping] replaces addresses, ports and
// devices in snapshots, and says what that takes. A connection may have both its
// ends on one host: each is a flow of its own to the lock, so that the order in
// which they are taken and put back does not matter.
//
// # UDP
//
// A UDP or UDP-Lite socket has a [DatagramSnapshot]: [CheckpointDatagram] and
// [RestoreDatagram] for a program's own, [SaveDatagram], [NewDatagramSocket] and
// [StartDatagram] for descriptors. Its options and multicast groups are kept, and
// the datagrams that were not read: these are injected again, as from whom they
// came. What arrives while no socket is there is answered by ICMP; a lock for UDP
// is the caller's. Ping sockets (ICMP echo) and raw ones are moved in the same way,
// without what they had not read.
//
// # Many at once
//
// A [Batch] moves thousands of connections on all cores: [SaveAll] writes their
// snapshots one behind the other to an io.Writer while it works, and [RestoreAll]
// restores them while it reads. Each connection is moved whole or stays as it was.
// Their flows are locked, and unlocked, in one transaction ([FlowsLocker]),
// which is short because the lock is told of them before ([FlowsPreparer]).
//
// A move costs as much as the system calls that it takes, half of which read the
// socket options. Who knows these, or checks by other means, leaves that out:
// [WithoutOptions], [WithoutVerifying]. [Socket.SaveTo] and [Snapshot.DecodeShared]
// do with the memory that there is.
//
// # Order
//
// A paused socket still receives, acknowledges and retransmits. What arrives
// between Save and Restore would be acknowledged and lost, or answered with a
// RST. Therefore:
//
//	stop the program → lock the flow → Pause → Save → Disconnect or close
//	lock the flow → NewSocket → Pause → Restore → unlock → Resume
//
// The flow is unlocked before Resume: the window probe that Resume sends has to
// get out, and its answer in. The lock is netlock's or the caller's ([Locker]); a
// flow stays locked on the old host until nothing there would answer the peer.
//
// # Ownership
//
// File descriptors are the caller's, and so is the choice to close them. Closing
// the last descriptor of a paused socket is silent, and so is Disconnect, which
// does not wait for the last. A Snapshot is a value that nobody changes; it holds
// the bytes in the queues, and is as secret as they are.
//
// # Failure
//
// Every error is an [*OpError] that names the step, wraps one of this package's
// reasons and the errno, and knows the cure where there is one. Save fails with
// the connection as it was. Restore fails with the socket empty and nothing sent
// to the peer; the snapshot can be restored again. What cannot be moved is
// refused by Save: Multipath TCP, urgent data, kernel TLS, segments signed with
// TCP-AO.
//
// # What is kept
//
// States ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSING, CLOSE_WAIT, LAST_ACK, CLOSE
// and SYN_SENT; IPv4, IPv6 with zones, IPv4-mapped; both queues, and of the send
// queue which bytes were never sent; sequence numbers; MSS, for sending too;
// window scales, SACK, timestamps in both resolutions; the windows and the bounds
// of their growth; the keys of TCP-MD5; all socket options of the kernel's headers
// that can be read and set, in [Options].
//
// An option that the new kernel lacks, or that takes a privilege which is not
// there, is reported ([Socket.Losses], [WithLosses]), unless the socket would talk
// to others than before, or let others talk to it: then Restore fails. Options
// that have their default are not in a snapshot, and take the new host's.
//
// Not kept, because no interface of the kernel gives or takes it: what congestion
// control knows beyond the [Path], ECN, segments that arrived out of order (the
// peer sends them again, or a [Tap] has them), the counters of TCP_INFO.
//
// # Going on at once
//
// A connection that is put back the plain way ([WithPlain]) knows nothing of its
// path: it waits 1 to 3 s before it sends again what was in flight, and starts
// with 10 segments; what the peer had in flight waits for the peer's timers.
// Instead, and as far as it can be had ([Effects] tells):
//
//   - What was in flight leaves with Resume, as an ordinary retransmission, unless
//     the peer's acknowledgements of it are known or still on their way.
//   - Round trip time, timeout, congestion window and slow start threshold are
//     carried over ([WithPath]). The kernel learns them from dummy bytes and forged
//     acknowledgements before the queues are filled. Neither leaves the host; the
//     dummies end where the connection's bytes begin, so that the last
//     acknowledgement is a true one. It takes CAP_NET_RAW and timestamps, or the time
//     of a round trip ([WithPathWait]).
//   - A [Tap] catches what the peer sends while the flow is locked, and Resume
//     delivers it as it was.
//   - The peer is told our acknowledgement and window, by the kernel itself.
//   - The peer is asked for its window, if that is closed: by the kernel in
//     ESTABLISHED, by Resume in the half-closed states, which takes CAP_NET_RAW.
//   - [WithDrain] waits, before all this, until less is in flight.
//
// # Rights and kernels
//
// CAP_NET_ADMIN is needed in the user namespace that owns the socket's network
// namespace, and CAP_NET_RAW for half-closed states; both can be had without
// being root, with unshare(1). A send queue of more than twice net.core.wmem_max,
// and a receive queue of more than that of rmem_max and than net.ipv4.tcp_rmem lets
// the kernel tune, need CAP_NET_ADMIN in the initial user namespace: [CheckQueues].
//
// Linux 4.18 is the oldest with all that is needed (TCP_REPAIR_OFF_NO_WP, and
// before it TCP_REPAIR_WINDOW of 4.8, and half-closed states of 4.10). Later ones
// add to it: SO_BUF_LOCK (5.15), timestamps in microseconds (6.7), SO_PEEK_OFF
// for TCP (6.9), TCP_RTO_MAX_MS (6.15). The versions are those of the kernel's
// history; the tests have run on 6.18.
package soccr
