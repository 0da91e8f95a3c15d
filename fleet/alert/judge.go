package alert

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert/batch"
	"github.com/croft-cloud/croft/fleet/alert/notice"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// look is what was found out about the boxes at one instant.
type look struct {
	now       time.Time
	rules     []Rule // that are on
	boxes     map[croft.DeviceID]Box
	alive     map[croft.DeviceID]float64 // boxes whose readings say something
	values    map[string]map[croft.DeviceID]float64
	selectors map[string]labels.Selector
	failed    map[string]string // why a rule cannot be judged
}

// askPatience is for one answer.
const askPatience = 30 * time.Second

// judge looks once, and stores what follows from it.
func (s *Store) judge(ctx context.Context) error {
	var rules []Rule
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		rules, err = rulesOf(tx)
		return err
	}); err != nil {
		return err
	}
	l := s.look(ctx, slices.DeleteFunc(rules, func(r Rule) bool { return r.Off }))
	if ctx.Err() != nil { // what was cut short is no failure of what was asked
		return ctx.Err()
	}
	for rule, why := range l.failed {
		s.cfg.Log.Warn("alert rule cannot be judged", "rule", rule, "error", why)
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		t := &turn{Tx: tx, look: l, interval: s.cfg.Interval, late: newLate(tx)}
		return t.settle()
	})
}

func (s *Store) look(ctx context.Context, rules []Rule) *look {
	l := &look{
		now: db.Instant(db.Micros(time.Now())), rules: rules, boxes: map[croft.DeviceID]Box{},
		values: map[string]map[croft.DeviceID]float64{}, selectors: map[string]labels.Selector{}, failed: map[string]string{},
	}
	patient := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		return do(ctx)
	}
	noBoxes := patient(func(ctx context.Context) error {
		boxes, err := s.cfg.Boxes.Boxes(ctx)
		for _, b := range boxes {
			l.boxes[b.ID] = b
		}
		return err
	})
	var notAlive error
	if slices.ContainsFunc(rules, func(r Rule) bool { return r.Expr != "" }) {
		notAlive = patient(func(ctx context.Context) (err error) {
			l.alive, err = s.ask(ctx, s.cfg.Alive)
			return err
		})
	}
	for _, r := range rules {
		selector, err := parseSelector(r.Selector)
		l.selectors[r.ID] = selector
		switch {
		case r.Condition == unjudgedState:
			continue
		case noBoxes != nil:
			err = fmt.Errorf("list boxes: %w", noBoxes)
		case err == nil && r.Expr != "" && notAlive != nil:
			err = notAlive
		case err == nil && r.Expr != "":
			err = patient(func(ctx context.Context) (err error) {
				l.values[r.ID], err = s.ask(ctx, r.Expr)
				return err
			})
		}
		if err != nil {
			l.failed[r.ID] = fleetapi.CleanText(err.Error(), maxSentence)
		}
	}
	// A rule of groups is as good as the one it counts by.
	for _, r := range rules {
		if r.Of == "" || l.failed[r.ID] != "" {
			continue
		}
		of, ok := l.rule(r.Of)
		switch {
		case ok && of.Of != "":
			l.failed[r.ID] = "the rule it counts by counts itself"
		case ok && l.failed[r.Of] != "":
			l.failed[r.ID] = l.failed[r.Of]
		}
	}
	return l
}

func (l *look) rule(id string) (Rule, bool) {
	for _, r := range l.rules {
		if r.ID == id {
			return r, true
		}
	}
	return Rule{}, false
}

// at judges one box by a rule that is held against single ones.
func (l *look) at(r Rule, id croft.DeviceID) (verdict, float64) {
	box, ok := l.boxes[id]
	if !ok || !l.selectors[r.ID].Matches(labels.Set(box.Labels)) {
		return gone, 0
	}
	if r.Condition != "" {
		if r.Condition.of(box, l.now) {
			return bad, 0
		}
		return good, 0
	}
	if value, ok := l.values[r.ID][id]; ok {
		return bad, value
	}
	if _, ok := l.alive[id]; ok {
		return good, 0
	}
	return unknown, 0
}

// failure says in words what cannot be judged; empty: everything can.
func (l *look) failure() string {
	var names []string
	for _, r := range l.rules {
		if l.failed[r.ID] != "" {
			names = append(names, r.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	first := slices.Min(slices.Collect(maps.Keys(l.failed)))
	return fmt.Sprintf("%s (%s).", strings.Join(names, ", "), l.failed[first])
}

// turn is one transaction of the leader.
type turn struct {
	*db.Tx
	*look
	interval time.Duration

	items map[string]map[string]item // by rule and target
	last  map[string]judgement
	held  map[string]map[croft.DeviceID]bool // by rule: boxes whose group is told instead
	news  bool

	late *late // what is to be written
}

// settle moves every item by what was found, and hands out what is to be told.
func (t *turn) settle() error {
	if err := t.load(); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range t.rules {
		known[r.ID] = true
	}
	for _, rule := range slices.Sorted(maps.Keys(t.items)) {
		if !known[rule] {
			t.end(rule)
		}
	}
	for _, group := range []bool{false, true} { // groups count what single ones came to
		for _, r := range t.rules {
			if (r.Of != "") != group || t.failed[r.ID] != "" {
				continue
			}
			judge := t.single
			switch {
			case group:
				judge = t.group
			case r.Condition == unjudgedState:
				judge = t.unjudged
			}
			if err := judge(r); err != nil {
				return err
			}
		}
	}
	for _, do := range []func() error{t.flush, t.note, t.announce, t.flush} { // announce reads what the first one writes
		if err := do(); err != nil {
			return err
		}
	}
	if t.news {
		t.Notify(Topic, "")
	}
	return nil
}

func (t *turn) load() error {
	items, err := db.All(t.Tx, func(scan db.Scan) (i item, err error) {
		var since, clear, ended int64
		err = scan(&i.rule, &i.target, &i.state, &since, &clear, &i.alert, &ended, &i.flaps)
		i.since, i.clear, i.ended = db.Instant(since), db.Instant(clear), db.Instant(ended)
		return i, err
	}, "SELECT rule, target, state, since, clear, alert, ended, flaps FROM alert_items")
	if err != nil {
		return err
	}
	t.items = map[string]map[string]item{}
	for _, i := range items {
		t.put(i)
	}
	t.last, err = judgedOf(t.Tx)
	return err
}

func (t *turn) put(i item) {
	if t.items[i.rule] == nil {
		t.items[i.rule] = map[string]item{}
	}
	t.items[i.rule][i.target] = i
}

func (t *turn) item(rule, target string) item {
	if i, ok := t.items[rule][target]; ok {
		return i
	}
	return item{rule: rule, target: target}
}

// note stores when each rule was judged, and which could not be.
func (t *turn) note() error {
	for _, r := range t.rules {
		j := t.last[r.ID]
		if j.err = t.failed[r.ID]; j.err == "" {
			j.at = t.now
		}
		if _, err := t.Exec("INSERT INTO alert_judged (rule, at, error) VALUES (?, ?, ?) ON CONFLICT (rule) DO UPDATE SET at = excluded.at, error = excluded.error",
			r.ID, db.Micros(j.at), j.err); err != nil {
			return err
		}
	}
	return nil
}

// lost is the time since a rule was last judged, if nobody looked for longer than
// a few intervals, or the clock was set back.
func (t *turn) lost(rule string) time.Duration {
	last := t.last[rule].at
	gap := t.now.Sub(last)
	if last.IsZero() || gap >= 0 && gap <= 3*t.interval {
		return 0
	}
	return gap - t.interval
}

// found is what a target's alert will say, if it fires.
type found struct {
	verdict
	value   string
	number  float64
	of      int
	members []croft.DeviceID
}

// single judges every box by a rule.
func (t *turn) single(r Rule) error {
	targets := map[string]bool{}
	for target := range t.items[r.ID] {
		targets[target] = true
	}
	if r.Condition != "" {
		for id := range t.boxes {
			if v, _ := t.at(r, id); v == bad {
				targets[string(id)] = true
			}
		}
	} else {
		for id := range t.values[r.ID] {
			targets[string(id)] = true
		}
	}
	owners, err := t.owners(r.ID)
	if err != nil {
		return err
	}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		v, number := t.at(r, croft.DeviceID(target))
		f := found{verdict: v, value: notice.Number(number), number: number}
		if owner, firing := owners[target]; firing && v != gone && t.boxes[croft.DeviceID(target)].Owner != owner {
			f.verdict = gone // it begins anew for the new owner
		}
		if err := t.move(r, target, f); err != nil {
			return err
		}
	}
	return nil
}

// owners is whose boxes those were of which a rule's alerts are, when they fired.
func (t *turn) owners(rule string) (map[string]string, error) {
	type row struct{ device, owner string }
	rows, err := db.All(t.Tx, func(scan db.Scan) (r row, err error) { return r, scan(&r.device, &r.owner) },
		"SELECT device, owner FROM alert_alerts WHERE rule = ? AND ended = 0 AND device <> ''", rule)
	out := map[string]string{}
	for _, r := range rows {
		out[r.device] = r.owner
	}
	return out, err
}

func (t *turn) unjudged(r Rule) error {
	f := found{verdict: good}
	if why := t.failure(); why != "" {
		f = found{verdict: bad, value: why, number: float64(len(t.failed))}
	}
	return t.move(r, "", f)
}

// grouped is the boxes that a rule of groups is about, by group.
func (t *turn) grouped(r Rule) map[string][]croft.DeviceID {
	of, ok := t.rule(r.Of)
	if !ok {
		return nil
	}
	groups := map[string][]croft.DeviceID{}
	for id, box := range t.boxes {
		set := labels.Set(box.Labels)
		group, has := box.Labels[r.By]
		if (has || r.By == "") && t.selectors[r.ID].Matches(set) && t.selectors[of.ID].Matches(set) {
			groups[group] = append(groups[group], id)
		}
	}
	return groups
}

// group judges groups by what single boxes came to.
func (t *turn) group(r Rule) error {
	groups := t.grouped(r)
	targets := map[string]bool{}
	for group := range groups {
		targets[group] = true
	}
	for group := range t.items[r.ID] {
		targets[group] = true
	}
	for _, group := range slices.Sorted(maps.Keys(targets)) {
		boxes, there := groups[group]
		var members []croft.DeviceID
		var since []time.Time
		for _, id := range boxes {
			if i := t.item(r.Of, string(id)); i.state == Pending || i.state == Firing && i.clear.IsZero() {
				members, since = append(members, id), append(since, i.since)
			}
		}
		slices.Sort(members)
		together := len(members)
		if t.item(r.ID, group).state != Firing {
			together = most(since, r.Within)
		}
		f := found{verdict: good, number: float64(len(members)), value: fmt.Sprint(len(members)), of: len(boxes), members: members}
		switch {
		case !there:
			f.verdict = gone
		case together >= r.AtLeast && together*100 >= r.Percent*len(boxes):
			f.verdict = bad
		}
		if err := t.move(r, group, f); err != nil {
			return err
		}
	}
	return nil
}

// most is how many of the times lie within one span.
func most(times []time.Time, span time.Duration) int {
	slices.SortFunc(times, time.Time.Compare)
	best, first := 0, 0
	for n, at := range times {
		for at.Sub(times[first]) > span {
			first++
		}
		best = max(best, n-first+1)
	}
	return best
}

// hold finds the boxes whose group is told of instead of them.
func (t *turn) hold() {
	t.held = map[string]map[croft.DeviceID]bool{}
	for _, r := range t.rules {
		if r.Of == "" {
			continue
		}
		for group, boxes := range t.grouped(r) {
			if state := t.item(r.ID, group).state; state != Pending && state != Firing {
				continue
			}
			if t.held[r.Of] == nil {
				t.held[r.Of] = map[croft.DeviceID]bool{}
			}
			for _, id := range boxes {
				t.held[r.Of][id] = true
			}
		}
	}
}

// move steps one item and stores what came of it.
func (t *turn) move(r Rule, target string, f found) error {
	old := t.item(r.ID, target)
	next, what := old.step(f.verdict, r, t.now, t.lost(r.ID))
	switch what {
	case fires:
		next.alert = fleetapi.NewID(prefixAlert)
		if err := t.fire(r, next, f); err != nil {
			return err
		}
	case resolves:
		next.alert = ""
		t.resolve(old.alert, t.reason(r, target, f.verdict))
	case stays:
	}
	t.put(next)
	t.store(old, next)
	return nil
}

func (t *turn) store(old, next item) {
	switch {
	case next == old:
	case next.state == "":
		t.late.calm[next.rule] = append(t.late.calm[next.rule], next.target)
	default:
		t.late.items.Add(next.rule, next.target, string(next.state), db.Micros(next.since), db.Micros(next.clear), next.alert, db.Micros(next.ended), next.flaps)
	}
}

// Why an alert ended.
const (
	reasonWell  = "It is well again."
	reasonLeft  = "The box is no longer in the fleet."
	reasonMoved = "The box has another owner."
	reasonRule  = "The rule is gone, is off, or no longer about this."
)

func (t *turn) reason(r Rule, target string, v verdict) string {
	if v != gone {
		return reasonWell
	}
	box, there := t.boxes[croft.DeviceID(target)]
	switch {
	case r.Of != "":
		return reasonRule
	case !there:
		return reasonLeft
	case t.selectors[r.ID].Matches(labels.Set(box.Labels)):
		return reasonMoved
	}
	return reasonRule
}

// end ends all of a rule that is gone or off.
func (t *turn) end(rule string) {
	for _, old := range t.items[rule] {
		if old.state == Firing {
			t.resolve(old.alert, reasonRule)
		}
		t.store(old, item{rule: old.rule, target: old.target})
	}
	delete(t.items, rule)
}

// fire writes an alert down. Nobody is told here.
func (t *turn) fire(r Rule, i item, f found) error {
	t.news = true
	a := Alert{
		ID: i.alert, Rule: r.ID, Name: r.Name, Severity: r.Severity, Target: i.target, Value: f.number,
		Since: i.since, Fired: t.now, Labels: map[string]string{}, members: f.members,
	}
	words := map[string]string{"value": f.value, "group": i.target, "count": f.value, "of": fmt.Sprint(f.of)}
	switch {
	case r.Of != "":
		if r.By != "" {
			a.Labels[r.By] = i.target
		}
	case r.Condition != unjudgedState:
		box := t.boxes[croft.DeviceID(i.target)]
		a.Device, a.Box, a.Owner = box.ID, box.Name, box.Owner
		maps.Copy(a.Labels, box.Labels)
		a.Labels["device"] = string(box.ID)
		words["box"], words["device"] = cmp.Or(box.Name, "A box"), string(box.ID)
	}
	a.Labels["rule"], a.Labels["severity"] = r.ID, string(r.Severity)
	a.Sentence, a.advice = notice.Fill(r.Sentence, words), notice.Fill(r.Owner, words)
	labels, err := json.Marshal(a.Labels)
	if err != nil {
		return fmt.Errorf("write alert: %w", err)
	}
	members, err := json.Marshal(f.members)
	if err != nil {
		return fmt.Errorf("write alert: %w", err)
	}
	t.late.alerts.Add(a.ID, a.Rule, a.Name, string(a.Severity), a.Target, string(a.Device), a.Box, a.Owner, string(labels), string(members),
		a.Sentence, a.advice, a.Value, db.Micros(a.Since), db.Micros(a.Fired), 0, "", 0, "", 0, "", "")
	return nil
}

// resolve ends an alert.
func (t *turn) resolve(id, reason string) {
	t.news = true
	t.late.over[reason] = append(t.late.over[reason], id)
}

// tellEnd tells who was told that these alerts fire that they ended.
func (t *turn) tellEnd(reason string, ids []any) error {
	type sent struct{ receiver, alert, body string }
	told, err := db.All(t.Tx, func(scan db.Scan) (s sent, err error) { return s, scan(&s.receiver, &s.alert, &s.body) },
		"SELECT receiver, alert, body FROM alert_outbox WHERE news = ? AND alert IN ("+batch.Marks(len(ids))+")", append([]any{string(notice.Firing)}, ids...)...)
	if err != nil {
		return err
	}
	ends := map[string]string{} // one text for all of the staff
	for _, s := range told {
		owner, his := strings.CutPrefix(s.receiver, ownerPrefix)
		if end, ok := ends[s.body]; ok && !his {
			t.late.outbox.Add(s.receiver, s.alert, string(notice.Resolved), db.Micros(t.now), end, "")
			continue
		}
		var n notice.News
		if err := json.Unmarshal([]byte(s.body), &n); err != nil {
			return fmt.Errorf("read what was told of %s: %w", s.alert, err)
		}
		if his && !slices.ContainsFunc(n.Devices, func(id croft.DeviceID) bool { return t.boxes[id].Owner == owner }) {
			continue // the box is another's now
		}
		n.State, n.Ended, n.Reason = notice.Resolved, fleetapi.StampOf(t.now), reason
		end, err := t.queue(n, s.receiver)
		if err != nil {
			return err
		}
		ends[s.body] = end
	}
	return nil
}

// queue puts news into the outbox of receivers, once, and returns its text.
func (t *turn) queue(n notice.News, receivers ...string) (string, error) {
	body, err := json.Marshal(n)
	if err != nil {
		return "", fmt.Errorf("write news: %w", err)
	}
	for _, receiver := range receivers {
		t.late.outbox.Add(receiver, n.Alert, string(n.State), db.Micros(t.now), string(body), "")
	}
	return string(body), nil
}

// announce hands out the alerts nobody was told of, but for those that are held
// back. Of rules that could not be judged nothing is told.
func (t *turn) announce() error {
	t.hold()
	untold, err := db.All(t.Tx, scanAlert, "SELECT "+columns+", members FROM alert_alerts WHERE told = 0 AND ended = 0 ORDER BY id")
	if err != nil || len(untold) == 0 {
		return err
	}
	silences, err := silencesOf(t.Tx, t.now)
	if err != nil {
		return err
	}
	silent := make([]labels.Selector, len(silences))
	for n, s := range silences {
		silent[n] = selectorOf(s.Selector)
	}
	receivers, err := receiversOf(t.Tx)
	if err != nil {
		return err
	}
	wants := make([]labels.Selector, len(receivers))
	for n, r := range receivers {
		wants[n] = selectorOf(r.Selector)
	}
	quiet, err := db.All(t.Tx, scanQuiet, "SELECT "+quietColumns+" FROM alert_quiet WHERE mute = 1")
	if err != nil {
		return err
	}
	muted := map[string]bool{}
	for _, q := range quiet {
		muted[q.owner] = true
	}
	for _, a := range untold {
		set := labels.Set(a.Labels)
		if t.failed[a.Rule] != "" {
			continue
		}
		withheld := ""
		switch {
		case t.held[a.Rule][a.Device]:
			withheld = WithheldGroup
		case slices.ContainsFunc(silent, func(s labels.Selector) bool { return s.Matches(set) }):
			withheld = WithheldSilence
		}
		if withheld != "" {
			if withheld != a.Withheld {
				t.news = true
				t.late.withheld[withheld] = append(t.late.withheld[withheld], a.ID)
			}
			continue
		}
		var staff []string
		for n, r := range receivers {
			if severities[a.Severity] >= severities[r.Severity] && wants[n].Matches(set) {
				staff = append(staff, r.ID)
			}
		}
		if err := t.tell(a, staff, muted); err != nil {
			return err
		}
	}
	return nil
}

// selectorOf is a stored selector. One that cannot be read any more selects nothing.
func selectorOf(text string) labels.Selector {
	parsed, err := parseSelector(text)
	if err != nil {
		return labels.Nothing()
	}
	return parsed
}

// maxMembers is how many boxes of a group staff are told by name.
const maxMembers = 100

// tell puts an alert into the outbox of the staff who are to know, and of owners.
func (t *turn) tell(a Alert, staff []string, muted map[string]bool) error {
	t.news = true
	n := notice.News{
		Alert: a.ID, State: notice.Firing, Rule: a.Rule, Name: a.Name, Severity: a.Severity, Device: a.Device, Box: a.Box, Labels: a.Labels, Value: a.Value,
		Sentence: a.Sentence, Since: fleetapi.StampOf(a.Since), Fired: fleetapi.StampOf(a.Fired), Devices: a.members[:min(len(a.members), maxMembers)],
	}
	if _, err := t.queue(n, staff...); err != nil {
		return err
	}
	for owner, boxes := range t.ownersOf(a) {
		if muted[owner] {
			continue
		}
		slices.SortFunc(boxes, func(x, y Box) int { return cmp.Compare(x.ID, y.ID) })
		his := notice.News{Alert: a.ID, State: notice.Firing, Severity: a.Severity, Sentence: a.advice, Since: n.Since, Fired: n.Fired}
		for _, b := range boxes {
			his.Devices = append(his.Devices, b.ID)
		}
		his.Box = boxes[0].Name
		if len(boxes) > 1 {
			his.Box = fmt.Sprintf("%d of your boxes", len(boxes))
		}
		if _, err := t.queue(his, ownerPrefix+owner); err != nil {
			return err
		}
	}
	t.late.told = append(t.late.told, a.ID)
	return nil
}

// ownersOf is whom an alert's advice is for, with the boxes of theirs it is about.
func (t *turn) ownersOf(a Alert) map[string][]Box {
	out := map[string][]Box{}
	if a.advice == "" {
		return out
	}
	about := a.members
	if a.Device != "" {
		about = []croft.DeviceID{a.Device}
	}
	for _, id := range about {
		if b := t.boxes[id]; b.Owner != "" {
			out[b.Owner] = append(out[b.Owner], b)
		}
	}
	return out
}
