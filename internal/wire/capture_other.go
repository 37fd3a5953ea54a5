//go:build !linux

package wire

import "errors"

// A Capture hands on the segments that pass a device, in both directions.
type Capture struct{}

// Watch needs Linux.
func Watch(string, func(Segment)) (*Capture, error) { return nil, errors.ErrUnsupported }

// Stop needs Linux.
func (*Capture) Stop() (lost uint64, err error) { return 0, errors.ErrUnsupported }

// WatchPackets needs Linux.
func WatchPackets(string, func(Packet)) (*Capture, error) { return nil, errors.ErrUnsupported }

// Lost needs Linux.
func (*Capture) Lost() (uint64, error) { return 0, errors.ErrUnsupported }
