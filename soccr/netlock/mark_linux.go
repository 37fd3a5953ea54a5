package netlock

import "slices"

// AllowMark lets segments with one more mark pass on the loopback device, until the
// lock is closed, as those with the mark of [WithMark] do: a firewall may drop these.
// A mark is there to tell injected segments from a peer's, so 0 is an error.
func (l *Lock) AllowMark(mark uint32) error {
	return opError("allow mark", l.allowMark(mark))
}

func (l *Lock) allowMark(mark uint32) error {
	if mark == 0 {
		return errNoMark
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if mark == l.table.config.mark || slices.Contains(l.marks, mark) {
		return nil
	}
	tx := l.table.begin()
	for _, c := range l.table.chains() {
		rules := injectedRules(mark, c)
		slices.Reverse(rules) // each is put before all others
		if err := tx.rules(0, c.locked(), rules); err != nil {
			return err
		}
	}
	if err := l.table.commit(tx); err != nil {
		return l.noteLoss(err)
	}
	l.marks = append(l.marks, mark)
	return nil
}
