package soccr

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// An MD5Key is a key that signs the segments to and from some peers (TCP-MD5, RFC
// 2385). It is in the snapshot in the clear.
type MD5Key struct {
	// Peers are the addresses that it is for; those of IPv4 peers are not mapped,
	// whatever the socket's family.
	Peers netip.Prefix
	// Key has 1 to 80 bytes.
	Key []byte
}

// String does not show the key, but how long it is.
func (k MD5Key) String() string { return fmt.Sprintf("%d bytes for %v", len(k.Key), k.Peers) }

const (
	maxMD5Key  = 80  // TCP_MD5SIG_MAXKEYLEN
	maxMD5Keys = 256 // more do not fit into an encoding
)

func validMD5Keys(keys []MD5Key, local netip.Addr) bool {
	if len(keys) > maxMD5Keys {
		return false
	}
	for i := range keys {
		k := &keys[i]
		if len(k.Key) < 1 || len(k.Key) > maxMD5Key || !k.Peers.IsValid() || k.Peers != k.Peers.Masked() ||
			k.Peers.Addr().Is4In6() || k.Peers.Addr().Is6() && local.Is4() ||
			slices.ContainsFunc(keys[:i], func(other MD5Key) bool { return other.Peers == k.Peers }) {
			return false
		}
	}
	return true
}

// md5KeyList codes a list of keys, each as its prefix (address, and a byte for
// the bits) and the key, both with their length before them.
func md5KeyList[T any](tag uint16, field func(*T) *[]MD5Key) codec[T] {
	return codec[T]{tag,
		func(b []byte, s *T) []byte {
			for _, k := range *field(s) {
				b = appendSized(b, prefixBytes(k.Peers))
				b = appendSized(b, k.Key)
			}
			return b
		},
		func(s *T, b []byte) bool {
			all := field(s)
			for len(b) > 0 {
				var k MD5Key
				var peers []byte
				if peers, b = cutSized(b); b == nil {
					return false
				}
				if k.Peers.UnmarshalBinary(peers) != nil || !bytes.Equal(prefixBytes(k.Peers), peers) {
					return false
				}
				if k.Key, b = cutSized(b); b == nil {
					return false
				}
				*all = append(*all, k)
			}
			return len(*all) > 0
		}}
}

func prefixBytes(p netip.Prefix) []byte {
	b, _ := p.MarshalBinary() // does not fail
	return b
}
