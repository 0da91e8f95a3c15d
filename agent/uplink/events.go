package uplink

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const (
	eventsAtOnce  = 256        // that wait for the disk
	sentenceField = "sentence" // the field of an event for people
)

// event is one that happened and is not in the spool yet.
type event struct {
	at       time.Time
	synced   bool
	kind     string
	severity fleetapi.Severity
	fields   map[string]string
}

// Event tells the fleet that something happened: a kind of words joined by "_",
// a sentence for people, and details. It never waits. If 256 events wait for the
// disk already, more are counted and left out, and an event says so later. An
// event is safe from kill -9 some milliseconds after the call.
func (u *Uplink) Event(kind string, severity fleetapi.Severity, sentence string, fields map[string]string) {
	e := event{kind: kind, severity: severity, fields: maps.Clone(fields)}
	e.at, e.synced = u.stamp()
	if e.fields == nil {
		e.fields = make(map[string]string)
	}
	if sentence != "" {
		e.fields[sentenceField] = sentence
	}
	select {
	case u.events <- e:
	default:
		u.lost.Add(1)
	}
}

// write puts events into the spool until ctx ends, and then those that wait.
func (u *Uplink) write(ctx context.Context) error {
	for {
		select {
		case e := <-u.events:
			u.record(e)
		case <-ctx.Done():
			for {
				select {
				case e := <-u.events:
					u.record(e)
				default:
					return nil
				}
			}
		}
	}
}

// record puts an event into the spool.
func (u *Uplink) record(e event) {
	if n := u.lost.Swap(0); n > 0 {
		u.dropped.Add(n)
		u.record(event{
			at: e.at, synced: e.synced, kind: "events_dropped", severity: fleetapi.SeverityWarning,
			fields: map[string]string{"count": strconv.FormatUint(n, 10), sentenceField: "The box had more to say at once than it could write down."},
		})
	}
	for name, value := range e.fields {
		e.fields[name] = fleetapi.CleanText(value, fleetapi.MaxText)
	}
	_, err := u.spool.PutNumbered(spool.OfSeverity(e.severity), u.age(), func(o fleetapi.Origin) ([]byte, error) {
		return fleetapi.Encode(&fleetapi.Event{
			Origin: o, At: e.at, Synced: e.synced, Kind: e.kind, Severity: e.severity, Fields: fleetapi.Labels(e.fields),
		})
	}, nil)
	if err != nil {
		u.log.Warn("event is lost", "kind", e.kind, "err", err)
	}
}
