package diag

import "net/netip"

// A Filter says which sockets to list and what to tell of them. The kernel does
// the filtering; what does not match costs no message. All of the conditions
// must hold, and those that are zero always do: the zero Filter lists every TCP
// socket of the namespace, in brief.
type Filter struct {
	States States
	Family Family

	LocalPort, RemotePort uint16
	// Local and Remote are where the addresses must be. An IPv4 prefix is also
	// met by the IPv4-mapped addresses of an IPv6 socket.
	Local, Remote netip.Prefix

	// Interface is the index of the device that the socket must be bound to.
	Interface int
	// Mark is what the socket's mark must be in the bits of MarkMask. It needs
	// CAP_NET_ADMIN.
	Mark, MarkMask uint32
	// CgroupID is the id of the socket's cgroup v2, the inode number of the
	// cgroup's directory. Linux 5.8.
	CgroupID uint64

	Details Details
}

// Details are what to tell of a socket beyond what the kernel tells anyway. Each
// makes a listing larger and slower.
type Details uint8

// The details that can be asked for, and the fields of Socket that they fill.
// Listening sockets that share a port (SO_REUSEPORT) may lack them. A connected
// socket with more than about 300 MD5 keys of its own ends a listing with
// DetailInfo before its time: the kernel has no room for it.
const (
	DetailMemory     Details = 1 << iota // Memory
	DetailInfo                           // Info, MD5 and ULP
	DetailCongestion                     // Congestion
	DetailTOS                            // TOS and TClass

	DetailAll = DetailMemory | DetailInfo | DetailCongestion | DetailTOS
)
