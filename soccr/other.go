//go:build !linux

package soccr

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// Only Linux lets a connection be taken out of its socket. Elsewhere, snapshots
// can be read, checked and written.

func unsupported(op string) error { return &OpError{Op: op, Err: errors.ErrUnsupported} }

// Pause needs Linux.
func Pause(int, ...Option) (*Socket, error) { return nil, unsupported("pause") }

// Pause needs Linux.
func (*Socket) Pause(int, ...Option) error { return unsupported("pause") }

// Save needs Linux.
func (*Socket) Save() (*Snapshot, error) { return nil, unsupported("save") }

// SaveTo needs Linux.
func (*Socket) SaveTo(*Snapshot) error { return unsupported("save") }

// SaveAll needs Linux.
func SaveAll(io.Writer, []int, ...Option) (*Batch, error) { return nil, unsupported("save") }

// RestoreAll needs Linux.
func RestoreAll(io.Reader, ...Option) (*Batch, error) { return nil, unsupported("restore") }

// Disconnect does nothing.
func (*Batch) Disconnect() {}

// Close does nothing.
func (*Batch) Close() error { return nil }

// Resume needs Linux.
func (*Batch) Resume() error { return unsupported("resume") }

// Restore needs Linux.
func (*Socket) Restore(*Snapshot, ...Option) error { return unsupported("restore") }

// Resume needs Linux.
func (*Socket) Resume() error { return unsupported("resume") }

// Release needs Linux.
func (*Socket) Release() {}

// Disconnect needs Linux.
func (*Socket) Disconnect() error { return unsupported("disconnect") }

// State needs Linux.
func (*Socket) State() (State, error) { return 0, unsupported("read state") }

// QueueSeq needs Linux.
func (*Socket) QueueSeq(q Queue) (uint32, error) { return 0, unsupported(q.String()) }

// SetQueueSeq needs Linux.
func (*Socket) SetQueueSeq(q Queue, _ uint32) error { return unsupported(q.String()) }

// QueueLen needs Linux.
func (*Socket) QueueLen(q Queue) (int, error) { return 0, unsupported(q.String()) }

// ReadQueue needs Linux.
func (*Socket) ReadQueue(q Queue) ([]byte, error) { return nil, unsupported(q.String()) }

// WriteQueue needs Linux.
func (*Socket) WriteQueue(q Queue, _ []byte) (int, error) { return 0, unsupported(q.String()) }

// Window needs Linux.
func (*Socket) Window() (Window, error) { return Window{}, unsupported("read window") }

// SetWindow needs Linux.
func (*Socket) SetWindow(Window) error { return unsupported("set window") }

// Negotiated needs Linux.
func (*Socket) Negotiated() (Negotiated, error) {
	return Negotiated{}, unsupported("read negotiated options")
}

// SetNegotiated needs Linux.
func (*Socket) SetNegotiated(Negotiated) error { return unsupported("set negotiated options") }

// SyncMSS needs Linux.
func (*Socket) SyncMSS() error { return unsupported("compute segment size") }

// Timestamp needs Linux.
func (*Socket) Timestamp() (Timestamp, error) { return Timestamp{}, unsupported("read timestamp") }

// SetTimestamp needs Linux.
func (*Socket) SetTimestamp(Timestamp) error { return unsupported("set timestamp") }

// NewSocket needs Linux.
func NewSocket(*Snapshot) (fd int, err error) { return -1, unsupported("socket") }

// Checkpoint needs Linux.
func Checkpoint(syscall.Conn, ...Option) (*Snapshot, error) { return nil, unsupported("checkpoint") }

// RestoreConn needs Linux.
func RestoreConn(*Snapshot, ...Option) (*net.TCPConn, error) { return nil, unsupported("restore") }

// OpenTap needs Linux.
func OpenTap() (*Tap, error) { return nil, unsupported("tap") }

// Close does nothing.
func (*Tap) Close() error { return nil }

// Watch needs Linux.
func (*Tap) Watch(local, remote netip.AddrPort) error { return unsupported("tap") }

// Take needs Linux.
func (*Tap) Take(local, remote netip.AddrPort) ([][]byte, error) { return nil, unsupported("tap") }

// Forget needs Linux.
func (*Tap) Forget(local, remote netip.AddrPort) {}

// SaveListener needs Linux.
func SaveListener(int, ...Option) (*ListenerSnapshot, error) {
	return nil, unsupported("save listener")
}

// NewListenerSocket needs Linux.
func NewListenerSocket(*ListenerSnapshot) (fd int, err error) { return -1, unsupported("socket") }

// StartListener needs Linux.
func StartListener(int, *ListenerSnapshot, ...Option) error { return unsupported("listen") }

// AcceptAll needs Linux.
func AcceptAll(int) (fds []int, err error) { return nil, unsupported("accept") }

// CheckpointListener needs Linux.
func CheckpointListener(syscall.Conn, ...Option) (*ListenerSnapshot, error) {
	return nil, unsupported("checkpoint listener")
}

// RestoreListener needs Linux.
func RestoreListener(*ListenerSnapshot, ...Option) (*Listener, error) {
	return nil, unsupported("restore listener")
}

// ResetPeer needs Linux.
func ResetPeer(*Snapshot, ...Option) error { return unsupported("reset") }

// Preflight needs Linux.
func Preflight([]*Snapshot, []*ListenerSnapshot, ...Option) error { return unsupported("preflight") }

// Movable needs Linux.
func Movable(int) error { return unsupported("look") }

// SaveDatagram needs Linux.
func SaveDatagram(int) (*DatagramSnapshot, error) { return nil, unsupported("save") }

// NewDatagramSocket needs Linux.
func NewDatagramSocket(*DatagramSnapshot) (fd int, err error) { return -1, unsupported("socket") }

// StartDatagram needs Linux.
func StartDatagram(int, *DatagramSnapshot, ...Option) error { return unsupported("restore") }

// CheckpointDatagram needs Linux.
func CheckpointDatagram(syscall.Conn) (*DatagramSnapshot, error) {
	return nil, unsupported("checkpoint")
}

// RestoreDatagram needs Linux.
func RestoreDatagram(*DatagramSnapshot, ...Option) (*net.UDPConn, error) {
	return nil, unsupported("restore")
}

// CheckQueues needs Linux.
func CheckQueues(*Snapshot) error { return unsupported("check queues") }

// CheckQueues needs Linux.
func (s *Socket) CheckQueues(*Snapshot) error { return unsupported("check queues") }
