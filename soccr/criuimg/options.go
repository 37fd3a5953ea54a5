package criuimg

import (
	inetsk "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	tcpstream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"google.golang.org/protobuf/proto"

	"github.com/gosoccr/gosoccr/soccr"
)

// File flags of a socket, on all architectures of CRIU's but MIPS.
const (
	readWrite   = 0o2
	nonBlocking = 0o4000
	async       = 0o20000
)

// The buffers of a socket nobody has touched, where a snapshot tells none: CRIU
// sets them to whatever is in the entry.
const (
	defaultRecvBuffer = 131072
	defaultSendBuffer = 16384
)

func decodeOptions(s *Socket, snap *soccr.Snapshot) error {
	e, o := s.modern().Inet, &snap.Options
	*o = soccr.Options{
		ReadShutdown: o.ReadShutdown, // a part of the state
		ReuseAddr:    e.Opts.GetReuseaddr(),
		NonBlocking:  e.GetFlags()&nonBlocking != 0,
		RecvBuffer:   e.Opts.GetSoRcvbuf(),
		SendBuffer:   e.Opts.GetSoSndbuf(),
		Settings:     decodeSettings(e, tonguesOf(snap)),
	}
	if lock := e.Opts.GetSoBufLock(); lock > 255 {
		return invalid("sk_opts.so_buf_lock", "bits 0 and 1 at most", lock)
	}
	o.BufferLock = uint8(e.Opts.GetSoBufLock())
	return nil
}

func encodeOptions(s *Socket, snap *soccr.Snapshot) {
	*s = *s.modern()
	e, o := s.Inet, snap.Options
	flags := e.GetFlags() &^ nonBlocking
	if o.NonBlocking {
		flags |= nonBlocking
	}
	e.Flags, e.Opts.Reuseaddr = &flags, &o.ReuseAddr
	e.Opts.SoRcvbuf, e.Opts.SoSndbuf = &o.RecvBuffer, &o.SendBuffer
	if o.RecvBuffer == 0 {
		e.Opts.SoRcvbuf = new(uint32(defaultRecvBuffer))
	}
	if o.SendBuffer == 0 {
		e.Opts.SoSndbuf = new(uint32(defaultSendBuffer))
	}
	e.Opts.SoBufLock = new(uint32(o.BufferLock))
	encodeSettings(e, tonguesOf(snap), o.Settings)
}

// modern is a copy of the socket with all options where CRIU has them today. Older
// ones had those of TCP in the entries of the stream and of the socket.
func (s *Socket) modern() *Socket {
	m := s.clone()
	e := m.Inet
	if e.Opts == nil {
		e.Opts = &skopts.SkOptsEntry{}
	}
	if e.TcpOpts == nil {
		e.TcpOpts = &tcpstream.TcpOptsEntry{}
	}
	if e.IpOpts == nil {
		e.IpOpts = &inetsk.IpOptsEntry{}
	}
	if m.Stream != nil && m.Stream.Entry != nil {
		move(&m.Stream.Entry.Cork, &e.TcpOpts.Cork)
		move(&m.Stream.Entry.Nodelay, &e.TcpOpts.Nodelay)
	}
	move(&e.Opts.TcpKeepcnt, &e.TcpOpts.Keepcnt)
	move(&e.Opts.TcpKeepidle, &e.TcpOpts.Keepidle)
	move(&e.Opts.TcpKeepintvl, &e.TcpOpts.Keepintvl)
	return m
}

// move moves a field unless it is there already.
func move[T any](from, to **T) {
	if *to == nil {
		*to = *from
	}
	*from = nil
}

// clone copies the entries, but not the queues.
func (s *Socket) clone() *Socket {
	c := *s
	if c.Inet = proto.CloneOf(s.Inet); s.Inet == nil {
		c.Inet = newSocket(0, 0).Inet
	}
	if s.Stream != nil {
		stream := *s.Stream
		stream.Entry = proto.CloneOf(s.Stream.Entry)
		c.Stream = &stream
	}
	return &c
}
