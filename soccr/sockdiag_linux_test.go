package soccr

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// netlinkMessage is a message with its header.
func netlinkMessage(kind uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, unix.SizeofNlMsghdr-len(b))...), body...)
}

// FuzzAnswer reads sock_diag's answers, as far as this package understands them.
func FuzzAnswer(f *testing.F) {
	done := netlinkMessage(unix.NLMSG_DONE, make([]byte, 4))
	for _, body := range [][]byte{
		make([]byte, diagMessageSize-unix.SizeofNlMsghdr),
		append(make([]byte, diagMessageSize-unix.SizeofNlMsghdr), 5, 0, inetDiagV6Only, 0, 1, 0, 0, 0),
		append(append(make([]byte, diagMessageSize-unix.SizeofNlMsghdr), 4+diagMD5Size, 0, inetDiagMD5Sig, 0, unix.AF_INET, 32, 3, 0), make([]byte, diagMD5Size-4)...),
	} {
		f.Add(append(netlinkMessage(sockDiagByFamily, body), done...), true)
	}
	f.Add(netlinkMessage(unix.NLMSG_ERROR, []byte{0xfe, 0xff, 0xff, 0xff}), false)
	f.Fuzz(func(t *testing.T, answer []byte, dump bool) {
		size := 0
		_, _ = messages(answer, dump, func(message []byte, _ error) bool {
			size += len(message)
			_ = found(message)
			keys, err := md5KeysIn(message)
			for _, key := range keys {
				if err == nil && (!key.Peers.IsValid() || len(key.Key) > maxMD5Key) {
					t.Errorf("a key of %d bytes for %v", len(key.Key), key.Peers)
				}
			}
			return true
		})
		if size > len(answer) {
			t.Errorf("%d bytes of messages in %d", size, len(answer))
		}
	})
}
