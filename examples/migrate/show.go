package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
)

// pipeDir is the directory that stands for standard input or output.
const pipeDir = "-"

// imageFlag is -D, as CRIU has it.
func imageFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVarP(dir, "images-dir", "D", "", "the directory of the image, or - for a pipe")
}

// loadImage reads the image that -D names.
func loadImage(dir string) (*image.Image, error) {
	if dir == pipeDir {
		return image.ReadStream(os.Stdin)
	}
	i, err := image.Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if kind, _ := formatOf(dir); kind == criu {
			return nil, fmt.Errorf("%s has images of CRIU's: migrate import makes an image of them", dir)
		}
	}
	return i, err
}

func showCommand(stdout *os.File) *cobra.Command {
	var dir string
	var asJSON, hexdump bool
	c := &cobra.Command{
		Use:   "show -D DIR|-",
		Short: "Show what is in an image, ours or CRIU's",
		Long: `show decodes an image for people: which descriptors of which processes stand for
which sockets, and what the connections are like. It reads the directories of CRIU's
dumps as well; of these, what an image of ours has no place for is shown too, and a
socket that cannot be restored with the reason. --hexdump shows what is in the
queues, which is as secret as the connections. --json shows everything.

Exit status: 0 it was shown; 1 it cannot be read; 2 the command line is wrong; 3 of
some sockets it can only be said why they cannot be restored.`,
		Example: `  migrate show -D /var/tmp/image --hexdump
  migrate show -D /var/lib/criu-dump
  migrate dump -t 1234 -D - --leave-running | migrate show -D - --json | jq`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError(errors.New("where from? -D DIR, or -D - for standard input"))
			}
			set, err := openSet(dir)
			if err == nil && asJSON {
				err = printJSON(stdout, shown(set))
			} else if err == nil {
				err = show(stdout, set, hexdump)
			}
			if err != nil {
				return failed(err)
			}
			if slices.ContainsFunc(set.sockets, func(s setSocket) bool { return s.err != nil }) {
				return &failure{status: statusPartly}
			}
			return nil
		},
	}
	imageFlag(c, &dir)
	c.Flags().BoolVar(&hexdump, "hexdump", false, "show the bytes in the queues")
	c.Flags().BoolVar(&asJSON, "json", false, "print all of it as one JSON object")
	return c
}

// A shownSocket has what JSON does not show of an image's list.
type shownSocket struct {
	image.Socket
	Connection *soccr.Snapshot         `json:"connection,omitempty"`
	Listener   *soccr.ListenerSnapshot `json:"listener,omitempty"`
	Datagram   *soccr.DatagramSnapshot `json:"datagram,omitempty"`
	Losses     []lost                  `json:"losses,omitempty"`
	Error      string                  `json:"error,omitempty"`
}

// shown is a set as --json shows it.
func shown(set *imageSet) any {
	sockets := []shownSocket{}
	for _, s := range set.sockets {
		one := shownSocket{s.Socket, s.Connection, s.Listener, s.Datagram, lostOf("", s.losses), ""}
		if s.err != nil {
			one.Error = s.name + ": " + s.err.Error()
		}
		sockets = append(sockets, one)
	}
	return struct {
		Format    format          `json:"format"`
		Processes []image.Process `json:"processes"`
		Sockets   []shownSocket   `json:"sockets"`
		Notes     []string        `json:"notes,omitempty"`
	}{set.format, append([]image.Process{}, set.processes...), sockets, set.notes}
}

// show writes a set for people.
func show(w io.Writer, set *imageSet, hexdump bool) error {
	b := &lines{}
	for _, p := range set.processes {
		b.add("process %d (%s)", p.PID, printable(p.Name))
	}
	for _, note := range set.notes {
		b.add("note: %s", printable(note))
	}
	for _, s := range set.sockets {
		b.add("")
		switch {
		case s.err != nil:
			b.add("%s", printable(s.name))
			b.add("  refused        %s", printable(s.err.Error()))
		case s.Kind == image.Listener:
			b.listener(s.Listener)
		case s.Kind == image.Datagram:
			b.datagram(s.Datagram, hexdump)
		default:
			b.connection(s.Connection, hexdump)
		}
		for _, l := range lostOf("", s.losses) {
			b.add("  only in CRIU's %v", l)
		}
		for _, h := range s.Holders {
			after := ""
			if h.CloseOnExec {
				after = ", closed on exec"
			}
			b.add("  held by        process %d as descriptor %d%s", h.PID, h.FD, after)
		}
	}
	_, err := w.Write(b.text)
	return err
}

func (b *lines) connection(s *soccr.Snapshot, hexdump bool) {
	b.add("%v  %v -> %v", s.State, s.Local, s.Remote)
	b.add("  received       %d bytes not read yet, the next has sequence number %d", len(s.RecvQueue), s.RecvSeq)
	b.queue(s.RecvQueue, hexdump)
	b.add("  written        %d bytes not acknowledged yet, %d of them never sent, the next has sequence number %d",
		len(s.SendQueue), s.Unsent, s.SendSeq)
	b.queue(s.SendQueue, hexdump)
	features := []string{fmt.Sprintf("MSS %d", s.MSS)}
	for _, f := range []struct {
		on   bool
		text string
	}{
		{s.WindowScaling, fmt.Sprintf("window scales %d and %d", s.SendScale, s.RecvScale)},
		{s.SACK, "SACK"},
		{s.Timestamp.Enabled && !s.Timestamp.Microseconds, "timestamps"},
		{s.Timestamp.Microseconds, "timestamps in microseconds"},
		{s.ECN, "ECN"},
		{len(s.MD5Keys) > 0, fmt.Sprintf("%d MD5 keys", len(s.MD5Keys))},
	} {
		if f.on {
			features = append(features, f.text)
		}
	}
	b.add("  negotiated     %s", strings.Join(features, ", "))
	b.add("  windows        peer's %d, ours %d", s.Window.SndWnd, s.Window.RcvWnd)
	b.options(&s.Options)
}

func (b *lines) listener(l *soccr.ListenerSnapshot) {
	kind := ""
	if l.Multipath {
		kind = ", Multipath TCP too"
	}
	b.add("LISTEN  %v, backlog %d%s", l.Local, l.Backlog, kind)
	b.options(&l.Options)
}

func (b *lines) datagram(d *soccr.DatagramSnapshot, hexdump bool) {
	protocol, peer := "UDP", ""
	if d.Lite {
		protocol = "UDP-Lite"
	}
	if d.Remote.IsValid() {
		peer = fmt.Sprintf(" -> %v", d.Remote)
	}
	b.add("%s  %v%s", protocol, d.Local, peer)
	b.add("  received       %d datagrams not read yet", len(d.RecvQueue))
	for _, one := range d.RecvQueue {
		b.queue(one.Data, hexdump)
	}
	b.options(&d.Options)
}

func (b *lines) options(o *soccr.Options) {
	options := []string{fmt.Sprintf("buffers %d and %d", o.RecvBuffer, o.SendBuffer)}
	for _, f := range []struct {
		on   bool
		text string
	}{
		{o.Congestion != "", printable(o.Congestion)}, {o.ReuseAddr, "SO_REUSEADDR"}, {o.NonBlocking, "O_NONBLOCK"},
	} {
		if f.on {
			options = append(options, f.text)
		}
	}
	for _, s := range o.Settings {
		options = append(options, printable(s.Name))
	}
	b.add("  options        %s", strings.Join(options, ", "))
}

func (b *lines) queue(q []byte, hexdump bool) {
	if !hexdump || len(q) == 0 {
		return
	}
	for line := range strings.Lines(hex.Dump(q)) {
		b.add("    %s", strings.TrimSuffix(line, "\n"))
	}
}

// printable takes out of a name what a terminal might obey.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}
