package alert

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Condition is something bad about a box that no reading tells.
type Condition string

// The conditions.
const (
	Offline         Condition = "offline"           // it was heard of once, and is not online
	CertificateEnds Condition = "certificate_ends"  // within 30 days; boxes renew 60 days before
	LeaseBroken     Condition = "lease_interrupted" // a lease ended before its time, in the last hour
	unjudgedState   Condition = "unjudged"
)

func (c Condition) of(b Box, now time.Time) bool {
	switch c {
	case Offline:
		return b.Heard && !b.Online
	case CertificateEnds:
		return !b.CertificateUntil.IsZero() && b.CertificateUntil.Sub(now) < 30*24*time.Hour
	case LeaseBroken:
		return !b.LeaseBroken.IsZero() && now.Sub(b.LeaseBroken) < time.Hour
	case unjudgedState: // of no box
	}
	return false
}

// Rule says what is bad, for how long it may be, and what is said then. It has
// one of Expr, Condition and Of.
type Rule struct {
	ID   string `json:"id"`   // rul_…, or the word of a built-in one
	Name string `json:"name"` // a few words

	Expr      string    `json:"expr,omitempty"`      // PromQL; its answer has a value for each bad box, by the label "device"
	Condition Condition `json:"condition,omitempty"` // or this of the box itself

	Of      string        `json:"of,omitempty"`       // or this rule is bad for boxes of a group
	By      string        `json:"by,omitempty"`       // label whose value is the group; empty: all that Selector matches are one
	AtLeast int           `json:"at_least,omitempty"` // so many of them; at least 2
	Percent int           `json:"percent,omitempty"`  // and so many of a hundred; 0 to 100
	Within  time.Duration `json:"within,omitempty"`   // that became bad within this time

	For      time.Duration     `json:"for"`             // bad for so long before it fires; at most a day
	Clear    time.Duration     `json:"clear,omitempty"` // good for so long before it is over; default 5 min, at most a day
	Selector string            `json:"selector,omitempty"`
	Severity fleetapi.Severity `json:"severity"`

	// Sentence is for the staff, Owner for owners; without Owner they are not
	// told. {box} stands for the name of the box, {device} for its id, {value}
	// for what the expression found; of a group {group}, {count} and {of}.
	Sentence string `json:"sentence"`
	Owner    string `json:"owner,omitempty"`

	Off bool `json:"off,omitempty"` // it is not judged
}

func (r Rule) clear() time.Duration { return cmp.Or(r.Clear, 5*time.Minute) }

// RuleUnjudged is the id of the built-in rule that fires when others cannot be
// judged.
const RuleUnjudged = "unjudged"

// Builtin is the rules every fleet begins with. An operator may save another rule
// under the same id; deleting that brings the built-in one back.
func Builtin() []Rule {
	return []Rule{
		{
			ID: RuleUnjudged, Name: "Alerts cannot be judged", Condition: unjudgedState, For: 3 * time.Minute, Clear: 2 * time.Minute,
			Severity: fleetapi.SeverityCritical, Sentence: "Alerts cannot be judged, so nobody is told of what is wrong with boxes: {value}",
		},
		{
			ID: "offline", Name: "Box offline", Condition: Offline, For: 10 * time.Minute, Clear: 3 * time.Minute,
			Severity: fleetapi.SeverityError, Sentence: "{box} ({device}) is offline.",
			Owner: "Your box is offline. Check that it has power and that your internet works.",
		},
		{
			ID: "region_offline", Name: "Region offline", Of: "offline", By: "region", AtLeast: 5, Percent: 30, Within: 10 * time.Minute, For: time.Minute,
			Severity: fleetapi.SeverityCritical, Sentence: "{count} of {of} boxes in the region {group} went offline together.",
			Owner: "Your box is offline, with others in your region. It is probably your internet or power company; you need do nothing.",
		},
		{
			ID: "hot", Name: "Box hot", Expr: "max by (device) (croft_temperature_celsius) >= 85", For: 5 * time.Minute,
			Severity: fleetapi.SeverityError, Sentence: "The hottest sensor of {box} ({device}) reads {value} °C.",
			Owner: "Your box is hot ({value} °C). Give it more air and free its vents of dust.",
		},
		{
			ID: "disk_full", Name: "Disk full", For: 10 * time.Minute,
			Expr:     `100 * max by (device) (1 - croft_filesystem_bytes{mount="/perm",kind="available"} / ignoring (kind) croft_filesystem_bytes{mount="/perm",kind="size"}) >= 95`,
			Severity: fleetapi.SeverityError, Sentence: "/perm of {box} ({device}) is {value} % full.",
			Owner: "The disk of your box is nearly full, so it takes less work than it could. It tidies up by itself when work ends.",
		},
		{
			ID: "throttling", Name: "Box throttles", For: 15 * time.Minute,
			Expr:     "sum by (device) (increase(croft_throttled_total[1h])) > 10 or max by (device) (max_over_time(croft_undervoltage[15m])) > 0",
			Severity: fleetapi.SeverityWarning, Sentence: "{box} ({device}) slows itself down, for heat or a weak power supply.",
			Owner: "Your box slows itself down. Give it more air, and use the power supply it came with.",
		},
		{
			ID: "crash_loop", Name: "Crash loop", Expr: `max by (device) (resets(croft_agent_cpu_seconds_total{mode="user"}[1h])) >= 4`, For: time.Minute, Clear: 15 * time.Minute,
			Severity: fleetapi.SeverityCritical, Sentence: "The agent of {box} ({device}) started {value} times in the last hour.",
			Owner: "The software of your box keeps restarting. We see it too; unplug the box and plug it in again if it lasts.",
		},
		{
			ID: "clock_wrong", Name: "Clock wrong", Expr: "max by (device) (abs(croft_clock_offset_seconds)) >= 5 or max by (device) (croft_clock_synced) == 0", For: 30 * time.Minute,
			Severity: fleetapi.SeverityWarning, Sentence: "The clock of {box} ({device}) is wrong, or no server sets it. Check that its network lets NTP out (UDP 123).",
		},
		{
			ID: "certificate_ends", Name: "Certificate near its end", Condition: CertificateEnds, For: time.Hour,
			Severity: fleetapi.SeverityError, Sentence: "The certificate of {box} ({device}) should have been renewed, and ends within 30 days.",
		},
		{
			ID: "lease_interrupted", Name: "Lease interrupted", Condition: LeaseBroken,
			Severity: fleetapi.SeverityWarning, Sentence: "A lease on {box} ({device}) ended before its time.",
			Owner: "Work on your box was cut short. If you unplugged it, that is why; leave it on to earn the most.",
		},
	}
}

func builtin(id string) (Rule, bool) {
	for _, r := range Builtin() {
		if r.ID == id {
			return r, true
		}
	}
	return Rule{}, false
}

const (
	maxRules    = 500
	maxSentence = 500
	maxName     = 80
	maxExpr     = 4096
	maxSelector = 1000
)

// severities are fleetapi's by weight.
var severities = map[fleetapi.Severity]int{
	fleetapi.SeverityInfo: 1, fleetapi.SeverityWarning: 2, fleetapi.SeverityError: 3, fleetapi.SeverityCritical: 4,
}

// parseSelector reads a selector by the library of Kubernetes, whose grammar it
// is. It knows no order among values.
func parseSelector(text string) (labels.Selector, error) {
	if len(text) > maxSelector {
		return nil, usage("selector has %d bytes, want at most %d", len(text), maxSelector)
	}
	parsed, err := labels.Parse(text)
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("read selector: %w", err), Remedy: `write it like "site=lab,gpu,tier in (a,b)"`}
	}
	requirements, _ := parsed.Requirements()
	for _, r := range requirements {
		if op := r.Operator(); op == selection.GreaterThan || op == selection.LessThan {
			return nil, usage("read selector: labels are not compared by %q", op)
		}
	}
	return parsed, nil
}

func cleanText(what, text string, most int) error {
	if text == "" || strings.TrimSpace(text) != text || fleetapi.CleanText(text, most) != text {
		return usage("%s: want 1 to %d bytes without control characters or space around them", what, most)
	}
	return nil
}

// check holds a rule against everything but other rules and the readings.
func (r Rule) check() error {
	kinds := 0
	for _, has := range []bool{r.Expr != "", r.Condition != "", r.Of != ""} {
		if has {
			kinds++
		}
	}
	known := []Condition{Offline, CertificateEnds, LeaseBroken}
	if r.ID == RuleUnjudged {
		known = []Condition{unjudgedState}
	}
	switch {
	case kinds != 1:
		return usage("rule: want one of an expression, a condition and a rule to count by")
	case len(r.Expr) > maxExpr:
		return usage("rule: expression has %d bytes, want at most %d", len(r.Expr), maxExpr)
	case r.Condition != "" && !slices.Contains(known, r.Condition), r.ID == RuleUnjudged && r.Condition == "":
		return usage("rule: condition %.40q: want one of %v", r.Condition, known)
	case r.Of != "" && (r.AtLeast < 2 || r.Percent < 0 || r.Percent > 100 || r.Within <= 0 || r.Within > 24*time.Hour):
		return usage("rule of groups: want at least 2 boxes, 0 to 100 percent, and a time of up to a day within which they became bad")
	case r.Of == "" && (r.By != "" || r.AtLeast != 0 || r.Percent != 0 || r.Within != 0):
		return usage("rule: only one that counts by another rule has a group")
	case r.For < 0 || r.For > 24*time.Hour || r.Clear < 0 || r.Clear > 24*time.Hour:
		return usage("rule: want times of at most a day")
	case severities[r.Severity] == 0:
		return usage("rule: severity %.40q: want info, warning, error or critical", r.Severity)
	}
	if r.By != "" {
		if _, err := fleetapi.Encode(&fleetapi.Desired{Version: 1, Interval: fleetapi.MinInterval, Labels: []fleetapi.Label{{Name: r.By, Value: "x"}}}); err != nil {
			return usage("rule: label of groups: %w", err)
		}
	}
	if err := cleanText("name of the rule", r.Name, maxName); err != nil {
		return err
	}
	if err := cleanText("sentence of the rule", r.Sentence, maxSentence); err != nil {
		return err
	}
	if r.Owner != "" {
		if err := cleanText("sentence for owners", r.Owner, maxSentence); err != nil {
			return err
		}
	}
	_, err := parseSelector(r.Selector)
	return err
}

// SaveRule stores a rule of an operator, a new one if its ID is empty, or a
// built-in one changed. Its expression is asked once.
func (s *Store) SaveRule(ctx context.Context, staff Actor, r Rule) (Rule, error) {
	if err := r.check(); err != nil {
		return r, err
	}
	if r.Expr != "" {
		if _, err := s.ask(ctx, r.Expr); err != nil {
			return r, fmt.Errorf("try rule: %w", err)
		}
	}
	fresh := r.ID == ""
	if fresh {
		r.ID = fleetapi.NewID(fleetapi.PrefixRule)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("save rule: %w", err)
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		rules, err := rulesOf(tx)
		if err != nil {
			return err
		}
		old := slices.IndexFunc(rules, func(o Rule) bool { return o.ID == r.ID })
		of := slices.IndexFunc(rules, func(o Rule) bool { return o.ID == r.Of })
		switch {
		case !fresh && old < 0:
			return notFound("alert rule")
		case fresh && len(rules) >= maxRules:
			return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("there are %d alert rules already", maxRules), Remedy: "delete one"}
		case r.Of != "" && (of < 0 || rules[of].Of != "" || rules[of].Condition == unjudgedState || r.Of == r.ID):
			return usage("rule of groups: want another rule that is held against single boxes, not %.64q", r.Of)
		case r.Of != "" && slices.ContainsFunc(rules, func(o Rule) bool { return o.Of == r.ID }):
			return usage("rule of groups: another rule counts by this one")
		}
		var before map[string]string
		if old >= 0 {
			before = rules[old].words()
		}
		if _, err := tx.Exec("INSERT INTO alert_rules (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body", r.ID, string(body)); err != nil {
			return err
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.rule.save", Object: r.ID, Before: before, After: r.words()})
	})
	return r, err
}

// DeleteRule deletes a rule, or brings a built-in one back as it was. What fires
// of a rule that is gone ends.
func (s *Store) DeleteRule(ctx context.Context, staff Actor, id string) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		rules, err := rulesOf(tx)
		if err != nil {
			return err
		}
		old := slices.IndexFunc(rules, func(o Rule) bool { return o.ID == id })
		if old < 0 {
			return notFound("alert rule")
		}
		if _, fixed := builtin(id); !fixed && slices.ContainsFunc(rules, func(o Rule) bool { return o.Of == id }) {
			return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("another rule counts by the rule %q", rules[old].Name), Remedy: "delete that one first"}
		}
		for _, table := range []string{"alert_rules WHERE id = ?", "alert_judged WHERE rule = ?"} {
			if _, err := tx.Exec("DELETE FROM "+table, id); err != nil {
				return err
			}
		}
		return s.cfg.Audit.Record(tx, Entry{By: staff.ID, Action: "alert.rule.delete", Object: id, Before: rules[old].words()})
	})
}

// Judged is a rule and how it was last judged.
type Judged struct {
	Rule
	Builtin bool      // it is one of every fleet, changed or not
	At      time.Time // zero: never
	Err     string    // why it cannot be judged now; empty: it can
}

// Rules lists all rules, the built-in ones first.
func (s *Store) Rules(ctx context.Context) ([]Judged, error) {
	var out []Judged
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		rules, err := rulesOf(tx)
		if err != nil {
			return err
		}
		judged, err := judgedOf(tx)
		if err != nil {
			return err
		}
		out = make([]Judged, len(rules))
		for n, r := range rules {
			_, fixed := builtin(r.ID)
			out[n] = Judged{Rule: r, Builtin: fixed, At: judged[r.ID].at, Err: judged[r.ID].err}
		}
		return nil
	})
	return out, err
}

// rulesOf is all rules, the built-in ones first.
func rulesOf(tx *db.Tx) ([]Rule, error) {
	saved, err := db.All(tx, func(scan db.Scan) (r Rule, err error) {
		var body string
		if err := scan(&body); err != nil {
			return r, err
		}
		return r, json.Unmarshal([]byte(body), &r)
	}, "SELECT body FROM alert_rules ORDER BY id")
	if err != nil {
		return nil, err
	}
	rules := Builtin()
	for _, r := range saved {
		if at := slices.IndexFunc(rules, func(b Rule) bool { return b.ID == r.ID }); at >= 0 {
			rules[at] = r
		} else {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

type judgement struct {
	rule string
	at   time.Time
	err  string
}

func judgedOf(tx *db.Tx) (map[string]judgement, error) {
	found, err := db.All(tx, func(scan db.Scan) (j judgement, err error) {
		var at int64
		err = scan(&j.rule, &at, &j.err)
		j.at = db.Instant(at)
		return j, err
	}, "SELECT rule, at, error FROM alert_judged")
	out := make(map[string]judgement, len(found))
	for _, j := range found {
		out[j.rule] = j
	}
	return out, err
}

// words is a rule for the audit log.
func (r Rule) words() map[string]string {
	w := map[string]string{
		"name": r.Name, "expr": r.Expr, "condition": string(r.Condition), "of": r.Of, "by": r.By, "selector": r.Selector,
		"severity": string(r.Severity), "for": r.For.String(), "clear": r.clear().String(), "sentence": r.Sentence, "owner": r.Owner, "off": strconv.FormatBool(r.Off),
	}
	if r.Of != "" {
		w["at_least"], w["percent"], w["within"] = strconv.Itoa(r.AtLeast), strconv.Itoa(r.Percent), r.Within.String()
	}
	for name, value := range w {
		if value == "" {
			delete(w, name)
		}
	}
	return w
}

// ask is the boxes an expression has a value for; of several the greatest.
func (s *Store) ask(ctx context.Context, expr string) (map[croft.DeviceID]float64, error) {
	samples, err := s.cfg.Readings.Ask(ctx, expr)
	if err != nil {
		return nil, err
	}
	out := make(map[croft.DeviceID]float64, len(samples))
	for _, sample := range samples {
		device := croft.DeviceID(sample.Labels["device"])
		if device == "" {
			return nil, &croft.Error{
				Kind: croft.KindUsage, Err: fmt.Errorf("the answer to %.100q does not say which box it is about", expr),
				Remedy: `keep the label "device", as in "max by (device) (…)"`,
			}
		}
		if math.IsNaN(sample.Value) { // as good as no answer
			continue
		}
		value := max(-math.MaxFloat64, min(math.MaxFloat64, sample.Value)) // neither JSON nor SQL know infinity
		if old, ok := out[device]; !ok || value > old {
			out[device] = value
		}
	}
	return out, nil
}
