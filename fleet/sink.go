package fleet

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// mostTogether is how many messages of boxes are stored in one transaction.
const mostTogether = 256

// sink is where messages of boxes end up. It implements ingest.Sink.
type sink struct {
	db      *db.DB
	devices *device.Store
	jobs    *job.Store
	series  *timeseries.Store
	wiper   *wiper
	down    *ingest.Ingest // to boxes; set before the first message comes

	messages *gather[device.Message]
	statuses *gather[job.Status]
	greeted  *gather[croft.DeviceID]
}

func newSink(d *db.DB, devices *device.Store, jobs *job.Store, series *timeseries.Store, w *wiper) *sink {
	s := &sink{db: d, devices: devices, jobs: jobs, series: series, wiper: w}
	s.messages = newGather(mostTogether, func(ctx context.Context, all []device.Message) error {
		_, err := devices.Receive(ctx, all)
		return err
	})
	s.statuses = newGather(mostTogether, func(ctx context.Context, all []job.Status) error {
		_, err := jobs.Receive(ctx, all)
		return err
	})
	s.greeted = newGather(mostTogether, jobs.Resend)
	return s
}

// Hello stores who came, and tells the box what is wanted of it before the hello is
// acknowledged: so a box that was greeted knows it.
func (s *sink) Hello(ctx context.Context, id croft.DeviceID, m *fleetapi.Hello) error {
	if err := s.store(ctx, id, m); err != nil {
		return err
	}
	box, err := s.devices.Box(ctx, itsActor, id)
	if errors.Is(err, device.ErrNoBox) {
		return nil // it left the fleet a moment ago
	}
	if err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.down.Publish(soon, id, &box.Desired); err != nil {
		return err
	}
	return s.greeted.put(ctx, id)
}

func (s *sink) State(ctx context.Context, id croft.DeviceID, m *fleetapi.State) error {
	return s.store(ctx, id, m)
}

func (s *sink) LogLines(ctx context.Context, id croft.DeviceID, m *fleetapi.LogLines) error {
	return s.store(ctx, id, m)
}

func (s *sink) Event(ctx context.Context, id croft.DeviceID, m *fleetapi.Event) error {
	if err := s.store(ctx, id, m); err != nil {
		return err
	}
	if m.Kind == kindLeaseEnded && fleetapi.LabelValue(m.Fields, "reason") == reasonUnstable {
		return s.leaseBroke(ctx, id, eventTime(m, time.Now()))
	}
	return nil
}

// eventTime is when something happened, as far as is known: a box that does not know
// the time tells of now.
func eventTime(m *fleetapi.Event, now time.Time) time.Time {
	if m.Synced && m.At.Before(now) {
		return m.At
	}
	return now
}

// An event of this kind for this reason, in the chain's words, says that the box could
// not go on with a lease.
const (
	kindLeaseEnded = "lease_ended"
	reasonUnstable = "lease_closed_reason_unstable"
)

func (s *sink) leaseBroke(ctx context.Context, id croft.DeviceID, at time.Time) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("INSERT INTO fleet_broken_leases (device, at) VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET at = excluded.at WHERE excluded.at > fleet_broken_leases.at", string(id), db.Micros(at))
		return err
	})
}

func (s *sink) JobStatus(ctx context.Context, id croft.DeviceID, m *fleetapi.JobStatus) error {
	return s.statuses.put(ctx, job.Status{Device: id, At: time.Now(), Status: m})
}

// Batch stores readings. A box that does not know the time says so; then its newest
// reading was made when it arrived.
func (s *sink) Batch(ctx context.Context, id croft.DeviceID, m *fleetapi.Batch) error {
	now := time.Now()
	if _, err := s.series.Append(ctx, id, s.wiper.keeps(id, samplesOf(m, now))); err != nil {
		return err
	}
	s.devices.Seen(id, now)
	return nil
}

func (s *sink) store(ctx context.Context, id croft.DeviceID, m fleetapi.Payload) error {
	return s.messages.put(ctx, device.Message{Device: id, At: time.Now(), Address: ingest.AddressOf(ctx), Payload: m})
}

// samplesOf is a batch as the store of time series wants it.
func samplesOf(m *fleetapi.Batch, now time.Time) []timeseries.Sample {
	var shift time.Duration
	if !m.Synced {
		shift = now.Sub(m.Times[len(m.Times)-1])
	}
	out := make([]timeseries.Sample, 0, len(m.Times)*len(m.Series))
	for _, one := range m.Series {
		labels := make([]timeseries.Label, len(one.Labels))
		for i, l := range one.Labels {
			labels[i] = timeseries.Label(l)
		}
		for i, value := range one.Values {
			if !math.IsNaN(value) {
				out = append(out, timeseries.Sample{Name: one.Name, Labels: labels, At: m.Times[i].Add(shift), Value: value})
			}
		}
	}
	return out
}
