package netlock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A transaction is a list of nftables messages that the kernel carries out all
// together or not at all.
//
// The messages are written here rather than by nftables.Conn, whose v0.3.0
// cannot set a table's owner flag, lets lists of more than 64 KiB wrap around,
// and, as it takes the kernel's answers in the order in which they come, waits
// forever where the kernel answers once for all.
type transaction struct {
	table string
	batch []byte // what is sent: messages one behind the other
	last  int    // where the last message begins
	count uint32 // of messages
}

// The first two bytes of every message's body are family and version, the next
// two, big-endian, a resource: for batch messages the subsystem, else 0.
func header(family byte) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

func message(kind int, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   body,
	}
}

// begin makes a transaction on a table in the memory of b, with the message that
// every batch begins with.
func begin(table string, b []byte) *transaction {
	t := &transaction{table: table, batch: b[:0]}
	t.start(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	return t
}

// start begins a message, which lasts to the next one.
func (t *transaction) start(kind int, flags netlink.HeaderFlags, family byte, resource uint16) {
	t.last = len(t.batch)
	t.count++
	t.batch = binary.NativeEndian.AppendUint32(t.batch, 0) // its length
	t.batch = binary.NativeEndian.AppendUint16(t.batch, uint16(kind))
	t.batch = binary.NativeEndian.AppendUint16(t.batch, uint16(netlink.Request|flags))
	t.batch = binary.NativeEndian.AppendUint32(t.batch, t.count) // sequence number
	t.batch = binary.NativeEndian.AppendUint32(t.batch, 0)       // port
	t.batch = append(t.batch, family, unix.NFNETLINK_V0, byte(resource>>8), byte(resource))
	t.end()
}

// end notes how long the last message has become.
func (t *transaction) end() {
	binary.NativeEndian.PutUint32(t.batch[t.last:], uint32(len(t.batch)-t.last))
}

// startIn begins a message about the table: its body starts with the attribute
// that names the table, which has number 1 in every kind of message but one.
func (t *transaction) startIn(kind int, flags netlink.HeaderFlags) {
	t.start(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
	t.string(unix.NFTA_TABLE_NAME, t.table)
}

// add appends a message about the table with some attributes.
func (t *transaction) add(kind int, flags netlink.HeaderFlags, attributes ...[]byte) {
	t.startIn(kind, flags)
	for _, a := range attributes {
		t.batch = append(t.batch, a...)
	}
	t.end()
}

// open begins an attribute that others are nested in, until close.
func (t *transaction) open(kind uint16) (at int) {
	at = len(t.batch)
	t.batch = binary.NativeEndian.AppendUint16(t.batch, 0)
	t.batch = binary.NativeEndian.AppendUint16(t.batch, kind)
	return at
}

// close ends the attribute that begins there, and pads it.
func (t *transaction) close(at int) {
	binary.NativeEndian.PutUint16(t.batch[at:], uint16(len(t.batch)-at))
	for len(t.batch)%unix.NLA_ALIGNTO != 0 {
		t.batch = append(t.batch, 0)
	}
}

func (t *transaction) string(kind uint16, s string) {
	at := t.open(kind)
	t.batch = append(append(t.batch, s...), 0)
	t.close(at)
}

// commit sends the transaction and reads what the kernel has against it. No message
// asks for an acknowledgement: its arrival would wake the thread that waits for all
// of Go's sockets, which takes longer than the transaction. The kernel has answered
// before write returns (nfnetlink_rcv_batch), with an error if there is one; if it has
// no memory for that, reading fails (netlink_ack).
func (t *transaction) commit(conn syscall.RawConn) error {
	t.start(unix.NFNL_MSG_BATCH_END, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	var verdict error
	err := conn.Control(func(fd uintptr) {
		if _, err := unix.Write(int(fd), t.batch); err != nil {
			verdict = os.NewSyscallError("write", err)
			return
		}
		verdict = answers(int(fd), t.batch[:answerSize])
	})
	return errors.Join(err, verdict)
}

// answerSize is how much of an answer matters: struct nlmsghdr and the error.
const answerSize = unix.SizeofNlMsghdr + 4

// answers reads what the kernel has answered, into buf, and returns the first
// error. What cannot be read stays in the socket, so it tries again: without the
// answers nobody knows what the table holds, and the next transaction would take them
// for its own.
func answers(fd int, buf []byte) error {
	var verdict error
	for failed := 0; ; {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return verdict
		case err != nil && failed < 3:
			failed++
			continue
		case err != nil:
			return os.NewSyscallError("read", err)
		case n < answerSize || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR || verdict != nil:
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
			verdict = unix.Errno(-code)
		}
	}
}

// drain passes on the messages that wait in a netlink socket.
func drain(fd int, each func(syscall.NetlinkMessage) error) error {
	buf := make([]byte, os.Getpagesize())
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("answer of the kernel: %w", err)
		}
		for _, m := range messages {
			if err := each(m); err != nil {
				return err
			}
		}
	}
}

// newTable adds the table, which must not be there yet.
func (t *transaction) newTable(flags uint32) {
	t.add(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, attrUint32(unix.NFTA_TABLE_FLAGS, flags))
}

// delTable removes the table and all that is in it.
func (t *transaction) delTable() { t.add(unix.NFT_MSG_DELTABLE, 0) }

// chain is a base chain.
type chain struct {
	name     string
	hook     uint32
	priority int32
	device   expr.MetaKey // the one that the packet enters or leaves by
}

func (t *transaction) newChain(name string) {
	t.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, attrString(unix.NFTA_CHAIN_NAME, name))
}

func (t *transaction) newBaseChain(c chain) {
	t.add(unix.NFT_MSG_NEWCHAIN, netlink.Create,
		attrString(unix.NFTA_CHAIN_NAME, c.name),
		nest(unix.NFTA_CHAIN_HOOK, attrUint32(unix.NFTA_HOOK_HOOKNUM, c.hook), attrUint32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
		attrString(unix.NFTA_CHAIN_TYPE, "filter"))
}

// newRules appends rules to a chain.
func (t *transaction) newRules(chain string, rules [][]expr.Any) error {
	return t.rules(netlink.Append, chain, rules)
}

// rules adds rules to a chain: each behind all others with netlink.Append, and
// before them without.
func (t *transaction) rules(place netlink.HeaderFlags, chain string, rules [][]expr.Any) error {
	for _, rule := range rules {
		var list [][]byte
		for _, e := range rule {
			b, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return err
			}
			list = append(list, nest(unix.NFTA_LIST_ELEM, b))
		}
		t.add(unix.NFT_MSG_NEWRULE, netlink.Create|place,
			attrString(unix.NFTA_RULE_CHAIN, chain), nest(unix.NFTA_RULE_EXPRESSIONS, list...))
	}
	return nil
}

func (t *transaction) newSet(s set) {
	var flags uint32
	if s.timeout != 0 {
		flags = unix.NFT_SET_TIMEOUT
	}
	attributes := [][]byte{
		attrString(unix.NFTA_SET_NAME, s.name),
		attrUint32(unix.NFTA_SET_ID, t.count), // any, unique in the transaction
		attrUint32(unix.NFTA_SET_FLAGS, flags),
		attrUint32(unix.NFTA_SET_KEY_TYPE, s.keyType.GetNFTMagic()),
		attrUint32(unix.NFTA_SET_KEY_LEN, s.keyType.Bytes),
	}
	if s.timeout != 0 {
		attributes = append(attributes, attrUint64(unix.NFTA_SET_TIMEOUT, uint64(s.timeout.Milliseconds())))
	}
	t.add(unix.NFT_MSG_NEWSET, netlink.Create, attributes...)
}

// elements adds a message that puts elements into a set (NFT_MSG_NEWSETELEM) or
// takes them out (NFT_MSG_DELSETELEM): those that add adds. They must fit into one
// attribute.
func (t *transaction) elements(kind int, set string, add func()) {
	var flags netlink.HeaderFlags
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = netlink.Create | netlink.Excl
	}
	t.startIn(kind, flags)
	t.string(unix.NFTA_SET_ELEM_LIST_SET, set)
	list := t.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED)
	add()
	t.close(list)
	t.end()
}

// flush takes all elements out of a set (nft_set_flush, Linux 4.10).
func (t *transaction) flush(set string) {
	t.add(unix.NFT_MSG_DELSETELEM, 0, attrString(unix.NFTA_SET_ELEM_LIST_SET, set))
}

// element adds an element to the message.
func (t *transaction) element(key []byte) {
	e := t.open(unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED)
	k := t.open(unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED)
	value := t.open(unix.NFTA_DATA_VALUE)
	t.batch = append(t.batch, key...)
	t.close(value)
	t.close(k)
	t.close(e)
}

// attr encodes a netlink attribute: length and type in the host's byte order,
// then the value, padded to 4 bytes.
func attr(kind uint16, value ...[]byte) []byte {
	size := unix.SizeofNlAttr
	for _, v := range value {
		size += len(v)
	}
	b := make([]byte, unix.SizeofNlAttr, size+unix.NLA_ALIGNTO)
	binary.NativeEndian.PutUint16(b[0:], uint16(size))
	binary.NativeEndian.PutUint16(b[2:], kind)
	for _, v := range value {
		b = append(b, v...)
	}
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func nest(kind uint16, attributes ...[]byte) []byte {
	return attr(kind|unix.NLA_F_NESTED, attributes...)
}

func attrString(kind uint16, s string) []byte { return attr(kind, []byte(s), []byte{0}) }

// Numbers in nftables' attributes are big-endian.
func attrUint32(kind uint16, v uint32) []byte {
	return attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

func attrUint64(kind uint16, v uint64) []byte {
	return attr(kind, binary.BigEndian.AppendUint64(nil, v))
}
