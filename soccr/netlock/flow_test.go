package netlock

import (
	"errors"
	"net/netip"
	"testing"
)

func TestFlowOnWire(t *testing.T) {
	for _, c := range []struct{ name, local, remote, want string }{
		{"IPv4", "10.0.0.1:80", "10.0.0.2:4000", "10.0.0.1:80->10.0.0.2:4000"},
		{"IPv6", "[fd00::1]:80", "[fd00::2]:4000", "[fd00::1]:80->[fd00::2]:4000"},
		{"both mapped", "[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:4000", "10.0.0.1:80->10.0.0.2:4000"},
		{"one mapped", "[::ffff:10.0.0.1]:80", "10.0.0.2:4000", "10.0.0.1:80->10.0.0.2:4000"},
		{"zone", "[fe80::1%eth0]:80", "[fe80::2%eth0]:4000", "[fe80::1]:80->[fe80::2]:4000"},
		{"connected to itself", "127.0.0.1:80", "127.0.0.1:80", "127.0.0.1:80->127.0.0.1:80"},
		{"two families", "10.0.0.1:80", "[fd00::2]:4000", ""},
		{"port 0", "10.0.0.1:0", "10.0.0.2:4000", ""},
		{"unspecified", "0.0.0.0:80", "10.0.0.2:4000", ""},
		{"unspecified and mapped", "10.0.0.1:80", "[::ffff:0.0.0.0]:4000", ""},
	} {
		f := Flow{Local: netip.MustParseAddrPort(c.local), Remote: netip.MustParseAddrPort(c.remote)}
		got, err := f.onWire()
		switch {
		case c.want == "":
			if !errors.Is(err, ErrInvalidFlow) {
				t.Errorf("%s: %v, %v, want ErrInvalidFlow", c.name, got, err)
			}
		case err != nil || got.String() != c.want:
			t.Errorf("%s: %v, %v, want %s", c.name, got, err, c.want)
		}
	}
	if _, err := (Flow{}).onWire(); !errors.Is(err, ErrInvalidFlow) {
		t.Errorf("empty flow: %v, want ErrInvalidFlow", err)
	}
}
