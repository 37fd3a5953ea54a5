package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Name is the file of an image in its directory.
const Name = "sockets.img"

// Save writes an image into a directory, which is made if it is not there. The file
// is for its owner only, and is there as a whole or not at all, even if the machine
// fails. One that is there already is replaced. Until the image is there, it is in a
// file of another name, which is told to each of whole when all is written: from then on
// that this file is not there any more says that the image is.
func (i *Image) Save(dir string, whole ...func(file string) error) (size int64, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	file, err := os.CreateTemp(dir, "."+Name+".*") // mode 0600
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	size, err = writeBuffered(i, file)
	err = errors.Join(err, file.Sync(), file.Close())
	for _, tell := range whole {
		if err == nil {
			err = tell(file.Name())
		}
	}
	if err != nil {
		return 0, err
	}
	if err := os.Rename(file.Name(), filepath.Join(dir, Name)); err != nil {
		return 0, err
	}
	return size, syncDir(dir)
}

// WriteStream writes an image to a pipe or the like.
func (i *Image) WriteStream(w io.Writer) (size int64, err error) { return writeBuffered(i, w) }

func writeBuffered(i *Image, w io.Writer) (int64, error) {
	buffered := bufio.NewWriterSize(w, 1<<16)
	size, err := i.WriteTo(buffered)
	return size, errors.Join(err, buffered.Flush())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ErrUntrusted is the error for a file that somebody else can have made or changed.
var ErrUntrusted = errors.New("the image cannot be trusted")

// Load reads the image in a directory. It is a file, and no link to one, that belongs
// to this user or to root, and that nobody else may write to: else an ErrUntrusted.
func Load(dir string) (*Image, error) {
	file, err := open(filepath.Join(dir, Name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return ReadStream(file)
}

// ReadStream reads an image from a pipe or the like.
func ReadStream(r io.Reader) (*Image, error) {
	i := new(Image)
	if _, err := i.ReadFrom(bufio.NewReaderSize(r, 1<<16)); err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	return i, nil
}
