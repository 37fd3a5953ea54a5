package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
)

func importCommand(stdout, stderr *os.File) *cobra.Command {
	var dir, to string
	var asJSON bool
	c := &cobra.Command{
		Use:   "import -D DIR -o DIR|-",
		Short: "Make an image of images of CRIU's",
		Long: `import makes an image, which "migrate restore" brings back, of the TCP sockets in a
dump of CRIU's. The memory of the processes stays where it is: this is for a program
that is started anew, and inherits the connections that were dumped with another.

What the image has no place for is said, socket by socket. It has none for which
network namespace a socket was in and who gets its signals, either. Sockets that
cannot be restored are refused, and so are those for which no descriptor stands
(which were on their way between processes); the others are imported.

Exit status: 0 all TCP sockets were imported; 1 nothing was; 2 the command line is
wrong; 3 some sockets were refused.`,
		Example: `  migrate import -D /var/lib/dump -o /var/tmp/image
  migrate import -D /var/lib/dump -o - | ssh HOST migrate restore -D - -- server`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || dir == pipeDir || to == "" {
				return usageError(errors.New("from where to where? -D DIR -o DIR, or -o - for standard output"))
			}
			set, err := openCRIU(dir)
			if err != nil {
				return failed(err)
			}
			i, report := toOurs(set)
			if to == pipeDir {
				if _, err := i.WriteStream(stdout); err != nil {
					return failed(err)
				}
				return report.report(stderr, asJSON, "imported")
			}
			if _, err := i.Save(to); err != nil {
				return failed(err)
			}
			return report.report(stdout, asJSON, "written to "+printable(to))
		},
	}
	c.Flags().StringVarP(&dir, "images-dir", "D", "", "the directory of CRIU's images")
	c.Flags().StringVarP(&to, "output", "o", "", "the directory for the image, or - for a pipe")
	c.Flags().BoolVar(&asJSON, "json", false, "print the summary as one JSON object; on standard error with -o -")
	return c
}

// toOurs makes an image of those sockets of a set that can be in one.
func toOurs(set *imageSet) (*image.Image, *conversion) {
	report := newConversion()
	report.Notes = append(report.Notes, set.notes...)
	i := &image.Image{Processes: set.processes}
	for _, s := range set.sockets {
		if s.err == nil && len(s.Holders) == 0 {
			s.err = errors.New("no descriptor stands for it")
		}
		if s.err != nil {
			report.Refused = append(report.Refused, refused{s.name, s.err.Error()})
			continue
		}
		report.Converted++
		report.Losses = append(report.Losses, lostOf(s.name, s.losses)...)
		i.Sockets = append(i.Sockets, s.Socket)
	}
	return i, report
}
