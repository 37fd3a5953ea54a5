package soccr

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// numbers of options that MIPS and PowerPC do not share with the rest; here all
// take them from x/sys.
var numbers = map[string]int{
	"SO_BROADCAST": unix.SO_BROADCAST,
	"SO_DONTROUTE": unix.SO_DONTROUTE,
	"SO_KEEPALIVE": unix.SO_KEEPALIVE,
	"SO_LINGER":    unix.SO_LINGER,
	"SO_OOBINLINE": unix.SO_OOBINLINE,
	"SO_RCVLOWAT":  unix.SO_RCVLOWAT,
	"SO_RCVTIMEO":  unix.SO_RCVTIMEO,
	"SO_REUSEPORT": unix.SO_REUSEPORT,
	"SO_SNDTIMEO":  unix.SO_SNDTIMEO,
}

// relations are the columns ifSet and with as rows, -1 where there is none.
var relations [len(options)]struct{ ifSet, with int }

func init() {
	find := func(name string) int {
		if name == "" {
			return -1
		}
		return optionIndex[name]
	}
	for i := range options {
		o := &options[i]
		if n, ok := numbers[o.name]; ok {
			o.number = n
		}
		relations[i].ifSet, relations[i].with = find(o.ifSet), find(o.with)
	}
}

// levels are the numbers of the levels.
var levels = [...]int{
	socketLevel: unix.SOL_SOCKET,
	tcpLevel:    unix.IPPROTO_TCP,
	udpLevel:    unix.IPPROTO_UDP,
	ipLevel:     unix.IPPROTO_IP,
	ipv6Level:   unix.IPPROTO_IPV6,
	rawLevel:    unix.SOL_RAW,
	icmpv6Level: unix.IPPROTO_ICMPV6,
	fileLevel:   0, // none
}

// known is what is known of a socket before its options are read.
type known struct {
	flags    int  // F_GETFL
	noMemory bool // SO_MEMINFO tells that no option takes any
	unpaced  bool // TCP_INFO tells that SO_MAX_PACING_RATE has its default
}

// readSettings appends the options of a socket that do not have their default.
func readSettings(settings []Setting, fd int, k known, on sockets) ([]Setting, error) {
	var set [len(options)]bool
	s := scratch.Get().(*Setting) // it escapes
	defer scratch.Put(s)
	for i := range options {
		o := &options[i]
		if !o.on.has(on) || k.noMemory && o.inMemory || k.unpaced && o.kind == longKind {
			continue
		}
		if r := relations[i].ifSet; r >= 0 && !set[r] && options[r].on.has(on) {
			continue
		}
		// What is gone is what is set, but could not be read.
		if o.kind == goneKind && len(settings) > 0 && settings[len(settings)-1].Name == o.ifSet {
			continue
		}
		*s = Setting{}
		changed, err := o.read(fd, k.flags, s)
		if err != nil {
			if !lacking(err) {
				return nil, fmt.Errorf("%s: %w", o.name, err)
			}
			continue
		}
		if w := relations[i].with; !changed && w >= 0 {
			changed = set[w]
		}
		if set[i] = changed; changed && o.kind != probeKind && (o.kind != filterKind || s.Bytes != nil) {
			s.Name = o.name
			if cap(settings) == 0 {
				settings = make([]Setting, 0, 8) // more than most have
			}
			settings = append(settings, *s)
		}
	}
	sortSettings(settings)
	return settings, nil
}

// scratch has Settings to read into.
var scratch = sync.Pool{New: func() any { return new(Setting) }}

// lacking reports whether the kernel does not know an option of such a socket.
func lacking(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

// read reads an option's value, and reports whether it is not the default.
func (o *option) read(fd, flags int, s *Setting) (changed bool, err error) {
	level := levels[o.level]
	switch o.kind {
	case intKind:
		var v int
		v, err = sockopt.GetInt(fd, level, o.number)
		s.Number = int64(v)
		// Nobody has set what cannot be set: sockets that an MPTCP listener accepted
		// have SO_RCVLOWAT 0, which means 1.
		return s.Number != o.normal && s.Number >= o.min, err
	default:
		return kinds[o.kind].read(o, fd, level, flags, s)
	}
}

// choose finds the rows of settings, in the order in which they are set.
func choose(settings []Setting, on sockets) []chosen {
	// Of the options that are at their default, this one decides whose packets a
	// socket gets, and some hosts have another default (net.ipv6.bindv6only).
	const v6only = "IPV6_V6ONLY"
	pin := 0
	if on&(onMapped|onDual) != 0 {
		if _, found := find(settings, v6only); !found {
			pin = 1
		}
	}
	if len(settings)+pin == 0 {
		return nil
	}
	all := make([]chosen, 0, len(settings)+pin)
	for i := range settings {
		if r, ok := optionIndex[settings[i].Name]; ok {
			all = append(all, chosen{row: &options[r], order: r, setting: settings[i]})
		}
	}
	if pin > 0 {
		r := optionIndex[v6only]
		all = append(all, chosen{row: &options[r], order: r, setting: Setting{Name: v6only}})
	}
	slices.SortFunc(all, func(a, b chosen) int { return a.order - b.order })
	return all
}

// choose finds the rows of settings for a socket that is to be used. A snapshot
// that came from elsewhere could otherwise have any process signalled, and killed.
func (set settings) choose(settings []Setting, on sockets) []chosen {
	all := choose(settings, on)
	for i := range all {
		switch c := &all[i]; {
		case c.row.kind == ownerKind && c.setting.Number != 0 && !set.owners:
			c.refused = errOwner
		case c.setting.routes() && !set.routes:
			c.refused = errRoute
		}
	}
	return all
}

var (
	errOwner = errors.New("it is another process that would get the socket's signals: WithOwners lets it")
	errRoute = errors.New("it sends packets by way of hosts of its own choice: WithRoutes lets it")
)

// apply sets the options of one phase. What cannot be set is lost, or, if it is
// hard, the error.
func apply(all []chosen, fd int, p phase, lose func(Loss)) error {
	for i := range all {
		c := &all[i]
		if c.row.phase != p || c.lost {
			continue
		}
		err := c.refused
		if err == nil {
			err = c.row.write(fd, &c.setting)
		}
		if err == nil {
			continue
		}
		if c.row.hard {
			return fmt.Errorf("Options.Settings: %s: %w", c.setting.Name, because(optionReason(err), err))
		}
		c.lost = true
		lose(Loss{Setting: c.setting, Err: err})
	}
	return nil
}

var optionReasons = reasons{
	unix.ENODEV: ErrNoDevice,
	unix.EPERM:  ErrNoPermission,
}

func optionReason(err error) error { return cmp.Or(optionReasons.of(err), ErrOption) }

// verifyChosen reads back what has been set from one phase to another.
func verifyChosen(all []chosen, fd int, first, last phase, lose func(Loss)) error {
	got := scratch.Get().(*Setting)
	defer scratch.Put(got)
	for i := range all {
		c := &all[i]
		if c.lost || c.row.phase < first || c.row.phase > last {
			continue
		}
		*got = Setting{}
		flags := 0
		if c.row.kind == flagKind {
			var err error
			if flags, err = fileFlags(fd); err != nil {
				return err
			}
		}
		if _, err := c.row.read(fd, flags, got); err != nil {
			return fmt.Errorf("Options.Settings: %s: %w", c.setting.Name, err)
		}
		if c.row.same(&c.setting, got) {
			continue
		}
		wrong := &FieldError{
			Field: "Options.Settings: " + c.setting.Name, Want: c.setting.value(), Got: got.value(), Err: ErrMismatch,
		}
		if c.row.hard {
			return wrong
		}
		c.lost = true
		lose(Loss{Setting: c.setting, Err: wrong})
	}
	return nil
}

// same compares a value with what was read back after it was set.
func (o *option) same(want, got *Setting) bool {
	return want.Number <= got.Number && got.Number-want.Number <= o.slack &&
		want.Text == got.Text && slices.Equal(want.Bytes, got.Bytes)
}

// write sets an option.
func (o *option) write(fd int, s *Setting) error {
	level := levels[o.level]
	if o.kind == intKind {
		return sockopt.SetInt(fd, level, o.number, int(s.Number))
	}
	return kinds[o.kind].write(o, fd, level, s)
}

// fileFlags wraps fcntl(2), F_GETFL.
func fileFlags(fd int) (int, error) { return fcntl(fd, unix.F_GETFL, 0) }

func fcntl(fd, command, value int) (int, error) {
	n, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(fd), uintptr(command), uintptr(value))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// readOptions reads all but SO_REUSEADDR, which Pause has read, and the sizes of
// the buffers, which come with their use.
func (s *Socket) readOptions(snap *Snapshot, k known) error {
	o := &snap.Options
	offset, err := peekOffset(s.fd)
	if err != nil {
		return fmt.Errorf("Options.PeekOffset: %w", err)
	}
	if offset >= 0 {
		o.PeekOffsetOn, o.PeekOffset = true, uint32(offset)
	}
	flags, err := fileFlags(s.fd)
	if err != nil {
		return fmt.Errorf("Options.NonBlocking: %w", err)
	}
	k.flags = flags
	o.NonBlocking = flags&unix.O_NONBLOCK != 0
	if o.Congestion, err = congestion(s.fd); err != nil {
		return fmt.Errorf("Options.Congestion: %w", err)
	}
	if o.Settings, err = readSettings(o.Settings, s.fd, k, snap.sockets()); err != nil {
		return fmt.Errorf("Options.Settings: %w", err)
	}
	if on := snap.sockets(); on&whenConnected == 0 && !snap.Remote.IsValid() {
		if o.Foreign, err = isForeign(s.fd, snap.Local, o); err != nil {
			return fmt.Errorf("Options.Foreign: %w", err)
		}
	}
	o.BufferLock, err = s.bufferLock()
	return err
}

// apply sets those of the chosen options whose phase it is.
func (s *Socket) apply(p phase) error { return apply(s.chosen, s.fd, p, s.lose) }

// applyLast sets what keeps packets out, once nothing is injected any more.
func (s *Socket) applyLast() error {
	if s.lastApplied {
		return nil
	}
	err := s.apply(atLast)
	if err == nil && !s.options.noVerify {
		err = verifyChosen(s.chosen, s.fd, atLast, atLast, s.lose)
	}
	s.lastApplied = err == nil
	return err
}

// tryFilter has the kernel check the program's filter while it can be refused.
func (s *Socket) tryFilter() error {
	for i := range s.chosen {
		if c := &s.chosen[i]; c.row.kind == filterKind {
			if err := c.row.write(s.fd, &c.setting); err != nil {
				return fmt.Errorf("Options.Settings: %s: %w", c.setting.Name, because(optionReason(err), err))
			}
			return sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		}
	}
	return nil
}

// filtered reports whether the program has a filter of its own.
func (s *Socket) filtered() bool {
	return slices.ContainsFunc(s.chosen, func(c chosen) bool { return c.row.kind == filterKind })
}

func (s *Socket) lose(l Loss) {
	s.losses = append(s.losses, l)
	if s.options.onLoss != nil {
		s.options.onLoss(l)
	}
}

// setPeekOffset makes the program's peeks go on where they were.
func (s *Socket) setPeekOffset(o *Options) error {
	if !o.PeekOffsetOn {
		return nil
	}
	if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(o.PeekOffset)); err != nil {
		return fmt.Errorf("Options.PeekOffset: %w", because(optionReason(err), err))
	}
	return nil
}

func congestion(fd int) (string, error) {
	var b [maxName + 1]byte
	n, err := sockopt.Get(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	return unix.ByteSliceToString(b[:n]), err
}

// setCongestion chooses the congestion control, before connect(2) starts it.
func (s *Socket) setCongestion(name string) error {
	if name == "" {
		return nil
	}
	if now, err := congestion(s.fd); err != nil || now == name {
		return err
	}
	err := sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, []byte(name))
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrNoCongestion, name, err)
	}
	return nil
}

// postponeCongestion has the connection begin with a congestion control that
// neither paces what is sent again nor forgets what it is primed for, and keeps
// the one that is set now for later. Once BBR was in charge of a connection, the
// kernel paces it for good (sk_pacing_status).
func (s *Socket) postponeCongestion(snap *Snapshot) error {
	now, err := congestion(s.fd)
	if err != nil || now == "cubic" || now == "reno" && !s.priming.threshold {
		return err
	}
	s.postponed = now
	err = sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, []byte("cubic"))
	if err == nil {
		return nil
	}
	// Reno is always there, but knows no HyStart.
	if s.priming.threshold {
		steep := *snap
		steep.Path.Ssthresh = 0
		s.priming = s.planPriming(&steep)
	}
	return sockopt.Set(s.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, []byte("reno"))
}

func (s *Socket) setPostponedCongestion() error {
	if s.postponed == "" {
		return nil
	}
	name := s.postponed
	s.postponed = ""
	return s.setCongestion(name)
}

// setBlocking sets O_NONBLOCK as the program had it.
func (s *Socket) setBlocking(nonBlocking bool) error {
	if nonBlocking && s.nonBlocking {
		return nil
	}
	flags, err := fileFlags(s.fd)
	if err != nil || nonBlocking == (flags&unix.O_NONBLOCK != 0) {
		return err
	}
	_, err = fcntl(s.fd, unix.F_SETFL, flags^unix.O_NONBLOCK)
	return err
}
