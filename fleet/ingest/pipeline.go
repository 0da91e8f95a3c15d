package ingest

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// message is one message on its way from a topic to the sink.
type message struct {
	device  croft.DeviceID
	subject fleetapi.Subject
	raw     []byte
	from    netip.Addr // of the connection it came by; not valid: nobody knows
	qos     byte
	ack     func() // tells the sender that it is done with; nil if nobody waits
}

// cost is what a message counts against the bound of all that wait.
func (m message) cost() int { return len(m.raw) + 256 }

// lane is the messages of one device, the one being handled first. It exists,
// with one goroutine, while there are any.
type lane struct {
	waiting []message     // guarded by pipeline.mu
	room    chan struct{} // closed when one of them was handled; nil: nobody waits for that; guarded by pipeline.mu
}

// turn is one that waits for room among the messages of all devices.
type turn struct {
	come chan struct{} // closed when it is
	left bool          // nobody waits any more; guarded by pipeline.mu
}

// pipeline takes messages of all devices and hands them to the sink: those of
// one device one after another, those of several at once.
type pipeline struct {
	sink    Sink
	revoked func(croft.DeviceID) bool
	counts  *counters
	log     *slog.Logger
	moan    rate.Sometimes // says that the sink does not take messages

	perDevice int           // messages that may wait
	most      int           // cost of all that wait
	turns     chan struct{} // holds one for each call of the sink that runs

	work func(*lane, message) // starts a lane's goroutine; set by start

	mu     sync.Mutex
	lanes  map[croft.DeviceID]*lane // guarded by mu
	queued int                      // messages; guarded by mu
	cost   int                      // of them; guarded by mu
	crowd  []*turn                  // who waits for room among all, first come first; guarded by mu
}

func newPipeline(cfg Config, counts *counters) *pipeline {
	return &pipeline{
		sink:      cfg.Sink,
		revoked:   cfg.Revoked,
		counts:    counts,
		log:       cfg.Log,
		moan:      rate.Sometimes{Interval: 10 * time.Second},
		perDevice: cfg.QueuePerDevice,
		most:      cfg.QueueBytes,
		turns:     make(chan struct{}, cfg.Workers),
		lanes:     map[croft.DeviceID]*lane{},
	}
}

// start lets lanes run until ctx ends. The caller waits for group.
func (p *pipeline) start(ctx context.Context, group *sync.WaitGroup) {
	p.work = func(l *lane, first message) {
		group.Go(func() { p.run(ctx, l, first) })
	}
}

// accept takes a message in. While there is no room, one of QoS 0 is dropped and
// one of QoS 1 waits, until gone is closed: then nobody acknowledges it.
func (p *pipeline) accept(gone <-chan struct{}, m message) {
	p.counts.received[m.subject].Add(1)
	if p.revoked(m.device) {
		p.counts.refuse(ReasonRevoked)
		m.done()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.roomLocked(m) {
		if m.qos == 0 {
			p.counts.refuse(ReasonPressure)
			return
		}
		if !p.waitLocked(m, gone) {
			return
		}
	}
	p.pushLocked(m)
	if p.cost < p.most {
		p.callLocked()
	}
}

// insist takes a message in whether there is room or not.
func (p *pipeline) insist(m message) {
	p.counts.received[m.subject].Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pushLocked(m)
}

func (p *pipeline) roomLocked(m message) bool {
	return !p.laneFullLocked(m) && (p.cost == 0 || p.cost+m.cost() <= p.most)
}

func (p *pipeline) laneFullLocked(m message) bool {
	l := p.lanes[m.device]
	return l != nil && len(l.waiting) >= p.perDevice
}

// waitLocked lets go of mu until there may be room. It is false when gone was
// closed instead. A message that was handled wakes who waits for its device and one
// more, not everybody: of 20,000 boxes that wait, all but one would find no room.
func (p *pipeline) waitLocked(m message, gone <-chan struct{}) bool {
	if p.laneFullLocked(m) {
		l := p.lanes[m.device]
		if l.room == nil {
			l.room = make(chan struct{})
		}
		return p.sleepLocked(l.room, gone)
	}
	mine := &turn{come: make(chan struct{})}
	p.crowd = append(p.crowd, mine)
	came := p.sleepLocked(mine.come, gone)
	mine.left = true
	if !came || p.laneFullLocked(m) {
		p.callLocked() // it may have been called just now, and another can make use of that
	}
	return came
}

func (p *pipeline) sleepLocked(room, gone <-chan struct{}) bool {
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-room:
		return true
	case <-gone:
		return false
	}
}

// callLocked tells the first of the crowd to look whether there is room.
func (p *pipeline) callLocked() {
	for len(p.crowd) > 0 {
		first := p.crowd[0]
		p.crowd[0] = nil
		p.crowd = p.crowd[1:]
		if !first.left {
			close(first.come)
			return
		}
	}
}

func (p *pipeline) pushLocked(m message) {
	p.queued++
	p.cost += m.cost()
	l := p.lanes[m.device]
	if l != nil {
		l.waiting = append(l.waiting, m)
		return
	}
	l = &lane{waiting: []message{m}}
	p.lanes[m.device] = l
	p.work(l, m)
}

// run handles a lane's messages until there are none.
func (p *pipeline) run(ctx context.Context, l *lane, m message) {
	for more := true; more; m, more = p.next(m.device, l) {
		p.handle(ctx, m)
	}
}

// next drops the first message of a lane, which was handled, and returns the one
// after it. If there is none, the lane is gone.
func (p *pipeline) next(device croft.DeviceID, l *lane) (message, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queued--
	p.cost -= l.waiting[0].cost()
	l.waiting[0] = message{}
	l.waiting = l.waiting[1:]
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	p.callLocked()
	if len(l.waiting) == 0 {
		delete(p.lanes, device)
		return message{}, false
	}
	return l.waiting[0], true
}

func (p *pipeline) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queued
}

// handle brings one message to its end: stored, refused, or left without an
// acknowledgement when ctx ends.
func (p *pipeline) handle(ctx context.Context, m message) {
	pause := backoff{least: 100 * time.Millisecond, most: 10 * time.Second}
	for ctx.Err() == nil {
		err := p.deliver(ctx, m)
		reason, final := verdict(err)
		switch {
		case err == nil:
			p.counts.stored[m.subject].Add(1)
			m.done()
			return
		case final:
			p.counts.refuse(reason)
			p.log.Debug("message refused", "device", m.device, "subject", m.subject, "reason", reason, "error", err)
			m.done()
			return
		case m.qos == 0:
			p.counts.refuse(ReasonPressure)
			return
		case ctx.Err() != nil:
			return
		}
		p.counts.retries.Add(1)
		p.moan.Do(func() {
			p.log.Warn("messages cannot be stored, trying again", "device", m.device, "subject", m.subject, "error", err)
		})
		pause.sleep(ctx)
	}
}

// fromKey is under what the context of a sink has the address of a connection.
type fromKey struct{}

func (m message) done() {
	if m.ack != nil {
		m.ack()
	}
}

// verdict tells whether an error of the sink is final, and why the message is
// refused then. Whatever is not known to be final is tried again: a database that
// became read-only refuses too.
func verdict(err error) (reason fleetapi.Reason, final bool) {
	if _, ok := errors.AsType[*fleetapi.RefusedError](err); ok {
		return fleetapi.ReasonOf(err), true
	}
	return ReasonRejected, croft.KindOf(err) == croft.KindNotFound
}

// deliver waits for a turn, decodes the payload and calls the sink.
func (p *pipeline) deliver(ctx context.Context, m message) error {
	select {
	case p.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.turns }()
	payload, err := fleetapi.Decode(m.subject, m.raw)
	if err != nil { // whatever it is, it is the same next time
		return &fleetapi.RefusedError{Reason: fleetapi.ReasonOf(err), Err: err}
	}
	if m.from.IsValid() {
		ctx = context.WithValue(ctx, fromKey{}, m.from)
	}
	switch v := payload.(type) {
	case *fleetapi.Hello:
		return p.sink.Hello(ctx, m.device, v)
	case *fleetapi.State:
		return p.sink.State(ctx, m.device, v)
	case *fleetapi.Batch:
		return p.sink.Batch(ctx, m.device, v)
	case *fleetapi.Event:
		return p.sink.Event(ctx, m.device, v)
	case *fleetapi.LogLines:
		return p.sink.LogLines(ctx, m.device, v)
	case *fleetapi.JobStatus:
		return p.sink.JobStatus(ctx, m.device, v)
	default:
		return &fleetapi.RefusedError{Reason: fleetapi.ReasonForeign, Err: errors.New("payload is not for the fleet")}
	}
}

// backoff is decorrelated jitter: each pause is drawn between least and three
// times the one before it, and is at most most.
type backoff struct {
	least, most, last time.Duration
}

func (b *backoff) next() time.Duration {
	b.last = min(b.most, b.least+rand.N(max(3*b.last, 3*b.least)-b.least))
	return b.last
}

// sleep pauses, at most until ctx ends.
func (b *backoff) sleep(ctx context.Context) {
	select {
	case <-time.After(b.next()):
	case <-ctx.Done():
	}
}
