package ingest

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
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
	qos     byte
	ack     func() // tells the sender that it is done with; nil if nobody waits
}

// cost is what a message counts against the bound of all that wait.
func (m message) cost() int { return len(m.raw) + 256 }

// lane is the messages of one device, the one being handled first. It exists,
// with one goroutine, while there are any.
type lane struct {
	waiting []message // guarded by pipeline.mu
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
	eager  int                      // goroutines that wait for room; guarded by mu
	room   chan struct{}            // closed when there may be room; guarded by mu
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
		room:      make(chan struct{}),
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
		if !p.waitLocked(gone) {
			return
		}
	}
	p.pushLocked(m)
}

// insist takes a message in whether there is room or not.
func (p *pipeline) insist(m message) {
	p.counts.received[m.subject].Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pushLocked(m)
}

func (p *pipeline) roomLocked(m message) bool {
	l := p.lanes[m.device]
	return (l == nil || len(l.waiting) < p.perDevice) && (p.cost == 0 || p.cost+m.cost() <= p.most)
}

// waitLocked lets go of mu until there may be room. It is false when gone was
// closed instead.
func (p *pipeline) waitLocked(gone <-chan struct{}) bool {
	room := p.room
	p.eager++
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-room:
		return true
	case <-gone:
		return false
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
	if p.eager > 0 {
		p.eager = 0
		close(p.room)
		p.room = make(chan struct{})
	}
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
		case errors.Is(err, ErrSeen):
			p.counts.duplicates.Add(1)
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

func (m message) done() {
	if m.ack != nil {
		m.ack()
	}
}

// verdict tells whether an error of the sink is final, and why the message is
// refused then. Whatever is not known to be final is tried again.
func verdict(err error) (reason fleetapi.Reason, final bool) {
	if _, ok := errors.AsType[*fleetapi.RefusedError](err); ok {
		return fleetapi.ReasonOf(err), true
	}
	switch croft.KindOf(err) {
	case croft.KindUsage, croft.KindNotFound, croft.KindRefused, croft.KindInvalid:
		return ReasonRejected, true
	case croft.KindOther, croft.KindMissing, croft.KindNoSpace:
	}
	return "", false
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
