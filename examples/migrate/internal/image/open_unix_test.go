//go:build unix

package image

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A file that others can have made or changed is not read.
func TestUntrusted(t *testing.T) {
	for _, c := range []struct {
		what  string
		spoil func(path string) error
	}{
		{"a link", func(path string) error {
			if err := os.Rename(path, path+".real"); err != nil {
				return err
			}
			return os.Symlink(path+".real", path)
		}},
		{"writable for the group", func(path string) error { return os.Chmod(path, 0o660) }},
		{"writable for all", func(path string) error { return os.Chmod(path, 0o602) }},
		{"a directory", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }},
		{"a FIFO", func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }},
		{"another's", func(path string) error {
			if os.Geteuid() != 0 {
				return errSkipped
			}
			return os.Chown(path, 12345, 12345)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := example().Save(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(filepath.Join(dir, Name)); errors.Is(err, errSkipped) {
				return // only root can give files away
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir); !errors.Is(err, ErrUntrusted) {
				t.Errorf("got %v", err)
			}
		})
	}
}

var errSkipped = errors.New("not by this user")
