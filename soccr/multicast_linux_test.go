package soccr

import (
	"bytes"
	"testing"
)

// FuzzGroups reads what /proc says of a host's multicast groups.
func FuzzGroups(f *testing.F) {
	f.Add([]byte("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"))
	f.Add([]byte("1    lo              ff020000000000000000000000000001     1 0000000C 0\n2    eth0            ff020000000000000000000000000001     1 0000000C 0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for version, parse := range map[int]func([]byte) []joined{4: parseIGMP, 6: parseIGMP6} {
			all := parse(text)
			if len(all) > bytes.Count(text, []byte("\n"))+1 {
				t.Errorf("%d groups in %d lines", len(all), bytes.Count(text, []byte("\n"))+1)
			}
			for _, j := range all {
				if j.group.Is4() != (version == 4) {
					t.Errorf("%v is no group of IPv%d", j.group, version)
				}
			}
		}
	})
}
