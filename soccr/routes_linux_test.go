package soccr_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

// A snapshot cannot have a connection's bytes go by way of a host of its choice,
// unless the caller says so.
func TestSourceRoutes(t *testing.T) {
	n := newNetwork(t)
	other := netip.MustParseAddr("fd77::66")
	for _, c := range []struct {
		name    string
		f       family
		setting soccr.Setting
		routes  bool
	}{
		{"loose", ip4, soccr.Setting{Name: "IP_OPTIONS", Bytes: []byte{131, 7, 4, 10, 77, 0, 66, 0}}, true},
		{"strict, behind others", ip4, soccr.Setting{Name: "IP_OPTIONS", Bytes: []byte{1, 7, 7, 4, 0, 0, 0, 0, 137, 7, 4, 10, 77, 0, 66, 0}}, true},
		{"record", ip4, soccr.Setting{Name: "IP_OPTIONS", Bytes: []byte{7, 7, 4, 0, 0, 0, 0, 0}}, false},
		{"without a length", ip4, soccr.Setting{Name: "IP_OPTIONS", Bytes: []byte{1, 1, 1, 7}}, false},
		{"home address", ip6, soccr.Setting{Name: "IPV6_RTHDR", Bytes: slices.Concat([]byte{0, 2, 2, 1, 0, 0, 0, 0}, other.AsSlice())}, true},
		{"at its end", ip6, soccr.Setting{Name: "IPV6_RTHDR", Bytes: slices.Concat([]byte{0, 2, 4, 0, 0, 0, 0, 0}, other.AsSlice())}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			snap := &soccr.Snapshot{
				State: soccr.StateEstablished,
				Local: netip.AddrPortFrom(c.f.here, 7777), Remote: netip.AddrPortFrom(c.f.there, 7777),
				MSS: 1000, Options: soccr.Options{Settings: []soccr.Setting{c.setting}},
			}
			try := func(options ...soccr.Option) (err error) {
				hosttest.Do(t, n.here, func() error {
					fd, failed := soccr.NewSocket(snap)
					if failed != nil {
						return failed
					}
					defer unix.Close(fd)
					var s *soccr.Socket
					if s, err = soccr.Pause(fd); err == nil {
						err = s.Restore(snap, options...)
					}
					return nil
				})
				return err
			}
			const refused = "WithRoutes"
			if err := try(); c.routes && (!errors.Is(err, soccr.ErrOption) || !strings.Contains(err.Error(), refused)) {
				t.Errorf("got %v", err)
			} else if !c.routes && err != nil && strings.Contains(err.Error(), refused) {
				t.Errorf("got %v", err)
			}
			if err := try(soccr.WithRoutes()); err != nil && strings.Contains(err.Error(), refused) {
				t.Errorf("with WithRoutes: %v", err)
			}
		})
	}
}
