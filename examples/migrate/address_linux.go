package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/netns"
)

// A place is an address on a device.
type place struct {
	prefix netip.Prefix
	device string
}

// parsePlaces reads ADDRESS/BITS@DEVICE.
func parsePlaces(texts []string) (places []place, err error) {
	for _, text := range texts {
		prefix, device, ok := strings.Cut(text, "@")
		p := place{device: device}
		if p.prefix, err = netip.ParsePrefix(prefix); err != nil || !ok || device == "" {
			return nil, fmt.Errorf("%s: want ADDRESS/BITS@DEVICE, as in 10.0.0.5/24@eth0", text)
		}
		places = append(places, p)
	}
	return places, nil
}

// onHost runs f for the host that is a network namespace.
func onHost(ns *os.File, f func(*host.Host) error) error {
	run := func() error {
		h, err := host.Current()
		if err != nil {
			return err
		}
		return errors.Join(f(h), h.Close())
	}
	if netns.Current(int(ns.Fd())) {
		return run()
	}
	return netns.Do(int(ns.Fd()), run)
}

// give takes addresses away from a host, all or none.
func give(h *host.Host, places []place) error {
	for i, p := range places {
		if err := h.RemoveAddr(p.device, p.prefix); err != nil {
			err = fmt.Errorf("give %v on %s: %w", p.prefix, p.device, err)
			return errors.Join(err, take(h, places[:i]))
		}
	}
	return nil
}

// take gives a host addresses, all or none, and tells its neighbors.
func take(h *host.Host, places []place) error {
	for i, p := range places {
		if err := takeOne(h, p); err != nil {
			err = fmt.Errorf("take %v on %s: %w", p.prefix, p.device, err)
			return errors.Join(err, give(h, places[:i]))
		}
	}
	return nil
}

func takeOne(h *host.Host, p place) error {
	announcer, err := h.NewAnnouncer(p.device)
	if err != nil {
		return err
	}
	err = h.AddAddr(p.device, p.prefix)
	if err == nil {
		if err = announcer.Announce(p.prefix.Addr()); err != nil {
			err = errors.Join(err, h.RemoveAddr(p.device, p.prefix))
		}
	}
	return errors.Join(err, announcer.Close())
}
