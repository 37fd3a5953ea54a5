package netlock

import (
	"strings"

	"github.com/google/nftables"
)

// removeAbandoned removes the tables whose lease has expired. They lock nothing
// any more; their owner was killed on a kernel without owned tables, or has lost
// its lock. What cannot be removed, such as an owned table, stays: this is tidying
// up, and that it fails is no reason not to make a lock.
func removeAbandoned(ns int) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns), nftables.AsLasting())
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseLasting() }() // close(2) on a socket does not fail
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return
	}
	for _, t := range tables {
		// A list that is read while the lease is being renewed can miss both its
		// old and its new elements, though hardly twice.
		if strings.HasPrefix(t.Name, tablePrefix) && expired(conn, t) && expired(conn, t) {
			conn.DelTable(t)
			_ = conn.Flush()
		}
	}
}

// expired reports whether a table's first lease is there and has no elements.
func expired(conn *nftables.Conn, t *nftables.Table) bool {
	elements, err := conn.GetSetElements(&nftables.Set{Table: t, Name: group(0).lease()})
	return err == nil && len(elements) == 0
}
