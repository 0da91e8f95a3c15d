package uplink

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Sampler reads the box.
type Sampler interface {
	// Read returns what the box can tell now, and when it began to ask. It
	// returns within a few seconds.
	Read(ctx context.Context) ([]fleetapi.Reading, time.Time)
}

// telemetry is the work of one goroutine: it reads, and sends what was read and
// what was logged.
type telemetry struct {
	u       *Uplink
	builder fleetapi.Builder
	synced  bool // of all instants in builder
	every   time.Duration
	refused string // what was said last about readings that break a rule
}

// measure reads the box and sends batches until ctx ends.
func (u *Uplink) measure(ctx context.Context) error {
	t := &telemetry{u: u, every: u.readEvery()}
	read := time.NewTimer(0)
	defer read.Stop()
	send := time.NewTimer(u.cfg.PublishEvery)
	defer send.Stop()
	for first := true; ; {
		select {
		case <-read.C:
			t.read(ctx)
			read.Reset(t.every)
			if first {
				first = false
				send.Reset(0) // support need not wait a minute for a new box
			}
		case <-send.C:
			t.send(ctx)
			// A little early each time, so that boxes that started together drift
			// apart.
			send.Reset(u.cfg.PublishEvery - rand.N(u.cfg.PublishEvery/20+1))
		case <-ctx.Done():
			t.send(ctx) // keeps it for later
			return nil
		}
	}
}

// readEvery is how often the fleet, or else the configuration, wants readings.
func (u *Uplink) readEvery() time.Duration {
	if d := u.desired.newest(); d != nil {
		return d.Interval
	}
	return u.cfg.ReadEvery
}

func (t *telemetry) read(ctx context.Context) {
	if t.u.cfg.Sampler == nil {
		return
	}
	readings, at := t.u.cfg.Sampler.Read(ctx)
	_, synced := t.u.stamp()
	every := t.u.readEvery()
	if synced != t.synced || every != t.every {
		t.flush(ctx) // a batch has one of each
		t.synced, t.every = synced, every
	}
	err := t.builder.Add(at, readings)
	if errors.Is(err, fleetapi.ErrBatchDone) {
		t.flush(ctx)
		err = t.builder.Add(at, readings)
	}
	if err != nil && err.Error() != t.refused {
		t.refused = err.Error()
		t.u.log.Warn("some readings cannot be sent", "err", err)
	}
}

func (t *telemetry) send(ctx context.Context) {
	t.flush(ctx)
	if t.u.logs != nil {
		for _, lines := range t.u.logs.take(t.u.cfg.Scrub) {
			t.deliver(ctx, spool.Log, lines)
		}
	}
}

func (t *telemetry) flush(ctx context.Context) {
	batch := t.builder.Take()
	if batch == nil || len(batch.Series) == 0 {
		return
	}
	batch.Epoch, batch.Seq = t.u.batchNumber()
	batch.BootID, batch.Synced, batch.Interval = t.u.cfg.BootID, t.synced, t.every
	raw, err := fleetapi.Encode(batch)
	if err != nil {
		t.u.log.Warn("readings cannot be sent", "err", err)
		return
	}
	t.deliver(ctx, spool.Telemetry, raw)
}

// deliver sends a payload, or keeps it for when there is a session.
func (t *telemetry) deliver(ctx context.Context, c spool.Class, raw []byte) {
	if ctx.Err() != nil || !t.u.sendNow(ctx, c.Subject(), raw) {
		// What has no room is counted by the spool. It says so itself if the disk
		// is at fault, and logging here would make the next message.
		_ = t.u.spool.Put(c, t.u.age(), raw)
	}
}
