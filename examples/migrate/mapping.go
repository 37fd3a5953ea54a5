package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/soccr"
)

// mapFlags are the flags that say which addresses, ports and devices are others.
type mapFlags struct{ local, remote, devices []string }

func (f *mapFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringArrayVar(&f.local, "map-local", nil, "OLD=NEW: another address, network or port of this end")
	flags.StringArrayVar(&f.remote, "map-remote", nil, "OLD=NEW: another address, network or port of the peer")
	flags.StringArrayVar(&f.devices, "map-device", nil, "OLD=NEW: another name of a device")
}

func (f *mapFlags) parse() (m soccr.Mapping, err error) {
	for _, side := range []struct {
		texts []string
		rules *[]soccr.AddrRule
	}{{f.local, &m.Local}, {f.remote, &m.Remote}} {
		for _, text := range side.texts {
			rule, err := parseRule(text)
			if err != nil {
				return m, err
			}
			*side.rules = append(*side.rules, rule)
		}
	}
	for _, text := range f.devices {
		from, to, ok := strings.Cut(text, "=")
		if !ok {
			return m, fmt.Errorf("--map-device %s: want OLD=NEW", text)
		}
		if m.Devices == nil {
			m.Devices = map[string]string{}
		}
		m.Devices[from] = to
	}
	return m, m.Validate()
}

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
