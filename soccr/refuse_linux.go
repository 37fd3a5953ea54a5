package soccr

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/sockopt"
)

// tcpAOInfo is TCP_AO_INFO (Linux 6.7).
const tcpAOInfo = 40

// refuseULP: what is in the queues belongs to the upper layer's records, whose
// state cannot be read back.
func (s *Socket) refuseULP() error {
	var name [16]byte // TCP_ULP_NAME_MAX
	n, err := sockopt.Get(s.fd, unix.IPPROTO_TCP, unix.TCP_ULP, name[:])
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return nil // no such kernel, no such layer
	case err != nil:
		return err
	case n > 0 && name[0] != 0:
		return fmt.Errorf("%w: %s", ErrULP, unix.ByteSliceToString(name[:n]))
	}
	return nil
}

func (s *Socket) refuseAO() error {
	var info [64]byte // struct tcp_ao_info_opt, and what it may grow to
	_, err := sockopt.Get(s.fd, unix.IPPROTO_TCP, tcpAOInfo, info[:])
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.ENOENT):
		return nil // no such kernel, or no keys
	case err != nil && !errors.Is(err, unix.EINVAL):
		return err
	}
	return ErrSigned
}

// refuseUrgent looks for an urgent byte among the queued ones: a peek skips it,
// stops there or reads past its mark, and the mark cannot be restored. It may be
// at the head; further behind, SIOCINQ counts up to it only, unless the program
// wants urgent data inline, when it is the peek that stops there.
func (s *Socket) refuseUrgent(queued int) error {
	mark, err := count(s.fd, unix.SIOCATMARK)
	if err != nil {
		return err
	}
	if mark != 0 {
		return ErrUrgent
	}
	if queued == 0 {
		return nil
	}
	inline, err := sockopt.GetInt(s.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE)
	if err != nil || inline != 0 {
		return err
	}
	all, err := s.countInline()
	if err != nil {
		return err
	}
	// A packet may arrive between two counts: only a mark makes the later one smaller,
	// or a thread that was past the kernel's check and reads.
	upToMark, err := count(s.fd, unix.SIOCINQ)
	if err != nil || upToMark >= all {
		return err
	}
	now, err := s.countInline()
	if err == nil && now < all {
		return &FieldError{Field: "RecvQueue", Want: all, Got: now, Err: ErrChanged}
	}
	if err == nil {
		err = ErrUrgent
	}
	return err
}

// countInline counts the bytes in the receive queue as if urgent ones were to be read
// with the others: all of them, whatever mark there is.
func (s *Socket) countInline() (int, error) {
	if err := sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); err != nil {
		return 0, err
	}
	n, err := count(s.fd, unix.SIOCINQ)
	return n, errors.Join(err, sockopt.SetInt(s.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 0))
}
