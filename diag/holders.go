package diag

// A Holder is an open file descriptor of a process that stands for a socket.
// Several of them, in one process or in many, can stand for the same socket.
type Holder struct {
	Inode uint32 // the socket's, as in Socket
	PID   int    // as a process of the reader's PID namespace
	FD    int
}
