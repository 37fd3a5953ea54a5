package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// A conversion is what became of an image in another format.
type conversion struct {
	Converted int       `json:"converted"` // sockets
	Losses    []lost    `json:"losses"`
	Refused   []refused `json:"refused"`
	Notes     []string  `json:"notes"`
}

func newConversion() *conversion {
	return &conversion{Losses: []lost{}, Refused: []refused{}, Notes: []string{}}
}

// report tells people, or programs, and gives the error that the exit status is
// made of.
func (r *conversion) report(w io.Writer, asJSON bool, what string) error {
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return failed(err)
		}
	} else {
		b := &lines{}
		b.add("%d sockets %s", r.Converted, what)
		for _, note := range r.Notes {
			b.add("note     %s", printable(note))
		}
		for _, l := range r.Losses {
			b.add("lost     %v", l)
		}
		for _, s := range r.Refused {
			b.add("refused  %s: %s", printable(s.Socket), printable(s.Error))
		}
		if _, err := w.Write(b.text); err != nil {
			return failed(err)
		}
	}
	if len(r.Refused) > 0 {
		return &failure{status: statusPartly}
	}
	return nil
}

func exportCommand(stdout *os.File) *cobra.Command {
	var dir, to string
	var asJSON bool
	c := &cobra.Command{
		Use:   "export -D DIR|- -o DIR",
		Short: "Write an image as images of CRIU's",
		Long: `export writes the sockets of an image as CRIU has them: files.img, a tcp-stream-*.img
for each connection, an fdinfo-*.img for each process, and inventory.img. crit
decodes them, and "migrate import" makes the same image of them again.

What CRIU has no place for is said, socket by socket: what a connection has learned
of its path, its congestion control, and options that CRIU does not keep. A socket
that CRIU would restore wrongly (with keys of TCP-MD5, whose segments it would not
sign) is refused, so are UDP sockets, and the others are written.

CRIU restores processes, and sockets only as a part of them: what is written here is
the part of a dump that tells of sockets.

The directory is made, and must not have a dump in it. Files are readable for their
owner only: they hold the bytes in the queues.

Exit status: 0 all sockets were written; 1 nothing was written; 2 the command line
is wrong; 3 some sockets were refused.`,
		Example: `  migrate export -D /var/tmp/image -o /var/tmp/criu && crit x /var/tmp/criu fds
  migrate dump -t 1234 -D - --leave-running | migrate export -D - -o /var/tmp/criu`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || to == "" {
				return usageError(errors.New("from where to where? -D DIR -o DIR"))
			}
			i, err := loadImage(dir)
			if err != nil {
				return failed(err)
			}
			im, report := toCRIU(i)
			if err := writeCRIU(im, to); err != nil {
				return failed(err)
			}
			return report.report(stdout, asJSON, "written to "+printable(to))
		},
	}
	imageFlag(c, &dir)
	c.Flags().StringVarP(&to, "output", "o", "", "the directory for CRIU's images")
	c.Flags().BoolVar(&asJSON, "json", false, "print the summary as one JSON object")
	return c
}

// imageVersion is that of the images of CRIU since 1.6: CRIU's own number for it.
const imageVersion = 2

// toCRIU makes CRIU's sockets of ours.
func toCRIU(i *image.Image) (*criuimg.Image, *conversion) {
	report := newConversion()
	im := &criuimg.Image{Inventory: &inventory.InventoryEntry{ImgVersion: new(uint32(imageVersion)), FdinfoPerId: new(false)}}
	tables := map[int]*criuimg.Table{}
	for _, p := range i.Processes {
		t := &criuimg.Table{ID: uint32(p.PID), PIDs: []uint32{uint32(p.PID)}}
		tables[p.PID] = t
		im.Tables = append(im.Tables, t)
		if p.Name != "" {
			report.Losses = append(report.Losses, lost{fmt.Sprintf("process %d", p.PID), "name", p.Name, nil})
		}
	}
	if i.Keeper != nil {
		report.Losses = append(report.Losses, lost{"", "keeper", fmt.Sprintf("process %d, which keeps the old host locked", i.Keeper.PID), nil})
	}
	for n := range i.Sockets {
		s := &i.Sockets[n]
		number := uint32(n + 1)
		var out *criuimg.Socket
		var losses []criuimg.Loss
		var err error
		switch s.Kind {
		case image.Connection:
			out, losses, err = criuimg.NewSocket(number, number, s.Connection)
		case image.Listener:
			out, losses, err = criuimg.NewListener(number, number, s.Listener)
		default:
			err = errors.New("only sockets of TCP are written")
		}
		if err != nil {
			report.Refused = append(report.Refused, refused{nameOf(s), err.Error()})
			continue
		}
		report.Converted++
		report.Losses = append(report.Losses, lostOf(nameOf(s), losses)...)
		im.Sockets = append(im.Sockets, out)
		kind := fdinfo.FdTypes_INETSK
		for _, h := range s.Holders {
			flags := uint32(0)
			if h.CloseOnExec {
				flags = 1 // FD_CLOEXEC
			}
			t := tables[h.PID]
			t.Entries = append(t.Entries, &fdinfo.FdinfoEntry{Id: new(number), Flags: new(flags), Type: &kind, Fd: new(uint32(h.FD))})
		}
	}
	return im, report
}

// writeCRIU writes images into a directory that has none.
func writeCRIU(im *criuimg.Image, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"files.img", "inetsk.img", "inventory.img", image.Name} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s has a %s already", dir, name), err)
		}
	}
	return im.Write(dir)
}
