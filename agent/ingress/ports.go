package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/croft-cloud/croft/agent/crowd"
)

// listenTCP opens a port of the box. Callers hold i.mu.
func (i *Ingress) listenTCP(address netip.AddrPort, id portID) (closer, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(address))
	if err != nil {
		return nil, err
	}
	i.workers.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // of one connection, or no more files
				time.Sleep(acceptPause)
				continue
			}
			if c := i.admit(&clientConn{Conn: conn, remote: conn.RemoteAddr()}); c != nil {
				_ = i.work(func() { i.pipe(c, id) }, c) // an error means that it was closed
			}
		}
	})
	return l, nil
}

// acceptPause keeps a loop from spinning while the machine is out of files.
const acceptPause = 50 * time.Millisecond

// pipe connects a client with a replica until both directions have ended.
func (i *Ingress) pipe(client *clientConn, id portID) {
	p := i.table.Load().ports[id]
	if p == nil || !p.tenant.enter(&p.tenant.pipes, maxConnectionsPerLease) {
		return
	}
	defer p.tenant.pipes.Add(-1)
	backend, _ := p.dial("tcp")
	if backend == nil {
		p.tenant.refused.Add(1)
		return
	}
	defer backend.Close()
	if !p.tenant.hold(backend) {
		return
	}
	defer p.tenant.release(backend)
	if !p.tenant.hold(client) {
		return
	}
	defer p.tenant.release(client)
	p.tenant.connected.Add(1)
	var both sync.WaitGroup
	both.Go(func() { relay(backend, client.Conn, p.tenant.in.Add) })
	both.Go(func() { relay(client.Conn, backend, p.tenant.out.Add) })
	both.Wait()
}

// dial reaches a replica, the next if the first is not there; nil: none is.
func (p *port) dial(network string) (net.Conn, netip.AddrPort) {
	first := int(p.next.Add(1) - 1)
	for n := range p.Backends {
		at := p.Backends[(first+n)%len(p.Backends)]
		conn, err := toReplica.DialContext(context.Background(), network, at.String())
		if err == nil {
			return conn, at
		}
	}
	return nil, netip.AddrPort{}
}

// countEvery is how many bytes pass between two additions to a counter: io.CopyN
// lets the kernel move them.
const countEvery = 1 << 20

// relay moves one direction until it ends and passes its end on. An end that
// cannot be passed on, or an error, ends both directions.
func relay(to, from net.Conn, count func(uint64) uint64) {
	for {
		n, err := io.CopyN(to, from, countEvery)
		count(uint64(n))
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) || closeWrite(to) != nil {
			to.Close()
			from.Close()
			return
		}
		_ = to.SetReadDeadline(time.Now().Add(halfOpen)) // an error means that it is closed
		return
	}
}

// closeWrite ends one direction of a connection.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// flow moves datagrams between a client and a replica until none comes for a
// while, or until the replica is not in the table any more: the client's next
// datagram then begins a flow to another.
func (i *Ingress) flow(client net.Conn, id portID) {
	name := crowd.ClientOf(client.RemoteAddr().String())
	p := i.table.Load().ports[id]
	if p == nil || !i.flows.Take(name) {
		return
	}
	defer i.flows.Give(name)
	if !p.tenant.enter(&p.tenant.flows, maxFlowsPerLease) {
		return
	}
	defer p.tenant.flows.Add(-1)
	backend, at := p.dial("udp")
	if backend == nil {
		p.tenant.refused.Add(1)
		return
	}
	end := func() {
		client.Close()
		backend.Close()
	}
	defer end()
	if !p.tenant.hold(backend) {
		return
	}
	defer p.tenant.release(backend)
	p.tenant.connected.Add(1)
	idle := time.AfterFunc(flowIdle, end)
	defer idle.Stop()
	left := func() bool {
		now := i.table.Load().ports[id]
		return now == nil || len(now.Backends) > 0 && !slices.Contains(now.Backends, at)
	}
	move := func(to net.Conn, next func() ([]byte, error), count func(uint64) uint64) {
		defer end()
		for {
			datagram, err := next()
			if err != nil && !isRefused(err) || left() {
				return
			}
			if err != nil { // nobody listens yet; the next datagram may find somebody
				continue
			}
			idle.Reset(flowIdle)
			count(uint64(len(datagram)))
			if _, err := to.Write(datagram); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { move(backend, datagrams(client), p.tenant.in.Add) })
	both.Go(func() { move(client, datagrams(backend), p.tenant.out.Add) })
	both.Wait()
}

// datagrams reads one after the other; each is good until the next.
func datagrams(from net.Conn) func() ([]byte, error) {
	if p, ok := from.(*packets); ok {
		return p.next // they are in memory already
	}
	buf := make([]byte, maxDatagram)
	return func() ([]byte, error) {
		n, err := from.Read(buf)
		return buf[:n], err
	}
}

// isRefused reports that an earlier datagram found nobody.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// listenUDP opens a port of the box. Callers hold i.mu.
func (i *Ingress) listenUDP(address netip.AddrPort, id portID) (closer, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return nil, err
	}
	d := &demux{conn: conn, flows: map[netip.AddrPort]*packets{}}
	i.workers.Go(func() { d.run(i, id) })
	return conn, nil
}

// demux gives each client of a UDP port a connection of its own.
type demux struct {
	conn  *net.UDPConn
	mu    sync.Mutex
	flows map[netip.AddrPort]*packets // guarded by mu; bounded by the limits of flows
}

func (d *demux) run(i *Ingress, id portID) {
	defer d.closeAll()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		d.mu.Lock()
		f := d.flows[from]
		fresh := f == nil && len(d.flows) < maxFlows
		if fresh {
			f = &packets{demux: d, from: from, in: make(chan []byte, flowQueue), done: make(chan struct{})}
			d.flows[from] = f
		}
		d.mu.Unlock()
		if f == nil {
			continue
		}
		select {
		case f.in <- append([]byte(nil), buf[:n]...):
		default: // as networks do
		}
		if fresh {
			_ = i.work(func() { i.flow(f, id) }, f) // an error means that it was closed
		}
	}
}

func (d *demux) closeAll() {
	d.mu.Lock()
	var all []*packets
	for _, f := range d.flows {
		all = append(all, f)
	}
	d.mu.Unlock()
	for _, f := range all {
		f.Close()
	}
}

// packets is one client of a UDP port, as a connection whose reads and writes
// are datagrams.
type packets struct {
	*demux
	from netip.AddrPort
	in   chan []byte
	done chan struct{}
	once sync.Once
}

func (p *packets) next() ([]byte, error) {
	select {
	case d := <-p.in:
		return d, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *packets) Read(b []byte) (int, error) {
	d, err := p.next()
	return copy(b, d), err
}

func (p *packets) Write(b []byte) (int, error) { return p.conn.WriteToUDPAddrPort(b, p.from) }

func (p *packets) Close() error {
	p.once.Do(func() {
		close(p.done)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.flows, p.from)
	})
	return nil
}

func (p *packets) LocalAddr() net.Addr              { return p.conn.LocalAddr() }
func (p *packets) RemoteAddr() net.Addr             { return net.UDPAddrFromAddrPort(p.from) }
func (p *packets) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (p *packets) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (p *packets) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
