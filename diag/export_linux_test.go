package diag

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What TestMessages needs to see.
var BigEndian = bigEndian

func Decode(b []byte) (Socket, error) { return decode(b, numbered) }

// Messages gives the messages of a listing as they come, with all details of
// listening sockets, too.
func (c *Conn) Messages(filter Filter) ([][]byte, error) {
	var all [][]byte
	for _, filter.Family = range []Family{IPv4, IPv6} {
		request, err := filter.request()
		if err != nil {
			return nil, err
		}
		replies, err := c.nl.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
			Data:   request,
		})
		if err != nil {
			return nil, err
		}
		for _, m := range replies {
			all = append(all, m.Data)
		}
	}
	return all, nil
}
