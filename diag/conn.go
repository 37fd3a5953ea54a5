package diag

// Config says how a Conn is made.
type Config struct {
	// NetNS is a file descriptor of the network namespace whose sockets the
	// Conn sees, or 0 for that of the calling thread. It may be closed after
	// Dial. Entering another namespace needs CAP_SYS_ADMIN, both in the user
	// namespace that owns it and in the caller's.
	NetNS int
}
