//go:build unix

package image

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// open opens an image whose bytes are this user's or root's: in a directory that
// others may write to, such as /tmp, the name could be anybody's, or lead elsewhere.
func open(path string) (*os.File, error) {
	// A FIFO would keep us waiting for somebody to write into it.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link; name the directory that it leads to", ErrUntrusted, path)
	}
	if err != nil {
		return nil, err
	}
	if err := trusted(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func trusted(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a file", ErrUntrusted, file.Name())
	case stat.Uid != 0 && int64(stat.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("%w: %s belongs to user %d; if that is all right, take it over (chown), or read it from standard input", ErrUntrusted, file.Name(), stat.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: others may write to %s (mode %v); if that is all right, chmod go-w", ErrUntrusted, file.Name(), info.Mode().Perm())
	}
	return nil
}
