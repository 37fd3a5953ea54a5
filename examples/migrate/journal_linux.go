package main

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/proc"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A journal is where the guard notes, before it does something, what would be left
// undone if it were killed meanwhile: for the program that was started, which reads
// it then. It is a file in memory that both have open. One that is nil, without a
// guard, notes nothing.
//
// A record is its length, its checksum, its kind, and what there is to say of that.
// Only the last one can be torn.
type journal struct {
	file *os.File
	b    []byte
}

// The kinds of records.
const (
	recordNotes     = iota + 1 // of sockets
	recordCommit               // from now on, each socket's other action counts
	recordAddresses            // the host is about to give up or take addresses
	recordCalling              // a process is being made to make system calls; 0: not any more
	recordEpoll                // registrations that are about to change
	recordFree                 // descriptors of the process that are about to be taken
	recordImage                // an image that nobody else may have
)

// A note is what is to be done with a socket if the guard is killed.
type note struct {
	cookie      uint64
	instead     uint64 // the socket whose place this new one is to take, or 0
	first, then action // before there is no way back, and after
	set         overwritten
	kept        *soccr.Snapshot // or nil
}

// overwritten are options of a socket that pausing or saving changes for a while.
type overwritten struct {
	reuseAddr  bool
	peekOffset int32
}

// overwrittenOf reads them, as long as they are there.
func overwrittenOf(fd int) overwritten {
	reuse, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	peek, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		peek = -1
	}
	return overwritten{reuse == 1, int32(peek)}
}

// restore sets them again where they are not as they were.
func (o overwritten) restore(fd int) error {
	if now := overwrittenOf(fd); now == o {
		return nil
	}
	if o.reuseAddr {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt(SO_REUSEADDR)", err)
		}
	}
	if o.peekOffset >= 0 {
		return os.NewSyscallError("setsockopt(SO_PEEK_OFF)", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(o.peekOffset)))
	}
	return nil
}

// A registered is a registration of an old socket that a new one is to replace, or the
// other way round.
type registered struct {
	PID int
	proc.Registration
	Inodes [2]uint64 // of both
}

// newJournal makes an empty one.
func newJournal() (*journal, error) {
	fd, err := unix.MemfdCreate("migrate-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &journal{file: os.NewFile(uintptr(fd), "journal")}, nil
}

const recordHeader = 4 + 4

// begin begins a record.
func (j *journal) begin(kind byte) { j.b = append(j.b[:0], 0, 0, 0, 0, 0, 0, 0, 0, kind) }

// end writes it.
func (j *journal) end() error {
	body := j.b[recordHeader:]
	binary.NativeEndian.PutUint32(j.b, uint32(len(body)))
	binary.NativeEndian.PutUint32(j.b[4:], crc32.Checksum(body, castagnoli))
	_, err := j.file.Write(j.b)
	const kept = 1 << 20
	if cap(j.b) > kept {
		j.b = nil
	}
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// note notes what is to be done with sockets, in one record.
func (j *journal) note(notes ...note) (err error) {
	if j == nil || len(notes) == 0 {
		return nil
	}
	j.begin(recordNotes)
	for _, n := range notes {
		j.b = binary.NativeEndian.AppendUint64(j.b, n.cookie)
		j.b = binary.NativeEndian.AppendUint64(j.b, n.instead)
		j.b = append(j.b, byte(n.first), byte(n.then), 0)
		if n.set.reuseAddr {
			j.b[len(j.b)-1] = 1
		}
		j.b = binary.NativeEndian.AppendUint32(j.b, uint32(n.set.peekOffset))
		at := len(j.b)
		j.b = append(j.b, 0, 0, 0, 0)
		if n.kept != nil {
			if j.b, err = n.kept.AppendBinary(j.b); err != nil {
				return err
			}
		}
		binary.NativeEndian.PutUint32(j.b[at:], uint32(len(j.b)-at-4))
	}
	return j.end()
}

// parseNotes is the reverse.
func parseNotes(b []byte) (notes []note, err error) {
	const fixed = 8 + 8 + 3 + 4 + 4
	for len(b) > 0 {
		if len(b) < fixed {
			return nil, io.ErrUnexpectedEOF
		}
		n := note{
			cookie: binary.NativeEndian.Uint64(b), instead: binary.NativeEndian.Uint64(b[8:]),
			first: action(b[16]), then: action(b[17]),
			set: overwritten{b[18] == 1, int32(binary.NativeEndian.Uint32(b[19:]))},
		}
		size := int(binary.NativeEndian.Uint32(b[23:]))
		if b = b[fixed:]; len(b) < size {
			return nil, io.ErrUnexpectedEOF
		}
		if size > 0 {
			n.kept = new(soccr.Snapshot)
			if err := n.kept.UnmarshalBinary(b[:size]); err != nil {
				return nil, err
			}
		}
		b = b[size:]
		notes = append(notes, n)
	}
	return notes, nil
}

// record writes a record of another kind.
func (j *journal) record(kind byte, content any) error {
	if j == nil {
		return nil
	}
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	j.begin(kind)
	j.b = append(j.b, b...)
	return j.end()
}

// commit notes that there is no way back, as soon as a file is not there any more, or
// now if it has no name.
func (j *journal) commit(file string) error { return j.record(recordCommit, file) }

// addresses notes that the host's addresses are about to change.
func (j *journal) addresses() error { return j.record(recordAddresses, true) }

// calling notes that a process is being made to make system calls, or, as 0, that none
// is any more.
func (j *journal) calling(pid int) error { return j.record(recordCalling, pid) }

// epoll notes registrations that are about to change.
func (j *journal) epoll(all []registered) error {
	if len(all) == 0 {
		return nil
	}
	return j.record(recordEpoll, all)
}

// free notes descriptors that were free before.
func (j *journal) free(set []proc.Descriptor) error {
	var numbers []int
	for _, d := range set {
		numbers = append(numbers, d.Number)
	}
	return j.record(recordFree, numbers)
}

// image notes an image that came by a pipe.
func (j *journal) image(write func(io.Writer) (int64, error)) error {
	if j == nil {
		return nil
	}
	j.begin(recordImage)
	if _, err := write((*appender)(&j.b)); err != nil {
		return err
	}
	return j.end()
}

type appender []byte

func (a *appender) Write(b []byte) (int, error) {
	*a = append(*a, b...)
	return len(b), nil
}

// clear notes that nothing is left undone.
func (j *journal) clear() error {
	if j == nil {
		return nil
	}
	return os.NewSyscallError("ftruncate", unix.Ftruncate(int(j.file.Fd()), 0))
}

// share gives the program that was started a lock's socket, so that the lock holds
// for some time when the guard is killed.
func (j *journal) share(lock *netlock.Lock) error {
	if j == nil {
		return nil
	}
	raw, err := lock.SyscallConn()
	if err != nil {
		return err
	}
	failure := raw.Control(func(fd uintptr) { err = tell("lock", int(fd)) })
	if failure != nil {
		return failure
	}
	return err
}

// remains are what the journal of a dead guard says.
type remains struct {
	notes     []note // of each socket the latest, in the order in which they were first noted
	committed bool
	addresses bool
	calling   int // the process, or 0
	epoll     []registered
	free      []int
	image     []byte // or nil
	locks     []int  // their sockets
}

// read reads the journal. What does not make sense is the end: there the guard died.
func (j *journal) read() (*remains, error) {
	size, err := j.file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(j.file, 0, size), b); err != nil {
		return nil, err
	}
	r := &remains{}
	for places := map[uint64]int{}; len(b) > recordHeader; {
		length := binary.NativeEndian.Uint32(b)
		if length == 0 || uint64(len(b)-recordHeader) < uint64(length) {
			break
		}
		body := b[recordHeader:][:length]
		if crc32.Checksum(body, castagnoli) != binary.NativeEndian.Uint32(b[4:]) {
			break
		}
		b = b[recordHeader:][length:]
		if body[0] != recordNotes {
			if err := r.take(body[0], body[1:]); err != nil {
				return nil, err
			}
			continue
		}
		notes, err := parseNotes(body[1:])
		if err != nil {
			return nil, err
		}
		for _, n := range notes {
			if place, ok := places[n.cookie]; ok {
				r.notes[place] = n
				continue
			}
			places[n.cookie] = len(r.notes)
			r.notes = append(r.notes, n)
		}
	}
	return r, nil
}

// take takes in a record.
func (r *remains) take(kind byte, content []byte) error {
	switch kind {
	case recordCommit:
		var file string
		if err := json.Unmarshal(content, &file); err != nil {
			return err
		}
		_, err := os.Lstat(file)
		r.committed = file == "" || err != nil
		if !r.committed {
			_ = os.Remove(file) // it is the half of an image
		}
	case recordAddresses:
		r.addresses = true
	case recordCalling:
		return json.Unmarshal(content, &r.calling)
	case recordFree:
		return json.Unmarshal(content, &r.free)
	case recordEpoll:
		var all []registered
		if err := json.Unmarshal(content, &all); err != nil {
			return err
		}
		r.epoll = append(r.epoll, all...)
	case recordImage:
		r.image = content
	}
	return nil
}
