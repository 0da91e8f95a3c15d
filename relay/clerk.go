package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

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
}

// openPort is an external port that is listened on.
type openPort struct {
	external uint16
	close    context.CancelFunc
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
			e.answer <- c.hold(ctx, e.session, e.want)
		case now := <-sweep.C:
			left := c.forget(now)
			for who := range c.open {
				if !left[who.device] {
					c.closePort(who)
				}
			}
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
	for i, port := range want {
		held[i].Port = port
		if i >= c.cfg.Limits.PortsEach {
			held[i].Problem = wire.ProblemFull
			continue
		}
		external, err := c.give(ctx, owner{s.Device(), port}, wanted)
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
func (c *clerk) give(ctx context.Context, who owner, wanted map[owner]bool) (uint16, error) {
	if p := c.open[who]; p != nil {
		return p.external, nil
	}
	now := time.Now().UTC()
	if a := c.book.all[who]; a != nil {
		if err := c.openPort(ctx, who, a.External); err != nil {
			return 0, err
		}
		if now.Sub(a.Used) > 24*time.Hour || now.Before(a.Used) {
			a.Used = now
			c.save(*a)
		}
		return a.External, nil
	}
	if c.cfg.Ports.size() == 0 {
		return 0, errNoPort
	}
	c.makeRoom(who, wanted, now)
	tries := 0
	for port := range c.book.candidates(who) {
		err := c.openPort(ctx, who, port)
		if tries++; errors.Is(err, syscall.EADDRINUSE) && tries < bindTries {
			continue
		}
		if err != nil {
			return 0, err
		}
		a := Allocation{Device: who.device, Port: who.port, External: port, Used: now}
		c.book.enter(a)
		c.save(a)
		return port, nil
	}
	return 0, errNoPort
}

// makeRoom forgets what was not used for long, and of a box that asks for more
// than it may have, what it used longest ago.
func (c *clerk) makeRoom(who owner, wanted map[owner]bool, now time.Time) {
	held := func(o owner) bool { return c.open[o] != nil || wanted[o] }
	for _, old := range c.book.forgettable(now.Add(-c.cfg.Limits.Remember), held) {
		c.drop(old)
	}
	over := c.book.count(who.device) + 1 - c.cfg.Limits.PortsEach
	for _, old := range c.book.forgettable(now.Add(time.Second), held) {
		if over > 0 && old.device == who.device {
			c.drop(old)
			over--
		}
	}
}

func (c *clerk) drop(who owner) {
	a := *c.book.all[who]
	c.book.remove(who)
	if c.cfg.Store == nil {
		return
	}
	if err := c.cfg.Store.Delete(a); err != nil {
		c.log.Error("external port not forgotten in store", "device", who.device, "error", err)
	}
}

func (c *clerk) save(a Allocation) {
	if c.cfg.Store == nil {
		return
	}
	if err := c.cfg.Store.Put(a); err != nil {
		c.log.Error("external port not stored; it may change at the next restart", "device", a.Device, "error", err)
	}
}

// openPort listens on an external port for a device.
func (c *clerk) openPort(ctx context.Context, who owner, port uint16) error {
	address := net.JoinHostPort(c.cfg.PortHost, strconv.Itoa(int(port)))
	var serve func(context.Context)
	switch who.port.Proto {
	case wire.TCP:
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("open external port: %w", err)
		}
		serve = func(portCtx context.Context) {
			stop := context.AfterFunc(portCtx, func() { listener.Close() })
			defer stop()
			// Users outlive their port: they have the server's context.
			c.accept(ctx, listener, func(ctx context.Context, conn halfCloser) { c.servePort(ctx, conn, who.device, port) })
		}
	case wire.UDP:
		conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
		if err != nil {
			return fmt.Errorf("open external port: %w", err)
		}
		serve = func(portCtx context.Context) {
			newFlows(c.office, conn.(*net.UDPConn), who.device, port).serve(portCtx)
		}
	default:
		return fmt.Errorf("open external port: protocol %q is not known", who.port.Proto)
	}
	portCtx, cancel := context.WithCancel(ctx)
	c.open[who] = &openPort{external: port, close: cancel}
	c.wg.Go(func() { serve(portCtx) })
	return nil
}
