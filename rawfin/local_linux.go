package rawfin

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// isLocal asks the kernel, through a rtnetlink socket, whether a packet to
// addr, with the mark and on the device, is for this host. The question is the
// one that sending asks, so that routing rules which look at the mark count.
// Without it, a segment for an address that has left this host would be sent
// on to whoever has the address now.
//
// The reply to one request is one message, waiting when the request returns.
func isLocal(fd int, addr netip.Addr, device, mark uint32) (bool, error) {
	const u32Attr = unix.SizeofRtAttr + 4
	request := struct {
		unix.NlMsghdr
		unix.RtMsg
		OIF    unix.RtAttr
		Device uint32
		MARK   unix.RtAttr
		Mark   uint32
		DST    unix.RtAttr
	}{
		NlMsghdr: unix.NlMsghdr{Type: unix.RTM_GETROUTE, Flags: unix.NLM_F_REQUEST},
		RtMsg:    unix.RtMsg{Family: unix.AF_INET6, Dst_len: uint8(addr.BitLen())},
		OIF:      unix.RtAttr{Type: unix.RTA_OIF, Len: u32Attr},
		Device:   device,
		MARK:     unix.RtAttr{Type: unix.RTA_MARK, Len: u32Attr},
		Mark:     mark,
		DST:      unix.RtAttr{Type: unix.RTA_DST, Len: unix.SizeofRtAttr + uint16(addr.BitLen()/8)},
	}
	if addr.Is4() {
		request.Family = unix.AF_INET
	}
	request.NlMsghdr.Len = uint32(binary.Size(request) + addr.BitLen()/8)
	message, err := binary.Append(nil, binary.NativeEndian, request)
	if err != nil {
		return false, err
	}
	if err := unix.Sendto(fd, append(message, addr.AsSlice()...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto rtnetlink", err)
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT)
	if err != nil {
		return false, os.NewSyscallError("recvfrom rtnetlink", err)
	}
	var head unix.NlMsghdr
	body, err := binary.Decode(reply[:n], binary.NativeEndian, &head)
	if err != nil {
		return false, fmt.Errorf("rtnetlink reply: %w", err)
	}
	switch head.Type {
	case unix.NLMSG_ERROR:
		var failure unix.NlMsgerr
		if _, err := binary.Decode(reply[body:n], binary.NativeEndian, &failure); err != nil {
			return false, fmt.Errorf("rtnetlink reply: %w", err)
		}
		return false, os.NewSyscallError("RTM_GETROUTE", unix.Errno(-failure.Error))
	case unix.RTM_NEWROUTE:
		var route unix.RtMsg
		if _, err := binary.Decode(reply[body:n], binary.NativeEndian, &route); err != nil {
			return false, fmt.Errorf("rtnetlink reply: %w", err)
		}
		return route.Type == unix.RTN_LOCAL, nil
	}
	return false, fmt.Errorf("rtnetlink reply of type %d", head.Type)
}
