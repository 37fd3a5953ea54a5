package netlock

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// A groupState is what is known of a group of flows.
type groupState struct {
	flows  int  // how many
	leased bool // so that they are locked, and else prepared
	stale  bool // its sets hold more
}

// A member says which group a flow is in, and which call has named it last.
type member struct {
	in   group
	call uint
}

// A placed flow is in a group, or about to be.
type placed struct {
	Flow
	in group
}

// nowhere is the group of what is not known.
const nowhere group = -1

// named sets the flows' groups, nowhere where a flow is not known or has come before,
// and gives the groups beside the first that have all their flows among them. Groups
// that are prepared and have only some are forgotten.
func (l *Lock) named(flows []placed) (whole []group) {
	l.calls++
	counts := make([]int, len(l.groups))
	for i := range flows {
		f := &flows[i]
		f.in = nowhere
		if m, known := l.flows[f.Flow]; known && m.call != l.calls {
			l.flows[f.Flow] = member{m.in, l.calls}
			f.in = m.in
			counts[m.in]++
		}
	}
	for i, n := range counts {
		switch g, s := group(i), l.groups[i]; {
		case g == 0 || n == 0:
		case n == s.flows:
			whole = append(whole, g)
		case !s.leased:
			l.forget(g)
		}
	}
	return whole
}

// forget forgets a group that is prepared.
func (l *Lock) forget(g group) {
	maps.DeleteFunc(l.flows, func(_ Flow, m member) bool { return m.in == g })
	l.groups[g] = groupState{stale: true}
	l.makeUntidy()
}

// enter notes flows, and returns those that were not known. They are in the first
// group, where the kernel does not have them yet.
func (l *Lock) enter(flows []placed) []placed {
	unknown := flows[:0]
	for _, f := range flows {
		if _, known := l.flows[f.Flow]; !known {
			l.flows[f.Flow] = member{}
			unknown = append(unknown, placed{Flow: f.Flow})
		}
	}
	l.groups[0].flows += len(unknown)
	return unknown
}

// leave forgets flows. The sets of the first group do not hold them.
func (l *Lock) leave(flows []placed) {
	for _, f := range flows {
		in := l.flows[f.Flow].in
		s := &l.groups[in]
		s.flows--
		s.stale = in != 0
		delete(l.flows, f.Flow)
	}
	l.makeUntidy()
}

// place puts flows that have just been entered into a group without a lease.
func (l *Lock) place(flows []placed) (group, error) {
	g, err := l.emptyGroup()
	if err != nil {
		return 0, err
	}
	for i := range flows {
		flows[i].in = g
		l.flows[flows[i].Flow] = member{in: g}
	}
	l.groups[0].flows -= len(flows)
	l.groups[g].flows += len(flows)
	for some := range slices.Chunk(flows, l.table.capacity) {
		if err := l.table.change(unix.NFT_MSG_NEWSETELEM, some, nil); err != nil {
			return 0, err
		}
	}
	return g, nil
}

// emptyGroup gives a group beside the first that has no flows and no lease.
func (l *Lock) emptyGroup() (group, error) {
	if err := l.sweep(); err != nil {
		return 0, err
	}
	for g := 1; g < len(l.groups); g++ {
		if l.groups[g].flows == 0 {
			return group(g), nil
		}
	}
	g := group(len(l.groups))
	if err := l.table.newGroup(g); err != nil {
		return 0, err
	}
	l.groups = append(l.groups, groupState{})
	return g, nil
}

// sweep empties the sets of groups whose flows are all forgotten.
func (l *Lock) sweep() error {
	for g := range l.groups {
		if l.groups[g].untidy() {
			if err := l.table.empty(group(g)); err != nil {
				return err
			}
			l.groups[g].stale = false
		}
	}
	return nil
}

// makeUntidy has keepRenewing sweep, so that nobody has to wait for it.
func (l *Lock) makeUntidy() {
	if !slices.ContainsFunc(l.groups, groupState.untidy) {
		return
	}
	select {
	case l.untidy <- struct{}{}:
	default:
	}
}

func (s groupState) untidy() bool { return s.stale && s.flows == 0 }

func (s groupState) prepared() bool { return s.flows > 0 && !s.leased }

// tidy sweeps; what it fails to, renew tries again.
func (l *Lock) tidy() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.usable() == nil {
		_ = l.noteLoss(l.sweep())
	}
}
