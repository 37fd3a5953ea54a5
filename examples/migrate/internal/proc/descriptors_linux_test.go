package proc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// busy waits in a call in one thread, and computes in another one, and says what the
// one gets and whether the other one goes wrong.
func busy() {
	var ends [2]int
	if err := errors.Join(unix.Pipe(ends[:]), unix.Dup3(ends[0], 0, 0), unix.Close(ends[0])); err != nil {
		panic(err)
	}
	go func() {
		runtime.LockOSThread()
		for b := make([]byte, 100); ; {
			n, err := unix.Read(0, b)
			fmt.Printf("read %s %v\n", b[:max(n, 0)], err)
		}
	}()
	fmt.Println("ready")
	sum := func() (x float64) {
		for i := range 100_000 {
			x = (x+float64(i))*1.0000001 + float64(i%7)
		}
		return x
	}
	for want := sum(); ; {
		if got := sum(); got != want {
			fmt.Println("wrong", got, want)
		}
	}
}

// traces is what a remote might leave of itself: memory, signal masks, descriptors.
// For a moment, Go's threads block signals, too.
func traces(t *testing.T, pid int) (found string) {
	t.Helper()
	for range 500 {
		if found = look(t, pid); !strings.Contains(found, "SigBlk") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return found
}

func look(t *testing.T, pid int) string {
	t.Helper()
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	traces := fmt.Sprintf("%x\n", sha256.Sum256(environment))
	for _, name := range []string{"fd/*", "task/*/status"} {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			link, _ := os.Readlink(file)
			if name == "fd/*" {
				if file != fmt.Sprintf("/proc/%d/fd/0", pid) { // which tests replace
					traces += file + " " + link + "\n"
				}
				continue
			}
			content, _ := os.ReadFile(file)
			for line := range strings.Lines(string(content)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
				if value = strings.Trim(value, "\t0"); value != "" && (name == "SigBlk" || name == "TracerPid") {
					traces += name + " " + value + "\n"
				}
			}
		}
	}
	return traces
}

// A process gets other files under its own numbers, and free ones, and nothing else
// in it is otherwise than before.
func TestSetDescriptors(t *testing.T) {
	pid, lines := start(t, "busy")
	waitFor(t, lines, "ready")
	f, thief := NewFreezer(), NewThief()
	defer f.Close()
	defer thief.Close()
	before := traces(t, pid)
	const free = 200
	for i := range 50 {
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fd := int(out.Fd())
		z, err := f.Freeze(pid, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := z.Callable(pid); err != nil {
			t.Fatal(err)
		}
		list := []Descriptor{{free, fd, i%2 == 0}, {free + 1, fd, i%2 == 1}, {0, fd, false}}
		if n, err := z.SetDescriptors(thief, pid, list); n != len(list) || err != nil {
			t.Fatal(n, err)
		}
		for _, d := range list {
			var own, theirs unix.Stat_t
			err := errors.Join(unix.Fstat(fd, &own), unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, d.Number), &theirs))
			if err != nil || own.Ino != theirs.Ino || CloseOnExec(pid, d.Number) != d.CloseOnExec {
				t.Errorf("descriptor %d: %v, %d and not %d, close on exec %v", d.Number, err, theirs.Ino, own.Ino, CloseOnExec(pid, d.Number))
			}
		}
		gone := []Descriptor{{free, -1, false}, {free + 1, -1, false}}
		if n, err := z.SetDescriptors(thief, pid, gone); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if err := z.Thaw(); err != nil {
			t.Fatal(err)
		}
		// The one in the call reads from the new file.
		want := strconv.Itoa(i)
		if _, err := in.WriteString(want); err != nil {
			t.Fatal(err)
		}
		if got := waitFor(t, lines, "read "); got != want+" <nil>" {
			t.Errorf("read %s", got)
		}
		t.Cleanup(func() { in.Close() }) // not before: the program would read its end
		out.Close()
	}
	if after := traces(t, pid); before != after {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	for len(lines) > 0 {
		t.Errorf("the program said %s", <-lines)
	}
}

// What cannot be set leaves the rest as it was.
func TestSetDescriptorsFails(t *testing.T) {
	pid, lines := start(t, "tree")
	waitFor(t, lines, "ready")
	f, thief := NewFreezer(), NewThief()
	defer f.Close()
	defer thief.Close()
	before := traces(t, pid)
	// As many descriptors as it has, and one for the channel.
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]bool{}
	for _, e := range entries {
		numbers[e.Name()] = true
	}
	limit := 0
	for free := 0; free < 2; limit++ {
		if !numbers[strconv.Itoa(limit)] {
			free++
		}
	}
	for _, test := range []struct {
		name  string
		limit uint64
		want  error
	}{
		{"no descriptor for the channel", uint64(limit - 1), unix.EMFILE},
		{"a number beyond the limit", 100, unix.EBADF},
	} {
		var old unix.Rlimit
		err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old)
		if err == nil {
			err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: test.limit, Max: old.Max}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		z, err := f.Freeze(pid, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		n, err := z.SetDescriptors(thief, pid, []Descriptor{{1, 1, false}, {150, 1, false}})
		if !errors.Is(err, test.want) || n > 1 {
			t.Errorf("%s: %d, %v, want %v", test.name, n, err, test.want)
		}
		if err := z.Thaw(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Fatal(err)
		}
		if after := traces(t, pid); n == 0 && before != after {
			t.Errorf("%s: before\n%s\nafter\n%s", test.name, before, after)
		}
	}
}

// A registration goes over to another file, with its events and data, also when the
// number under which it was made stands for something else by now.
func TestRegister(t *testing.T) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	pair := func() (int, int) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
		return fds[0], fds[1]
	}
	old, oldPeer := pair()
	fresh, freshPeer := pair()
	number, err := unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 300)
	if err != nil {
		t.Fatal(err)
	}
	const events, data = unix.EPOLLIN | unix.EPOLLET | unix.EPOLLRDHUP, 0x1122334455667788
	event := unix.EpollEvent{Events: events, Fd: int32(data & 0xffffffff), Pad: int32(data >> 32)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, number, &event); err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
	if err == nil {
		err = unix.Dup3(null, number, unix.O_CLOEXEC)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	defer unix.Close(number)
	registration := func() Registration {
		all, err := Registrations(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(r Registration) bool { return r.Epoll == epoll })
		if i < 0 {
			t.Fatalf("no registration with %d in %+v", epoll, all)
		}
		return all[i]
	}
	before := registration()
	var stat syscall.Stat_t
	if err := syscall.Fstat(old, &stat); err != nil {
		t.Fatal(err)
	}
	want := Registration{epoll, number, events | unix.EPOLLERR | unix.EPOLLHUP, data, stat.Ino, stat.Dev}
	if before != want {
		t.Errorf("%+v, want %+v", before, want)
	}
	change := Change{before, epoll, old, fresh}
	if n, err := Register([]Change{change, change}); n != 2 || err != nil { // the second is not there any more
		t.Fatal(n, err)
	}
	if err := syscall.Fstat(fresh, &stat); err != nil {
		t.Fatal(err)
	}
	want.Inode = stat.Ino
	if after := registration(); after != want {
		t.Errorf("%+v, want %+v", after, want)
	}
	got := make([]unix.EpollEvent, 2)
	for peer, want := range map[int]int{oldPeer: 0, freshPeer: 1} {
		if _, err := unix.Write(peer, []byte("x")); err != nil {
			t.Fatal(err)
		}
		n, err := unix.EpollWait(epoll, got, 0)
		if n != want || err != nil || n == 1 && (got[0].Fd != event.Fd || got[0].Pad != event.Pad || got[0].Events != unix.EPOLLIN) {
			t.Errorf("%d events, want %d: %v, %v", n, want, got[:max(n, 0)], err)
		}
	}
}

// The numbers of registrations may be those of our own descriptors.
func TestRegisterCollides(t *testing.T) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	const first = 300
	var changes []Change
	for i := range 2 {
		old, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		number := first + i
		if err := unix.Dup3(old[0], number, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, number, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _, _ = unix.Close(old[0]), unix.Close(old[1]), unix.Close(number) })
		changes = append(changes, Change{Registration{Number: number, Events: unix.EPOLLIN, Data: uint64(i)}, epoll, old[0], first + 1 - i})
	}
	for i := range 2 { // what each is to watch has the number of the other one
		fresh, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Dup3(fresh[0], changes[i].New, unix.O_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = unix.Close(fresh[0]), unix.Close(fresh[1]) })
		if _, err := unix.Write(fresh[1], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Register(changes); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := unix.EpollWait(epoll, make([]unix.EpollEvent, 3), 0); n != 2 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
}
