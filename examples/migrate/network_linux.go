package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gosoccr/gosoccr/internal/host"
)

// A network is three hosts on a switch.
type network struct {
	hub     *host.Switch
	client  *host.Host
	servers [2]*host.Host
	plan    plan
}

// A plan is who has which address.
type plan struct {
	client  netip.Prefix
	servers [2]netip.Prefix
	service netip.Prefix // which the servers' hosts have by turns
}

var plan4 = plan{
	client:  netip.MustParsePrefix("10.77.0.1/24"),
	servers: [2]netip.Prefix{netip.MustParsePrefix("10.77.0.11/24"), netip.MustParsePrefix("10.77.0.12/24")},
	service: netip.MustParsePrefix("10.77.0.10/24"),
}

var plan6 = plan{
	client:  netip.MustParsePrefix("fd77::1/64"),
	servers: [2]netip.Prefix{netip.MustParsePrefix("fd77::11/64"), netip.MustParsePrefix("fd77::12/64")},
	service: netip.MustParsePrefix("fd77::10/64"),
}

func newNetwork(p plan) (_ *network, err error) {
	n := &network{plan: p}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build the network: %w", err), n.close())
		}
	}()
	if n.hub, err = host.NewSwitch(); err != nil {
		return nil, err
	}
	for _, h := range []struct {
		host *(*host.Host)
		addr netip.Prefix
	}{{&n.client, p.client}, {&n.servers[0], p.servers[0]}, {&n.servers[1], p.servers[1]}} {
		if *h.host, err = host.New(); err != nil {
			return nil, err
		}
		if err = n.hub.Plug(*h.host, device); err != nil {
			return nil, err
		}
		if err = (*h.host).AddAddr(device, h.addr); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *network) close() error {
	var err error
	for _, h := range []*host.Host{n.client, n.servers[0], n.servers[1]} {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	if n.hub != nil {
		err = errors.Join(err, n.hub.Close())
	}
	return err
}
