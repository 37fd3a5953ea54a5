// Package diag tells which TCP sockets there are in a network namespace, and what
// the kernel knows of them, as ss(8) does: it speaks sock_diag(7) over netlink.
//
// # Use
//
// A [Conn] from [Dial] sees one network namespace. [Conn.Sockets] lists the
// sockets that pass a [Filter], one after the other, however many there are;
// [Conn.Lookup] finds the one of a connection at once; [Conn.Destroy] ends one.
// [Holders] finds the processes behind the sockets.
//
// # What a Socket is worth
//
// A [Socket] is what was true when the kernel was asked. Connections go on: one
// that was listed as ESTABLISHED can be half closed a moment later. Whoever acts
// on a connection reads its state again after he has stopped it, and uses the
// cookie to be sure that it is the same one: no other socket of this boot has
// it, not even the next one with the same addresses.
//
// # Addresses
//
// They are those of the socket. A socket of family [IPv6] with an IPv4 connection
// has IPv4-mapped addresses, and Lookup and the prefixes of a Filter take either
// form for it. Link-local addresses have a zone, which is the device's name in
// the namespace of the Conn, whatever the namespace of the caller.
//
// # Rights
//
// Everybody may list and look up what is in his network namespace, with the
// exception of MD5 keys and marks, which the kernel tells, and filters by, only
// if the caller has CAP_NET_ADMIN. Destroy needs it too. Another namespace takes
// CAP_SYS_ADMIN to enter. The capabilities count in the user namespace that owns
// the network namespace.
//
// # Kernels
//
// The kernel needs CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG, as modules or built
// in, which every distribution has, and CONFIG_INET_DIAG_DESTROY for Destroy.
// Where they are missing, and on other systems than Linux, the error is
// [errors.ErrUnsupported]. What an older kernel does not tell stays zero; the
// fields and filters that are newer than Linux 4.19 say so.
package diag
