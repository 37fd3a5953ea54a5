package criuimg

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"
)

// Write writes the images into a directory that exists: the streams of the
// sockets, the tables, files.img (and inetsk.img, if it was read), and last
// inventory.img, if there is one. What was read comes out as it was, except for
// what was changed; other files stay as they are.
//
// Each image appears whole or not at all, by renaming, with mode 0600: streams
// hold the bytes in the queues. When one of them cannot be written, none is
// replaced. Nothing is synced to the disk.
func (im *Image) Write(dir string) (err error) {
	if err := im.check(); err != nil {
		return err
	}
	common := im.Inventory == nil || im.Inventory.GetImgVersion() != 1
	images, err := im.output(common)
	if err != nil {
		return err
	}
	var written []*os.File
	defer func() {
		for _, f := range written { // those that were not renamed
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, image := range images {
		f, err := os.CreateTemp(dir, "."+image.name+".*") // with mode 0600
		if err != nil {
			return err
		}
		written = append(written, f)
		buffered := bufio.NewWriter(f)
		if err := errors.Join(image.write(buffered), buffered.Flush(), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", image.name, err)
		}
	}
	for _, image := range images {
		if err := os.Rename(written[0].Name(), filepath.Join(dir, image.name)); err != nil {
			return err
		}
		written = written[1:]
	}
	return nil
}

// An outputImage is an image to be written.
type outputImage struct {
	name  string
	write func(io.Writer) error
}

// output lists the images in the order in which they have to appear.
func (im *Image) output(common bool) (images []outputImage, err error) {
	add := func(name string, e *encoder) {
		images = append(images, outputImage{name, func(w io.Writer) error { _, err := e.WriteTo(w); return err }})
	}
	for _, s := range im.Sockets {
		if s.Stream != nil {
			images = append(images, outputImage{streamName(s.Inet.GetIno()), func(w io.Writer) error {
				_, err := s.Stream.writeTo(w, common)
				return err
			}})
		}
	}
	for _, t := range im.Tables {
		e := newEncoder(kindFdinfo, common)
		for _, entry := range t.Entries {
			if err := e.message(entry); err != nil {
				return nil, err
			}
		}
		add(fmt.Sprintf("fdinfo-%d.img", t.ID), e)
	}
	files, inetsks, err := im.encodeFiles(common)
	if err != nil {
		return nil, err
	}
	if files != nil {
		add("files.img", files)
	}
	if inetsks != nil {
		add("inetsk.img", inetsks)
	}
	if im.Inventory != nil {
		e := newEncoder(kindInventory, common)
		if err := e.message(im.Inventory); err != nil {
			return nil, err
		}
		add("inventory.img", e)
	}
	return images, nil
}

// encodeFiles puts the sockets where they were, and new ones at the end.
func (im *Image) encodeFiles(common bool) (files, inetsks *encoder, err error) {
	left := map[*Socket]bool{}
	for _, s := range im.Sockets {
		left[s] = true
	}
	encode := func(e *encoder, records []record) error {
		for _, rec := range records {
			switch {
			case rec.socket == nil:
				e.entry(rec.raw)
			case left[rec.socket]:
				delete(left, rec.socket)
				if err := e.message(rec.message()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if im.inetsks != nil {
		inetsks = newEncoder(kindInetSk, common)
		if err := encode(inetsks, im.inetsks); err != nil {
			return nil, nil, err
		}
	}
	if im.files != nil || im.inetsks == nil {
		files = newEncoder(kindFiles, common)
		if err := encode(files, im.files); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range im.Sockets {
		if !left[s] {
			continue
		}
		e, rec := files, record{socket: s, file: &fdinfo.FileEntry{}}
		if files == nil {
			e, rec.file = inetsks, nil
		}
		if err := e.message(rec.message()); err != nil {
			return nil, nil, err
		}
	}
	return files, inetsks, nil
}

// message is the entry of a TCP socket.
func (r *record) message() proto.Message {
	if r.file == nil {
		return r.socket.Inet
	}
	kind := fdinfo.FdTypes_INETSK
	r.file.Type, r.file.Id, r.file.Isk = &kind, r.socket.Inet.Id, r.socket.Inet
	return r.file
}
