package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/gosoccr/gosoccr/internal/host"
	"github.com/gosoccr/gosoccr/internal/wire"
	"github.com/gosoccr/gosoccr/soccr/netlock"
)

// A demonstration is a demo that runs.
type demonstration struct {
	config  demoConfig
	plan    plan
	servers [2]*process // the connection is with the first, and then by turns
	client  *talk
	flow    netlock.Flow // as the servers see it
}

// demo moves a connection to and fro, and says what became of it, as far as it
// came if it fails.
//
// The client is a goroutine of this process, in a host of its own. It has an
// ordinary connection, and nobody tells it of anything. The two servers are
// processes, each in its host; which of them the client talks to changes with
// each move.
func demo(ctx context.Context, config demoConfig, view view) (_ *result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &demonstration{config: config, plan: plan4}
	if config.ipv6 {
		d.plan = plan6
	}
	network, err := newNetwork(d.plan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, network.close()) }()
	if d.servers, err = startServers(ctx, network.servers, serverNames); err != nil {
		return nil, err
	}
	defer stopServers(d.servers)

	for _, s := range d.servers {
		if _, err := s.ask(order{Do: "prepare", Service: d.plan.service, Rate: config.rate, Plain: config.plain}); err != nil {
			return nil, err
		}
	}
	listening, err := d.servers[0].ask(order{Do: "listen"})
	if err != nil {
		return nil, err
	}
	tap, err := newTap(network.client, wire.Flow{A: netip.AddrPortFrom(d.plan.client.Addr(), 0), B: listening.Addr}, d.config.pcap)
	if err != nil {
		return nil, err
	}
	totals, p, err := d.talk(ctx, network.client, listening.Addr, view)
	// Whatever went wrong, what the wire has seen may tell why.
	report, tapErr := tap.stop()
	if p == nil {
		return nil, errors.Join(err, tapErr, report.Err())
	}
	r := newResult(p, totals, report)
	r.setPauses(tap.pausesAt(p.moves))
	if err != nil || tapErr != nil {
		return r, errors.Join(err, tapErr, report.Err())
	}
	return r, nil
}

// talk connects the client, lets it talk while the connection is moved, and
// returns what both ends have sent and received in the end, and how far it came.
func (d *demonstration) talk(ctx context.Context, client *host.Host, service netip.AddrPort, view view) (both bothTotals, _ *progress, _ error) {
	conn, err := dial(client, service)
	if err != nil {
		return both, nil, err
	}
	defer func() { _ = conn.Close() }() // what matters has arrived by then
	if _, err := d.servers[0].ask(order{Do: "accept"}); err != nil {
		return both, nil, err
	}
	d.flow = netlock.Flow{Local: service, Remote: conn.LocalAddr().(*net.TCPAddr).AddrPort()}
	d.client = newTalk(newStream(keyToServer), newStream(keyToClient), d.config.rate)
	d.client.begin(conn)

	p := &progress{config: d.config, client: d.flow.Remote.String(), service: service.String(), host: serverNames[0]}
	began := time.Now()
	sampler := time.NewTicker(sampleTime)
	defer sampler.Stop()
	moved := make(chan move)
	ended := make(chan error, 1)
	go func() {
		defer close(moved)
		var err error
		both, err = d.moveAll(ctx, moved)
		ended <- err
	}()
	for {
		select {
		case <-sampler.C:
			p.sample(time.Since(began), d.client.sent.Load(), d.client.received.Load())
			view.update(p)
		case m, ok := <-moved:
			if !ok {
				p.sample(time.Since(began), d.client.sent.Load(), d.client.received.Load())
				view.update(p)
				return both, p, <-ended
			}
			p.sample(time.Since(began), d.client.sent.Load(), d.client.received.Load())
			p.moves, p.host = append(p.moves, m), m.to
			p.sampledAtMove = append(p.sampledAtMove, len(p.sent))
			view.moved(p)
		}
	}
}

// dial connects the client.
func dial(h *host.Host, to netip.AddrPort) (conn *net.TCPConn, err error) {
	err = h.Do(func() error {
		conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		return err
	})
	return conn, err
}

// moveAll makes the moves in time, ends the conversation, and returns what the
// client, and the server that has the connection in the end, have sent and
// received.
func (d *demonstration) moveAll(ctx context.Context, moved chan<- move) (bothTotals, error) {
	next := time.NewTicker(d.config.interval())
	defer next.Stop()
	for i := range d.config.moves + 1 {
		select {
		case <-next.C:
		case err := <-d.client.ended:
			return bothTotals{}, errors.Join(errors.New("the client's connection has ended too early"), err)
		case <-ctx.Done():
			return bothTotals{}, context.Cause(ctx)
		}
		if i == d.config.moves {
			break
		}
		m, err := d.move(d.servers[i%2], d.servers[1-i%2])
		if ctx.Err() != nil {
			return bothTotals{}, context.Cause(ctx) // and what failed, failed of that
		}
		if err != nil {
			return bothTotals{}, fmt.Errorf("move %d: %w", i+1, err)
		}
		moved <- m
	}
	d.client.end()
	a, err := d.servers[d.config.moves%2].ask(order{Do: "end"})
	if err != nil {
		return bothTotals{}, err
	}
	// The server has answered, so the client has little left to read.
	select {
	case err = <-d.client.ended:
	case <-time.After(patience):
		return bothTotals{}, errors.New("the client waits for bytes that do not come")
	}
	return bothTotals{d.client.total(), a.Totals}, err
}

// move moves the connection from one server to the other.
func (d *demonstration) move(from, to *process) (move, error) {
	m := move{from: from.name, to: to.name}
	// The flow is locked on the new host before its address gets there: no
	// packet may find the address without the connection, and draw a RST.
	if _, err := to.ask(order{Do: "expect", Flow: d.flow}); err != nil {
		return m, err
	}
	type taken struct {
		answer answer
		err    error
	}
	taking := make(chan taken, 1)
	go func() {
		a, err := to.ask(order{Do: "take"})
		taking <- taken{a, err}
	}()
	given, err := from.ask(order{Do: "give"})
	if err != nil {
		return m, err // the other waits in vain, until it is stopped
	}
	t := <-taking
	m.stopped, m.resumed, m.luggage = given.Time, t.answer.Time, given.Luggage
	return m, t.err
}
