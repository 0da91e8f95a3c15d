package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// token is an mqtt.Token that the test completes.
type token struct {
	mqtt.DummyToken
	done chan struct{}
	err  error
}

func (t *token) Done() <-chan struct{} { return t.done }
func (t *token) Error() error          { return t.err }

func completed(err error) *token {
	t := &token{done: make(chan struct{}), err: err}
	close(t.done)
	return t
}

// recorder is a link that records, and answers as it is told.
type recorder struct {
	mu        sync.Mutex
	options   *mqtt.ClientOptions                                    // guarded by mu; of the newest session
	tries     []time.Time                                            // guarded by mu
	brokers   []string                                               // guarded by mu
	published []string                                               // guarded by mu; "SESSION subject field"
	heard     mqtt.MessageHandler                                    // guarded by mu; of the subscription; nil: there is none
	connect   func() error                                           // answer to CONNECT; nil: accepted
	publish   func(subject fleetapi.Subject, session int) mqtt.Token // nil: acknowledged
}

func (r *recorder) link(o *mqtt.ClientOptions) link {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.options = o
	return r
}

func (r *recorder) Connect() mqtt.Token {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries = append(r.tries, time.Now())
	r.brokers = append(r.brokers, r.options.Servers[0].Host)
	r.heard = nil
	if r.connect == nil {
		return completed(nil)
	}
	return completed(r.connect())
}

func (r *recorder) Publish(topic string, _ byte, _ bool, payload any) mqtt.Token {
	_, subject, err := fleetapi.ParseTopic(topic)
	if err != nil {
		return completed(err)
	}
	p, err := fleetapi.Decode(subject, payload.([]byte))
	if err != nil {
		return completed(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf("%d %s", len(r.tries), subject)
	if e, ok := p.(*fleetapi.Event); ok {
		line += " " + e.Kind
	}
	r.published = append(r.published, line)
	if r.publish != nil {
		return r.publish(subject, len(r.tries))
	}
	return completed(nil)
}

func (r *recorder) Subscribe(_ string, _ byte, heard mqtt.MessageHandler) mqtt.Token {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = heard
	return completed(nil)
}

func (r *recorder) Disconnect(uint) {}

// order is a message of the fleet.
type order struct {
	mqtt.Message
	topic string
	raw   []byte
}

func (m order) Topic() string   { return m.topic }
func (m order) Payload() []byte { return m.raw }

// bubble is an enrolled uplink with two brokers, of which only the session's
// worker runs, and a link that records.
func bubble(t *testing.T, r *recorder) *Uplink {
	authority := testAuthority(t)
	cfg := testConfig(t, &fleet{url: "https://127.0.0.1:1", authority: authority}, t.TempDir(), newKey(t))
	cfg.Brokers = []string{"tls://one.example:8883", "tls://two.example:8883"}
	u, err := New(cfg)
	check(t, err)
	u.enrolment.cert = &tls.Certificate{Leaf: &x509.Certificate{}}
	u.newLink = r.link
	return u
}

func during(t *testing.T, u *Uplink, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	check(t, u.connect(ctx))
}

func gaps(times []time.Time) (all []time.Duration) {
	for i := 1; i < len(times); i++ {
		all = append(all, times[i].Sub(times[i-1]))
	}
	return all
}

func TestTriesAreApart(t *testing.T) {
	for _, tc := range []struct {
		name        string
		err         error
		least, most time.Duration
	}{
		{"a broker that is away is tried each second at most, and each five minutes at least", errors.New("away"), time.Second, 5 * time.Minute},
		{"a broker that refuses is tried each minute at most", packets.ErrorRefusedNotAuthorised, time.Minute, time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{connect: func() error { return tc.err }}
				u := bubble(t, r)
				during(t, u, 24*time.Hour)
				all := gaps(r.tries)
				if len(all) < 10 || slices.Min(all) < tc.least || slices.Max(all) > tc.most {
					t.Errorf("%d tries, %v to %v apart", len(all), slices.Min(all), slices.Max(all))
				}
				if r.brokers[0] == r.brokers[1] || r.brokers[0] != r.brokers[2] {
					t.Errorf("brokers tried: %v", r.brokers[:3])
				}
				if s := u.Status(); s.Connected || s.Problem == "" || s.LastError == nil {
					t.Errorf("status: %+v", s)
				}
			})
		})
	}
}

func TestAnotherCertificateIsTriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		u := bubble(t, r)
		r.connect = func() error {
			if len(r.tries) == 1 {
				time.AfterFunc(5*time.Second, u.certify)
			}
			return packets.ErrorRefusedNotAuthorised
		}
		during(t, u, time.Hour)
		if all := gaps(r.tries); all[0] != 6*time.Second || slices.Min(all[1:]) < time.Minute {
			t.Errorf("tries are %v apart", all)
		}
	})
}

// TestSessionThatEndsAtOnceIsNoSuccess is two boxes with one key, each of which
// ends the other's session.
func TestSessionThatEndsAtOnceIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		u := bubble(t, r)
		r.publish = func(s fleetapi.Subject, _ int) mqtt.Token {
			if s == fleetapi.SubjectState {
				r.options.OnConnectionLost(nil, errors.New("taken over"))
			}
			return completed(nil)
		}
		during(t, u, 24*time.Hour)
		if n := len(r.tries); n > 24*60 {
			t.Errorf("%d tries in a day", n)
		}
	})
}

func TestTwoThousandBoxesComeBackApart(t *testing.T) {
	perSecond := make(map[int]int)
	for range 2000 {
		p := defaultPauses()
		at := p.failure.next() // the broker has restarted
		for at < 10*time.Minute {
			perSecond[int(at/time.Second)]++
			at += p.failure.next() // and answers nobody
		}
	}
	most := 0
	for _, n := range perSecond {
		most = max(most, n)
	}
	t.Logf("at most %d of 2000 boxes in a second", most)
	if most > 300 {
		t.Errorf("%d of 2000 boxes in a second", most)
	}
}

func TestWindowIsBoundedAndSentAgainInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		u := bubble(t, r)
		for i := range 40 {
			at, synced := u.stamp()
			u.record(event{at: at, synced: synced, kind: fmt.Sprintf("e%02d", i), severity: fleetapi.SeverityInfo})
		}
		r.publish = func(s fleetapi.Subject, session int) mqtt.Token {
			if s == fleetapi.SubjectEvent && session == 1 {
				return &token{done: make(chan struct{})} // never acknowledged
			}
			return completed(nil)
		}
		during(t, u, 10*time.Minute)
		var first, second []string
		for _, line := range r.published {
			if kind, ok := strings.CutPrefix(line, "1 up/event "); ok {
				first = append(first, kind)
			}
			if kind, ok := strings.CutPrefix(line, "2 up/event "); ok {
				second = append(second, kind)
			}
		}
		if len(first) != window || len(second) != 40 || !slices.IsSorted(first) || !slices.IsSorted(second) {
			t.Errorf("first %v, then %v", first, second)
		}
		if n := u.Status().Waiting; n != 0 {
			t.Errorf("%d messages wait", n)
		}
	})
}

func TestJobsThatAFleetSendsUponAHelloAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		u := bubble(t, r)
		job := newJob("dance")
		raw, err := fleetapi.Encode(&job)
		check(t, err)
		r.publish = func(subject fleetapi.Subject, _ int) mqtt.Token {
			if subject == fleetapi.SubjectHello && r.heard != nil { // a broker drops what nobody has subscribed to
				r.heard(nil, order{topic: fleetapi.SubjectJob.Topic(u.cfg.device), raw: raw})
			}
			return completed(nil)
		}
		during(t, u, time.Minute)
		if !slices.Contains(r.published, "1 "+string(fleetapi.SubjectStatus)) {
			t.Errorf("the job was not heard: %q", r.published)
		}
	})
}

func TestSessionsHaveWillsAndNumbersOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var epochs []uint64
		r := &recorder{}
		u := bubble(t, r)
		r.connect = func() error {
			o := r.options
			will, err := fleetapi.Parse[fleetapi.State](o.WillPayload)
			check(t, err)
			if will.Presence != fleetapi.Lost || !o.WillRetained || o.WillQos != 1 || o.WillTopic != fleetapi.SubjectState.Topic(u.cfg.device) {
				t.Errorf("will: %+v", will)
			}
			if o.ClientID != string(u.cfg.device) || !o.CleanSession || o.AutoReconnect || o.ConnectRetry {
				t.Errorf("options: %+v", o)
			}
			epochs = append(epochs, will.Epoch)
			if len(epochs) == 2 { // nothing was dialed: nobody knows the number
				return errors.New("no route")
			}
			u.tried()
			return errors.New("no answer to CONNECT")
		}
		during(t, u, 10*time.Minute)
		if !slices.Equal(epochs[:4], []uint64{1, 2, 2, 3}) {
			t.Errorf("epochs %v", epochs)
		}
	})
}

func TestEventNeverWaits(t *testing.T) {
	u := bubble(t, &recorder{})
	for range eventsAtOnce + 10 { // nobody writes
		u.Event("tick", fleetapi.SeverityInfo, "x\x00y", nil)
	}
	if n := u.Status().Dropped; n != 10 {
		t.Errorf("%d dropped", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check(t, u.write(ctx))
	if n := u.Status(); n.Dropped != 10 || n.Waiting != eventsAtOnce+1 {
		t.Errorf("status %+v", n)
	}
}

func TestLogHandlerIsBounded(t *testing.T) {
	cfg := testConfig(t, &fleet{url: "https://127.0.0.1:1", authority: testAuthority(t)}, t.TempDir(), newKey(t))
	cfg.Scrub = func(s string) string { return s }
	u, err := New(cfg)
	check(t, err)
	log := slog.New(u.LogHandler()).WithGroup("g").With("a", 1).With(slog.Group("h", "b", 2))
	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			log.Info("line", "c", strings.Repeat("x", 3000))
			log.Debug("not this one")
		}
	})
	payloads := u.logs.take(cfg.Scrub)
	lines, dropped := 0, uint64(0)
	for _, raw := range payloads {
		p, err := fleetapi.Parse[fleetapi.LogLines](raw)
		check(t, err)
		lines += len(p.Lines)
		dropped += p.Dropped
		if !strings.HasPrefix(p.Lines[0].Text, "line g.a=1 g.h.b=2 g.c=xxx") || p.Lines[0].Level != "info" {
			t.Errorf("line %.60q", p.Lines[0].Text)
		}
	}
	if lines < logBurst || lines > fleetapi.MaxLogLines || dropped+uint64(lines) != 1000 {
		t.Errorf("%d lines, %d dropped", lines, dropped)
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Minute)
		log.Info("line", "c", strings.Repeat("x", 1<<20))
	})
	if n := len(u.logs.lines); n != 1 || len(u.logs.lines[0].Text) > 8*fleetapi.MaxText {
		t.Errorf("%d lines wait, the first with %d bytes", n, len(u.logs.lines[0].Text))
	}
}
