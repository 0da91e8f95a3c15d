// Package fleetlink joins the box to its fleet: what agent/sampling reads and the
// journal's events go out by agent/uplink, and what the fleet asks for is done.
//
//	link, err := fleetlink.New(fleetlink.Config{Fleet: network.Fleet, Journal: j, Key: id, …})
//	err = link.Run(ctx)
//	link.Status() // for the owner page
//
// It decides little:
//
//   - Whether the box's clock is right. Nothing on the box knows: see [Evidence].
//     A clock that is behind what the fleet says and was set by nobody is set to
//     that; it still counts as unknown.
//   - What the box can be claimed with: the claim code, which the agent draws and
//     shows, and three words, drawn here. When its owner gives the box up both
//     are drawn anew and the fleet is told, for the old ones are spent.
//   - How jobs are done: reboot (in good order; the next start tells that it was
//     one), locate (screen and lights), bundle (what support wants to know,
//     without secrets, within ten seconds). Others the box rejects; there is no
//     benchmark in this release.
//
// # What leaves the box
//
// Readings, events, the agent's log and bundles. Taken out of logs and bundles:
// claim code and words, vouchers, tokens, keys and certificates in PEM, passwords,
// and whatever looks like one of them. Never put in: the values of the journal,
// and what tenants' programs say or are told. Of tenants there are the numbers of
// their leases, and in log lines about trouble the names of their services, images
// and hosts. What the box earns is among the readings, in sums.
//
// # What survives what
//
//	fleet away                  agent/uplink waits and spools; nothing else stops
//	agent killed, power cut     an event of the last seconds may be missing or told
//	                            twice; a bundle is collected again; a reboot that was
//	                            asked for is told as what it became
//	killed while codes change   they are drawn once more at the next start, or the fleet is
//	                            told then; the fleet never has a code that no box shows for long
//	/perm lost                  code and words are new at each start; the fleet is told
//	part of the box hangs       its section of a bundle is left out, by name
package fleetlink

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Fleet   *joinfile.Fleet  // required; checked
	Voucher string           // of the factory; empty if there is none
	Journal *journal.Journal // required; keys that begin with "fleetlink/" are used
	Key     crypto.Signer    // required; the device key
	Dir     string           // on /perm, for certificate and spool; empty: nothing is kept
	RunDir  string           // required; on a memory file system: bundles while they are sent
	Root    string           // where /proc and /sys lie; default "/"

	// What the box is. All are required.
	BootID  string
	Board   string
	Release croft.Version
	Slot    croft.Slot
	Built   time.Time // when the release was built

	Facts    func() map[string]string // what the box found in itself; default: nothing
	Leases   sampling.Leases          // default: no readings of leases
	Earnings sampling.Earnings        // default: no readings of what is earned

	Code    claim.Code                 // required; the claim code that the box has
	NewCode func() (claim.Code, error) // required; draws another, keeps it, and shows it from then on

	Reboot   func(context.Context) error // required; starts the box again in good order, or says why not, a sentence
	SetClock func(time.Time) error       // default: the clock is never set
	Sections []Section                   // of support bundles, beside those that every bundle has
	Lines    *Lines                      // required; it gets the log of Log
	Changed  func()                      // told when Status may have changed; default: nobody
	Log      *slog.Logger                // default: discard
}

// Status is how the box stands with its fleet.
type Status struct {
	Line    uplink.Status
	Heard   bool     // the fleet has said what it wants, now or before
	Claimed bool     // the box has an owner
	Name    string   // that the owner gave it; may be empty
	Words   string   // to claim it with from the same network, with dashes between; empty if it has an owner
	Showing bool     // somebody looks for the box: it shows itself
	Clock   Evidence // why its clock is taken to be right
}

// Link is the box's link to its fleet. All methods may be called from any
// goroutine.
type Link struct {
	cfg     Config
	log     *slog.Logger
	line    *uplink.Uplink
	sampler *sampling.Sampler
	clock   *clock
	hello   chan struct{} // the facts have changed; holds one
	toldSeq uint64        // of the worker of events alone

	patience time.Duration               // with one section of a bundle
	pauses   func() func() time.Duration // between tries to send one

	mu      sync.Mutex
	wishes  fleetapi.Desired // guarded by mu; the newest; Version 0: none yet
	claimed bool             // guarded by mu; as the fleet said last, in this life or before
	code    claim.Code       // guarded by mu
	words   string           // guarded by mu; empty if none could be drawn
	showing int              // guarded by mu; how many jobs want it to
	slow    map[string]bool  // guarded by mu; sections that are being written
}

const (
	wordsKey   = "fleetlink/words"
	claimedKey = "fleetlink/claimed"
	floorKey   = "fleetlink/floor" // a time that has passed
)

// New makes a link. Nothing is sent before [Link.Run].
func New(cfg Config) (*Link, error) {
	switch {
	case cfg.Fleet == nil, cfg.Journal == nil, cfg.Key == nil, cfg.RunDir == "", cfg.Code == "", cfg.NewCode == nil, cfg.Reboot == nil, cfg.Lines == nil:
		return nil, errors.New("make fleet link: fleet, journal, key, folder, claim code, reboot or log lines are missing")
	}
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Facts == nil {
		cfg.Facts = func() map[string]string { return nil }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Link{
		cfg: cfg, log: cfg.Log, clock: newClock(cfg.Root, cfg.RunDir), hello: make(chan struct{}, 1),
		code: cfg.Code, slow: make(map[string]bool), patience: sectionLimit,
		pauses: func() func() time.Duration {
			p := uplink.NewPauses()
			return func() time.Duration { return p.Next(false) }
		},
	}
	if _, err := cfg.Journal.Get(claimedKey, &l.claimed); err != nil {
		l.log.Warn("whether the box has an owner is lost", "err", err)
	}
	l.loadWords()
	roots, err := enroll.ParseRoots(cfg.Fleet.Roots.PEM())
	if err != nil {
		return nil, fmt.Errorf("make fleet link: %w", err)
	}
	if l.sampler, err = sampling.New(sampling.Config{Root: cfg.Root, Leases: cfg.Leases, Earnings: cfg.Earnings, Clock: l.clock.Sample}); err != nil {
		return nil, fmt.Errorf("make fleet link: %w", err)
	}
	l.line, err = uplink.New(uplink.Config{
		Dir: cfg.Dir, Journal: cfg.Journal, Key: cfg.Key, Fleet: cfg.Fleet.URL, Roots: roots,
		Clock: l.clock.Now, Built: cfg.Built, TimeFloor: l.floor,
		BootID: cfg.BootID, Board: cfg.Board, Release: cfg.Release, Slot: cfg.Slot, Facts: l.facts,
		Voucher: cfg.Voucher, Claim: enroll.HashClaim(string(cfg.Code)),
		Sampler: l.sampler, Desired: l.wish, Handlers: l.handlers(),
		Scrub: func(line string) string { return scrub(line, l.secrets()) }, Log: cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("make fleet link: %w", err)
	}
	l.clock.compare, l.clock.event, l.clock.set = l.line.CompareClock, l.line.Event, cfg.SetClock
	cfg.Lines.Attach(l.line.LogHandler())
	return l, nil
}

// Floor is a time that has passed, as an earlier link learned from the fleet; zero
// if there is none.
func Floor(j *journal.Journal) time.Time {
	var at time.Time
	if found, err := j.Get(floorKey, &at); err != nil || !found {
		return time.Time{}
	}
	return at
}

// Run works until ctx ends. It can be called once.
func (l *Link) Run(ctx context.Context) error {
	all, err := supervise.New(supervise.Config{Log: l.log, Workers: []supervise.Worker{
		{Name: "fleet_line", Run: l.line.Run},
		{Name: "fleet_clock", Run: l.clock.run},
		{Name: "fleet_events", Run: l.tellEvents},
		{Name: "fleet_hello", Run: l.sayHello},
	}})
	if err != nil {
		return err
	}
	return all.Run(ctx)
}

// Status is the present one.
func (l *Link) Status() Status {
	s := Status{Line: l.line.Status(), Clock: l.clock.known()}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Heard, s.Claimed, s.Name, s.Showing = l.wishes.Version > 0, l.claimed, l.wishes.Name, l.showing > 0
	if !l.claimed {
		s.Words = l.words
	}
	return s
}

// loadWords takes the words of the last run, or draws the first.
func (l *Link) loadWords() {
	if found, err := l.cfg.Journal.Get(wordsKey, &l.words); err == nil && found && goodWords(l.words) {
		return
	}
	words, err := l.newWords()
	if err != nil {
		l.log.Warn("box has no words to claim it with", "err", err)
	}
	l.words = words
}

// newWords draws words and keeps them. Words that cannot be kept are good until
// the next start.
func (l *Link) newWords() (string, error) {
	words, err := drawWords()
	if err != nil {
		return "", err
	}
	if err := l.cfg.Journal.Put(wordsKey, words); err != nil {
		l.log.Warn("words to claim the box with are not kept", "err", err)
	}
	return words, nil
}

// facts are what the box says of itself at the start of a session.
func (l *Link) facts() []fleetapi.Label {
	facts := map[string]string{}
	for name, value := range l.cfg.Facts() {
		if value = fleetapi.CleanText(value, 200); value != "" && fieldName.MatchString(name) && len(facts) < fleetapi.MaxFacts-1 {
			facts[name] = value
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.claimed && l.words != "" {
		facts["claim_words"] = l.words
	}
	return fleetapi.Labels(facts)
}

// secrets are what must not stand in what leaves the box.
func (l *Link) secrets() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []string{string(l.code), l.code.Shown(), l.words, l.cfg.Voucher}
}

// floor is told of a time that has passed.
func (l *Link) floor(at time.Time) {
	if at.Sub(Floor(l.cfg.Journal)) > 24*time.Hour { // not worth a write each time
		if err := l.cfg.Journal.Put(floorKey, at.UTC()); err != nil {
			l.log.Warn("time that has passed is not kept", "err", err)
		}
	}
	l.clock.floor(at)
}

// wish is told what the fleet wants.
func (l *Link) wish(d fleetapi.Desired) {
	l.mu.Lock()
	before, owned := l.wishes, l.claimed
	l.wishes = d
	l.mu.Unlock()
	switch {
	case owned && !d.Claimed:
		if !l.renewClaim() {
			return // at the next start it is tried again
		}
	case !owned && d.Claimed:
		l.setClaimed(true)
	}
	if before.Version > 0 {
		l.line.Event("wishes_changed", fleetapi.SeverityInfo, "The box heard what its fleet wants of it.", changes(before, d))
	}
	l.cfg.Changed()
}

// renewClaim draws another claim code and other words for a box that was given
// up, and reports whether it has them.
func (l *Link) renewClaim() bool {
	code, err := l.cfg.NewCode()
	if err == nil {
		var words string
		if words, err = l.newWords(); err == nil {
			l.mu.Lock()
			l.code, l.words = code, words
			l.mu.Unlock()
		}
	}
	if err != nil {
		l.log.Error("box that was given up has no new claim code", "err", err)
		return false
	}
	l.setClaimed(false) // last: a power cut before it begins this anew
	l.line.SetClaim(enroll.HashClaim(string(code)))
	l.line.Event("claim_renewed", fleetapi.SeverityInfo, "The box was given up and can be claimed again, with another code.", nil)
	return true
}

func (l *Link) setClaimed(claimed bool) {
	l.mu.Lock()
	l.claimed = claimed
	l.mu.Unlock()
	if err := l.cfg.Journal.Put(claimedKey, claimed); err != nil {
		l.log.Warn("whether the box has an owner is not kept", "err", err)
	}
	select {
	case l.hello <- struct{}{}:
	default:
	}
}

// sayHello tells the fleet facts that have changed during a session, until ctx
// ends. If the session ends meanwhile, the next one begins with them.
func (l *Link) sayHello(ctx context.Context) error {
	for {
		select {
		case <-l.hello:
			if err := l.line.SayHello(ctx); err != nil && ctx.Err() == nil {
				l.log.Warn("facts not told", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// changes are those between two versions, as fields of an event.
func changes(before, after fleetapi.Desired) map[string]string {
	fields := map[string]string{"version": fmt.Sprint(after.Version)}
	if before.Claimed != after.Claimed {
		fields["claimed"] = fmt.Sprint(after.Claimed)
	}
	if before.Interval != after.Interval {
		fields["interval"] = after.Interval.String()
	}
	if before.Release != after.Release {
		fields["release"] = string(after.Release)
	}
	if before.Name != after.Name {
		fields["name"] = after.Name
	}
	maps.DeleteFunc(fields, func(_, value string) bool { return value == "" })
	return fields
}
