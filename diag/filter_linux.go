package diag

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// attrBytecode is INET_DIAG_REQ_BYTECODE, an attribute of a request.
const attrBytecode = 1

// Operations of the kernel's bytecode (INET_DIAG_BC_*, inet_diag_bc_run).
const (
	opLocalHost  = 7
	opRemoteHost = 8
	opDevice     = 9
	opMark       = 10
	opCgroup     = 13
)

func isIPv6(p netip.Prefix) bool { return unmap(p).Addr().Is6() }

// unmap makes a prefix of IPv4-mapped addresses one of IPv4 addresses, which in
// the bytecode stands for both.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// boundInactive is the name under which the kernel lists sockets that are bound
// and neither connect nor listen (Linux 6.8). It reports them as CLOSE.
const boundInactive State = 13

// request makes the request for the sockets of one family that pass the filter.
func (f Filter) request() ([]byte, error) {
	if f.Family != IPv4 && f.Family != IPv6 {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, f.Family)
	}
	states := f.States &^ SetOf(boundInactive)
	if f.States.Has(StateClose) {
		states |= SetOf(boundInactive)
	}
	b := request(f.Family, states, f.Details, sockID{})
	code, err := f.bytecode()
	if err != nil || len(code) == 0 {
		return b, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: attrBytecode, Data: code}})
	return append(b, attrs...), err
}

// bytecode says the conditions as a program for the kernel: operation after
// operation, each followed by its operand. The request has fields for ports too,
// but they are not heeded for sockets that are bound and no more
// (inet_diag_dump_icsk).
func (f Filter) bytecode() ([]byte, error) {
	var code []byte
	for _, end := range []struct {
		op     uint8
		prefix netip.Prefix
		port   uint16
	}{{opLocalHost, f.Local, f.LocalPort}, {opRemoteHost, f.Remote, f.RemotePort}} {
		if end.prefix != (netip.Prefix{}) && !end.prefix.IsValid() {
			return nil, fmt.Errorf("%w: prefix %v", ErrInvalid, end.prefix)
		}
		if end.prefix.IsValid() || end.port != 0 {
			code = appendOp(code, end.op, hostCondition(unmap(end.prefix), end.port))
		}
	}
	native := binary.NativeEndian
	if f.Interface != 0 {
		code = appendOp(code, opDevice, native.AppendUint32(nil, uint32(f.Interface)))
	}
	if f.MarkMask != 0 {
		code = appendOp(code, opMark, native.AppendUint32(native.AppendUint32(nil, f.Mark&f.MarkMask), f.MarkMask))
	}
	if f.CgroupID != 0 {
		code = appendOp(code, opCgroup, native.AppendUint64(nil, f.CgroupID))
	}
	// An operation that fails jumps to four bytes behind the end, which is how a
	// program says no; the end itself means yes.
	for at := 0; at < len(code); at += int(code[at+1]) {
		native.PutUint16(code[at+2:], uint16(len(code)-at+4))
	}
	return code, nil
}

// appendOp adds a struct inet_diag_bc_op, whose second byte is how far to go on
// if the condition holds, and its operand.
func appendOp(code []byte, op uint8, operand []byte) []byte {
	code = append(code, op, uint8(4+len(operand)), 0, 0)
	return append(code, operand...)
}

// hostCondition is a struct inet_diag_hostcond. Prefixes without addresses are
// of family AF_UNSPEC and cover everything; the port -1 is any.
func hostCondition(p netip.Prefix, port uint16) []byte {
	family, bits := uint8(unix.AF_UNSPEC), 0
	switch {
	case p.Addr().Is4():
		family, bits = unix.AF_INET, p.Bits()
	case p.Addr().Is6():
		family, bits = unix.AF_INET6, p.Bits()
	}
	number := ^uint32(0)
	if port != 0 {
		number = uint32(port)
	}
	b := binary.NativeEndian.AppendUint32([]byte{family, uint8(bits), 0, 0}, number)
	return append(b, p.Addr().AsSlice()...)
}
