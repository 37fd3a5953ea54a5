package rawfin

import (
	"fmt"
	"strings"
)

// Flags are the control bits of a TCP header (RFC 9293, section 3.1).
type Flags uint8

// The control bits, as they are on the wire.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG

	allFlags = FIN | SYN | RST | PSH | ACK | URG
)

var flagNames = [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"}

// String names the bits that are set, as in "FIN|ACK"; "0" if there are none.
func (f Flags) String() string {
	if f == 0 {
		return "0"
	}
	var names []string
	for bit, name := range flagNames {
		if f&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	if rest := f &^ allFlags; rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint8(rest)))
	}
	return strings.Join(names, "|")
}
