package criuimg

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	tcpstream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"

	"github.com/gosoccr/gosoccr/soccr"
)

// A Socket is a TCP socket as CRIU has it: its entry of files.img, or of the
// older inetsk.img, and, of one that is or was connected, its stream. The entries
// hold everything; a Snapshot made of them holds what soccr knows of.
type Socket struct {
	Inet   *inetsk.InetSkEntry
	Stream *Stream // nil for a socket that listens or never connected
	// BigEndian: the dump is of a big-endian machine (s390x). CRIU copies
	// addresses from memory, and its images do not tell otherwise.
	BigEndian bool
}

// NewSocket makes a socket that CRIU restores as the snapshot says, except for
// the losses: what has no place in its images. The numbers have to be unique: id
// among an image's files, which is what its descriptors refer to, ino among its
// sockets, which is part of its stream's name. Namespace (ns_id) and owner of
// signals (fown) are those of the zero value.
//
// The snapshot must be valid, and shares its queues with the socket.
func NewSocket(id, ino uint32, snap *soccr.Snapshot) (*Socket, []Loss, error) {
	s := newSocket(id, ino)
	losses, err := s.SetSnapshot(snap)
	if err != nil {
		return nil, nil, err
	}
	return s, losses, nil
}

func newSocket(id, ino uint32) *Socket {
	return &Socket{Inet: &inetsk.InetSkEntry{
		Id: new(id), Ino: new(ino),
		Type: new(uint32(sockStream)), Proto: new(uint32(protoTCP)),
		Flags: new(uint32(readWrite)), Backlog: new(uint32(0)),
		Fown: &fown.FownEntry{
			Uid: new(uint32(0)), Euid: new(uint32(0)),
			Signum: new(uint32(0)), PidType: new(uint32(0)), Pid: new(uint32(0)),
		},
	}}
}

// State is the socket's state, soccr.StateListen for a listener.
func (s *Socket) State() soccr.State {
	if state := s.Inet.GetState(); state <= uint32(soccr.StateClosing) {
		return soccr.State(state)
	}
	return 0
}

// Snapshot makes a valid snapshot of the socket's entries, which shares its
// queues with them. Losses are what the entries have and the snapshot has not;
// the package comment tells what stands in it where the entries have nothing.
//
// It fails with ErrInvalidImage or soccr.ErrInvalidSnapshot, inside a
// *soccr.FieldError that names the field, where the kernel could not have such a
// connection, with ErrNoStream where its stream is missing, and with
// soccr.ErrState for a listener.
func (s *Socket) Snapshot() (*soccr.Snapshot, []Loss, error) {
	if s.State() == soccr.StateListen {
		return nil, nil, &soccr.FieldError{Field: "State", Got: s.State(), Err: soccr.ErrState}
	}
	if s.Inet.GetDstPort() != 0 && s.Stream == nil {
		return nil, nil, ErrNoStream
	}
	snap, err := s.decode()
	if err == nil {
		err = snap.Validate()
	}
	if err != nil {
		return nil, nil, err
	}
	fresh := s.successor()
	fresh.encode(snap)
	return snap, lostFromImage(s, fresh), nil
}

// SetSnapshot makes the entries say what the snapshot says. What a snapshot has
// not, and what it says as they do already, stays: a snapshot made of the entries
// changes nothing, and one in which only an address was changed changes only that.
// Losses are what the snapshot has and the entries have no place for.
//
// The snapshot must be valid, and shares its queues with the socket afterwards.
// One whose segments are signed (MD5Keys) is refused with soccr.ErrSigned, because
// CRIU would restore it without keys. On error the socket is unchanged.
func (s *Socket) SetSnapshot(snap *soccr.Snapshot) ([]Loss, error) {
	if err := errors.Join(snap.Validate(), unsigned(snap.MD5Keys)); err != nil {
		return nil, err
	}
	if local, remote := snap.Local.Addr().Zone(), snap.Remote.Addr().Zone(); local != "" && remote != "" && local != remote {
		return nil, &soccr.FieldError{Field: "Remote", Want: "of Local's zone", Got: snap.Remote, Err: soccr.ErrInvalidSnapshot}
	}
	changed := s.clone()
	changed.update(snap)
	again, _, err := changed.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("what was written cannot be read: %w", err)
	}
	*s = *changed
	return lostFromSnapshot(snap, again), nil
}

func unsigned(keys []soccr.MD5Key) error {
	if len(keys) == 0 {
		return nil
	}
	return &soccr.FieldError{Field: "MD5Keys", Want: "none", Got: fmt.Sprintf("%d keys", len(keys)), Err: soccr.ErrSigned}
}

// successor is an empty socket of the same name.
func (s *Socket) successor() *Socket {
	fresh := newSocket(s.Inet.GetId(), s.Inet.GetIno())
	fresh.BigEndian = s.BigEndian
	return fresh
}

// decode reads the entries, whatever they say.
func (s *Socket) decode() (*soccr.Snapshot, error) {
	snap := &soccr.Snapshot{}
	for i := range topics {
		if err := topics[i].decode(s, snap); err != nil {
			return nil, err
		}
	}
	return snap, nil
}

// update writes what a snapshot says otherwise than the entries, or all of it if
// they were of a socket that had never been what it is now.
func (s *Socket) update(snap *soccr.Snapshot) {
	if connected := snap.Remote.IsValid(); connected == (s.Stream != nil) && s.Inet.Family != nil {
		s.merge(snap)
	} else {
		s.encode(snap)
	}
}

// encode writes all of a snapshot into the entries, as CRIU would.
func (s *Socket) encode(snap *soccr.Snapshot) {
	s.prepare(snap)
	for i := range topics {
		topics[i].encode(s, snap)
	}
}

// merge writes what a snapshot says otherwise than the entries.
func (s *Socket) merge(snap *soccr.Snapshot) {
	s.prepare(snap)
	for i := range topics {
		now := *snap
		if err := topics[i].decode(s, &now); err != nil || !equal(&now, snap) {
			topics[i].encode(s, snap)
		}
	}
}

// prepare makes room for what will be written.
func (s *Socket) prepare(snap *soccr.Snapshot) {
	switch {
	case snap.Remote == (netip.AddrPort{}):
		s.Stream = nil
	case s.Stream == nil || s.Stream.Entry == nil:
		s.Stream = &Stream{Entry: &tcpstream.TcpStreamEntry{}}
	}
}
