package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// A rewriteResult is the summary.
type rewriteResult struct {
	Format  format `json:"format"`
	Sockets int    `json:"sockets"` // in the image
	Changed int    `json:"changed"`
}

func rewriteCommand(stdout, stderr *os.File) *cobra.Command {
	var dir, to string
	var mapFlags mapFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "rewrite -D DIR [-o DIR] --map-local OLD=NEW ...",
		Short: "Change addresses, ports and devices in an image, ours or CRIU's",
		Long: `rewrite gives the sockets of an image other addresses, ports and devices. In images of
CRIU's it changes those of all sockets over IP, UDP's too, so that "criu restore"
brings them back there; nothing else in them changes, to the byte.

A rule is OLD=NEW, both an address, a network of the same size, an address with a
port, or a port (":80"); of several, the first that matches counts. --map-local is
for the images' own side, --map-remote for the peers'. Where both ends of a
connection are dumped, each in an image of its own, one is the other's peer: rewrite
both.

A peer that is not moved cannot be told; something on the way has to translate. The
addresses of a container's network devices are in other images of CRIU's (netdev and
what ip(8) saved, ifaddr), and are not changed.

Without -o the image is changed in place: as a whole, or not at all. With -o all of it
is written to a directory that does not exist yet, pages and all.

Exit status: 0 it was rewritten; 1 it was not, also because no rule matches anything
in it; 2 the command line is wrong.`,
		Example: `  migrate rewrite -D /var/lib/dump --map-local 10.1.0.5=10.2.0.7
  migrate rewrite -D /var/tmp/image -o /var/tmp/moved --map-local :80=:8080 --map-device eth0=eth1`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case dir == "":
				return usageError(errors.New("what? -D DIR, or -D - for standard input"))
			case dir == pipeDir && to == "":
				return usageError(errors.New("where to? -o DIR, or -o - for standard output"))
			}
			mapping, err := mapFlags.parse()
			if err != nil {
				return usageError(err)
			}
			if len(mapping.Local)+len(mapping.Remote)+len(mapping.Devices) == 0 {
				return usageError(errors.New("change what? --map-local OLD=NEW, --map-remote, --map-device"))
			}
			r, err := rewrite(dir, to, &mapping, stdout)
			if err != nil {
				return failed(err)
			}
			out := stdout
			if to == pipeDir {
				out = stderr
			}
			if asJSON {
				err = printJSON(out, r)
			} else {
				_, err = fmt.Fprintf(out, "%d of %d sockets changed\n", r.Changed, r.Sockets)
			}
			if err != nil {
				return failed(err)
			}
			return nil
		},
	}
	c.Flags().SortFlags = false
	imageFlag(c, &dir)
	c.Flags().StringVarP(&to, "output", "o", "", "another directory, which is made; - is standard output, in our format")
	mapFlags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the summary as one JSON object; on standard error with -o -")
	return c
}

var errNothingMatches = errors.New("no rule matches anything in the image, which is as it was")

// rewrite changes an image in place, or writes it elsewhere.
func rewrite(dir, to string, m *soccr.Mapping, stdout io.Writer) (r rewriteResult, err error) {
	set, err := openSet(dir)
	if err != nil {
		return r, err
	}
	r.Format, r.Sockets = set.format, len(set.sockets)
	if set.format == criu {
		r.Changed, err = set.criu.Map(m)
	} else {
		r.Changed, err = mapImage(set.image, m)
	}
	switch {
	case err != nil:
		return r, err
	case r.Changed == 0:
		return r, errNothingMatches
	case set.format == criu && to == pipeDir:
		return r, errors.New("a pipe has no room for CRIU's images, which are many")
	case set.format == criu && to == "":
		return r, replaceFiles(set.criu, dir)
	case set.format == criu:
		return r, copyWith(set.criu, dir, to)
	case to == pipeDir:
		_, err = set.image.WriteStream(stdout)
	case to == "":
		_, err = set.image.Save(dir)
	default:
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			return r, errors.Join(fmt.Errorf("%s exists already", to), err)
		}
		_, err = set.image.Save(to)
	}
	return r, err
}

// mapImage maps our sockets: all, or none.
func mapImage(i *image.Image, m *soccr.Mapping) (changed int, err error) {
	mapped := slices.Clone(i.Sockets)
	for n := range mapped {
		s, before := &mapped[n], i.Sockets[n]
		switch s.Kind {
		case image.Connection:
			s.Connection, err = m.Apply(s.Connection)
		case image.Listener:
			s.Listener, err = m.ApplyListener(s.Listener)
		case image.Datagram:
			s.Datagram, err = m.ApplyDatagram(s.Datagram)
		default:
			err = fmt.Errorf("a %s cannot be rewritten", s.Kind)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", nameOf(&before), err)
		}
		if !reflect.DeepEqual(*s, before) {
			changed++
		}
	}
	i.Sockets = mapped
	return changed, nil
}

// replaceFiles writes those of CRIU's images that have addresses in them, which is
// one: files.img, or inetsk.img in old dumps. So they change all at once.
func replaceFiles(im *criuimg.Image, dir string) (err error) {
	for _, s := range im.Sockets {
		s.Stream = nil // which stays as it is
	}
	stage, err := os.MkdirTemp(dir, ".rewrite-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	if err := im.Write(stage); err != nil {
		return err
	}
	for _, name := range []string{"files.img", "inetsk.img"} {
		from := filepath.Join(stage, name)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(syncPath(from), os.Rename(from, filepath.Join(dir, name))); err != nil {
			return err
		}
	}
	return syncPath(dir)
}

// copyWith copies all of a dump of CRIU's, with other addresses. The copy appears as
// a whole.
func copyWith(im *criuimg.Image, from, to string) (err error) {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s exists already", to), err)
	}
	to = filepath.Clean(to)
	stage, err := os.MkdirTemp(filepath.Dir(to), "."+filepath.Base(to)+".*") // mode 0700
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(stage))
		}
	}()
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyEntry(filepath.Join(from, e.Name()), filepath.Join(stage, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	if err := replaceFiles(im, stage); err != nil {
		return err
	}
	return errors.Join(os.Rename(stage, to), syncPath(filepath.Dir(to)))
}

// copyEntry copies what CRIU puts into a directory: files, and the link to the
// directory of the dump before.
func copyEntry(from, to string, kind fs.FileMode) (err error) {
	switch kind {
	case 0:
	case fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	default:
		return fmt.Errorf("%s is neither a file nor a link", from)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// syncPath has a file or directory written to the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if runtime.GOOS == "windows" {
		err = nil // which has no such thing for what is open for reading
	}
	return errors.Join(err, f.Close())
}
