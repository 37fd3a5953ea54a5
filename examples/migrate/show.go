package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
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
	return image.Load(dir)
}

func showCommand(stdout *os.File) *cobra.Command {
	var dir string
	var asJSON, hexdump bool
	c := &cobra.Command{
		Use:   "show -D DIR|-",
		Short: "Show what is in an image",
		Long: `show decodes an image for people: which descriptors of which processes stand for
which sockets, and what the connections are like. --hexdump shows what is in their
queues, which is as secret as the connections. --json shows everything.`,
		Example: `  migrate show -D /var/tmp/image --hexdump
  migrate dump -t 1234 -D - --leave-running | migrate show -D - --json | jq`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError(errors.New("where from? -D DIR, or -D - for standard input"))
			}
			i, err := loadImage(dir)
			if err == nil && asJSON {
				err = printJSON(stdout, shown(i))
			} else if err == nil {
				err = show(stdout, i, hexdump)
			}
			if err != nil {
				return failed(err)
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
}

// shown is an image as --json shows it.
func shown(i *image.Image) any {
	sockets := []shownSocket{}
	for _, s := range i.Sockets {
		sockets = append(sockets, shownSocket{s, s.Connection, s.Listener, s.Datagram})
	}
	return struct {
		Processes []image.Process `json:"processes"`
		Sockets   []shownSocket   `json:"sockets"`
	}{i.Processes, sockets}
}

// show writes an image for people.
func show(w io.Writer, i *image.Image, hexdump bool) error {
	b := &lines{}
	for _, p := range i.Processes {
		b.add("process %d (%s)", p.PID, printable(p.Name))
	}
	for _, s := range i.Sockets {
		b.add("")
		switch s.Kind {
		case image.Listener:
			b.listener(s.Listener)
		case image.Datagram:
			b.datagram(s.Datagram, hexdump)
		default:
			b.connection(s.Connection, hexdump)
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
