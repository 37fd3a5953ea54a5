package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// serverRole, as the only argument, makes the program the server of the demo: a
// process of its own, in a host of its own. It takes orders on standard input,
// answers them on standard output, and has a link to the other server.
const serverRole = "demo-server"

// linkFD is the link's file descriptor: the first that is not standard.
const linkFD = 3

// device is what every host calls its only device.
const device = "net0"

// An order tells a server what to do.
type order struct {
	Do      string       // what: a case of server.obey
	Service netip.Prefix // prepare: the address that moves
	Rate    int64        // prepare: bytes to send per second
	Plain   bool         // prepare: move connections the plain way
	Flow    netlock.Flow // expect: the connection, as the server sees it
}

// An answer follows each order.
type answer struct {
	Error   string         // why the order could not be carried out
	Addr    netip.AddrPort // listen: where
	Time    int64          // give: when the program stopped; take: when it went on
	Luggage luggage        // give
	Totals  totals         // end
}

// A server is the process on one of the two hosts.
type server struct {
	host      *host.Host
	announcer *host.Announcer
	lock      *netlock.Lock
	tap       *soccr.Tap
	plain     bool
	link      *os.File
	service   netip.Prefix
	listener  *net.TCPListener
	talk      *talk
}

// serve is the whole life of a server.
func serve() (err error) {
	// ^C is for the demo, which will end us when it has cleaned up.
	signal.Ignore(unix.SIGINT)
	s := &server{link: os.NewFile(linkFD, "link")}
	if s.host, err = host.Current(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.host.Close()) }()
	if s.announcer, err = s.host.NewAnnouncer(device); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.announcer.Close()) }()
	if s.lock, err = netlock.New(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lock.Close()) }()
	if s.tap, err = soccr.OpenTap(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tap.Close()) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the demo is over
			}
			return err
		}
		var a answer
		if err := s.obey(o, &a); err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func (s *server) obey(o order, a *answer) (err error) {
	switch o.Do {
	case "prepare":
		s.service, s.plain = o.Service, o.Plain
		s.talk = newTalk(newStream(keyToClient), newStream(keyToServer), o.Rate)
	case "listen":
		a.Addr, err = s.listen()
	case "accept":
		err = s.accept()
	case "expect":
		err = s.expect(o.Flow)
	case "give":
		a.Time = monotonic()
		a.Luggage, err = s.give()
	case "take":
		err = s.take()
		a.Time = monotonic()
	case "end":
		err = <-s.talk.ended
		a.Totals = s.talk.total()
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	return err
}

func (s *server) listen() (netip.AddrPort, error) {
	if err := s.host.AddAddr(device, s.service); err != nil {
		return netip.AddrPort{}, err
	}
	addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.service.Addr(), 0))
	var err error
	if s.listener, err = net.ListenTCP("tcp", addr); err != nil {
		return netip.AddrPort{}, err
	}
	return s.listener.Addr().(*net.TCPAddr).AddrPort(), nil
}

// bufferSize is what the server asks for its buffers, half of what it gets. A
// restored connection needs as much again, and without CAP_NET_ADMIN in the
// initial user namespace more than net.core.wmem_max and rmem_max (212992 bytes
// by default) cannot be had: the buffers must not grow beyond by themselves.
const bufferSize = 128 << 10

// accept waits for the client, the only one, and starts to talk.
func (s *server) accept() error {
	conn, err := s.listener.AcceptTCP()
	if err != nil {
		return err
	}
	if err := s.listener.Close(); err != nil {
		return err
	}
	if err := errors.Join(conn.SetReadBuffer(bufferSize), conn.SetWriteBuffer(bufferSize)); err != nil {
		return err
	}
	s.talk.begin(conn)
	return nil
}

// monotonic is the time in nanoseconds by a clock that all processes of this
// machine share, and nobody sets.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // every kernel has it
	}
	return now.Nano()
}
