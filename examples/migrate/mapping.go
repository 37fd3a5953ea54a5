package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gosoccr/gosoccr/soccr"
)

// parseRule reads OLD=NEW, both of which are an address, a network, an address with
// a port, or a port (":80").
func parseRule(text string) (rule soccr.AddrRule, err error) {
	from, to, ok := strings.Cut(text, "=")
	if !ok {
		return rule, fmt.Errorf("%s: want OLD=NEW", text)
	}
	if rule.From, rule.FromPort, err = parseEnd(from); err != nil {
		return rule, fmt.Errorf("%s: %w", text, err)
	}
	if rule.To, rule.ToPort, err = parseEnd(to); err != nil {
		return rule, fmt.Errorf("%s: %w", text, err)
	}
	return rule, nil
}

func parseEnd(text string) (prefix netip.Prefix, port uint16, err error) {
	if rest, ok := strings.CutPrefix(text, ":"); ok && !strings.Contains(rest, ":") {
		number, err := strconv.ParseUint(rest, 10, 16)
		return prefix, uint16(number), err
	}
	if prefix, err = netip.ParsePrefix(text); err == nil {
		return prefix, 0, nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), 0, nil
	}
	end, err := netip.ParseAddrPort(text)
	if err != nil {
		return prefix, 0, fmt.Errorf("%q is no address, network, or address with a port", text)
	}
	return netip.PrefixFrom(end.Addr(), end.Addr().BitLen()), end.Port(), nil
}
