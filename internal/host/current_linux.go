package host

import (
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Current is the host that the calling thread is in: for a process that was
// started inside [Host.Do], the host it belongs to.
func Current() (*Host, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, err
	}
	link, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &Host{ns: ns, link: link}, nil
}
