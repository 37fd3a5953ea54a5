package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gosoccr/gosoccr/soccr"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// options are how connections are moved.
func (s *server) options() []soccr.Option {
	if s.plain {
		return []soccr.Option{soccr.WithLock(s.lock), soccr.WithPlain()}
	}
	return []soccr.Option{soccr.WithLock(s.lock), soccr.WithTap(s.tap)}
}

// expect prepares for a connection before its address gets here.
func (s *server) expect(flow netlock.Flow) error {
	if !s.plain {
		if err := s.tap.Watch(flow.Local, flow.Remote); err != nil {
			return err
		}
	}
	return s.lock.Add(flow)
}

// give stops the program on this host and sends its connection, and then what
// the program itself knows, to the host at the other end of the link.
func (s *server) give() (luggage, error) {
	more, err := s.talk.stop()
	if err != nil {
		return luggage{}, fmt.Errorf("stop the program: %w", err)
	}
	if !more {
		return luggage{}, errors.New("the conversation is over")
	}
	// From here on no packet of the connection reaches a socket of this host or
	// leaves it, not even when the address is on no host at all.
	snapshot, err := soccr.Checkpoint(s.talk.conn, s.options()...)
	if err != nil {
		return luggage{}, err
	}
	if err := s.host.RemoveAddr(device, s.service); err != nil {
		return luggage{}, fmt.Errorf("remove the address: %w", err)
	}
	n, err := snapshot.WriteTo(s.link)
	if err != nil {
		return luggage{}, fmt.Errorf("send the snapshot: %w", err)
	}
	saved, err := s.talk.AppendBinary(nil)
	if err != nil {
		return luggage{}, err
	}
	if _, err := s.link.Write(saved); err != nil {
		return luggage{}, fmt.Errorf("send the program's state: %w", err)
	}
	// What the client had on its way here.
	packets, err := s.tap.Take(snapshot.Local, snapshot.Remote)
	s.tap.Forget(snapshot.Local, snapshot.Remote)
	if err != nil {
		return luggage{}, err
	}
	if err := sendPackets(s.link, packets); err != nil {
		return luggage{}, fmt.Errorf("send the client's packets: %w", err)
	}
	return luggage{len(snapshot.RecvQueue), len(snapshot.SendQueue), int(n)}, nil
}

// take is the other half: it receives a connection and goes on with it.
func (s *server) take() error {
	var snapshot soccr.Snapshot
	if _, err := snapshot.ReadFrom(s.link); err != nil {
		return fmt.Errorf("receive the snapshot: %w", err)
	}
	saved := make([]byte, savedTalkSize)
	if _, err := io.ReadFull(s.link, saved); err != nil {
		return fmt.Errorf("receive the program's state: %w", err)
	}
	if err := s.talk.UnmarshalBinary(saved); err != nil {
		return fmt.Errorf("the program's state: %w", err)
	}
	packets, err := receivePackets(s.link)
	if err != nil {
		return fmt.Errorf("receive the client's packets: %w", err)
	}
	// The flow is locked: what the client sends here from now on waits in the tap.
	if err := s.host.AddAddr(device, s.service); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := s.announcer.Announce(s.service.Addr()); err != nil {
		return err
	}
	conn, err := soccr.RestoreConn(&snapshot, append(s.options(), soccr.WithPackets(packets))...)
	if err != nil {
		return err
	}
	s.talk.begin(conn)
	return nil
}

// sendPackets sends packets over the link: how many, and each after its length.
func sendPackets(w io.Writer, packets [][]byte) error {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(packets)))
	for _, p := range packets {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	_, err := w.Write(b)
	return err
}

// receivePackets is the other half.
func receivePackets(r io.Reader) ([][]byte, error) {
	var n uint32
	if err := binary.Read(r, binary.BigEndian, &n); err != nil {
		return nil, err
	}
	var packets [][]byte
	for range n {
		if err := binary.Read(r, binary.BigEndian, &n); err != nil {
			return nil, err
		}
		if n > 1<<16 {
			return nil, fmt.Errorf("a packet of %d bytes", n)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	return packets, nil
}
