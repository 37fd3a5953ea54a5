package soccr_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
	"github.com/gosoccr/gosoccr/soccr"
)

func TestMovable(t *testing.T) {
	n := newNetwork(t)
	conn, peer := n.connect(t, ip4)
	urgent, urgentPeer := n.connect(t, ip6)
	control(t, urgentPeer, func(fd int) {
		if err := unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "the urgent byte is here", func() bool { return ioctl(t, urgent, unix.SIOCATMARK) != 0 })
	var multipath net.Listener
	var datagrams net.PacketConn
	hosttest.Do(t, n.here, func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(true)
		if multipath, err = config.Listen(t.Context(), "tcp", "10.77.0.1:0"); err != nil {
			return err
		}
		datagrams, err = net.ListenPacket("udp", "10.77.0.1:0")
		return err
	})
	defer multipath.Close()
	defer datagrams.Close()
	var multipathConn net.Conn
	hosttest.Do(t, n.there, func() (err error) {
		var dialer net.Dialer
		dialer.SetMultipathTCP(true)
		multipathConn, err = dialer.DialContext(t.Context(), "tcp", multipath.Addr().String())
		return err
	})
	defer multipathConn.Close()
	for _, test := range []struct {
		name string
		conn syscall.Conn
		want error
	}{
		{"a connection", conn, nil},
		{"its peer", peer, nil},
		{"a listener", listen(t, n.here, "tcp", "10.77.0.1:0"), nil},
		{"urgent data", urgent, soccr.ErrUrgent},
		{"a listener for Multipath TCP", multipath.(*net.TCPListener), nil},
		{"Multipath TCP", multipathConn.(*net.TCPConn), soccr.ErrMultipath},
		{"UDP", datagrams.(*net.UDPConn), soccr.ErrNotTCP},
	} {
		control(t, test.conn, func(fd int) {
			if err := soccr.Movable(fd); !errors.Is(err, test.want) {
				t.Errorf("%s: %v, want %v", test.name, err, test.want)
			}
		})
	}
	write(t, peer, []byte("ping"))
	expect(t, "conn", conn, []byte("ping"))
}
