package simbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/identity"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// Config is copied by [Open] and never changed afterwards.
type Config struct {
	Dir   string // required; the box's /perm: opened again, it is the same box
	Fleet Fleet  // required

	Number  uint64        // which of many boxes: its numbers move by it
	Serial  string        // on the case; default none
	Voucher string        // of the factory; default none
	Board   string        // default uefi-x86
	Release croft.Version // default 1.0.0

	ReadEvery    time.Duration // as of agent/uplink
	PublishEvery time.Duration // as of agent/uplink
	Budget       int64         // of the spool, as of agent/uplink

	Clock *Clock       // default: a right one
	Link  *Link        // default: one that works, by TCP
	Log   *slog.Logger // the box's own log; default: discard. Its lines are not sent
}

const (
	defaultBoard   = "uefi-x86"
	defaultRelease = "1.0.0"
)

// Box is one simulated box. All methods may be called from any goroutine.
type Box struct {
	cfg    Config
	key    *identity.Identity
	code   claim.Code
	words  string
	reboot chan struct{} // a job wants it; holds one

	mu      sync.Mutex
	line    *uplink.Uplink   // guarded by mu; of this boot
	boots   int              // guarded by mu
	boot    string           // guarded by mu; its ID
	located int              // guarded by mu
	desired fleetapi.Desired // guarded by mu
}

// secrets are what the box shows to whoever is near. They are kept.
type secrets struct {
	Code  string `json:"code"`
	Words string `json:"words"`
}

const secretsKey = "simbox/secrets" // in the journal

// Open makes a box, or opens one again on its folder. Nothing is sent before
// [Box.Run]. The caller closes it.
func Open(cfg Config) (*Box, error) {
	if cfg.Dir == "" {
		return nil, errors.New("open simulated box: its folder is missing")
	}
	cfg.Board = cmp.Or(cfg.Board, defaultBoard)
	cfg.Release = cmp.Or(cfg.Release, defaultRelease)
	if cfg.Clock == nil {
		cfg.Clock = &Clock{}
	}
	if cfg.Link == nil {
		cfg.Link = NewLink(nil)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := atomicfile.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open simulated box: %w", err)
	}
	key, err := identity.Open(identity.Config{Dir: cfg.Dir, TPM: filepath.Join(cfg.Dir, "no-tpm"), Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("open simulated box: %w", err)
	}
	b := &Box{cfg: cfg, key: key, reboot: make(chan struct{}, 1)}
	if err := b.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open simulated box: %w", err), key.Close())
	}
	return b, nil
}

// start opens the box's memory and reads its secrets, which are drawn first if
// there are none.
func (b *Box) start() error {
	j, err := b.openJournal()
	if err != nil {
		return err
	}
	var s secrets
	if _, err := j.Get(secretsKey, &s); err != nil {
		return errors.Join(err, j.Close())
	}
	if s.Code == "" {
		if s, err = drawSecrets(); err != nil {
			return errors.Join(err, j.Close())
		}
		if err := j.Put(secretsKey, s); err != nil {
			return errors.Join(err, j.Close())
		}
	}
	b.code, b.words = claim.Code(s.Code), s.Words
	return j.Close()
}

func (b *Box) openJournal() (*journal.Journal, error) {
	return journal.Open(journal.Config{Path: filepath.Join(b.cfg.Dir, "agent.journal"), Log: b.cfg.Log})
}

func drawSecrets() (secrets, error) {
	code, err := claim.New(rand.Reader)
	if err != nil {
		return secrets{}, err
	}
	return secrets{Code: string(code), Words: drawWords()}, nil
}

// drawWords is three words of 12 bits each that can be said aloud.
func drawWords() string {
	const consonants, vowels = "bdfghjklmnprstvz", "aeiou"
	var raw [6]byte
	_, _ = rand.Read(raw[:]) // it never fails
	words := make([]byte, 0, 17)
	for i, r := range raw {
		if i > 0 && i%2 == 0 {
			words = append(words, '-')
		}
		words = append(words, consonants[r>>4], vowels[r>>2&3], consonants[r&3])
	}
	return string(words)
}

// Run keeps the box running until ctx ends, and then shuts it down in order. After
// [Box.Close] it must be opened again.
func (b *Box) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := b.live(ctx); err != nil {
			return fmt.Errorf("run simulated box %s: %w", b.Device().ShortName(), err)
		}
	}
	return nil
}

// live is the box from one boot to the next, or to the end of ctx.
func (b *Box) live(ctx context.Context) error {
	j, err := b.openJournal()
	if err != nil {
		return err
	}
	defer j.Close()
	machine := newModel(b.cfg.Number, time.Now())
	boot := newBootID()
	line, err := uplink.New(uplink.Config{
		Dir: filepath.Join(b.cfg.Dir, "uplink"), Journal: j, Key: b.key,
		Fleet: b.cfg.Fleet.URL, Roots: b.cfg.Fleet.Roots, Dial: b.cfg.Link.Dial,
		Clock: b.cfg.Clock.Now, BootID: boot, Board: b.cfg.Board, Release: b.cfg.Release, Slot: croft.SlotA,
		Serial: b.cfg.Serial, Voucher: b.cfg.Voucher, Claim: enroll.HashClaim(string(b.code)),
		Facts:   func() []fleetapi.Label { return fleetapi.Labels(facts(b.words)) },
		Sampler: &sampler{model: machine, clock: b.cfg.Clock}, ReadEvery: b.cfg.ReadEvery, PublishEvery: b.cfg.PublishEvery,
		Desired: b.follow, Handlers: b.handlers(), Budget: b.cfg.Budget, Log: b.cfg.Log,
	})
	if err != nil {
		return err
	}
	select {
	case <-b.reboot: // of a boot that is over
	default:
	}
	b.mu.Lock()
	b.line, b.boot = line, boot
	b.boots++
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- line.Run(ctx) }()
	line.Event("agent_started", fleetapi.SeverityInfo, "The box has started.", map[string]string{"boot": boot})
	b.watch(ctx, machine, line)
	cancel()
	return <-done
}

// watch tells of leases that come and go, until a reboot is due or ctx ends.
func (b *Box) watch(ctx context.Context, machine model, line *uplink.Uplink) {
	for before := time.Now(); ; {
		turn := time.NewTimer(time.Until(machine.turn(before)) + time.Second)
		select {
		case <-turn.C:
		case <-b.reboot:
			turn.Stop()
			return
		case <-ctx.Done():
			turn.Stop()
			return
		}
		now := time.Now()
		was, is := names(machine.leases(before)), names(machine.leases(now))
		for name := range was {
			if !is[name] {
				line.Event("lease_ended", fleetapi.SeverityInfo, "A tenant's lease has ended.", map[string]string{"lease": name})
			}
		}
		for name := range is {
			if !was[name] {
				line.Event("lease_won", fleetapi.SeverityInfo, "A tenant has rented a part of the box.", map[string]string{"lease": name})
			}
		}
		before = now
	}
}

func names(of []lease) map[string]bool {
	all := make(map[string]bool)
	for _, l := range of {
		all[l.name] = true
	}
	return all
}

// newBootID is a UUID, as the kernel draws one at each boot.
func newBootID() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // it never fails
	raw[6], raw[8] = raw[6]&15|4<<4, raw[8]&63|128
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

func (b *Box) follow(d fleetapi.Desired) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.desired = d
}

// Close gives up the device key. Run must have returned.
func (b *Box) Close() error { return b.key.Close() }

// Device names the box.
func (b *Box) Device() croft.DeviceID { return b.key.DeviceID() }

// Code is the claim code that the box shows.
func (b *Box) Code() claim.Code { return b.code }

// Words are the words on the box's page, which prove that one is near it.
func (b *Box) Words() string { return b.words }

// Link is the box's line to the internet.
func (b *Box) Link() *Link { return b.cfg.Link }

// Clock is the box's clock.
func (b *Box) Clock() *Clock { return b.cfg.Clock }

// Event tells the fleet that something happened on the box, as
// [uplink.Uplink.Event] does. It is lost on a box that does not run.
func (b *Box) Event(kind string, severity fleetapi.Severity, sentence string, fields map[string]string) {
	b.mu.Lock()
	line := b.line
	b.mu.Unlock()
	if line != nil {
		line.Event(kind, severity, sentence, fields)
	}
}

// Status is how the box is doing.
type Status struct {
	uplink.Status
	Boots   int    // since it was opened
	BootID  string // of this boot; empty before the first
	Located int    // jobs that asked it to show itself
	Desired fleetapi.Desired
}

// Status returns how the box is doing now.
func (b *Box) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{Boots: b.boots, BootID: b.boot, Located: b.located, Desired: b.desired}
	if b.line != nil {
		s.Status = b.line.Status()
	}
	return s
}

// Pass enrols the box once more and returns what it got, for a [Line] that says
// what the box would not.
func (b *Box) Pass(ctx context.Context) (*Pass, error) {
	csr, err := enroll.NewCSR(b.key)
	if err != nil {
		return nil, err
	}
	return Enrol(ctx, b.cfg.Fleet, b.cfg.Link.Dial, b.key, &enroll.Request{
		Version: enroll.Version, CSR: csr, Board: b.cfg.Board, Release: b.cfg.Release,
		SerialNumber: b.cfg.Serial, Voucher: b.cfg.Voucher, Claim: enroll.HashClaim(string(b.code)),
	})
}
