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
	table    string
	messages []netlink.Message
}

// The first two bytes of every message's body are family and version, the next
// two, big-endian, a resource: for batch messages the subsystem.
func header(family byte, resource uint16) []byte {
	return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
}

func message(kind int, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   body,
	}
}

// add appends a message about the table: its body starts with the attribute
// that names the table, which has number 1 in every kind of message but one.
func (t *transaction) add(kind int, flags netlink.HeaderFlags, attributes ...[]byte) {
	body := header(unix.NFPROTO_INET, 0)
	body = append(body, attrString(unix.NFTA_TABLE_NAME, t.table)...)
	for _, a := range attributes {
		body = append(body, a...)
	}
	t.messages = append(t.messages, message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, body))
}

// errNoAnswer cannot happen: nfnetlink_rcv_batch answers before sendmsg returns.
var errNoAnswer = errors.New("the kernel did not answer")

// commit sends the transaction and reads the kernel's verdict. Only the last
// message asks for an acknowledgement; any may be answered by an error.
func (t *transaction) commit(conn *netlink.Conn) error {
	t.messages[len(t.messages)-1].Header.Flags |= netlink.Acknowledge
	batch := make([]netlink.Message, 0, len(t.messages)+2)
	batch = append(batch, message(unix.NFNL_MSG_BATCH_BEGIN, 0, header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)))
	batch = append(batch, t.messages...)
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, 0, header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)))
	if _, err := conn.SendMessages(batch); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	verdict := errNoAnswer
	if err := raw.Control(func(fd uintptr) { verdict = answers(int(fd)) }); err != nil {
		return err
	}
	return verdict
}

// answers reads all that waits in the socket and returns the first error in it.
func answers(fd int) error {
	answered := false
	var verdict error
	err := drain(fd, func(m syscall.NetlinkMessage) error {
		if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
			return nil
		}
		answered = true
		if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 && verdict == nil {
			verdict = unix.Errno(-code)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !answered:
		return errNoAnswer
	}
	return verdict
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

func (t *transaction) newRules(chain string, rules [][]expr.Any) error {
	for _, rule := range rules {
		var list [][]byte
		for _, e := range rule {
			b, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return err
			}
			list = append(list, nest(unix.NFTA_LIST_ELEM, b))
		}
		t.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
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
		attrUint32(unix.NFTA_SET_ID, uint32(len(t.messages))), // any, unique in the transaction
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
// takes them out (NFT_MSG_DELSETELEM). They must fit into one attribute.
func (t *transaction) elements(kind int, set string, elements [][]byte) {
	var flags netlink.HeaderFlags
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = netlink.Create | netlink.Excl
	}
	t.add(kind, flags, attrString(unix.NFTA_SET_ELEM_LIST_SET, set), nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...))
}

// element encodes an element of a set.
func element(key []byte) []byte {
	return nest(unix.NFTA_LIST_ELEM, nest(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, key)))
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
