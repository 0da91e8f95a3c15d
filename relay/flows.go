package relay

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

// What may wait for a box that is slow; then datagrams are dropped, as UDP may.
const (
	flowDatagrams = 64
	flowBytes     = 256 << 10
)

// flows are the users of one external UDP port. UDP has no connections: what
// one address sends is one flow, a stream to the box, until that address is
// quiet.
type flows struct {
	*office
	conn   *net.UDPConn
	device croft.DeviceID
	port   uint16
	wg     sync.WaitGroup

	mu  sync.Mutex
	all map[netip.AddrPort]*flow // guarded by mu
}

type flow struct {
	user    netip.AddrPort // as the socket names it
	queue   chan []byte
	waiting atomic.Int64 // bytes in queue
}

func newFlows(o *office, conn *net.UDPConn, id croft.DeviceID, port uint16) *flows {
	return &flows{office: o, conn: conn, device: id, port: port, all: make(map[netip.AddrPort]*flow)}
}

// serve sorts what comes in until ctx ends.
func (f *flows) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { f.conn.Close() })
	defer stop()
	defer f.wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	buf := make([]byte, wire.MaxDatagram+1)
	for {
		n, user, err := f.conn.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // an ICMP answer to what we sent earlier, or no memory
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case n > wire.MaxDatagram: // a jumbogram
			continue
		}
		f.sort(ctx, user, buf[:n])
	}
}

// sort puts a datagram into its flow. A flow that is full loses it.
func (f *flows) sort(ctx context.Context, user netip.AddrPort, datagram []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.all[user]
	if w == nil {
		leave, err := f.gate.enter(user.Addr(), udpFlow)
		if err != nil {
			return
		}
		w = &flow{user: user, queue: make(chan []byte, flowDatagrams)}
		f.all[user] = w
		f.wg.Go(func() {
			defer leave()
			f.serveFlow(ctx, w)
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.all, user)
		})
	}
	if w.waiting.Load()+int64(len(datagram)) > flowBytes {
		return
	}
	select {
	case w.queue <- append([]byte(nil), datagram...):
		w.waiting.Add(int64(len(datagram)))
	default:
	}
}

// serveFlow is the life of one flow.
func (f *flows) serveFlow(ctx context.Context, w *flow) {
	s, _ := f.wait(ctx, func() (croft.DeviceID, bool) { return f.device, true })
	if s == nil {
		return
	}
	stream, err := s.Open(wire.Header{Kind: wire.KindUDP, Port: f.port, Client: plain(w.user)}, nil, f.cfg.Limits.PerDevice)
	if err != nil {
		f.log.Debug("user not passed to box", "device", s.Device(), "error", err)
		return
	}
	var back sync.WaitGroup
	defer back.Wait()
	defer stream.Close() // wakes the one that is waited for
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	back.Go(func() {
		defer cancel()
		for {
			datagram, err := stream.ReadDatagram()
			if err != nil {
				return
			}
			s.device.out.Add(int64(len(datagram)))
			_, _ = f.conn.WriteToUDPAddrPort(datagram, w.user) // lost, as UDP may lose it
		}
	})
	idle := time.NewTicker(f.cfg.Limits.UDPIdle)
	defer idle.Stop()
	for came := true; ; { // since the last tick
		select {
		case datagram := <-w.queue:
			came = true
			w.waiting.Add(-int64(len(datagram)))
			_ = stream.SetWriteDeadline(time.Now().Add(f.cfg.Limits.UDPIdle)) // a box that does not read has no flows
			if _, err := stream.Write(datagram); err != nil {
				return
			}
			s.device.in.Add(int64(len(datagram)))
		case <-idle.C:
			// What the box sends does not count: whoever forges one datagram would
			// turn it into a stream to somebody who never asked.
			if !came {
				return
			}
			came = false
		case <-ctx.Done():
			return
		}
	}
}
