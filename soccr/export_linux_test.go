package soccr

import "golang.org/x/sys/unix"

// BetweenReads has f called while a connection is being saved, until the
// returned function is called.
func BetweenReads(f func()) (restore func()) {
	betweenReads = f
	return func() { betweenReads = func() {} }
}

// BeforeVerify has f called with a socket that has been restored, but not read
// back yet, until the returned function is called.
func BeforeVerify(f func(fd int)) (restore func()) {
	beforeVerify = f
	return func() { beforeVerify = func(int) {} }
}

// Sockets are those of a transport, a family and a state, as the table of options
// tells them apart.
type Sockets = sockets

// The transports, families and states.
const (
	TCP, UDP, UDPLite, Ping, Raw      = onTCP, onUDP, onUDPLite, onPing, onRaw
	IPv4, IPv6, Mapped, Dual          = onIPv4, onIPv6, onMapped, onDual
	Unconnected, Listening, Connected = whenUnconnected, whenListening, whenConnected
)

// An OptionRow is what a test needs to know of a row.
type OptionRow struct {
	Name           string
	Normal, Max    int64
	Kept, FromGone bool // recorded; shows only that something is lost
}

// OptionRows are the rows that some sockets have.
func OptionRows(on Sockets) (rows []OptionRow) {
	for i := range options {
		if o := &options[i]; o.on.has(on) {
			rows = append(rows, OptionRow{o.name, o.normal, o.max, o.kind != probeKind, o.kind == goneKind})
		}
	}
	return rows
}

// AllOptionRows tells the names and numbers of all rows that are options, not
// fcntl commands.
func AllOptionRows() map[string]int {
	rows := make(map[string]int)
	for i := range options {
		if o := &options[i]; o.level != fileLevel {
			rows[o.name] = o.number
		}
	}
	return rows
}

// SetOption sets an option as Restore does.
func SetOption(fd int, s Setting) error { return row(s.Name).write(fd, &s) }

// ReadSettings reads options as Save does.
func ReadSettings(fd int, on Sockets) ([]Setting, error) {
	flags, err := fileFlags(fd)
	if err != nil {
		return nil, err
	}
	return readSettings(nil, fd, known{flags: flags}, on)
}

// An OptionCall is how a socket option is read: getsockopt with so many bytes.
type OptionCall struct {
	Level, Number int
	Size          uint32
}

// OptionCalls are those that reading the options of a socket takes at the least, if
// all have their default and no other reading shows it.
func OptionCalls(on Sockets) (calls []OptionCall) {
	for i := range options {
		o := &options[i]
		if !o.on.has(on) || o.inMemory || relations[i].ifSet >= 0 && options[relations[i].ifSet].on.has(on) {
			continue
		}
		call := OptionCall{levels[o.level], o.number, 4}
		switch o.kind {
		case longKind, flagKind, signalKind, ownerKind, goneKind:
			continue // shown by TCP_INFO, or no option
		case bindKind:
			call.Number = unix.SO_BINDTOIFINDEX
		case timeKind:
			call.Size = 16
		case lingerKind, pairKind:
			call.Size = 8
		case bytesKind:
			call.Size = uint32(o.max)
		case probeKind:
			call.Size = 256
		}
		calls = append(calls, call)
	}
	return calls
}
