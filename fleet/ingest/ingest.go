// Package ingest is how messages of boxes come in, and how the fleet speaks to
// them: MQTT 3.1.1, with a broker of its own or with one by URL.
//
//	in, err := ingest.New(ingest.Config{Sink: sink, Embedded: &ingest.Embedded{…}})
//	in, err := ingest.New(ingest.Config{Sink: sink, External: &ingest.External{URL: "mqtts://fleet:…@broker"}})
//	go in.Run(ctx)
//	err = in.Publish(ctx, device, &fleetapi.Desired{…})
//
// # From topic to sink
//
// A message's device is the one its topic names; payloads name none. It is taken
// apart with the bounds of fleetapi and handed to the [Sink]: the messages of one
// device one after another in the order they came, those of several at once. It
// is acknowledged when the sink has returned, never before. What is refused, for
// its form or by the sink, is acknowledged too, counted by its reason and gone. All
// other errors of the sink mean "try again": the device's message is kept, its
// later ones wait behind it, and nothing of it is acknowledged, so it slows down.
// Messages of QoS 0 are dropped in that time, and when there is no room. They are
// counted as "pressure".
//
// A message may come twice: its acknowledgement was lost, or the session moved to
// another replica. Whoever stores it knows it again: events and job statuses by their
// number, Hello and State by their epoch, readings and log lines by their time.
//
// # Embedded broker
//
// It speaks to boxes only, by TLS with the certificates of enroll. A connection
// counts if its client id is the device of its certificate. A device has one
// connection: the next ends the one before, which is waited for, and that is told
// by [Config.Notice]: now and then it is a box whose line broke, again and again
// it is two boxes with one key. New connections are let in at ConnectRate. Those
// that would wait longer than a few seconds are closed at once, before TLS costs
// anything; boxes come again by themselves. Who is connected is judged again each ten
// minutes: a certificate may be over, or revoked.
//
// It keeps no message: no sessions, nothing retained. What the fleet wants of a
// box stands in the fleet's tables, and each session of a box begins with its
// Hello. So after Sink.Hello the fleet publishes the desired state and the open jobs to
// that device, with either broker. What is published before the box has
// subscribed waits until it has; what is published to a box that is not there is
// dropped.
//
// Messages go from the connection to the sink and are not handed to other
// subscribers. One process can have the embedded broker; more replicas need an
// external one.
//
// # External broker
//
// Any broker of MQTT 3.1.1 with shared subscriptions ($share), and as many
// replicas of the fleet as there are.
//
//	QoS 1   one session named croft-fleet, which outlives replicas, with ordinary
//	        subscriptions. One replica at a time holds it, by DB.Lead; when that dies,
//	        another takes it over after some seconds, with what was not acknowledged
//	QoS 0   each replica has a session that ends with it. By that it hears all
//	        readings, for each has a store of time series of its own, and by a shared
//	        subscription its part of the log lines
//
// Readings and log lines that a box had spooled it sends by QoS 1. They come to those
// subscriptions too, and by croft-fleet once more, so that they are not lost while there
// is no replica. So the replica that holds croft-fleet hears readings twice. Live
// ones of the second kind it drops unread, spooled ones its store knows by their time.
//
// QoS 1 is not shared, because a broker keeps what it has handed to a replica's
// part for that replica, also when it never comes back; and because Mosquitto 2.0
// forgets shared subscriptions when it restarts, and acknowledges to boxes what
// then goes to nobody.
//
// Which device may use which topic is the broker's to check, for a message does
// not say who sent it. [Mosquitto] makes the configuration of that broker:
//
//	listener 8883                          # boxes: user and client id are the certificate's CN
//	require_certificate true
//	use_identity_as_username true
//	use_username_as_clientid true
//	pattern write croft/v1/%u/up/event     # and so on, one for each subject
//	pattern read  croft/v1/%u/dn/desired
//	listener 8884                          # the fleet: by password
//	user fleet
//	topic readwrite croft/v1/#
//
// # What survives what
//
//	fleet, kill -9          embedded: boxes send again what was not acknowledged; wills are
//	                        lost, so a box that is not heard of for some minutes is lost too.
//	                        external: the broker keeps QoS 1, another replica takes over; its
//	                        own store has the readings too, the dead one's lacks those of its
//	                        absence, but for what boxes had spooled
//	fleet stopped in order  as above; wills of boxes whose connection the fleet ends are not
//	                        told, for it is not the boxes that left
//	sink away               QoS 1 waits in the boxes or the external broker, QoS 0 is dropped
//	external broker stopped it has its sessions on disk and goes on. Mosquitto writes them when
//	                        it stops, and each 30 s: kill -9 or a power cut can take what it
//	                        acknowledged to boxes since then and no replica had yet. Who cannot
//	                        have that uses the embedded broker, or one that stores before it
//	                        acknowledges
//	external broker anew    without its files: boxes say Hello and are told everything again
//	message twice           stored once, by who stores it
package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Sink is where messages go. When a method returns nil, the message is stored and
// survives a power cut: it is acknowledged then; one that it had stored before is as good.
// A fleetapi.RefusedError, and a croft.Error of the kind not found, say that it will never
// be stored. Any other error says to try again, whatever its kind: a database that became
// read-only, or is damaged, says so in kinds.
//
// Methods are called for several devices at once, and for one device one after
// another. Their context ends when the fleet stops, and has [AddressOf] the device.
type Sink interface {
	Hello(ctx context.Context, device croft.DeviceID, m *fleetapi.Hello) error
	State(ctx context.Context, device croft.DeviceID, m *fleetapi.State) error
	Batch(ctx context.Context, device croft.DeviceID, m *fleetapi.Batch) error
	Event(ctx context.Context, device croft.DeviceID, m *fleetapi.Event) error
	LogLines(ctx context.Context, device croft.DeviceID, m *fleetapi.LogLines) error
	JobStatus(ctx context.Context, device croft.DeviceID, m *fleetapi.JobStatus) error
}

// AddressOf is from where the device connected whose message the sink was called
// with. It is not valid with an external broker, which does not tell.
func AddressOf(ctx context.Context) netip.Addr {
	from, _ := ctx.Value(fromKey{}).(netip.Addr)
	return from.Unmap()
}

// Notice is something about a device's connection that somebody should know.
type Notice struct {
	Device croft.DeviceID
	Kind   NoticeKind
	At     time.Time
	Remote string // address of the connection it is about
	Other  string // address of the connection that took over
}

// NoticeKind is a word.
type NoticeKind string

// The kinds of notices.
const (
	NoticeTakenOver NoticeKind = "taken_over" // a second connection of the device ended the first
	NoticeIdentity  NoticeKind = "identity"   // a device called itself by a name that is not its certificate's
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Sink     Sink      // required
	Embedded *Embedded // this or External is required
	External *External

	Revoked func(croft.DeviceID) bool // whose messages are refused; default nobody's
	Notice  func(Notice)              // must not block; default ignores
	Log     *slog.Logger              // default discards

	Workers        int // calls of the sink at once; default 32
	QueuePerDevice int // messages that wait for the sink; default 32
	QueueBytes     int // of all messages that wait; default 256 MiB
}

// Ingest receives from boxes and publishes to them. All methods may be called
// from any goroutine.
type Ingest struct {
	counts   *counters
	pipeline *pipeline
	line     line
}

// line is a way to the boxes: one of the two brokers.
type line interface {
	run(ctx context.Context) error
	publish(ctx context.Context, device croft.DeviceID, subject fleetapi.Subject, raw []byte) error
	end(device croft.DeviceID) bool
	count(*Stats)
}

// New checks the configuration.
func New(cfg Config) (*Ingest, error) {
	if cfg.Sink == nil {
		return nil, errors.New("sink of messages is missing")
	}
	if (cfg.Embedded == nil) == (cfg.External == nil) {
		return nil, errors.New("want either an embedded or an external broker")
	}
	if cfg.Revoked == nil {
		cfg.Revoked = func(croft.DeviceID) bool { return false }
	}
	if cfg.Notice == nil {
		cfg.Notice = func(Notice) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Workers = cmp.Or(cfg.Workers, 32)
	cfg.QueuePerDevice = cmp.Or(cfg.QueuePerDevice, 32)
	cfg.QueueBytes = cmp.Or(cfg.QueueBytes, 256<<20)
	if cfg.Workers < 0 || cfg.QueuePerDevice < 0 || cfg.QueueBytes < 0 {
		return nil, errors.New("bounds of ingest are negative")
	}
	counts := newCounters()
	in := &Ingest{counts: counts, pipeline: newPipeline(cfg, counts)}
	var err error
	if cfg.Embedded != nil {
		in.line, err = newBroker(*cfg.Embedded, cfg, in.pipeline)
	} else {
		in.line, err = newSubscriber(*cfg.External, cfg, in.pipeline)
	}
	if err != nil {
		return nil, err
	}
	return in, nil
}

// Run works until ctx ends. It is called once. Messages that are with the sink
// then are waited for; the others are not acknowledged.
func (in *Ingest) Run(ctx context.Context) error {
	var lanes sync.WaitGroup
	defer lanes.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in.pipeline.start(ctx, &lanes)
	return in.line.run(ctx)
}

// Publish sends a payload that goes down, a Desired or a Job, to a device. With
// the embedded broker it returns when the message is on its way, or dropped if
// the device is not connected; with an external one, when that has it.
func (in *Ingest) Publish(ctx context.Context, device croft.DeviceID, p fleetapi.Payload) error {
	if p.Subject().Up() {
		return fmt.Errorf("publish to device %s: payloads of %s go up", device, p.Subject())
	}
	if _, err := croft.ParseDeviceID(string(device)); err != nil {
		return fmt.Errorf("publish %s: %w", p.Subject(), err)
	}
	raw, err := fleetapi.Encode(p)
	if err != nil {
		return fmt.Errorf("publish %s to device %s: %w", p.Subject(), device, err)
	}
	if err := in.line.publish(ctx, device, p.Subject(), raw); err != nil {
		return fmt.Errorf("publish %s to device %s: %w", p.Subject(), device, err)
	}
	return nil
}

// Disconnect ends the connection of a device, say of one that was revoked, and
// reports whether there was one. An external broker cannot be told: what a
// revoked device sends there is refused here, until it has read a new list of
// revoked certificates and the device's connection ends.
func (in *Ingest) Disconnect(device croft.DeviceID) bool { return in.line.end(device) }

// Stats is what happened since New.
func (in *Ingest) Stats() Stats {
	s := in.counts.stats()
	s.Queued = in.pipeline.waiting()
	in.line.count(&s)
	return s
}
