//go:build amd64 || arm64

package soccr_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

var kills = flag.Bool("kills", false, "kill checkpointers before and after every system call, not only some")

// killedEnv marks the checkpointer that is going to be killed.
const killedEnv = "GOSOCCR_KILLED"

// Its descriptors, after those of one that is watched.
const (
	killedConn  = 5 // the program's
	killedImage = 6 // where the snapshot goes, before the connection is taken away
)

// TestKilledCheckpointer kills a checkpointer before and after its system calls, from
// the lock to the end. One makes a new socket, up to the moment before Resume, as that
// socket ends with it; another one puts the connection back into the program's, and
// resumes it. The program, which lives on, has its connection or its image; no lock is
// left, and nobody was told anything.
func TestKilledCheckpointer(t *testing.T) {
	if os.Getenv(killedEnv) != "" {
		toBeKilled(t)
		return
	}
	here, err := host.Current()
	if err != nil {
		t.Fatal(err)
	}
	n := &network{here: here, there: here}
	const some = 23 // a prime, so that entering and leaving calls both come
	step := some
	if *kills {
		step = 1
	}
	for _, where := range []string{"new socket", "in place"} {
		t.Run(where, func(t *testing.T) {
			killed, alive, restored := 0, 0, 0
			for at := 0; ; at += step {
				f := []family{loopback4, loopback6}[at/step%2]
				ended, kept := n.killAt(t, f, where, at)
				if ended {
					break
				}
				if killed++; kept {
					alive++
				} else {
					restored++
				}
			}
			t.Logf("killed %d times; the connection was still there %d times, and was restored from its image %d times", killed, alive, restored)
			if alive == 0 || restored == 0 {
				t.Error("it was not killed at all stages")
			}
		})
	}
}

// killAt kills a checkpointer when it enters or leaves a system call, and sees what has
// become of the connection. It reports whether there were not so many, and whether the
// connection was still in its socket.
func (n *network) killAt(t *testing.T, f family, where string, at int) (ended, kept bool) {
	t.Helper()
	conn, peer := n.connect(t, f)
	defer abort(peer)
	in, out := pattern(byte(at), 5000), pattern(byte(at+1), 5000)
	write(t, peer, in[:3000])
	eventually(t, "the bytes are here", func() bool { return ioctl(t, conn, unix.SIOCINQ) == 3000 })
	deafen(t, peer) // so that some of it waits to be acknowledged
	write(t, conn, out[:2000])
	fd := ownDescriptor(t, conn)
	defer unix.Close(fd)
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(dup), "conn")
	image, imageTo := pipe(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledCheckpointer$")
	cmd.Env = append(os.Environ(), killedEnv+"="+where, "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	ended = runAndKill(t, cmd, at, socket, imageTo)
	socket.Close()
	imageTo.Close()
	var encoded []byte
	if encoded, err = io.ReadAll(image); err != nil {
		t.Fatal(err)
	}
	var snap soccr.Snapshot
	whole := snap.UnmarshalBinary(encoded)

	eventually(t, "no lock is left", func() bool { return len(locks(t)) == 0 })
	undeafen(t, peer)
	var moved *net.TCPConn
	if kept = whole != nil || where != "in place" && soccr.State(fdInfo(t, fd).State) == soccr.StateEstablished; kept {
		// Whoever lives on finds it paused, or not: either way it goes on.
		s, err := soccr.Pause(fd)
		if err == nil {
			err = s.Resume()
		}
		if err != nil {
			t.Fatalf("killed at %d: %v", at, err)
		}
		moved = n.fileConn(t, fd)
	} else {
		if where == "in place" { // whatever has been put back of it
			s, err := soccr.Pause(fd)
			if err == nil {
				err = s.Disconnect()
			}
			if err != nil {
				t.Fatalf("killed at %d: %v", at, err)
			}
			s.Release()
		}
		if moved, err = soccr.RestoreConn(&snap); err != nil {
			t.Fatalf("killed at %d: %v", at, err)
		}
	}
	defer abort(moved)
	write(t, peer, in[3000:])
	write(t, moved, out[2000:])
	expect(t, "conn", moved, in)
	expect(t, "peer", peer, out)
	return ended, kept
}

// locks are the tables of locks.
func locks(t *testing.T) (names []string) {
	t.Helper()
	tables, err := new(nftables.Conn).ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if strings.HasPrefix(table.Name, "gosoccr-") {
			names = append(names, table.Name)
		}
	}
	return names
}

// toBeKilled is the checkpointer.
func toBeKilled(t *testing.T) {
	runtime.LockOSThread()
	conn, err := net.FileConn(os.NewFile(killedConn, "conn"))
	if err != nil {
		t.Fatal(err)
	}
	local, remote := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	fd := ownDescriptor(t, conn.(*net.TCPConn))
	lock, err := netlock.New()
	if err != nil {
		t.Fatal(err)
	}
	meetWatcher(t)
	announce(counted)
	err = func() error {
		if err := lock.LockFlow(local, remote); err != nil {
			return err
		}
		s, err := soccr.Pause(fd)
		if err != nil {
			return err
		}
		snap, err := s.Save()
		for errors.Is(err, soccr.ErrChanged) { // what is in flight is sent again meanwhile
			snap, err = s.Save()
		}
		if err != nil {
			return err
		}
		image, err := snap.MarshalBinary()
		if err != nil {
			return err
		}
		for _, part := range [][]byte{image[:100], image[100:]} { // so that it can be half there
			if _, err := unix.Write(killedImage, part); err != nil {
				return err
			}
		}
		if err := s.Disconnect(); err != nil {
			return err
		}
		inPlace := os.Getenv(killedEnv) == "in place"
		if !inPlace {
			to, err := soccr.NewSocket(snap)
			if err != nil {
				return err
			}
			if s, err = soccr.Pause(to); err != nil {
				return err
			}
		}
		if err := s.Restore(snap); err != nil {
			return err
		}
		if err := lock.UnlockFlow(local, remote); err != nil || !inPlace {
			return err
		}
		return s.Resume()
	}()
	announce(unwatched)
	if err != nil {
		t.Fatal(err)
	}
	select {} // until it is killed, in any case
}

// runAndKill runs the checkpointer and kills it at the n-th time that it enters or
// leaves a system call while calls count, or when it has done all.
func runAndKill(t *testing.T, cmd *exec.Cmd, n int, files ...*os.File) (ended bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	told, tell := pipe(t)
	wait, release := pipe(t)
	cmd.ExtraFiles = append([]*os.File{tell, wait}, files...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tell.Close()
	wait.Close()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		told.Close()
		release.Close()
	}()
	told8 := make([]byte, 8)
	if _, err := io.ReadFull(told, told8); err != nil {
		t.Fatal(err)
	}
	tid := int(binary.NativeEndian.Uint64(told8))
	// A thread that is traced is there until its tracer has heard of its end, and so
	// is its process.
	defer func() {
		_ = cmd.Process.Kill()
		for {
			var status unix.WaitStatus
			if _, err := unix.Wait4(tid, &status, unix.WALL, nil); err == nil && (status.Exited() || status.Signaled()) || err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	ended, err := stepTo(tid, n, func() error {
		_, err := release.Write([]byte{0})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

// stepTo lets a thread run up to its n-th stop, or until it says that it is done.
func stepTo(tid, n int, release func() error) (ended bool, err error) {
	if err := unix.PtraceSeize(tid); err != nil {
		return false, os.NewSyscallError("PTRACE_SEIZE", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return false, os.NewSyscallError("PTRACE_INTERRUPT", err)
	}
	counting, ready, stops := false, false, 0
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(tid, &status, unix.WALL, nil); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return false, os.NewSyscallError("wait4", err)
		}
		if status.Exited() || status.Signaled() {
			return false, fmt.Errorf("the checkpointer has ended by itself: %v", status)
		}
		pass := 0
		switch signal := status.StopSignal(); {
		case !ready:
			ready = true
			if err := unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
				return false, os.NewSyscallError("PTRACE_SETOPTIONS", err)
			}
			if err := release(); err != nil {
				return false, err
			}
		case signal == unix.SIGTRAP|0x80:
			var call syscallInfo
			if err := call.get(tid); err != nil {
				return false, err
			}
			if call.op == ptraceSyscallEntry && call.number == unix.SYS_PRCTL && call.args[0] == prctlAnnouncement {
				if announcement(call.args[1]) == unwatched {
					return true, nil
				}
				counting = true
			}
			if counting {
				if stops == n {
					return false, nil
				}
				stops++
			}
		case status>>16 == unix.PTRACE_EVENT_STOP:
		default:
			pass = int(signal)
		}
		if err := unix.PtraceSyscall(tid, pass); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, os.NewSyscallError("PTRACE_SYSCALL", err)
		}
	}
}
