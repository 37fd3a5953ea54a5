package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gosoccr/gosoccr/internal/host/hosttest"
)

// pair is a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	hosttest.Do(t, hosttest.New(t), func() error {
		listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		defer listener.Close()
		if a, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr)); err != nil {
			return err
		}
		b, err = listener.AcceptTCP()
		return err
	})
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// A talk that is stopped at any moment goes on elsewhere without a gap.
func TestTalkIsStoppedAndGoesOn(t *testing.T) {
	for name, rate := range map[string]int64{"full speed": 0, "slow": 1e6} {
		t.Run(name, func(t *testing.T) {
			here, there := pair(t)
			client := newTalk(newStream(keyToServer), newStream(keyToClient), rate)
			client.begin(here)
			server := newTalk(newStream(keyToClient), newStream(keyToServer), rate)
			for range 10 {
				server.begin(there)
				time.Sleep(2 * time.Millisecond) // let them talk
				if more, err := server.stop(); err != nil || !more {
					t.Fatal(more, err)
				}
				saved, err := server.AppendBinary(nil)
				if err != nil {
					t.Fatal(err)
				}
				server = newTalk(newStream(keyToClient), newStream(keyToServer), rate)
				if err := server.UnmarshalBinary(saved); err != nil {
					t.Fatal(err)
				}
				if err := there.SetDeadline(time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			server.begin(there)
			client.end()
			for _, talk := range []*talk{client, server} {
				if err := <-talk.ended; err != nil {
					t.Fatal(err)
				}
			}
			c, s := client.total(), server.total()
			if c.Sent != s.Received || c.Received != s.Sent || c.Sent.Bytes == 0 || c.Received.Bytes == 0 {
				t.Errorf("client %+v\nserver %+v", c, s)
			}
			if client.sent.Load() != c.Sent.Bytes || client.received.Load() != c.Received.Bytes {
				t.Errorf("counted %d and %d, want %+v", client.sent.Load(), client.received.Load(), c)
			}
		})
	}
}

func TestTalkNotices(t *testing.T) {
	here, there := pair(t)
	client := newTalk(newStream(keyToServer), newStream(keyToClient), 0)
	client.begin(here)
	data := newStream(keyToClient).next(1000)
	data[500] ^= 1
	if _, err := there.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := <-client.ended; err == nil || !strings.Contains(err.Error(), "byte 500 is") {
		t.Errorf("%v", err)
	}
}

func TestUnmarshalNonsense(t *testing.T) {
	talk := newTalk(newStream(1), newStream(2), 0)
	if err := talk.UnmarshalBinary(make([]byte, savedTalkSize)); err == nil {
		t.Error("accepts a hash that is none")
	}
}
