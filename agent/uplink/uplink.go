// Package uplink is the box's line to its fleet: it enrols the box, keeps one
// MQTT session with a broker, sends what the box has to say and takes what the
// fleet wants. It is the box's only door to paho.
//
//	u, err := uplink.New(uplink.Config{Dir: dir, Journal: j, Key: id, Fleet: "https://fleet.example:8443", …})
//	go u.Run(ctx)
//	u.Event("clock_stepped", fleetapi.SeverityWarning, "The clock was 3 hours behind.", nil)
//	status := u.Status() // for the owner page
//
// # What it does
//
//   - Enrolment: the first certificate by proof of the device key, the next at a
//     third of each one's life, over HTTPS that believes in the fleet's roots alone
//     (provisioning/enroll). Another claim code is told by enrolling once more.
//   - Two questions by the same HTTPS: what time it is ([Uplink.CompareClock]), and
//     whether the fleet takes a document ([Uplink.Upload]).
//   - Session: CONNECT with a will that says lost, one subscription to dn/+, Hello,
//     State online (retained); at the end State lost and DISCONNECT. Sessions are
//     numbered; a number that a broker may have seen is never used again, so no
//     old will buries a new session. Sessions are clean: jobs that came while the
//     box was away must be sent again when the fleet sees its Hello.
//   - Events and job statuses (QoS 1): a file each, before anything is sent; 16 on
//     their way at most, in order; unlinked when the broker has acknowledged.
//   - Readings and log lines (QoS 0): sent each minute, written nowhere. Without a
//     session they wait on the disk and are then sent with QoS 1, newest first:
//     what support looks at after an outage is now, and what came just before; and
//     if the link breaks again, the oldest are what will be dropped anyway.
//   - Jobs: what is asked, and that it begins, is in the journal before it begins.
//   - Desired state: the greatest version counts, is stored and handed on.
//
// # Promises
//
// No method waits for the network, and [Uplink.Event] and the log handler not
// even for the disk. Between two tries at anything there is at least a second,
// and at least a minute after the fleet refused the box; pauses grow with
// decorrelated jitter.
//
// The spool has a budget of bytes. What is dropped first: readings, oldest first;
// then log lines; then events from info to critical, oldest first of each; job
// statuses never. Readings and lines are also dropped when they are old. All drops
// are counted ([Status]), and one of an event shows as a gap in the numbers.
//
// # What survives what
//
//	fleet or broker away for days    the spool fills up to its budget, then drops as said
//	kill -9 or power cut, any line   what was in the spool is sent, under its old number, so
//	                                 a fleet that drops numbers it knows has it once; an
//	                                 event of the last moments may not be in the spool yet.
//	                                 A job that ran is not run again
//	broker killed                    what it did not acknowledge is sent again
//	link cut, not noticed            up to a minute of readings; nothing numbered
//	wrong clock                      TLS works (provisioning/enroll says how); nothing is
//	                                 dropped for its age, no deadline of a job is judged, and
//	                                 messages say that the clock was not known. A certificate
//	                                 that is over unknown to the box is renewed when a broker
//	                                 refuses it
//	message twice or out of order    an old version of desired is ignored; a known job is
//	                                 answered with its state; an unknown one with an id older
//	                                 than those the box has forgotten is rejected
//	disk full                        room is made by dropping what is worth less; then
//	                                 messages are kept in memory (1 MiB) under a journal
//	                                 number of their own, which ends with the process: sent
//	                                 once, or lost with it, never mistaken for others. Jobs
//	                                 that must not run twice are rejected
//	/perm read-only or lost          the same; the box enrols at each start
//	journal or spool lost            both count anew under another journal number; what is
//	                                 left in the spool keeps its own
//	torn or rotten file              costs its message, is counted
package uplink

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/uplink/spool"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Dir     string           // for certificate and spool; empty: nothing is kept
	Journal *journal.Journal // required; keys that begin with "uplink/" are used
	Key     crypto.Signer    // required; the device key

	Fleet   string              // required; the fleet's device port, https://host:port
	Roots   []*x509.Certificate // required; of the fleet, by [enroll.ParseRoots]
	Brokers []string            // tls://host:port; default: those that the fleet names

	// Dial makes the connections on which TLS is spoken, for tests that cut them.
	// Default: [net.Dialer.DialContext].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Clock     func() (now time.Time, known bool) // required; as in [enroll.TrustConfig]
	Built     time.Time                          // when this software was built: a time that has passed
	TimeFloor func(time.Time)                    // told of a time that has passed, as the fleet says; default: nobody

	// What the box says of itself. BootID, Board, Release and Slot are required.
	BootID  string
	Board   string
	Release croft.Version
	Slot    croft.Slot
	Serial  string                  // on the case; empty if there is none
	Facts   func() []fleetapi.Label // asked at each session; default: none
	Voucher string                  // of the factory; empty if there is none
	Claim   enroll.ClaimHash        // of the claim code that the box shows; may be zero

	Sampler      Sampler       // default: no readings
	ReadEvery    time.Duration // unless the fleet wants otherwise; default 10 s
	PublishEvery time.Duration // how often readings and log lines are sent; default 1 min

	Desired  func(fleetapi.Desired)       // told what the fleet wants, at the start and when it changes; default: nobody
	Handlers map[fleetapi.JobKind]Handler // jobs of other kinds are rejected
	Scrub    func(string) string          // takes secrets out of a log line; default: no log lines are sent
	LogLevel slog.Leveler                 // of lines that are sent; default info
	Budget   int64                        // bytes of the spool on the disk, job statuses not counted; default 64 MiB, some 5 days
	MaxAge   time.Duration                // of readings and log lines in the spool; default 7 days
	Log      *slog.Logger                 // default: discard

	device croft.DeviceID // of Key
}

// Uplink is the line. All methods may be called from any goroutine.
type Uplink struct {
	cfg       Config
	log       *slog.Logger
	enrolment *enrolment
	spool     *spool.Spool
	desired   *desired
	jobs      *jobs
	logs      *logs // nil if no lines are sent
	newLink   func(*mqtt.ClientOptions) link
	certified chan struct{} // there is a certificate; holds one
	events    chan event
	live      atomic.Pointer[session] // nil: there is none
	lost      atomic.Uint64           // events that found no room in the channel, and nobody has said so
	dropped   atomic.Uint64           // events that found no room in the channel, once it was said
	counters  counters
	pauses    pauses // of the session's worker
	timeAsked bool   // of the session's worker: the fleet's time since the start

	mu       sync.Mutex
	since    time.Time // guarded by mu; when the line came up or went down
	broker   string    // guarded by mu; of the newest session
	err      error     // guarded by mu; why there is no session; nil if there is one, or none was tried
	problem  string    // guarded by mu; the same for people
	failedAt time.Time // guarded by mu; of err
	refused  uint64    // guarded by mu; messages of the fleet that were none
}

// New makes an uplink and reads what an earlier one has kept. Nothing is sent
// before [Uplink.Run].
func New(cfg Config) (*Uplink, error) {
	api, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("make uplink: %w", err)
	}
	u := &Uplink{
		cfg: cfg, log: cfg.Log,
		newLink:   func(o *mqtt.ClientOptions) link { return mqtt.NewClient(o) },
		certified: make(chan struct{}, 1),
		events:    make(chan event, eventsAtOnce),
		pauses:    defaultPauses(),
		since:     time.Now(),
	}
	u.counters.volatile.Journal = fleetapi.NewJournal()
	var stored sessionNumber
	if _, err := cfg.Journal.Get(sessionKey, &stored); err != nil {
		u.log.Warn("number of the last session is lost", "err", err)
	}
	u.enrolment = newEnrolment(cfg, api)
	dir := ""
	if cfg.Dir != "" {
		dir = filepath.Join(cfg.Dir, "spool")
	}
	u.spool = spool.Open(spool.Config{
		Dir: dir, Budget: cfg.Budget, MaxAge: cfg.MaxAge, Clock: cfg.Clock, Log: cfg.Log,
		Journal: stored.Journal, Remember: u.rememberOrigin,
	})
	u.desired = loadDesired(cfg.Journal, cfg.Log)
	u.jobs = &jobs{
		journal: cfg.Journal, spool: u.spool, handlers: cfg.Handlers, clock: cfg.Clock, age: u.age,
		scrub: cfg.Scrub, log: cfg.Log, wake: make(chan struct{}, 1), records: make(map[string]*jobRecord),
	}
	u.jobs.load()
	if cfg.Scrub != nil {
		u.logs = &logs{limit: rate.NewLimiter(logRate, logBurst)}
	}
	return u, nil
}

// check completes the configuration.
func (c *Config) check() (*url.URL, error) {
	if c.Journal == nil || c.Key == nil || c.Clock == nil || len(c.Roots) == 0 {
		return nil, errors.New("journal, key, clock or roots are missing")
	}
	var err error
	if c.device, err = enroll.DeviceOf(c.Key.Public()); err != nil {
		return nil, err
	}
	api, err := url.Parse(c.Fleet)
	if err != nil || api.Scheme != "https" || api.Hostname() == "" || api.User != nil {
		return nil, fmt.Errorf("fleet %.100q: want https://host:port", c.Fleet)
	}
	for _, b := range c.Brokers {
		if _, err := parseBroker(b); err != nil {
			return nil, err
		}
	}
	c.ReadEvery = cmp.Or(c.ReadEvery, 10*time.Second)
	c.PublishEvery = cmp.Or(c.PublishEvery, time.Minute)
	c.Budget = cmp.Or(c.Budget, 64<<20)
	c.MaxAge = cmp.Or(c.MaxAge, 7*24*time.Hour)
	if c.ReadEvery < fleetapi.MinInterval || c.ReadEvery > fleetapi.MaxInterval || c.PublishEvery < fleetapi.MinInterval {
		return nil, fmt.Errorf("read every %v, publish every %v: want a second to an hour", c.ReadEvery, c.PublishEvery)
	}
	for kind, h := range c.Handlers {
		if h.Run == nil {
			return nil, fmt.Errorf("handler of jobs %q does nothing", kind)
		}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if c.LogLevel == nil {
		c.LogLevel = slog.LevelInfo
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// A Hello that the fleet would refuse must not be found out on the box.
	u := Uplink{cfg: *c}
	if _, err := fleetapi.Encode(u.hello(fleetapi.State{Journal: 1, Epoch: 1})); err != nil {
		return nil, err
	}
	return api, nil
}

// Run keeps the line until ctx ends, and then says goodbye. It can be called
// once.
func (u *Uplink) Run(ctx context.Context) error {
	workers := []supervise.Worker{
		{Name: "uplink_events", Run: u.write},
		{Name: "uplink_enrolment", Run: func(ctx context.Context) error { return u.enrolment.run(ctx, u.certify) }},
		{Name: "uplink_session", Run: u.connect},
		{Name: "uplink_telemetry", Run: u.measure},
		{Name: "uplink_jobs", Run: u.jobs.run},
	}
	if u.cfg.Desired != nil {
		workers = append(workers, supervise.Worker{
			Name: "uplink_desired", Run: func(ctx context.Context) error { return u.desired.tell(ctx, u.cfg.Desired) },
		})
	}
	all, err := supervise.New(supervise.Config{Workers: workers, Log: u.log})
	if err != nil {
		return err
	}
	return all.Run(ctx)
}

// certify is told of a new certificate.
func (u *Uplink) certify() {
	select {
	case u.certified <- struct{}{}:
	default:
	}
}

// LogHandler takes the agent's log lines and sends them, without secrets, at most
// some a second; nil without [Config.Scrub].
func (u *Uplink) LogHandler() slog.Handler {
	if u.logs == nil {
		return nil
	}
	return &logHandler{logs: u.logs, level: u.cfg.LogLevel}
}

// receive deals with a message of the fleet.
func (u *Uplink) receive(topic string, raw []byte) {
	device, subject, err := fleetapi.ParseTopic(topic)
	var p fleetapi.Payload
	if err == nil && device == u.cfg.device {
		p, err = fleetapi.Decode(subject, raw)
	}
	switch p := p.(type) {
	case *fleetapi.Desired:
		u.desired.take(p)
		return
	case *fleetapi.Job:
		if u.jobs.take(*p) {
			return
		}
		err = errTooManyJobs
	}
	u.mu.Lock()
	u.refused++
	u.mu.Unlock()
	u.log.Warn("message of the fleet cannot be used", "topic", fleetapi.CleanText(topic, 100), "err", err)
}

// errTooManyJobs reports a job that was ignored.
var errTooManyJobs = errors.New("fleet sends jobs and takes no answers")

// began is told that a session is up.
func (u *Uplink) began(s *session) {
	u.live.Store(s)
	u.mu.Lock()
	u.since, u.broker, u.err, u.problem = time.Now(), s.peer, nil, ""
	u.mu.Unlock()
	u.log.Info("session with broker is up", "broker", s.peer, "epoch", s.state.Epoch)
}

// ended is told why a session ended, or did not begin.
func (u *Uplink) ended(peer string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.since = time.Now()
	}
	u.broker, u.err, u.problem, u.failedAt = peer, err, words(peer, err), time.Now()
}

// Status is how the line is doing.
type Status struct {
	Device           croft.DeviceID
	Enrolment        Enrolment
	CertificateUntil time.Time // zero if there is none

	Connected bool      // the fleet sees the box now
	Since     time.Time // when that began; device clock
	Broker    string    // host:port, of the newest try; empty before the first
	Problem   string    // one sentence for the owner; empty if all is well
	LastError error     // the same for support; nil if all is well
	FailedAt  time.Time // when a session ended or did not begin last

	Waiting      int    // messages in the spool
	WaitingBytes int64  // of them
	Dropped      uint64 // messages that had no room, since the start
	Damaged      uint64 // messages that could not be read, since the start
	Refused      uint64 // messages of the fleet that could not be used, since the start
	Storage      error  // why messages are only in memory; nil if they are on the disk
}

// Status returns how the line is doing now.
func (u *Uplink) Status() Status {
	s := Status{Device: u.cfg.device, Connected: u.live.Load() != nil}
	u.mu.Lock()
	s.Since, s.Broker, s.Problem, s.LastError, s.FailedAt, s.Refused = u.since, u.broker, u.problem, u.err, u.failedAt, u.refused
	u.mu.Unlock()
	u.enrolment.describe(&s)
	stats := u.spool.Stats()
	s.Waiting, s.WaitingBytes, s.Damaged, s.Storage = stats.Waiting, stats.Bytes, stats.Damaged, stats.Fault
	s.Dropped = u.dropped.Load() + u.lost.Load()
	for _, n := range stats.Dropped {
		s.Dropped += n
	}
	return s
}

func (e *enrolment) describe(s *Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Enrolment = e.phase
	if e.cert != nil {
		s.CertificateUntil = e.cert.Leaf.NotAfter
	}
	if e.err != nil && (e.cert == nil || s.Problem == "" && !s.Connected) {
		s.Problem, s.LastError = words(e.api.Host, e.err), e.err
	}
}
