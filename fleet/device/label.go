package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// MaxLabels is how many labels a box has at most. A label's name is as on the
// wire ([fleetapi.Label]), its value as in Kubernetes: 63 letters, digits, '-',
// '_' and '.'; so each can be asked for in a selector.
const MaxLabels = 32

// selector is what a selector demands of a box, all of it.
type selector []requirement

// requirement is one condition. A box without the label meets those that are
// negated, as in Kubernetes.
type requirement struct {
	name   string
	values []string // none: whether it has the label at all
	not    bool
}

const maxSelector = 1000

// parseSelector reads a selector by the library of Kubernetes, whose grammar it
// is. It knows no order among values.
func parseSelector(text string) (selector, error) {
	if len(text) > maxSelector {
		return nil, usage("selector has %d bytes, want at most %d", len(text), maxSelector)
	}
	parsed, err := labels.Parse(text)
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("read selector: %w", err), Remedy: `write it like "site=lab,gpu,tier in (a,b)"`}
	}
	requirements, _ := parsed.Requirements()
	var out selector
	for _, r := range requirements {
		one := requirement{name: r.Key(), values: r.ValuesUnsorted()}
		slices.Sort(one.values)
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In, selection.Exists:
		case selection.NotEquals, selection.NotIn, selection.DoesNotExist:
			one.not = true
		default:
			return nil, usage("read selector: labels are not compared by %q", r.Operator())
		}
		out = append(out, one)
	}
	return out, nil
}

// driver is the requirement that is likely to leave the fewest boxes, and the
// others; nil if all are negated.
func (s selector) driver() (*requirement, selector) {
	best := -1
	for i, r := range s {
		if !r.not && (best < 0 || len(r.values) == 1 && len(s[best].values) != 1) {
			best = i
		}
	}
	if best < 0 {
		return nil, s
	}
	driver := s[best]
	if len(driver.values) > 1 { // the name leads, the values are asked for below
		return &driver, s
	}
	return &driver, slices.Delete(slices.Clone(s), best, best+1)
}

func (s selector) where(w *where, id string) {
	for _, r := range s {
		condition, args := "EXISTS (SELECT 1 FROM device_labels x WHERE x.device = "+id+" AND x.name = ?", []any{r.name}
		if len(r.values) > 0 {
			condition += " AND x.value IN (?" + strings.Repeat(", ?", len(r.values)-1) + ")"
			for _, v := range r.values {
				args = append(args, v)
			}
		}
		if r.not {
			condition = "NOT " + condition
		}
		w.and(condition+")", args...)
	}
}

// SetLabels replaces the labels of a box. They are the staff's: what they call
// their boxes is told to each box, and is not the owner's to change.
func (s *Store) SetLabels(ctx context.Context, staff Actor, id croft.DeviceID, set map[string]string) error {
	if !staff.Staff {
		return ErrNoBox
	}
	if err := checkLabels(set); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		box, err := s.get(tx, staff, id)
		if err != nil || maps.Equal(box.Labels, set) {
			return err
		}
		if _, err := tx.Exec("DELETE FROM device_labels WHERE device = ?", string(id)); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(set)) {
			if _, err := tx.Exec("INSERT INTO device_labels (device, name, value) VALUES (?, ?, ?)", string(id), name, set[name]); err != nil {
				return err
			}
		}
		if err := want(tx, id); err != nil {
			return err
		}
		return tell(tx, staff.ID, "device.labels", id, box.Labels, set)
	})
}

func checkLabels(set map[string]string) error {
	if len(set) > MaxLabels {
		return usage("box has %d labels, want at most %d", len(set), MaxLabels)
	}
	for name, value := range set {
		if wrong := validation.IsValidLabelValue(value); len(wrong) > 0 || value == "" {
			return usage("label %.64q has the value %.64q: want 1 to 63 letters, digits, '-', '_' and '.', first and last a letter or digit", name, value)
		}
	}
	if _, err := fleetapi.Encode(&fleetapi.Desired{Version: 1, Interval: fleetapi.MinInterval, Labels: fleetapi.Labels(set)}); err != nil {
		return usage("label: %w", err)
	}
	return nil
}

// Group is a selector with a name. Which boxes are in it is found out each time.
type Group struct {
	ID       string // grp_…
	Owner    string // account; empty: of the staff
	Name     string // unique among the owner's
	Selector string
}

const maxGroups = 200 // of one owner

// SaveGroup stores a group, a new one if its ID is empty.
func (s *Store) SaveGroup(ctx context.Context, actor Actor, g Group) (Group, error) {
	g.Owner = groupOwner(actor)
	g.Name = strings.TrimSpace(g.Name)
	if g.Name == "" || fleetapi.CleanText(g.Name, fleetapi.MaxName) != g.Name {
		return g, usage("group: want a name of 1 to %d bytes without control characters", fleetapi.MaxName)
	}
	if _, err := parseSelector(g.Selector); err != nil {
		return g, err
	}
	fresh := g.ID == ""
	if fresh {
		g.ID = fleetapi.NewID(fleetapi.PrefixGroup)
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		groups, err := groupsOf(tx, g.Owner)
		if err != nil {
			return err
		}
		var before map[string]string
		for _, other := range groups {
			switch {
			case other.ID == g.ID:
				before = other.words()
			case other.Name == g.Name:
				return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("there is a group %q", g.Name), Remedy: "choose another name"}
			}
		}
		switch {
		case !fresh && before == nil:
			return errNoGroup
		case fresh && len(groups) >= maxGroups:
			return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("there are %d groups already", maxGroups), Remedy: "delete one"}
		}
		if _, err := tx.Exec(`INSERT INTO device_groups (id, owner, name, selector) VALUES (?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, selector = excluded.selector`, g.ID, g.Owner, g.Name, g.Selector); err != nil {
			return err
		}
		return tell(tx, actor.ID, "group.save", "", before, g.words())
	})
	return g, err
}

// DeleteGroup deletes a group; its boxes stay as they are.
func (s *Store) DeleteGroup(ctx context.Context, actor Actor, id string) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		groups, err := groupsOf(tx, groupOwner(actor))
		if err != nil {
			return err
		}
		i := slices.IndexFunc(groups, func(g Group) bool { return g.ID == id })
		if i < 0 {
			return errNoGroup
		}
		if _, err := tx.Exec("DELETE FROM device_groups WHERE id = ?", id); err != nil {
			return err
		}
		return tell(tx, actor.ID, "group.delete", "", groups[i].words(), nil)
	})
}

// Groups lists the actor's groups by name.
func (s *Store) Groups(ctx context.Context, actor Actor) ([]Group, error) {
	var groups []Group
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		groups, err = groupsOf(tx, groupOwner(actor))
		return err
	})
	return groups, err
}

var errNoGroup = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such group")}

func (g Group) words() map[string]string {
	return map[string]string{"id": g.ID, "name": g.Name, "selector": g.Selector}
}

func groupOwner(actor Actor) string {
	if actor.Staff {
		return ""
	}
	return actor.ID
}

func groupsOf(tx *db.Tx, owner string) ([]Group, error) {
	return db.All(tx, func(scan db.Scan) (g Group, err error) {
		return g, scan(&g.ID, &g.Owner, &g.Name, &g.Selector)
	}, "SELECT id, owner, name, selector FROM device_groups WHERE owner = ? ORDER BY name", owner)
}
