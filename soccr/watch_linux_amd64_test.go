package soccr_test

import "golang.org/x/sys/unix"

// poll is a call of older architectures only; the others have ppoll.
const poll = unix.SYS_POLL
