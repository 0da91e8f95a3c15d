package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

// errand is a box's want of ports, brought to the clerk.
type errand struct {
	session *session
	want    []wire.Port
	answer  chan<- []wire.HeldPort // has room for it
}

// clerk opens and closes external ports, in one goroutine: what it does to
// listeners and the store needs no lock, and a slow disk holds up new wants
// only, never users.
type clerk struct {
	*office
	book *book
	open map[owner]*openPort

	put, gone []Allocation // not saved yet
}

// openPort is an external port that is listened on.
type openPort struct {
	external uint16
	close    func()
}

// bindTries is how many ports are tried that other programs of the machine turn
// out to have. More would hold up other boxes.
const bindTries = 64

func newClerk(o *office, known []Allocation) *clerk {
	return &clerk{office: o, book: newBook(o.cfg.Ports, known), open: make(map[owner]*openPort)}
}

func (c *clerk) work(ctx context.Context) {
	sweep := time.NewTicker(min(5*time.Second, c.cfg.Limits.Linger))
	defer sweep.Stop()
	for {
		select {
		case e := <-c.desk:
			held := c.hold(ctx, e.session, e.want)
			c.save()
			e.answer <- held
		case now := <-sweep.C:
			left := c.forget(now)
			for who := range c.open {
				c.touch(who, now) // or a port in use for a month would look forgotten after a restart
				if !left[who.device] {
					c.closePort(who)
				}
			}
			c.save()
			c.gate.sweep(now)
		case <-ctx.Done():
			return
		}
	}
}

func (c *clerk) closePort(who owner) {
	c.open[who].close()
	delete(c.open, who)
}

// hold gives a box the ports it wants, and no others.
func (c *clerk) hold(ctx context.Context, s *session, want []wire.Port) []wire.HeldPort {
	held := make([]wire.HeldPort, len(want))
	if !c.current(s) { // a newer tunnel decides
		for i, port := range want {
			held[i] = wire.HeldPort{Port: port, Problem: wire.ProblemFailed}
		}
		return held
	}
	wanted := make(map[owner]bool, len(want))
	for _, port := range want {
		wanted[owner{s.Device(), port}] = true
	}
	for who := range c.open {
		if who.device == s.Device() && !wanted[who] {
			c.closePort(who)
		}
	}
	c.makeRoom(s.Device(), want[:min(len(want), c.cfg.Limits.PortsEach)], wanted)
	for i, port := range want {
		held[i].Port = port
		if i >= c.cfg.Limits.PortsEach {
			held[i].Problem = wire.ProblemFull
			continue
		}
		external, err := c.give(ctx, owner{s.Device(), port})
		if err != nil {
			held[i].Problem = problemOf(err)
			c.log.Warn("external port not given", "device", s.Device(), "key", port.Key, "proto", port.Proto, "error", err)
			continue
		}
		held[i].External = external
	}
	return held
}

var errNoPort = errors.New("no external port is free")

func problemOf(err error) wire.Problem {
	switch {
	case errors.Is(err, errNoPort):
		return wire.ProblemFull
	case errors.Is(err, syscall.EADDRINUSE):
		return wire.ProblemTaken
	}
	return wire.ProblemFailed
}

// give opens the port of an owner, and allocates it if there is none yet.
func (c *clerk) give(ctx context.Context, who owner) (uint16, error) {
	if p := c.open[who]; p != nil {
		return p.external, nil
	}
	if a := c.book.all[who]; a != nil {
		if err := c.openPort(ctx, who, a.External); err != nil {
			return 0, err
		}
		c.touch(who, time.Now())
		return a.External, nil
	}
	tries := 0
	for port := range c.book.candidates(who) {
		err := c.openPort(ctx, who, port)
		if tries++; errors.Is(err, syscall.EADDRINUSE) && tries < bindTries {
			continue
		}
		if err != nil {
			return 0, err
		}
		a := Allocation{Device: who.device, Port: who.port, External: port, Used: time.Now().UTC()}
		c.book.enter(a)
		c.put = append(c.put, a)
		return port, nil
	}
	return 0, errNoPort
}

// touch notes that a port is in use, to the day.
func (c *clerk) touch(who owner, now time.Time) {
	a := c.book.all[who]
	if now.Sub(a.Used) > 24*time.Hour || now.Before(a.Used) {
		a.Used = now.UTC()
		c.put = append(c.put, *a)
	}
}

// makeRoom forgets what was not used for long, and of a box that asks for more
// than it may have, what it used longest ago.
func (c *clerk) makeRoom(device croft.DeviceID, want []wire.Port, wanted map[owner]bool) {
	fresh := 0
	for _, port := range want {
		if c.book.all[owner{device, port}] == nil {
			fresh++
		}
	}
	if fresh == 0 {
		return
	}
	held := func(a Allocation) bool { return c.open[a.owner()] != nil || wanted[a.owner()] }
	long := time.Now().Add(-c.cfg.Limits.Remember)
	c.drop(c.book.find(func(a Allocation) bool { return a.Used.Before(long) && !held(a) }))
	if over := c.book.count(device) + fresh - c.cfg.Limits.PortsEach; over > 0 {
		own := c.book.find(func(a Allocation) bool { return a.Device == device && !held(a) })
		c.drop(own[:min(over, len(own))])
	}
}

func (c *clerk) drop(list []Allocation) {
	for _, a := range list {
		c.book.remove(a.owner())
	}
	c.gone = append(c.gone, list...)
}

// save brings the store up to date, in one go: it may be a slow disk.
func (c *clerk) save() {
	put, gone := c.put, c.gone
	c.put, c.gone = nil, nil
	if c.cfg.Store == nil || len(put)+len(gone) == 0 {
		return
	}
	if err := c.cfg.Store.Save(put, gone); err != nil {
		c.log.Error("external ports not stored; they may change at the next restart", "ports", len(put), "error", err)
	}
}

// openPort listens on an external port for a device.
func (c *clerk) openPort(ctx context.Context, who owner, port uint16) error {
	address := net.JoinHostPort(c.cfg.PortHost, strconv.Itoa(int(port)))
	portCtx, cancel := context.WithCancel(ctx)
	var closer io.Closer
	var serve func()
	var err error
	switch who.port.Proto {
	case wire.TCP:
		var listener net.Listener
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
		// Users outlive their port: they have the server's context.
		closer, serve = listener, func() {
			c.accept(ctx, listener, func(ctx context.Context, conn halfCloser) { c.servePort(ctx, conn, who.device, port) })
		}
	case wire.UDP:
		var conn net.PacketConn
		conn, err = new(net.ListenConfig).ListenPacket(ctx, "udp", address)
		closer, serve = conn, func() { newFlows(c.office, conn.(*net.UDPConn), who.device, port).serve(portCtx) }
	default:
		err = fmt.Errorf("protocol %q is not known", who.port.Proto)
	}
	if err != nil {
		cancel()
		return fmt.Errorf("open external port: %w", err)
	}
	c.open[who] = &openPort{external: port, close: func() {
		cancel()
		closer.Close() // here and now: the box may want it back at once
	}}
	c.wg.Go(serve)
	return nil
}
