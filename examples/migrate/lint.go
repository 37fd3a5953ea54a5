package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/gosoccr/gosoccr/examples/migrate/internal/image"
	"github.com/gosoccr/gosoccr/soccr"
)

// Who refuses a socket, or changes it.
const (
	byUs   = "gosoccr" // migrate restore, and all that use the library
	byCRIU = "criu"    // criu restore, where the kernel refuses what CRIU asks for
	byHost = "host"    // this host, as it is now
)

// A finding is something that keeps a socket from coming back as it was.
type finding struct {
	Socket string `json:"socket,omitempty"`
	// By is whose restore it concerns.
	By string `json:"by"`
	// Refused: the restore fails. Else it goes on, and something is not as it was.
	Refused bool   `json:"refused"`
	Text    string `json:"text"`
}

func lintCommand(stdout *os.File) *cobra.Command {
	var dir string
	var onHost, asJSON bool
	c := &cobra.Command{
		Use:   "lint -D DIR|-",
		Short: "Say what in an image could not be restored",
		Long: `lint reads an image, ours or CRIU's, as a restore would, and says what would fail:

  refused by gosoccr  no socket could have these numbers, queues or options, so that
                      "migrate restore" would not let them near the kernel; or two
                      sockets are in each other's way
  refused by criu     the kernel answers EINVAL to what "criu restore" asks for;
                      "migrate import" and "migrate restore" know what to do
  refused by host     with --here: this host lacks an address, a device, a route, a
                      right, or something has the port
  changed             the restore goes on, and something is not as it was

Nothing is touched, and without --here nothing of this host is looked at.

Exit status: 0 nothing would be refused; 1 the image cannot be read, so all of it
would be; 2 the command line is wrong; 3 some of it would be refused.`,
		Example: `  migrate lint -D /var/lib/criu-dump
  migrate lint -D /var/tmp/image --here || exit`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError(errors.New("what? -D DIR, or -D - for standard input"))
			}
			set, err := openSet(dir)
			if err != nil {
				return failed(err)
			}
			findings := lint(set)
			if onHost {
				here, err := lintHere(set)
				if err != nil {
					return failed(err)
				}
				findings = append(findings, here...)
			}
			return reportFindings(stdout, set, findings, asJSON)
		},
	}
	imageFlag(c, &dir)
	c.Flags().BoolVar(&onHost, "here", false, "look at this host, and its network namespace, too (Linux)")
	c.Flags().BoolVar(&asJSON, "json", false, "print the findings as one JSON object")
	return c
}

func reportFindings(w io.Writer, set *imageSet, findings []finding, asJSON bool) error {
	refused := 0
	for _, f := range findings {
		if f.Refused {
			refused++
		}
	}
	var err error
	if asJSON {
		err = printJSON(w, struct {
			Format   format    `json:"format"`
			Sockets  int       `json:"sockets"`
			Refused  int       `json:"refused"` // findings
			Findings []finding `json:"findings"`
		}{set.format, len(set.sockets), refused, append([]finding{}, findings...)})
	} else {
		b := &lines{}
		for _, f := range findings {
			how := "changed"
			if f.Refused {
				how = "refused by " + f.By
			}
			b.add("%-18s  %s: %s", how, printable(f.Socket), printable(f.Text))
		}
		b.add("%d sockets, %d reasons to refuse", len(set.sockets), refused)
		_, err = w.Write(b.text)
	}
	if err != nil {
		return failed(err)
	}
	if refused > 0 {
		return &failure{status: statusPartly}
	}
	return nil
}

// lint finds what is wrong with the sockets of a set, wherever they are restored.
func lint(set *imageSet) (findings []finding) {
	taken := map[slot]*setSocket{}
	for i := range set.sockets {
		s := &set.sockets[i]
		find := func(by string, refused bool, format string, args ...any) {
			findings = append(findings, finding{s.name, by, refused, fmt.Sprintf(format, args...)})
		}
		if s.err != nil {
			find(byUs, true, "%v", s.err)
			continue
		}
		if set.format == criu && len(s.Holders) == 0 {
			find(byUs, true, "no descriptor stands for it")
		}
		if place, ok := slotOf(s); ok {
			if other := taken[place]; other != nil && !(sharesPort(s) && sharesPort(other)) {
				find(byUs, true, "another socket of the image has its addresses and ports: %s", other.name)
			}
			taken[place] = s
		}
		for _, l := range lostOf("", s.losses) {
			find(byUs, false, "%v", l)
		}
		if s.Connection == nil {
			continue
		}
		if s.Connection.ECN {
			find(byUs, false, "ECN: no kernel takes it, so the connection does without")
		}
		if set.format == criu {
			if rule := refusedWindow(s.Connection); rule != "" {
				find(byCRIU, true, "TCP_REPAIR_WINDOW: %s", rule)
			}
		}
	}
	return findings
}

// A slot is what only one socket of a network namespace can have.
type slot struct {
	namespace     uint32
	listens       bool
	local, remote netip.AddrPort
	device        string
}

// slotOf tells which; a socket of UDP has none, as many may have one address.
func slotOf(s *setSocket) (place slot, ok bool) {
	var device soccr.Setting
	switch s.Kind {
	case image.Listener:
		device, _ = s.Listener.Options.Setting("SO_BINDTODEVICE")
		place = slot{listens: true, local: s.Listener.Local}
	case image.Connection:
		device, _ = s.Connection.Options.Setting("SO_BINDTODEVICE")
		place = slot{local: s.Connection.Local, remote: s.Connection.Remote}
	default:
		return place, false
	}
	place.namespace, place.device = s.namespace, device.Text
	return place, true
}

// sharesPort: many listeners of one port may be, if all of them want it, and many
// sockets that are not connected.
func sharesPort(s *setSocket) bool {
	if s.Listener != nil {
		_, shares := s.Listener.Options.Setting("SO_REUSEPORT")
		return shares
	}
	return !s.Connection.Remote.IsValid()
}

// windowRules are those by which the kernel refuses a window (tcp_repair_set_window).
var windowRules = []struct {
	text   string
	broken func(rcvNxt uint32, w *soccr.Window) bool
}{
	{"max_window is less than snd_wnd", func(_ uint32, w *soccr.Window) bool { return w.MaxWindow < w.SndWnd }},
	{"snd_wl1 is behind the window's end", func(rcvNxt uint32, w *soccr.Window) bool { return after(w.SndWl1, rcvNxt+w.RcvWnd) }},
	{"rcv_wup is after what was received", func(rcvNxt uint32, w *soccr.Window) bool { return after(w.RcvWup, rcvNxt) }},
}

// after compares sequence numbers.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// refusedWindow is the rule that a connection's window breaks, or empty.
func refusedWindow(s *soccr.Snapshot) string {
	rcvNxt := s.RecvSeq
	switch s.State {
	case soccr.StateClosing, soccr.StateCloseWait, soccr.StateLastAck:
		rcvNxt++ // the peer's FIN
	case soccr.StateClose, soccr.StateSynSent:
		return "" // nothing of it is told
	}
	for _, rule := range windowRules {
		if rule.broken(rcvNxt, &s.Window) {
			return rule.text
		}
	}
	return ""
}

// lintHere asks this host.
func lintHere(set *imageSet) (findings []finding, err error) {
	var connections []*soccr.Snapshot
	var listeners []*soccr.ListenerSnapshot
	for _, s := range set.sockets {
		switch {
		case s.err != nil:
		case s.Kind == image.Listener:
			listeners = append(listeners, s.Listener)
		case s.Kind == image.Connection:
			connections = append(connections, s.Connection)
		}
	}
	err = soccr.Preflight(connections, listeners)
	problems, ok := errors.AsType[*soccr.PreflightError](err)
	if !ok {
		return nil, err
	}
	for _, p := range problems.Problems {
		name := "all sockets"
		if p.Local.IsValid() {
			name = p.Local.String()
			if p.Remote.IsValid() {
				name += " -> " + p.Remote.String()
			}
		}
		findings = append(findings, finding{name, byHost, true, fmt.Sprintf("%s: %v%s", p.Op, p.Err, hint(p))})
	}
	return findings, nil
}

func hint(p *soccr.OpError) string {
	if h := p.Hint(); h != "" {
		return " (" + h + ")"
	}
	return ""
}
