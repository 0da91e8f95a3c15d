package alert

import (
	"maps"
	"slices"

	"github.com/croft-cloud/croft/fleet/alert/batch"
	"github.com/croft-cloud/croft/fleet/db"
)

// late is what a turn is going to write. It is written many rows at a time: ten
// thousand boxes that go offline at once must not hold up the database for longer
// than a look may take.
type late struct {
	items    batch.Rows
	calm     map[string][]string // targets of items to delete, by rule
	alerts   batch.Rows
	over     map[string][]string // alerts that ended, by reason
	outbox   batch.Rows
	told     []string            // alerts
	withheld map[string][]string // alerts, by why
}

func newLate(tx *db.Tx) *late {
	return &late{
		items: batch.Rows{Tx: tx, Into: "alert_items (rule, target, state, since, clear, alert, ended, flaps)", Width: 8, Or: "(rule, target) DO UPDATE SET " +
			"state = excluded.state, since = excluded.since, clear = excluded.clear, alert = excluded.alert, ended = excluded.ended, flaps = excluded.flaps"},
		alerts: batch.Rows{Tx: tx, Into: "alert_alerts (id, rule, name, severity, target, device, box, owner, labels, members, sentence, advice, value, " +
			"since, fired, ended, reason, told, withheld, acked, acked_by, note)", Width: 22, Or: "DO NOTHING"},
		outbox: batch.Rows{Tx: tx, Into: "alert_outbox (receiver, alert, news, at, body, message)", Width: 6, Or: "(receiver, alert, news) DO NOTHING"},
		calm:   map[string][]string{}, over: map[string][]string{}, withheld: map[string][]string{},
	}
}

// flush writes what a turn gathered.
func (t *turn) flush() error {
	for rule, targets := range t.late.calm {
		if err := batch.Parts(targets, func(part []any) error {
			_, err := t.Exec("DELETE FROM alert_items WHERE rule = ? AND target IN ("+batch.Marks(len(part))+")", append([]any{rule}, part...)...)
			return err
		}); err != nil {
			return err
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(t.late.over)) {
		if err := batch.Parts(t.late.over[reason], func(part []any) error {
			if _, err := t.Exec("UPDATE alert_alerts SET ended = ?, reason = ?, withheld = '' WHERE id IN ("+batch.Marks(len(part))+")",
				append([]any{db.Micros(t.now), reason}, part...)...); err != nil {
				return err
			}
			return t.tellEnd(reason, part)
		}); err != nil {
			return err
		}
	}
	set := func(what string, ids []string, args ...any) error {
		return batch.Parts(ids, func(part []any) error {
			_, err := t.Exec("UPDATE alert_alerts SET "+what+" WHERE id IN ("+batch.Marks(len(part))+")", append(slices.Clone(args), part...)...)
			return err
		})
	}
	for why, ids := range t.late.withheld {
		if err := set("withheld = ?", ids, why); err != nil {
			return err
		}
	}
	if err := set("told = 1, withheld = ''", t.late.told); err != nil {
		return err
	}
	for _, r := range []*batch.Rows{&t.late.items, &t.late.alerts, &t.late.outbox} {
		if err := r.Insert(); err != nil {
			return err
		}
	}
	t.late = newLate(t.Tx)
	return nil
}
