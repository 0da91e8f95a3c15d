// Package alert finds out when something is wrong with a box, or with many at
// once, and tells those who should know, once.
//
//	s, err := alert.New(ctx, alert.Config{DB: d, Readings: readings, Boxes: boxes, …})
//	go s.Run(ctx)                                             // on every replica
//	rule, err := s.SaveRule(ctx, actor, alert.Rule{Expr: "croft_load1 > 20", …})
//	firing, next, err := s.List(ctx, actor, alert.Query{Firing: true})
//
// Whether somebody may call a method is for the caller; those that take an
// [Actor] who is not of the staff keep to his boxes.
//
// # Rules
//
// A [Rule] is held against each box that its selector matches, every Interval, by
// one replica. It says what is bad in PromQL, whose answer has one value for each
// bad box, or by a [Condition] of the box itself. Bad for as long as Rule.For it
// fires; good for as long as Rule.Clear it is resolved. One that fires again and
// again within an hour is resolved later each time, up to 16 times Clear.
//
// A rule of groups (Rule.Of) counts boxes that are bad by another rule: enough of
// them that became bad within a window, and one alert fires for the group. While
// it fires, or is about to, nobody is told of the single boxes in it; those that
// are still bad after the group is well are told then.
//
// # What is not known is not judged
//
//   - An expression cannot be asked, or the list of boxes: no alert of the rule
//     fires, is resolved or is told until it can be. Only [RuleUnjudged] fires.
//   - A box sends no readings: rules over readings neither fire for it nor are
//     resolved; it may be silent because it is hot.
//   - Nobody looked, as the fleet was down: that time counts for no Rule.For and
//     no Rule.Clear. Boxes have it to come back before they are called offline.
//
// # Who is told
//
// A [Receiver] of the staff is told of each alert of its severity and selector; the
// owner of a box of each whose rule has a sentence for owners, in plain words, at
// his e-mail address, outside his quiet hours. News for one receiver that come
// within seconds are one message, and further ones wait for five minutes, unless
// one message could not hold all. A
// [Silence] holds back what it matches while it lasts. Who was told that an alert
// fires is told that it ended.
//
// # What survives what
//
//   - kill -9 and a change of leader: what fires, what is about to and since when,
//     who was told of what and who is still to be told, are stored in one
//     transaction, before anybody is told. So no alert is lost, and none is told
//     twice to one receiver.
//   - A receiver that is away: its messages are tried again for a day, in order,
//     and hold up no other receiver of the staff. Then [Message] says that it failed.
//     Owners' mails are sent a few at a time, after those to the staff.
//   - A receiver that took a message, and the fleet did not learn it: it gets the
//     same message once more, with the same id and the same body.
//   - Rules, silences and receivers changed while they are used: what follows goes
//     by the new ones; an alert whose rule is gone or off, or whose box left the
//     fleet or went to another owner, ends and says so.
package alert

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert/notice"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Topic is what listeners of the database are told under, when alerts began,
// ended or were acknowledged. The payload is empty: read again.
const Topic = "alert"

// Prefixes of ids, beside fleetapi's.
const (
	prefixAlert    fleetapi.Prefix = "alr"
	prefixSilence  fleetapi.Prefix = "sil"
	prefixReceiver fleetapi.Prefix = "rcv"
)

// Actor is for whom a method acts.
type Actor struct {
	ID    string // account; it stands in the audit log
	Staff bool   // false: the owner of some boxes
}

// Sample is one value of the answer to an expression.
type Sample struct {
	Labels map[string]string // "device" says whose it is
	Value  float64
}

// Readings answers PromQL over all boxes, as of now. An error of
// croft.KindUsage says that the expression is wrong.
type Readings interface {
	Ask(ctx context.Context, expr string) ([]Sample, error)
}

// Box is what rules know of a box.
type Box struct {
	ID               croft.DeviceID
	Name             string            // its owner's name for it
	Owner            string            // account; empty: nobody's
	Labels           map[string]string // what selectors go by
	Heard            bool              // it was online at least once
	Online           bool
	Seen             time.Time // last sign of life
	CertificateUntil time.Time // zero: not known
	LeaseBroken      time.Time // when a lease of it last ended before its time; zero: never
}

// Boxes lists every box that is not retired, as of now.
type Boxes interface {
	Boxes(ctx context.Context) ([]Box, error)
}

// Owners knows how to reach owners.
type Owners interface {
	// Email is the address of an account; empty: it has none that is confirmed.
	Email(ctx context.Context, owner string) (string, error)
}

// Mail is one mail of plain text. ID is the same when it is sent again.
type Mail struct{ ID, To, Subject, Text string }

// Mailer returns nil once the mail server has the mail.
type Mailer interface {
	Send(context.Context, Mail) error
}

// Audit is told of every change that people made, in its transaction.
type Audit interface {
	Record(*db.Tx, Entry) error
}

// Entry is one change.
type Entry struct {
	By     string // account
	Action string // "alert.rule.save"
	Object string // id of the rule, silence, receiver, alert or owner
	Before map[string]string
	After  map[string]string
}

// Config is copied by [New] and never changed afterwards.
type Config struct {
	DB       *db.DB   // required
	Readings Readings // required
	Boxes    Boxes    // required
	Owners   Owners   // required
	Mailer   Mailer   // required
	Audit    Audit    // required
	Key      []byte   // required; 32 bytes, the same on all replicas for ever: seals the secrets of webhooks
	Name     string   // of the fleet, in subjects of mails; default "Croft"

	Interval      time.Duration // between two looks; default 30 s
	GroupWait     time.Duration // from the first news to the message; default 30 s
	GroupInterval time.Duration // between two messages to one receiver; default 5 min

	// Alive is the expression whose answer has every box that sends readings;
	// default "group by (device) (croft_uptime_seconds)".
	Alive string

	// AllowPrivate are networks that webhooks may reach though they are not on
	// the public internet; there plain HTTP is allowed too.
	AllowPrivate []netip.Prefix

	Log *slog.Logger // nil discards
}

// Store is the alerts of a fleet. All methods may be called from any goroutine.
type Store struct {
	cfg  Config
	db   *db.DB
	seal notice.Sealer
	hook *notice.Poster

	mu      sync.Mutex
	busy    map[string]bool // guarded by mu; messages that are being sent, or in turn for it
	senders int             // guarded by mu; how many send to owners
	wg      sync.WaitGroup  // those who send
}

const parallelSends = 16 // to owners

// New brings the tables up to date.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.DB == nil || cfg.Readings == nil || cfg.Boxes == nil || cfg.Owners == nil || cfg.Mailer == nil || cfg.Audit == nil {
		return nil, errors.New("open alerts: database, readings, boxes, owners, mailer or audit log is missing")
	}
	if cfg.Interval < 0 || cfg.GroupWait < 0 || cfg.GroupInterval < 0 {
		return nil, errors.New("open alerts: a time is below zero")
	}
	seal, err := notice.NewSealer(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("open alerts: %w", err)
	}
	cfg.Interval, cfg.GroupWait = cmp.Or(cfg.Interval, 30*time.Second), cmp.Or(cfg.GroupWait, 30*time.Second)
	cfg.GroupInterval = cmp.Or(cfg.GroupInterval, 5*time.Minute)
	cfg.Name, cfg.Alive = cmp.Or(cfg.Name, "Croft"), cmp.Or(cfg.Alive, "group by (device) (croft_uptime_seconds)")
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open alerts: %w", err)
	}
	if err := cfg.DB.Migrate(ctx, "alert", files); err != nil {
		return nil, err
	}
	return &Store{
		cfg: cfg, db: cfg.DB, seal: seal, hook: notice.NewPoster(cfg.AllowPrivate),
		busy: map[string]bool{},
	}, nil
}

// Run judges and tells, on one replica at a time, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	return s.db.Lead(ctx, "alert", func(ctx context.Context) error {
		defer s.wg.Wait()
		s.wg.Go(func() { s.every(ctx, 2*time.Second, "tell", s.tell) })
		s.wg.Go(func() { s.every(ctx, time.Hour, "delete what is old", s.sweep) })
		s.every(ctx, s.cfg.Interval, "judge", s.judge)
		return nil
	})
}

// every does one piece of work again and again; the next round tries again what
// one could not do.
func (s *Store) every(ctx context.Context, interval time.Duration, work string, do func(context.Context) error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("work on alerts was not done", "work", work, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// How long things are kept after their end.
const (
	keepAlerts   = 400 * 24 * time.Hour
	keepMessages = 30 * 24 * time.Hour
)

func (s *Store) sweep(ctx context.Context) error {
	alerts, messages := db.Micros(time.Now().Add(-keepAlerts)), db.Micros(time.Now().Add(-keepMessages))
	return s.db.Write(ctx, func(tx *db.Tx) error {
		for _, old := range []struct {
			sql    string
			before int64
		}{
			// It says who is to be told of the end, and what a message was made of: past both nobody asks.
			{"DELETE FROM alert_outbox WHERE message <> '' AND alert IN (SELECT id FROM alert_alerts WHERE ended <> 0 AND ended < ?)", messages},
			{"DELETE FROM alert_alerts WHERE ended <> 0 AND ended < ?", alerts},
			{"DELETE FROM alert_silences WHERE until < ?", alerts},
			{"DELETE FROM alert_messages WHERE done <> 0 AND done < ?", messages},
		} {
			if _, err := tx.Exec(old.sql, old.before); err != nil {
				return err
			}
		}
		return nil
	})
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

func notFound(what string) error {
	return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such " + what)}
}
