package netlock

import "fmt"

// A Drop is a verdict of nftables that dropped a packet, as [Explain] found it.
type Drop struct {
	Family string // "inet", "ip" or "ip6"
	Table  string
	Chain  string
	Rule   uint64 // its handle, as "nft --handle list ruleset" shows it; 0: the chain's policy
}

// String says what dropped the packet: "rule 7 of chain ip filter KUBE-FIREWALL".
func (d Drop) String() string {
	what := "the policy"
	if d.Rule != 0 {
		what = fmt.Sprintf("rule %d", d.Rule)
	}
	return fmt.Sprintf("%s of chain %s %s %s", what, d.Family, d.Table, d.Chain)
}
