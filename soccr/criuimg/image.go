package criuimg

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"google.golang.org/protobuf/encoding/protowire"
)

// An Image is what a directory of CRIU's images tells of TCP sockets. The zero
// value is one of no sockets.
type Image struct {
	// Sockets are the TCP sockets, in the order of the images. Write leaves out
	// those that were removed here, and adds those that were appended.
	Sockets []*Socket
	// Tables are the tables of file descriptors, by rising number.
	Tables []*Table
	// Names are the names of processes (comm), by their number, as far as core-*.img
	// tell. Write does not change them.
	Names map[uint32]string
	// Inventory is the entry of inventory.img, nil if there is none.
	Inventory *inventory.InventoryEntry

	// files are the entries of files.img, inetsks those of inetsk.img, which older
	// CRIUs wrote instead; nil where there is no such image.
	files, inetsks []record
	bigEndian      bool // as in Socket
}

// A record is an entry of files.img or inetsk.img.
type record struct {
	raw    []byte            // the message, unless it is a TCP socket's
	socket *Socket           // else the socket,
	file   *fdinfo.FileEntry // and, in files.img, what is around it
}

// A Table is a table of file descriptors, fdinfo-*.img, which one or more
// processes use.
type Table struct {
	ID uint32 // the number in the image's name
	// PIDs are the processes that use the table, as far as ids-*.img tell. Write
	// does not change them.
	PIDs    []uint32
	Entries []*fdinfo.FdinfoEntry
}

// A Holder is a file descriptor by which processes hold a socket.
type Holder struct {
	Table       uint32   // number of the table
	PIDs        []uint32 // processes that use the table, as far as known
	FD          uint32
	CloseOnExec bool
}

// Holders tells who holds which socket, by the sockets' ids (Inet.Id).
func (im *Image) Holders() map[uint32][]Holder {
	holders := map[uint32][]Holder{}
	for _, t := range im.Tables {
		for _, e := range t.Entries {
			if e.GetType() == fdinfo.FdTypes_INETSK {
				holders[e.GetId()] = append(holders[e.GetId()],
					Holder{t.ID, t.PIDs, e.GetFd(), e.GetFlags()&closeOnExec != 0})
			}
		}
	}
	return holders
}

const closeOnExec = 1 // FD_CLOEXEC

// NextID is a number for a socket to be appended: greater than those of all files.
func (im *Image) NextID() uint32 {
	last := uint32(0)
	for id := range im.otherIDs() {
		last = max(last, id)
	}
	for _, s := range im.Sockets {
		last = max(last, s.Inet.GetId())
	}
	return last + 1
}

// otherIDs are the numbers of the files that are no TCP sockets.
func (im *Image) otherIDs() map[uint32]bool {
	ids := map[uint32]bool{}
	for _, records := range [...]struct {
		list []record
		id   protowire.Number
	}{{im.files, fileID}, {im.inetsks, inetID}} {
		for _, r := range records.list {
			if id, ok := number(r.raw, records.id); ok {
				ids[uint32(id)] = true
			}
		}
	}
	return ids
}

// The fields file_entry.id and inet_sk_entry.id.
const (
	fileID = 2
	inetID = 1
)

// check makes sure that no two sockets have the same number.
func (im *Image) check() error {
	ids, inos := im.otherIDs(), map[uint32]bool{}
	for _, s := range im.Sockets {
		for _, n := range [...]struct {
			field string
			value uint32
			seen  map[uint32]bool
		}{{"inet_sk.id", s.Inet.GetId(), ids}, {"inet_sk.ino", s.Inet.GetIno(), inos}} {
			if n.seen[n.value] {
				return invalid(n.field, "unique", n.value)
			}
			n.seen[n.value] = true
		}
	}
	return nil
}

func streamName(ino uint32) string { return fmt.Sprintf("tcp-stream-%x.img", ino) }
