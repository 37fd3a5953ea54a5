package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// maxHead is the most that is read of a connection to find out where it belongs.
const maxHead = 64 << 10

// errMore: the first request is not there as a whole yet.
var errMore = errors.New("more of the first request is needed")

// http2Preface is how a client of HTTP/2 begins (RFC 9113, 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// pathOf reads the path of the first request out of the first bytes of a connection:
// of HTTP/1.1, of HTTP/2 (without TLS), or of a protocol whose first line begins with
// it. Nothing has been answered yet, so that these bytes are all that is known of the
// connection, and a backend that gets them begins at its beginning.
func pathOf(head []byte) (string, error) {
	if n := min(len(head), len(http2Preface)); string(head[:n]) == http2Preface[:n] && n > 0 {
		if n < len(http2Preface) {
			return "", errMore
		}
		return pathOfHTTP2(head[n:])
	}
	line, _, whole := bytes.Cut(head, []byte("\n"))
	if !whole {
		return "", errMore
	}
	for word := range strings.FieldsSeq(string(line)) {
		if strings.HasPrefix(word, "/") {
			return word, nil
		}
	}
	return "", errors.New("no path in the first line")
}

// Of the frames of HTTP/2 (RFC 9113, 6), those of a request's headers.
const (
	frameHeader       = 9
	frameHeaders      = 1
	frameContinuation = 9

	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// pathOfHTTP2 reads the first frames of a client, which does not wait for an answer
// before it asks.
func pathOfHTTP2(frames []byte) (path string, err error) {
	var block []byte
	for len(frames) >= frameHeader {
		size := int(binary.BigEndian.Uint32(frames) >> 8)
		kind, flags := frames[3], frames[4]
		if len(frames) < frameHeader+size {
			break
		}
		payload := frames[frameHeader:][:size]
		frames = frames[frameHeader+size:]
		switch kind {
		case frameHeaders:
			if payload, err = withoutPadding(payload, flags); err != nil {
				return "", err
			}
		case frameContinuation:
		default:
			continue
		}
		block = append(block, payload...)
		if flags&flagEndHeaders == 0 {
			continue
		}
		fields, err := hpack.NewDecoder(4096, nil).DecodeFull(block)
		for _, f := range fields {
			if f.Name == ":path" {
				path = f.Value
			}
		}
		return path, err
	}
	return "", errMore
}

// withoutPadding takes off what is around a block of headers.
func withoutPadding(payload []byte, flags byte) ([]byte, error) {
	before, behind := 0, 0
	if flags&flagPadded != 0 && len(payload) > 0 {
		before, behind = 1, int(payload[0])
	}
	if flags&flagPriority != 0 {
		before += 5
	}
	if before+behind > len(payload) {
		return nil, errors.New("a frame that is all padding")
	}
	return payload[before : len(payload)-behind], nil
}
