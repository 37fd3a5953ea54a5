package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/netns"
	"github.com/gosoccr/gosoccr/soccr"
)

// The ways in which connections move.
const (
	wayConn    = "conn"           // Checkpoint and RestoreConn
	wayEncoded = "conn, encoded"  // with the snapshot as bytes in between
	wayPath    = "conn, path"     // with other policies for what is known of the path
	wayTap     = "conn, tap"      // with a tap
	wayInPlace = "in place"       // into the same socket
	wayBatch   = "batch"          // SaveAll and RestoreAll
	wayBare    = "batch, bare"    // without the socket options
	wayHost    = " to other host" // a suffix
	wayProcess = "other process"
)

// ways is how often which way is chosen for a single connection.
var ways = [...]string{
	wayConn, wayConn, wayConn, wayEncoded, wayEncoded, wayPath, wayTap, wayInPlace, wayInPlace,
}

// run moves ends on a site, one lot after the other, until it is enough.
func (e *engine) run(at *site, random *rand.Rand, pause time.Duration) error {
	return netns.Do(at.ns, func() error {
		for e.board.Stop.Load() == 0 {
			n := 1
			if random.IntN(3) == 0 {
				n = 2 + random.IntN(15)
			}
			ends := e.claimSome(at, n, random)
			if len(ends) == 0 {
				time.Sleep(time.Millisecond)
				continue
			}
			to := at
			if other := e.otherSite(at); other != nil && random.IntN(10) == 0 {
				to = other
			}
			if len(ends) == 1 {
				e.moveOne(ends[0], to, random)
			} else {
				e.moveMany(ends, to, random)
			}
			for _, x := range ends {
				x.claimed.Store(false)
			}
			if pause > 0 {
				time.Sleep(upTo(random, 2*pause))
			}
		}
		return nil
	})
}

func (e *engine) otherSite(at *site) *site {
	for _, s := range e.sites {
		if s != at {
			return s
		}
	}
	return nil
}

// movable reports whether a stopped end is to move. One that is closed is not: its host
// may have a word to say yet (TIME_WAIT), and would lose what it needs for that.
func (x *end) movable() bool {
	if x.conn == nil {
		return false
	}
	info, err := infoOf(x.conn)
	return err == nil && stateOf(&info) != soccr.StateClose
}

func (e *engine) moveOne(x *end, to *site, random *rand.Rand) {
	begun := time.Now()
	x.stop()
	defer x.goOn()
	if !x.movable() {
		return
	}
	way := ways[random.IntN(len(ways))]
	if way == wayInPlace && to != x.at {
		way = wayConn
	}
	var err error
	if way == wayInPlace {
		err = x.moveInPlace()
	} else {
		to, err = x.moveConn(way, to, random)
	}
	if to != x.at {
		way += wayHost
	}
	switch {
	case errors.Is(err, soccr.ErrChanged): // it goes on
		e.refused("it changed while it was saved")
		x.remember("%s: %v", way, err)
	case err != nil:
		_ = e.fail(x, fmt.Errorf("%s: %w", way, err))
	case x.aground:
	default:
		x.arrived(to)
		e.moved(way, time.Since(begun), x)
	}
}

// arrived notes where an end is now.
func (x *end) arrived(at *site) {
	if at != x.at {
		x.engine.mu.Lock() // others look for ends on a site
		x.at, x.hostMoved = at, time.Now()
		x.engine.mu.Unlock()
	}
}

func (x *end) moveConn(way string, to *site, random *rand.Rand) (*site, error) {
	from := x.at
	save, restore := []soccr.Option{soccr.WithLock(from.lock)}, []soccr.Option(nil)
	switch way {
	case wayTap:
		save = append(save, soccr.WithTap(from.tap))
	case wayPath:
		restore = append(restore, soccr.WithPath(soccr.PathPolicy(random.IntN(4))))
		save = append(save, soccr.WithDrain(upTo(random, 2*time.Millisecond)))
	}
	snap, err := soccr.Checkpoint(x.conn, save...)
	if err != nil {
		return to, err
	}
	x.remember("%s, host %d to %d, in %v, %d received, %d to send (%d unsent)", way, from.number, to.number,
		snap.State, len(snap.RecvQueue), len(snap.SendQueue), snap.Unsent)
	if snap.State == soccr.StateClose { // at the last moment, see movable
		x.keep(snap)
		return from, x.strand(from)
	}
	if to != from {
		if way == wayTap {
			if err := to.tap.Watch(snap.Local, snap.Remote); err != nil {
				return to, err
			}
		}
		// What the peer sends arrives there from now on, and is kept away.
		if err := to.lock.LockFlow(snap.Local, snap.Remote); err != nil {
			return to, err
		}
		if err := x.engine.router.route(snap.Local.Addr().Unmap(), to.number); err != nil {
			return to, err
		}
		if way == wayTap {
			packets, err := from.tap.Take(snap.Local, snap.Remote)
			if err != nil {
				return to, err
			}
			from.tap.Forget(snap.Local, snap.Remote)
			restore = append(restore, soccr.WithPackets(packets))
		}
	}
	restore = append(restore, soccr.WithLock(to.lock))
	if way == wayTap {
		restore = append(restore, soccr.WithTap(to.tap))
	}
	if way == wayEncoded {
		image, err := snap.MarshalBinary()
		if err != nil {
			return to, err
		}
		snap = new(soccr.Snapshot)
		if err := snap.UnmarshalBinary(image); err != nil {
			return to, err
		}
	}
	return to, x.restore(snap, to, restore...)
}

// moveInPlace takes the connection out of its socket and puts it back there.
func (x *end) moveInPlace() error {
	return control(x.conn, func(fd int) error {
		lock := x.at.lock
		if err := lock.LockFlow(x.Local, x.Remote); err != nil {
			return err
		}
		s, err := soccr.Pause(fd)
		if err != nil {
			return err
		}
		var snap *soccr.Snapshot
		for range 5 {
			if snap, err = s.Save(); !errors.Is(err, soccr.ErrChanged) {
				break
			}
		}
		if err != nil {
			return errors.Join(err, lock.UnlockFlow(x.Local, x.Remote), s.Resume())
		}
		x.remember("%s in %v, %d received, %d to send (%d unsent)", wayInPlace, snap.State, len(snap.RecvQueue), len(snap.SendQueue), snap.Unsent)
		x.keep(snap)
		if err := s.Disconnect(); err != nil {
			return err
		}
		if snap.State == soccr.StateClose { // at the last moment, see movable
			return x.strand(x.at)
		}
		if err := s.Restore(snap); err != nil {
			return err
		}
		if err := lock.UnlockFlow(x.Local, x.Remote); err != nil {
			return err
		}
		return s.Resume()
	})
}

// moveMany moves several ends at once.
func (e *engine) moveMany(ends []*end, to *site, random *rand.Rand) {
	begun := time.Now()
	from, way := ends[0].at, wayBatch
	var options []soccr.Option
	if random.IntN(4) == 0 {
		way, options = wayBare, append(options, soccr.WithoutOptions())
	}
	if to != from {
		way += wayHost
	}
	var moving []*end
	for _, x := range ends {
		x.stop()
		if x.movable() {
			moving = append(moving, x)
		}
	}
	defer func() {
		for _, x := range ends {
			x.goOn()
		}
	}()
	if len(moving) == 0 {
		return
	}
	if culprit, err := e.moveBatch(way, moving, from, to, options); err != nil {
		if culprit == nil {
			culprit = moving[0]
		}
		_ = e.fail(culprit, fmt.Errorf("%s of %d: %w", way, len(moving), err))
		return
	}
	for _, x := range moving {
		if x.conn != nil {
			x.arrived(to)
			e.moved(way, time.Since(begun), x)
		}
	}
}

// moveBatch moves ends by a batch, and names the one with which that has failed. Those
// that have not moved have no conn, or the one that they had.
func (e *engine) moveBatch(way string, ends []*end, from, to *site, options []soccr.Option) (culprit *end, err error) {
	fds := make([]int, len(ends))
	for i, x := range ends {
		err := control(x.conn, func(fd int) (err error) {
			fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			return err
		})
		if err != nil {
			return x, err
		}
	}
	var images bytes.Buffer
	saved, err := soccr.SaveAll(&images, fds, append(options, soccr.WithLock(from.lock))...)
	if err != nil {
		return nil, err
	}
	saved.Disconnect()
	var moved []*end
	for i, x := range ends {
		switch err := saved.Err(i); {
		case errors.Is(err, soccr.ErrChanged): // it goes on
			e.refused("it changed while it was saved")
			if err := unix.Close(fds[i]); err != nil {
				return x, err
			}
		case err != nil:
			return x, err
		default:
			x.remember("%s of %d, host %d to %d", way, len(ends), from.number, to.number)
			_ = x.conn.Close()
			moved = append(moved, x)
		}
	}
	if err := saved.Close(); err != nil {
		return nil, err
	}
	moved, arriving, err := sortOut(moved, images.Bytes(), from)
	if err != nil {
		return nil, err
	}
	if to != from {
		flows := make([][2]netip.AddrPort, len(moved))
		for i, x := range moved {
			flows[i] = [2]netip.AddrPort{x.Local, x.Remote}
		}
		if err := to.lock.LockFlows(flows); err != nil {
			return nil, err
		}
		for _, x := range moved {
			if err := e.router.route(x.Local.Addr().Unmap(), to.number); err != nil {
				return x, err
			}
		}
	}
	err = netns.Do(to.ns, func() error {
		restored, err := soccr.RestoreAll(arriving, append(options, soccr.WithLock(to.lock))...)
		if err != nil {
			return err
		}
		if err := restored.Resume(); err != nil {
			return err
		}
		for i, x := range moved {
			if err := restored.Err(i); err != nil {
				culprit = x
				return err
			}
			if x.conn, err = fileConn(restored.FD(i)); err != nil {
				culprit = x
				return err
			}
		}
		return nil
	})
	return culprit, err
}

// sortOut tells which ends are to arrive elsewhere, and gives their snapshots one behind
// the other: all but those that were closed at the last moment, see movable.
func sortOut(ends []*end, images []byte, at *site) (moving []*end, arriving io.Reader, err error) {
	var all bytes.Buffer
	for _, x := range ends {
		snap := new(soccr.Snapshot)
		rest, err := snap.DecodeShared(images)
		if err != nil {
			return nil, nil, err
		}
		x.remember("%v, %d received, %d to send (%d unsent)", snap.State, len(snap.RecvQueue), len(snap.SendQueue), snap.Unsent)
		x.keep(snap)
		if snap.State == soccr.StateClose {
			if err := x.strand(at); err != nil {
				return nil, nil, err
			}
		} else {
			moving = append(moving, x)
			all.Write(images[:len(images)-len(rest)])
		}
		images = rest
	}
	return moving, &all, nil
}

// fileConn makes a conn of a descriptor, which is closed.
func fileConn(fd int) (*net.TCPConn, error) {
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
