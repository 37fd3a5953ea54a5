package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/gosoccr/gosoccr/soccr"
)

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
	snapshot, err := soccr.Checkpoint(s.talk.conn, soccr.WithLock(s.lock))
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
	// The flow is locked: what the client sends here from now on waits for the
	// socket, as if it had been lost.
	if err := s.host.AddAddr(device, s.service); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := s.announcer.Announce(s.service.Addr()); err != nil {
		return err
	}
	conn, err := soccr.RestoreConn(&snapshot, soccr.WithLock(s.lock))
	if err != nil {
		return err
	}
	s.talk.begin(conn)
	return nil
}
