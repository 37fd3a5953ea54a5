package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/criuimg"
)

// A format is how a directory keeps sockets.
type format string

const (
	ours format = "migrate"
	criu format = "criu"
)

// formatOf tells the format of the images in a directory.
func formatOf(dir string) (format, error) {
	for _, kind := range []struct {
		name   string
		format format
	}{{image.Name, ours}, {"files.img", criu}, {"inetsk.img", criu}} {
		switch _, err := os.Lstat(filepath.Join(dir, kind.name)); {
		case err == nil:
			return kind.format, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%s has no %s, nor a files.img of CRIU's", dir, image.Name)
}

// An imageSet is what a directory tells of sockets, in either format.
type imageSet struct {
	format    format
	processes []image.Process
	sockets   []setSocket
	// notes tell what is not said of a single socket.
	notes []string

	image *image.Image   // ours
	criu  *criuimg.Image // CRIU's
}

// A setSocket is a socket of a set.
type setSocket struct {
	image.Socket
	name      string // for people
	namespace uint32 // of CRIU's: which network namespace
	source    *criuimg.Socket
	losses    []criuimg.Loss // what CRIU's entries have and ours has no place for
	err       error          // it has none of the three, because of this
}

// openSet reads a directory, or standard input, which is in our format.
func openSet(dir string) (*imageSet, error) {
	kind := ours
	if dir != pipeDir {
		var err error
		if kind, err = formatOf(dir); err != nil {
			return nil, err
		}
	}
	if kind == criu {
		return openCRIU(dir)
	}
	i, err := loadImage(dir)
	if err != nil {
		return nil, err
	}
	set := &imageSet{format: ours, processes: i.Processes, image: i}
	for _, s := range i.Sockets {
		set.sockets = append(set.sockets, setSocket{Socket: s, name: nameOf(&s)})
	}
	return set, nil
}

// nameOf is what people call a socket.
func nameOf(s *image.Socket) string {
	switch {
	case s.Listener != nil:
		return fmt.Sprintf("LISTEN %v", s.Listener.Local)
	case s.Datagram != nil:
		return fmt.Sprintf("UDP %v", s.Datagram.Local)
	case s.Connection != nil:
		return connectionName(s.Connection.State, s.Connection.Local.String(), s.Connection.Remote.String(), s.Connection.Remote.IsValid())
	}
	return string(s.Kind)
}

func connectionName(state soccr.State, local, remote string, connected bool) string {
	if !connected {
		return fmt.Sprintf("%v %s", state, local)
	}
	return fmt.Sprintf("%v %s -> %s", state, local, remote)
}

// openCRIU reads CRIU's images, following no link out of the directory.
func openCRIU(dir string) (set *imageSet, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	im, err := criuimg.Read(root.FS())
	if err != nil {
		return nil, err
	}
	return fromCRIU(im), nil
}

// fromCRIU makes ours of CRIU's sockets, as far as that can be done.
func fromCRIU(im *criuimg.Image) *imageSet {
	set := &imageSet{format: criu, criu: im}
	holders, known := im.Holders(), map[int]bool{}
	for _, t := range im.Tables {
		if len(t.PIDs) == 0 {
			set.notes = append(set.notes, fmt.Sprintf("no ids-*.img tells whose fdinfo-%d.img is: it stands as process %d", t.ID, t.ID))
		}
	}
	for _, s := range im.Sockets {
		one := setSocket{source: s, namespace: s.Inet.GetNsId(), name: nameInCRIU(s)}
		if s.State() == soccr.StateListen {
			one.Kind = image.Listener
			one.Listener, one.losses, one.err = s.Listener()
		} else {
			one.Kind = image.Connection
			one.Connection, one.losses, one.err = s.Snapshot()
		}
		for _, h := range holders[s.Inet.GetId()] {
			pids := h.PIDs
			if len(pids) == 0 {
				pids = []uint32{h.Table}
			}
			for _, pid := range pids {
				one.Holders = append(one.Holders, image.Holder{PID: int(pid), FD: int(h.FD), CloseOnExec: h.CloseOnExec})
				if !known[int(pid)] {
					known[int(pid)] = true
					set.processes = append(set.processes, image.Process{PID: int(pid), Name: im.Names[pid]})
				}
			}
		}
		set.sockets = append(set.sockets, one)
	}
	slices.SortFunc(set.processes, func(a, b image.Process) int { return a.PID - b.PID })
	return set
}

// nameInCRIU is what people call a socket that may be of no use.
func nameInCRIU(s *criuimg.Socket) string {
	local, err := s.Local()
	if err != nil {
		return fmt.Sprintf("socket %d", s.Inet.GetId())
	}
	remote, err := s.Remote()
	if err != nil {
		return fmt.Sprintf("socket %d", s.Inet.GetId())
	}
	return connectionName(s.State(), local.String(), remote.String(), remote.IsValid())
}

// A lost thing is one that a conversion has no place for.
type lost struct {
	Socket  string `json:"socket,omitempty"`
	Field   string `json:"field"`
	Value   any    `json:"value"`
	Instead any    `json:"instead"`
}

// A refused socket is one that could not be converted.
type refused struct {
	Socket string `json:"socket"`
	Error  string `json:"error"`
}

func lostOf(name string, losses []criuimg.Loss) []lost {
	all := make([]lost, 0, len(losses))
	for _, l := range losses {
		all = append(all, lost{name, l.Field, l.Value, l.Instead})
	}
	return all
}

func (l lost) String() string {
	text := criuimg.Loss{Field: l.Field, Value: l.Value, Instead: l.Instead}.String()
	if l.Socket != "" {
		text = l.Socket + ": " + text
	}
	return printable(text)
}
