package alert

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/mail"
	"net/url"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert/notice"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Kind is how a receiver is reached.
type Kind string

// The kinds.
const (
	Webhook Kind = "webhook" // by POST of JSON: see [notice.Delivery]
	Email   Kind = "email"
)

// Receiver is whom of the staff, or which program of theirs, to tell of what.
type Receiver struct {
	ID       string            // rcv_…
	Name     string            // a few words
	Kind     Kind              //
	Address  string            // URL or e-mail address
	Severity fleetapi.Severity // this and above; default warning
	Selector string            // as of a [Silence]; empty: all

	secret []byte // sealed
}

// ownerPrefix and an account are the receiver that stands for an owner.
const ownerPrefix = "owner:"

const maxReceivers = 200

func (r *Receiver) check(hook *notice.Poster) error {
	if r.Severity == "" {
		r.Severity = fleetapi.SeverityWarning
	}
	if severities[r.Severity] == 0 {
		return usage("receiver: severity %.40q: want info, warning, error or critical", r.Severity)
	}
	if err := cleanText("name of the receiver", r.Name, maxName); err != nil {
		return err
	}
	if _, err := parseSelector(r.Selector); err != nil {
		return err
	}
	switch r.Kind {
	case Webhook:
		return hook.Check(r.Address)
	case Email:
		if a, err := mail.ParseAddress(r.Address); err != nil || a.Address != r.Address || len(r.Address) > 254 {
			return usage("receiver: want a plain e-mail address, not %.64q", r.Address)
		}
		return nil
	}
	return usage("receiver: kind %.40q: want webhook or email", r.Kind)
}

// AddReceiver stores a new receiver. The secret that signs what a webhook gets is
// returned here and never again; mail has none.
func (s *Store) AddReceiver(ctx context.Context, staff Actor, r Receiver) (Receiver, string, error) {
	if err := r.check(s.hook); err != nil {
		return r, "", err
	}
	r.ID = fleetapi.NewID(prefixReceiver)
	secret := ""
	if r.Kind == Webhook {
		secret = rand.Text() + rand.Text()
		r.secret = s.seal.Seal(r.ID, secret)
	}
	return r, secret, s.db.Write(ctx, func(tx *db.Tx) error {
		old, err := receiversOf(tx)
		if err != nil {
			return err
		}
		if len(old) >= maxReceivers {
			return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("there are %d receivers already", maxReceivers), Remedy: "delete one"}
		}
		if _, err := tx.Exec("INSERT INTO alert_receivers (id, name, kind, address, secret, severity, selector) VALUES (?, ?, ?, ?, ?, ?, ?)",
			r.ID, r.Name, string(r.Kind), r.Address, r.secret, string(r.Severity), r.Selector); err != nil {
			return err
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.receiver.add", Object: r.ID, After: r.words()})
	})
}

// ChangeReceiver stores another name, severity or selector. Where it is and how
// it is reached stays.
func (s *Store) ChangeReceiver(ctx context.Context, staff Actor, r Receiver) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		old, err := receiver(tx, r.ID)
		if err != nil {
			return err
		}
		changed := old
		changed.Name, changed.Severity, changed.Selector = r.Name, r.Severity, r.Selector
		if err := changed.check(s.hook); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE alert_receivers SET name = ?, severity = ?, selector = ? WHERE id = ?",
			changed.Name, string(changed.Severity), changed.Selector, r.ID); err != nil {
			return err
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.receiver.change", Object: r.ID, Before: old.words(), After: changed.words()})
	})
}

// DeleteReceiver deletes a receiver and what it has not been told yet.
func (s *Store) DeleteReceiver(ctx context.Context, staff Actor, id string) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		old, err := receiver(tx, id)
		if err != nil {
			return err
		}
		for _, from := range []string{"alert_receivers WHERE id = ?", "alert_outbox WHERE receiver = ?", "alert_messages WHERE receiver = ?"} {
			if _, err := tx.Exec("DELETE FROM "+from, id); err != nil {
				return err
			}
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.receiver.delete", Object: id, Before: old.words()})
	})
}

// Receivers lists the staff's receivers.
func (s *Store) Receivers(ctx context.Context) (out []Receiver, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		out, err = receiversOf(tx)
		return err
	})
	return out, err
}

func receiversOf(tx *db.Tx) ([]Receiver, error) {
	return db.All(tx, func(scan db.Scan) (r Receiver, err error) {
		return r, scan(&r.ID, &r.Name, &r.Kind, &r.Address, &r.secret, &r.Severity, &r.Selector)
	}, "SELECT id, name, kind, address, secret, severity, selector FROM alert_receivers ORDER BY id")
}

func receiver(tx *db.Tx, id string) (Receiver, error) {
	found, err := receiversOf(tx)
	at := slices.IndexFunc(found, func(r Receiver) bool { return r.ID == id })
	if err != nil || at < 0 {
		return Receiver{}, cmp.Or(err, notFound("receiver"))
	}
	return found[at], nil
}

// words is a receiver for the audit log, which keeps for ever what it holds: of a
// webhook the host alone, for with many services who knows the URL may post there.
func (r Receiver) words() map[string]string {
	address := r.Address
	if u, err := url.Parse(r.Address); r.Kind == Webhook && err == nil {
		address = u.Scheme + "://" + u.Host
	}
	return map[string]string{"name": r.Name, "kind": string(r.Kind), "address": address, "severity": string(r.Severity), "selector": r.Selector}
}

// Try sends a message without alerts at once, and returns what came of it.
func (s *Store) Try(ctx context.Context, id string) error {
	var r Receiver
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = receiver(tx, id)
		return err
	}); err != nil {
		return err
	}
	m := Message{ID: fleetapi.NewID(fleetapi.PrefixNotification), Receiver: id, Made: fleetapi.Truncate(time.Now())}
	if err := write(&m, r.Kind, s.cfg.Name, nil); err != nil {
		return err
	}
	if err := s.send(ctx, m); err != nil {
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("send message: %w", err), Remedy: "check the address and what listens there"}
	}
	return nil
}
