package criuimg

import (
	"errors"
	"fmt"

	"github.com/gosoccr/gosoccr/soccr"
)

// NewListener makes a listening socket that CRIU restores as the snapshot says,
// like NewSocket. Connections that were pending are lost: a socket of CRIU's
// belongs to a file descriptor, and theirs would be made by accept(2).
func NewListener(id, ino uint32, l *soccr.ListenerSnapshot) (*Socket, []Loss, error) {
	s := newSocket(id, ino)
	losses, err := s.SetListener(l)
	if err != nil {
		return nil, nil, err
	}
	return s, losses, nil
}

// Listener makes a valid snapshot of a listening socket's entry, like Snapshot.
// It fails with soccr.ErrState for another socket.
func (s *Socket) Listener() (*soccr.ListenerSnapshot, []Loss, error) {
	if s.State() != soccr.StateListen {
		return nil, nil, &soccr.FieldError{Field: "State", Want: soccr.StateListen, Got: s.State(), Err: soccr.ErrState}
	}
	if port := s.Inet.GetDstPort(); port != 0 || s.Stream != nil {
		return nil, nil, invalid("inet_sk.dst_port", "0 and no stream, of a listener", port)
	}
	snap, err := s.decode()
	if err != nil {
		return nil, nil, err
	}
	l := &soccr.ListenerSnapshot{Local: snap.Local, Backlog: s.Inet.GetBacklog(), Options: snap.Options}
	if err := l.Validate(); err != nil {
		return nil, nil, err
	}
	fresh := s.successor()
	fresh.encode(listening(l))
	fresh.Inet.Backlog = &l.Backlog
	return l, lostFromImage(s, fresh), nil
}

// SetListener makes the entry say what the snapshot says, like SetSnapshot.
func (s *Socket) SetListener(l *soccr.ListenerSnapshot) ([]Loss, error) {
	if err := errors.Join(l.Validate(), unsigned(l.MD5Keys)); err != nil {
		return nil, err
	}
	changed := s.clone()
	changed.update(listening(l))
	changed.Inet.Backlog = new(l.Backlog)
	again, _, err := changed.Listener()
	if err != nil {
		return nil, fmt.Errorf("what was written cannot be read: %w", err)
	}
	*s = *changed
	return lostFromSnapshot(l, again), nil
}

// listening is the part of a listener that all sockets have.
func listening(l *soccr.ListenerSnapshot) *soccr.Snapshot {
	return &soccr.Snapshot{State: soccr.StateListen, Local: l.Local, Options: l.Options}
}
