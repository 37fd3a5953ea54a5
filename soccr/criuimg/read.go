package criuimg

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
)

// Read reads the images of a directory: files.img or inetsk.img, and as far as
// they are there tcp-stream-*.img, fdinfo-*.img, ids-*.img and inventory.img. Of
// core-*.img it reads which machine the dump is of and what the process is called. It
// looks at no other image.
//
// Images are untrusted: what is malformed is an ErrInvalidImage, inside an
// *fs.PathError that names the image, and memory is taken as bytes arrive.
// Whether a socket makes sense is left to Socket.Snapshot. A directory that others
// may write to is best opened with os.OpenRoot, whose FS does not follow links out
// of it.
func Read(dir fs.FS) (*Image, error) {
	names, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, err
	}
	r := &imageReader{dir: dir, users: map[uint32][]uint32{}}
	for _, name := range names {
		for _, image := range &images {
			number, ok := image.match(name.Name())
			if !ok {
				continue
			}
			err := r.open(name.Name(), image.kind, func(d *decoder) error { return image.read(r, number, d) })
			if err != nil {
				return nil, err
			}
		}
	}
	return r.finish()
}

// A namedImage is how an image is recognized and read.
type namedImage struct {
	name     string
	numbered bool // "-" and a number follow the name
	kind     string
	read     func(*imageReader, uint32, *decoder) error
}

var images = [...]namedImage{
	{"files", false, kindFiles, (*imageReader).files},
	{"inetsk", false, kindInetSk, (*imageReader).inetsks},
	{"inventory", false, kindInventory, (*imageReader).inventory},
	{"fdinfo", true, kindFdinfo, (*imageReader).table},
	{"ids", true, kindIDs, (*imageReader).ids},
	{"core", true, kindCore, (*imageReader).core},
}

func (n *namedImage) match(file string) (number uint32, ok bool) {
	rest, isImage := strings.CutSuffix(file, ".img")
	if !n.numbered || !isImage {
		return 0, isImage && rest == n.name
	}
	digits, ok := strings.CutPrefix(rest, n.name+"-")
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	return uint32(v), err == nil && strconv.FormatUint(v, 10) == digits
}

// An imageReader puts together what the images of a directory tell.
type imageReader struct {
	dir   fs.FS
	image Image
	// users are the processes that use a table of file descriptors, by its number.
	users map[uint32][]uint32
}

// open reads an image of the directory.
func (r *imageReader) open(name, kind string, read func(*decoder) error) (err error) {
	defer func() {
		if err != nil && !errors.As(err, new(*fs.PathError)) {
			err = &fs.PathError{Op: "read", Path: name, Err: err}
		}
	}()
	// To open a pipe would block.
	if info, err := fs.Stat(r.dir, name); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrInvalidImage)
	}
	file, err := r.dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	d, err := newDecoder(bufio.NewReader(file), kind)
	if err != nil {
		return err
	}
	return read(d)
}

// entries calls f with each entry of an image.
func entries(d *decoder, f func(message []byte) error) error {
	for {
		message, err := d.entry()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(message)
		}
		if err != nil {
			return err
		}
	}
}

func (r *imageReader) files(_ uint32, d *decoder) error {
	r.image.files = []record{}
	return entries(d, func(message []byte) error {
		kind, ok := number(message, fileType)
		if !ok {
			return fmt.Errorf("%w: a file without a type", ErrInvalidImage)
		}
		rec := record{raw: message}
		if fdinfo.FdTypes(kind) == fdinfo.FdTypes_INETSK {
			file := &fdinfo.FileEntry{}
			if err := unmarshal(message, file); err != nil {
				return err
			}
			if isTCP(file.Isk) {
				rec = record{socket: &Socket{Inet: file.Isk}, file: file}
			}
		}
		r.image.files = append(r.image.files, rec)
		return nil
	})
}

const fileType = 1 // the field file_entry.type

func (r *imageReader) inetsks(_ uint32, d *decoder) error {
	r.image.inetsks = []record{}
	return entries(d, func(message []byte) error {
		inet := &inetsk.InetSkEntry{}
		if err := unmarshal(message, inet); err != nil {
			return err
		}
		rec := record{raw: message}
		if isTCP(inet) {
			rec = record{socket: &Socket{Inet: inet}}
		}
		r.image.inetsks = append(r.image.inetsks, rec)
		return nil
	})
}

func isTCP(inet *inetsk.InetSkEntry) bool {
	return inet.GetType() == sockStream && inet.GetProto() == protoTCP
}

func (r *imageReader) inventory(_ uint32, d *decoder) error {
	r.image.Inventory = &inventory.InventoryEntry{}
	return d.only(r.image.Inventory)
}

func (r *imageReader) table(id uint32, d *decoder) error {
	t := &Table{ID: id}
	r.image.Tables = append(r.image.Tables, t)
	return entries(d, func(message []byte) error {
		e := &fdinfo.FdinfoEntry{}
		t.Entries = append(t.Entries, e)
		return unmarshal(message, e)
	})
}

func (r *imageReader) ids(pid uint32, d *decoder) error {
	ids := &criucore.TaskKobjIdsEntry{}
	if err := d.only(ids); err != nil {
		return err
	}
	r.users[ids.GetFilesId()] = append(r.users[ids.GetFilesId()], pid)
	return nil
}

func (r *imageReader) core(pid uint32, d *decoder) error {
	message, err := d.entry()
	if err != nil {
		return ended(err)
	}
	if machine, ok := number(message, coreMachine); ok && criucore.CoreEntryMarch(machine) == criucore.CoreEntry_S390 {
		r.image.bigEndian = true
	}
	if name := part(part(message, coreTask), taskName); 0 < len(name) && len(name) <= maxName {
		if r.image.Names == nil {
			r.image.Names = map[uint32]string{}
		}
		r.image.Names[pid] = string(name)
	}
	return nil
}

const (
	coreMachine = 1  // the field core_entry.mtype
	coreTask    = 3  // core_entry.tc
	taskName    = 6  // task_core_entry.comm
	maxName     = 15 // TASK_COMM_LEN less the final zero
)

// finish reads the sockets' streams and connects what belongs together.
func (r *imageReader) finish() (*Image, error) {
	im := &r.image
	if im.files == nil && im.inetsks == nil {
		return nil, &fs.PathError{Op: "open", Path: "files.img", Err: fs.ErrNotExist}
	}
	for _, rec := range slices.Concat(im.files, im.inetsks) {
		if rec.socket != nil {
			rec.socket.BigEndian = im.bigEndian
			im.Sockets = append(im.Sockets, rec.socket)
		}
	}
	if err := im.check(); err != nil {
		name := "files.img"
		if im.files == nil {
			name = "inetsk.img"
		}
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	for _, s := range im.Sockets {
		if err := r.stream(s); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(im.Tables, func(a, b *Table) int { return int(int64(a.ID) - int64(b.ID)) })
	for _, t := range im.Tables {
		if im.Inventory != nil && !im.Inventory.GetFdinfoPerId() {
			t.PIDs = []uint32{t.ID} // a table for each process
			continue
		}
		t.PIDs = r.users[t.ID]
		slices.Sort(t.PIDs)
	}
	return im, nil
}

// stream reads a connection's stream, if it is there.
func (r *imageReader) stream(s *Socket) error {
	if s.Inet.GetDstPort() == 0 {
		return nil
	}
	err := r.open(streamName(s.Inet.GetIno()), kindStream, func(d *decoder) (err error) {
		s.Stream, err = d.stream()
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Snapshot will say so
	}
	return err
}
