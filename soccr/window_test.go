package soccr

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is restored is the saved window, save where the kernel would refuse it or
// the connection would hang.
func TestPlanWindow(t *testing.T) {
	const next, large = 1000, 72 << 10 // rcv_nxt; the segment that there is room for on top
	for _, row := range []struct {
		name   string
		change func(*Snapshot)
		want   func(*Window)
		room   int64
	}{
		{"as it was", func(*Snapshot) {}, func(*Window) {}, 65000 + 65000},
		{"partly used", func(s *Snapshot) { s.Window.RcvWup = 500 }, func(*Window) {}, 64500 + 64500},
		{"a large one", func(s *Snapshot) { s.Window.RcvWnd = 1 << 20 }, func(*Window) {}, 1<<20 + large},
		{"a FIN received", func(s *Snapshot) { s.State, s.Window.RcvWup = StateCloseWait, next+1 }, func(*Window) {}, 65000 + 65000},
		{"more than a header expresses", func(s *Snapshot) { s.RecvScale, s.Window.RcvWnd = 0, 100_000 }, func(*Window) {}, 65535 + 65535},
		{"used up, and more", func(s *Snapshot) { s.Window.RcvWup, s.Window.RcvWnd = 0, 500 },
			func(w *Window) { w.RcvWup, w.RcvWnd = next, 0 }, 0},

		{"an update just now", func(s *Snapshot) { s.Window.SndWl1 = next }, func(w *Window) { w.SndWl1 = next - 1 }, 65000 + 65000},
		{"an update long ago", func(s *Snapshot) { s.Window.SndWl1 = s.RecvSeq - 1<<30 }, func(*Window) {}, 65000 + 65000},
		{"an update too long ago", func(s *Snapshot) { s.Window.SndWl1 = s.RecvSeq - 1<<30 - 1 },
			func(w *Window) { w.SndWl1 = next - 1 }, 65000 + 65000},
		{"an update out of order", func(s *Snapshot) { s.Window.SndWl1 = next + 65000 },
			func(w *Window) { w.SndWl1 = next - 1 }, 65000 + 65000},
		{"a largest window below the window", func(s *Snapshot) { s.Window.MaxWindow = 4000 },
			func(w *Window) { w.MaxWindow = 5000 }, 65000 + 65000},

		// Taken back by the kernel, and opened again.
		{"an update from beyond", func(s *Snapshot) { s.Window.SndWl1, s.Window.RcvWnd, s.Options.RecvBuffer = next+70_000, 0, 0 },
			func(w *Window) { w.SndWl1, w.RcvWnd = next-1, 70_000+64<<10 }, 2 * (70_000 + 64<<10)},
		{"memory used up", func(s *Snapshot) { s.Window.RcvWnd, s.Window.RecvMemory = 0, 140_000 },
			func(w *Window) { w.RcvWnd = 131_072 }, 2 * 131_072},
		{"memory and buffer used up", func(s *Snapshot) {
			s.Window.RcvWnd, s.Window.RecvMemory, s.RecvQueue = 0, 140_000, make([]byte, 100_000)
		}, func(w *Window) { w.RcvWnd = 64 << 10 }, 2 * 64 << 10},
		{"a large buffer used up", func(s *Snapshot) {
			s.Window.RcvWnd, s.Window.RecvMemory, s.Options.RecvBuffer = 0, 9<<20, 8<<20
		}, func(w *Window) { w.RcvWnd = 1 << 20 }, 2 << 20},
		{"memory used up, the peer scales much", func(s *Snapshot) {
			s.Window.RcvWnd, s.Window.RecvMemory, s.SendScale = 0, 140_000, 14
			s.RecvQueue = make([]byte, 131_072)
		}, func(w *Window) { w.RcvWnd = 64 << 10 }, 2 * 64 << 10},
		{"memory used up without scaling", func(s *Snapshot) { s.RecvScale, s.Window.RcvWnd, s.Window.RecvMemory = 0, 0, 140_000 },
			func(w *Window) { w.RcvWnd = 65535 }, 2 * 65535},
		{"memory used up, the window still open", func(s *Snapshot) { s.Window.RcvWnd, s.Window.RecvMemory = 2<<7, 140_000 },
			func(*Window) {}, 2 * (2 << 7)},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := Snapshot{
				State: StateEstablished, RecvSeq: next, SendScale: 7, RecvScale: 7,
				Window:  Window{SndWl1: 900, SndWnd: 5000, MaxWindow: 6000, RcvWnd: 65000, RcvWup: next},
				Options: Options{RecvBuffer: 131_072},
			}
			row.change(&s)
			want := windowPlan{Window: s.Window, room: row.room}
			row.want(&want.Window)
			if d := cmp.Diff(want, planWindow(&s), cmp.AllowUnexported(windowPlan{})); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestWindowBeforeFIN(t *testing.T) {
	const next = 1000
	for _, row := range []struct {
		name       string
		plan, want Window
	}{
		{"partly used", Window{SndWl1: 990, SndWnd: 5000, MaxWindow: 6000, RcvWnd: 500, RcvWup: 900},
			Window{SndWl1: 990, MaxWindow: 6000, RcvWnd: 400, RcvWup: next}},
		{"closed", Window{SndWl1: 990, SndWnd: 5000, MaxWindow: 6000, RcvWnd: 100, RcvWup: 900},
			Window{SndWl1: 990, MaxWindow: 6000, RcvWnd: 1, RcvWup: next}},
		{"that of the FIN, the FIN acknowledged", Window{SndWl1: next, SndWnd: 5000, MaxWindow: 6000, RcvWnd: 500, RcvWup: next + 1},
			Window{SndWl1: next - 1, MaxWindow: 6000, RcvWnd: 501, RcvWup: next}},
	} {
		if d := cmp.Diff(row.want, windowPlan{Window: row.plan}.beforeFIN(next)); d != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, d)
		}
	}
}

// A header never says less of our window than one before it did.
func TestAdvertised(t *testing.T) {
	for _, row := range []struct {
		name string
		w    Window
		next uint32 // rcv_nxt
		bits uint8  // scale
		want uint16
	}{
		{"unscaled", Window{RcvWup: 1000, RcvWnd: 500}, 1100, 0, 400},
		{"a multiple", Window{RcvWup: 1000, RcvWnd: 77 << 10}, 1000, 10, 77},
		{"partly used", Window{RcvWup: 1000, RcvWnd: 77 << 10}, 1119, 10, 77},
		{"used but for a byte", Window{RcvWup: 1000, RcvWnd: 77 << 10}, 1000 + 77<<10 - 1, 10, 1},
		{"used up", Window{RcvWup: 1000, RcvWnd: 77 << 10}, 1000 + 77<<10, 10, 0},
		{"and a FIN", Window{RcvWup: 1000, RcvWnd: 77 << 10}, 1000 + 77<<10 + 1, 10, 0},
		{"more than a header expresses", Window{RcvWup: 1000, RcvWnd: 70_000}, 1000, 0, 65535},
		{"around 2³²", Window{RcvWup: 1<<32 - 100, RcvWnd: 1000}, 100, 0, 800},
	} {
		if got := row.w.advertised(row.next, row.bits); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
}
