package netlock

import (
	"errors"
	"fmt"
)

// The reasons for which a lock cannot be had or did not hold. They come inside
// an [*OpError], beside the errno that the kernel answered with.
var (
	// ErrNoPermission: the caller may not change the namespace's firewall.
	ErrNoPermission = errors.New("not permitted")
	// ErrNoNFTables: the kernel has no nftables, or a part that the lock needs
	// is missing. errors.Is(err, errors.ErrUnsupported) is true as well.
	ErrNoNFTables = fmt.Errorf("the kernel lacks nftables or a part of it: %w", errors.ErrUnsupported)
	// ErrLost: the lock did not hold, so that packets may have reached the
	// sockets. Its owner was stopped for longer than the timeout, or somebody
	// removed the table. It stays off: make a new one.
	ErrLost = errors.New("lock was lost")
	// ErrClosed: the lock was closed.
	ErrClosed = errors.New("lock is closed")
)

// hints say what is missing.
var hints = map[error]string{
	ErrNoPermission: "CAP_NET_ADMIN is needed in the user namespace that owns the network namespace, and CAP_SYS_ADMIN to enter another one",
	ErrNoNFTables:   "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and CONFIG_NFT_CT are needed; where they are modules: modprobe -a nf_tables nft_ct; without nftables, keep the packets away by other means and move connections without a lock",
	ErrLost:         "it expired while this program was stopped or starved, or its table was removed; WithTimeout gives it longer",
}

// An OpError says which operation on a lock failed, and why.
type OpError struct {
	Op  string // "new", "namespace", "add", "prepare", "remove", "renew", "track", "allow mark", "close", "explain"
	Err error
}

// Error describes the failure and, where it is known, what is missing.
func (e *OpError) Error() string {
	text := "netlock: " + e.Op + ": " + e.Err.Error()
	if hint := e.Hint(); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}

// Unwrap gives Err.
func (e *OpError) Unwrap() error { return e.Err }

// Hint says what is missing, or nothing where that is not known.
func (e *OpError) Hint() string {
	for reason, hint := range hints {
		if errors.Is(e.Err, reason) {
			return hint
		}
	}
	return ""
}

// opError wraps an error, if there is one, once.
func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Err: err}
}
