package ingest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// External is a broker somebody else runs.
type External struct {
	URL string      // required; mqtt://user:password@host:1883 or mqtts://user:password@host:8883
	TLS *tls.Config // of mqtts; default trusts the system's roots

	// DB is where replicas agree on one to hold the session. Without, there is
	// one replica.
	DB *db.DB
}

// SessionName is the client id of the session that outlives replicas.
const SessionName = "croft-fleet"

// subscriber is the fleet as a client of an external broker.
type subscriber struct {
	cfg      External
	log      *slog.Logger
	pipeline *pipeline
	broker   *url.URL // without user and password
	user     *url.Userinfo
	name     string // of this replica

	holds  atomic.Bool // the session, and is subscribed
	shares atomic.Bool // is subscribed to messages of QoS 0

	mu      sync.Mutex
	mouth   paho.Client   // publishes; nil while there is no connection; guarded by mu
	changed chan struct{} // closed when mouth changes; guarded by mu
}

func newSubscriber(x External, cfg Config, p *pipeline) (*subscriber, error) {
	u, err := url.Parse(x.URL)
	if err != nil {
		return nil, errors.New("URL of the broker is malformed") // the error would quote the password
	}
	ports := map[string]string{"mqtt": "1883", "mqtts": "8883"}
	if ports[u.Scheme] == "" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("URL of the broker %q: want mqtts://user:password@host:port or mqtt://…", u.Redacted())
	}
	scheme := "tcp"
	if u.Scheme == "mqtts" {
		scheme = "ssl"
	}
	return &subscriber{
		cfg: x, log: cfg.Log, pipeline: p, user: u.User,
		broker:  &url.URL{Scheme: scheme, Host: u.Hostname() + ":" + cmp.Or(u.Port(), ports[u.Scheme])},
		name:    strconv.FormatUint(fleetapi.NewJournal(), 36),
		changed: make(chan struct{}),
	}, nil
}

// group is the name under which replicas share log lines. Mosquitto lets
// everybody subscribe to everything and only then looks who may read: a device
// that joined the group would be given messages, may not read them, and they would be
// lost. So the name is not to be guessed, and still the same in all replicas.
func group(user *url.Userinfo) string {
	password, secret := user.Password()
	if !secret {
		return "fleet"
	}
	sum := sha256.Sum256([]byte("croft share group\n" + password))
	return "fleet-" + hex.EncodeToString(sum[:12])
}

func (x *subscriber) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { x.keep(ctx, x.share) })
	if x.cfg.DB == nil {
		x.keep(ctx, x.hold)
		return nil
	}
	x.keep(ctx, func(ctx context.Context) error {
		return x.cfg.DB.Lead(ctx, "ingest", func(ctx context.Context) error {
			x.keep(ctx, x.hold)
			return ctx.Err()
		})
	})
	return nil
}

// keep does something that lasts as long as a connection, over and over.
func (x *subscriber) keep(ctx context.Context, do func(context.Context) error) {
	pause := backoff{least: 500 * time.Millisecond, most: 30 * time.Second}
	for ctx.Err() == nil {
		begun := time.Now()
		err := do(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > time.Minute {
			pause.last = 0
		}
		x.log.Warn("connection to the broker is not there", "error", err)
		pause.sleep(ctx)
	}
}

// ear is what a connection to the broker listens to.
type ear struct {
	on      *atomic.Bool      // while it does
	filters map[string]byte   // with the quality of service
	least   byte              // what comes by less, another connection has
	opened  func(paho.Client) // nil, or told when there is a connection
}

// hold has the session, until the connection breaks or ctx ends. Readings and log
// lines are among its subscriptions for the sake of those that a box had spooled,
// which come by QoS 1.
func (x *subscriber) hold(ctx context.Context) error {
	o, lost := x.options(SessionName)
	o.SetCleanSession(false)
	o.SetAutoAckDisabled(true)
	e := ear{on: &x.holds, filters: map[string]byte{}, least: 1}
	for _, s := range fleetapi.Subjects() {
		if s.Up() {
			e.filters[s.Filter()] = 1
		}
	}
	return x.listen(ctx, o, lost, e)
}

// share has what comes by QoS 0, readings whole and log lines in part, and the
// connection by which this replica publishes.
func (x *subscriber) share(ctx context.Context) error {
	o, lost := x.options(SessionName + "-" + x.name)
	o.SetCleanSession(true)
	defer x.setMouth(nil)
	return x.listen(ctx, o, lost, ear{on: &x.shares, opened: x.setMouth, filters: map[string]byte{
		fleetapi.SubjectReadings.Filter():                              0,
		"$share/" + group(x.user) + "/" + fleetapi.SubjectLog.Filter(): 0,
	}})
}

// listen connects and subscribes, until the connection breaks or ctx ends.
func (x *subscriber) listen(ctx context.Context, o *paho.ClientOptions, lost <-chan error, e ear) error {
	receive := func(_ paho.Client, m paho.Message) {
		if m.Qos() >= e.least {
			x.receive(ctx, m)
		}
	}
	o.SetDefaultPublishHandler(receive) // what the session kept comes before the subscription is made again
	client := paho.NewClient(o)
	defer client.Disconnect(100)
	if err := wait(ctx, client.Connect()); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if e.opened != nil {
		e.opened(client)
	}
	token := client.SubscribeMultiple(e.filters, nil)
	if err := wait(ctx, token); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for f, granted := range token.(*paho.SubscribeToken).Result() {
		if granted > 1 {
			return fmt.Errorf("subscribe to %s: the broker does not let this user", f)
		}
	}
	e.on.Store(true)
	defer e.on.Store(false)
	return until(ctx, lost)
}

// receive hands a message on. While it does not return, the connection is not
// read.
func (x *subscriber) receive(ctx context.Context, m paho.Message) {
	device, subject, err := fleetapi.ParseTopic(m.Topic())
	if err == nil && !subject.Up() {
		err = &fleetapi.RefusedError{Reason: fleetapi.ReasonForeign, Err: errors.New("topic goes down")}
	}
	if err != nil {
		x.pipeline.counts.refuse(fleetapi.ReasonOf(err))
		m.Ack()
		return
	}
	x.pipeline.accept(ctx.Done(), message{device: device, subject: subject, raw: m.Payload(), qos: m.Qos(), ack: m.Ack})
}

func (x *subscriber) setMouth(c paho.Client) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mouth = c
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *subscriber) publish(ctx context.Context, device croft.DeviceID, subject fleetapi.Subject, raw []byte) error {
	for {
		x.mu.Lock()
		mouth, changed := x.mouth, x.changed
		x.mu.Unlock()
		if mouth == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return fmt.Errorf("wait for the broker: %w", ctx.Err())
			}
		}
		return wait(ctx, mouth.Publish(subject.Topic(device), subject.QoS(), subject.Retained(), raw))
	}
}

func (x *subscriber) end(croft.DeviceID) bool { return false }

func (x *subscriber) count(s *Stats) { s.Holds, s.Shares = x.holds.Load(), x.shares.Load() }

// options are those of every connection, and where it says that it is lost.
func (x *subscriber) options(id string) (*paho.ClientOptions, <-chan error) {
	lost := make(chan error, 1)
	o := paho.NewClientOptions().AddBroker(x.broker.String()).SetClientID(id).SetProtocolVersion(4)
	if x.user != nil {
		password, _ := x.user.Password()
		o.SetUsername(x.user.Username()).SetPassword(password)
	}
	if x.cfg.TLS != nil {
		o.SetTLSConfig(x.cfg.TLS.Clone())
	}
	o.SetAutoReconnect(false) // its pauses have no jitter
	o.SetConnectTimeout(10 * time.Second).SetWriteTimeout(10 * time.Second)
	o.SetKeepAlive(30 * time.Second).SetPingTimeout(10 * time.Second)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err })
	return o, lost
}

func wait(ctx context.Context, t paho.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func until(ctx context.Context, lost <-chan error) error {
	select {
	case err := <-lost:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
