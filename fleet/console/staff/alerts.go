package staff

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// tabs are the pages about alerts; Value is an address.
func (k *call) tabs(here string) (out []Choice) {
	for _, path := range []string{"", "/past", "/silences", "/rules", "/receivers"} {
		if path == "/receivers" && !k.may(rights.Webhook, rights.Read) {
			continue
		}
		to := "/fleet/alerts" + path
		if path == "/past" {
			to = "/fleet/alerts?past=yes"
		}
		out = append(out, Choice{to, k.views.Say("alerttab." + cmp.Or(path, "/firing")[1:]), path == here})
	}
	return out
}

type alertsPage struct {
	Tabs  []Choice
	Rows  []Firing
	Next  string
	Past  bool
	About string // the box or rule the list is limited to
}

func (s *Pages) alerts(k *call) error {
	page := alertsPage{Past: k.get("past") != ""}
	q := alert.Query{Firing: !page.Past, Rule: k.get("rule"), Cursor: k.get("cursor")}
	if text := k.get("device"); text != "" {
		id, err := croft.ParseDeviceID(text)
		if err != nil {
			return usage("%.64q names no box", text)
		}
		q.Device, page.About = id, id.ShortName()
	}
	page.About = cmp.Or(page.About, q.Rule)
	page.Tabs = k.tabs(map[bool]string{true: "/past"}[page.Past])
	found, next, err := s.cfg.Alerts.List(k.ctx(), alert.Actor(k.actor()), q)
	if err != nil {
		return err
	}
	page.Next = k.next(next)
	known := names{}
	for _, a := range found {
		f := firingOf(a)
		f.AckBy = known.of(k, a.AckedBy)
		page.Rows = append(page.Rows, f)
	}
	return k.show(frame.Page{Template: "alerts", Title: s.views.Say("alerts.title"), Nav: "/fleet/alerts", Data: page, Live: []string{alert.Topic}})
}

// back is the page a form stood in, or else another.
func (k *call) back(otherwise string) string {
	return cmp.Or(frame.LocalPath(k.get("from")), otherwise)
}

func (s *Pages) acknowledge(k *call) error {
	if err := s.cfg.Alerts.Acknowledge(k.ctx(), alert.Actor(k.actor()), k.get("id"), k.get("note")); err != nil {
		return err
	}
	return k.done(k.back("/fleet/alerts"), "alerts.acked")
}

type silencesPage struct {
	Tabs     []Choice
	Rows     []silenceRow
	Hours    []Choice
	Selector string
}

type silenceRow struct {
	alert.Silence
	Name string // of who made it
}

func (s *Pages) silences(k *call) error {
	found, err := s.cfg.Alerts.Silences(k.ctx())
	if err != nil {
		return err
	}
	page, known := silencesPage{Tabs: k.tabs("/silences"), Selector: k.get("selector")}, names{}
	for _, one := range found {
		page.Rows = append(page.Rows, silenceRow{one, known.of(k, one.By)})
	}
	page.Hours = choices([]string{"1", "4", "24", "168", "720"}, "4", func(v string) string {
		hours, _ := strconv.Atoi(v)
		return s.views.Span(time.Duration(hours) * time.Hour)
	})
	return k.show(frame.Page{Template: "silences", Title: s.views.Say("silences.title"), Nav: "/fleet/alerts", Data: page})
}

func (s *Pages) addSilence(k *call) error {
	hours, err := strconv.Atoi(k.get("hours"))
	if err != nil || hours < 1 || hours > 24*366 {
		return usage("say for how many hours")
	}
	_, err = s.cfg.Alerts.AddSilence(k.ctx(), alert.Actor(k.actor()), alert.Silence{
		Selector: k.get("selector"), Why: k.get("why"), Until: time.Now().Add(time.Duration(hours) * time.Hour),
	})
	if err != nil {
		return err
	}
	return k.done("/fleet/alerts/silences", "silences.made")
}

func (s *Pages) endSilence(k *call) error {
	if err := s.cfg.Alerts.EndSilence(k.ctx(), alert.Actor(k.actor()), k.get("id")); err != nil {
		return err
	}
	return k.done("/fleet/alerts/silences", "silences.ended")
}

type rulesPage struct {
	Tabs []Choice
	Rows []ruleRow
}

type ruleRow struct {
	alert.Judged
	Tone frame.Tone
	Path string
}

func (s *Pages) rules(k *call) error {
	found, err := s.cfg.Alerts.Rules(k.ctx())
	if err != nil {
		return err
	}
	page := rulesPage{Tabs: k.tabs("/rules")}
	for _, r := range found {
		page.Rows = append(page.Rows, ruleRow{r, toneOf(r.Severity), link("/fleet/alerts/rule", "id", r.ID)})
	}
	return k.show(frame.Page{Template: "rules", Title: s.views.Say("rules.title"), Nav: "/fleet/alerts", Data: page})
}

type rulePage struct {
	alert.Rule
	Tabs                           []Choice
	Kind                           string // expr, condition, of
	ForText, ClearText, WithinText string
	AtLeastText, PercentText       string
	Severities, Conditions, Rules  []Choice
	Builtin                        bool
	Fixed                          bool // what it goes by cannot be changed
	Trouble                        string
	Tested                         bool
	Matches                        []match
	Count                          int
}

// match is a box that an expression has a value for.
type match struct {
	Title, Path string
	Value       float64
}

// rulePage is the form with a rule in it.
func (k *call) rulePage(r alert.Rule, all []alert.Judged) rulePage {
	page := rulePage{Rule: r, Tabs: k.tabs("/rules"), Kind: "expr"}
	switch {
	case r.Condition != "":
		page.Kind = "condition"
	case r.Of != "":
		page.Kind = "of"
	}
	page.Fixed = r.ID == alert.RuleUnjudged
	page.ForText, page.ClearText, page.WithinText = short(r.For), short(r.Clear), short(r.Within)
	page.AtLeastText, page.PercentText = strconv.Itoa(max(r.AtLeast, 2)), strconv.Itoa(r.Percent)
	page.Severities = choices(severities, r.Severity, func(v fleetapi.Severity) string { return k.views.Say("severity." + string(v)) })
	page.Conditions = choices([]alert.Condition{alert.Offline, alert.CertificateEnds, alert.LeaseBroken}, r.Condition, func(v alert.Condition) string {
		return k.views.Say("condition." + string(v))
	})
	for _, other := range all {
		page.Builtin = page.Builtin || other.ID == r.ID && other.Builtin
		if other.Of == "" && other.ID != r.ID && other.ID != alert.RuleUnjudged {
			page.Rules = append(page.Rules, Choice{other.ID, other.Name, other.ID == r.Of})
		}
	}
	return page
}

// short is a duration as people type it.
func short(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return d.String()
}

func (k *call) showRule(page rulePage, status int) error {
	title := page.Name
	if page.ID == "" {
		title = k.views.Say("rule.new_title")
	}
	return k.show(frame.Page{Template: "rule", Title: title, Nav: "/fleet/alerts", Data: page, Status: status})
}

func (s *Pages) rule(k *call) error {
	all, err := s.cfg.Alerts.Rules(k.ctx())
	if err != nil {
		return err
	}
	r := alert.Rule{Severity: fleetapi.SeverityWarning, For: 10 * time.Minute, Within: 10 * time.Minute}
	if id := k.get("id"); id != "" {
		at := slices.IndexFunc(all, func(j alert.Judged) bool { return j.ID == id })
		if at < 0 {
			return &croft.Error{Kind: croft.KindNotFound, Err: errNoRule}
		}
		r = all[at].Rule
	}
	return k.showRule(k.rulePage(r, all), 0)
}

// typedRule is the rule of a form, with what cannot be read said.
func (k *call) typedRule(all []alert.Judged) (alert.Rule, error) {
	r := alert.Rule{
		ID: k.get("id"), Name: k.get("name"), Selector: k.get("selector"), Severity: fleetapi.Severity(k.get("severity")),
		Sentence: k.get("sentence"), Owner: k.get("owner"), Off: k.get("off") != "",
	}
	var wrong error
	long := func(field string) time.Duration {
		text := k.get(field)
		if text == "" {
			return 0
		}
		d, err := time.ParseDuration(text)
		if err != nil && wrong == nil {
			wrong = usage(`%.20q is no time: write it like "10m" or "1h30m"`, text)
		}
		return d
	}
	number := func(field string) int {
		n, err := strconv.Atoi(cmp.Or(k.get(field), "0"))
		if err != nil && wrong == nil {
			wrong = usage("%.20q is no number", k.get(field))
		}
		return n
	}
	r.For, r.Clear = long("for"), long("clear")
	switch k.get("kind") {
	case "condition":
		r.Condition = alert.Condition(k.get("condition"))
	case "of":
		r.Of, r.By, r.AtLeast, r.Percent, r.Within = k.get("of"), k.get("by"), number("at_least"), number("percent"), long("within")
	default:
		r.Expr = k.get("expr")
	}
	if r.ID == alert.RuleUnjudged { // what it goes by is no condition of a box
		if at := slices.IndexFunc(all, func(j alert.Judged) bool { return j.ID == r.ID }); at >= 0 {
			r.Condition, r.Expr, r.Of = all[at].Condition, "", ""
		}
	}
	return r, wrong
}

// saveRule shows the form again, with what was typed, if it is not right.
func (s *Pages) saveRule(k *call) error {
	all, err := s.cfg.Alerts.Rules(k.ctx())
	if err != nil {
		return err
	}
	r, err := k.typedRule(all)
	saved := r
	if err == nil {
		saved, err = s.cfg.Alerts.SaveRule(k.ctx(), alert.Actor(k.actor()), r)
	}
	if text := frame.Sentence(err); text != "" {
		page := k.rulePage(r, all)
		page.Trouble = text
		return k.showRule(page, authhttp.StatusOf(err))
	}
	if err != nil {
		return err
	}
	return k.done("/fleet/alerts/rules", "rule.saved", saved.Name)
}

const mostMatches = 50

// testRule says which boxes the rule of the form would be bad for now.
func (s *Pages) testRule(k *call) error {
	all, err := s.cfg.Alerts.Rules(k.ctx())
	if err != nil {
		return err
	}
	r, err := k.typedRule(all)
	page := k.rulePage(r, all)
	var found []timeseries.Series
	if err == nil && r.Expr == "" {
		err = usage("only an expression can be tested: type one")
	}
	if err == nil {
		found, err = s.cfg.Series.Instant(k.ctx(), timeseries.Scope{All: true}, r.Expr, time.Now())
	}
	if page.Trouble = frame.Sentence(err); page.Trouble != "" {
		return k.showRule(page, authhttp.StatusOf(err))
	}
	if err != nil {
		return err
	}
	page.Tested, page.Count = true, len(found)
	for _, one := range found[:min(len(found), mostMatches)] {
		m := match{Title: one.Labels["device"]}
		if n := len(one.Points); n > 0 {
			m.Value = one.Points[n-1].Value
		}
		if id, err := croft.ParseDeviceID(one.Labels["device"]); err == nil {
			m.Title, m.Path = id.ShortName(), boxPath(id)
		} else {
			m.Title = s.views.Say("rule.no_device")
		}
		page.Matches = append(page.Matches, m)
	}
	return k.showRule(page, 0)
}

func (s *Pages) deleteRule(k *call) error {
	if err := s.cfg.Alerts.DeleteRule(k.ctx(), alert.Actor(k.actor()), k.get("id")); err != nil {
		return err
	}
	return k.done("/fleet/alerts/rules", "rule.deleted")
}

type receiversPage struct {
	Tabs       []Choice
	Rows       []receiverRow
	Kinds      []Choice
	Severities []Choice
}

type receiverRow struct {
	alert.Receiver
	Path string
}

func (k *call) leastSeverities(chosen fleetapi.Severity) []Choice {
	return choices(severities, chosen, func(v fleetapi.Severity) string { return k.views.Say("severity_up." + string(v)) })
}

func (s *Pages) receivers(k *call) error {
	found, err := s.cfg.Alerts.Receivers(k.ctx())
	if err != nil {
		return err
	}
	page := receiversPage{Tabs: k.tabs("/receivers"), Severities: k.leastSeverities(fleetapi.SeverityWarning)}
	page.Kinds = choices([]alert.Kind{alert.Webhook, alert.Email}, alert.Webhook, func(v alert.Kind) string { return s.views.Say("receiver." + string(v)) })
	for _, r := range found {
		page.Rows = append(page.Rows, receiverRow{r, link("/fleet/alerts/receiver", "id", r.ID)})
	}
	return k.show(frame.Page{Template: "receivers", Title: s.views.Say("receivers.title"), Nav: "/fleet/alerts", Data: page})
}

func (k *call) typedReceiver() alert.Receiver {
	return alert.Receiver{
		ID: k.get("id"), Name: k.get("name"), Kind: alert.Kind(k.get("kind")), Address: k.get("address"),
		Severity: fleetapi.Severity(k.get("severity")), Selector: k.get("selector"),
	}
}

func (s *Pages) addReceiver(k *call) error {
	r := k.typedReceiver()
	r.ID = ""
	added, secret, err := s.cfg.Alerts.AddReceiver(k.ctx(), alert.Actor(k.actor()), r)
	if err != nil {
		return err
	}
	to := link("/fleet/alerts/receiver", "id", added.ID)
	if secret != "" {
		return s.frame.ShowOnce(k.w, k.r, s.views.Say("receiver.secret_title"), frame.Shown{Sentence: s.views.Say("receiver.secret"), Lines: []string{secret}, Then: to})
	}
	return k.done(to, "receiver.added", added.Name)
}

type receiverPage struct {
	alert.Receiver
	Tabs       []Choice
	Severities []Choice
	Messages   []messageRow
	Next       string
}

type messageRow struct {
	alert.Message
	Tone frame.Tone
	Word string
}

func (s *Pages) receiver(k *call) error {
	all, err := s.cfg.Alerts.Receivers(k.ctx())
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(r alert.Receiver) bool { return r.ID == k.get("id") })
	if at < 0 {
		return &croft.Error{Kind: croft.KindNotFound, Err: errNoReceiver}
	}
	page := receiverPage{Receiver: all[at], Tabs: k.tabs("/receivers"), Severities: k.leastSeverities(all[at].Severity)}
	found, next, err := s.cfg.Alerts.Messages(k.ctx(), page.ID, k.get("cursor"), 50)
	if err != nil {
		return err
	}
	page.Next = k.next(next)
	tones := map[alert.Fate]frame.Tone{alert.Queued: frame.Note, alert.Sent: frame.Good, alert.Failed: frame.Bad}
	for _, m := range found {
		page.Messages = append(page.Messages, messageRow{m, tones[m.Fate], s.views.Say("fate." + string(m.Fate))})
	}
	return k.show(frame.Page{Template: "receiver", Title: page.Name, Nav: "/fleet/alerts", Data: page, Live: []string{alert.Topic}})
}

func (s *Pages) changeReceiver(k *call) error {
	r := k.typedReceiver()
	if err := s.cfg.Alerts.ChangeReceiver(k.ctx(), alert.Actor(k.actor()), r); err != nil {
		return err
	}
	return k.done(link("/fleet/alerts/receiver", "id", r.ID), "receiver.changed")
}

func (s *Pages) tryReceiver(k *call) error {
	if err := s.cfg.Alerts.Try(k.ctx(), k.get("id")); err != nil {
		return err
	}
	return k.done(link("/fleet/alerts/receiver", "id", k.get("id")), "receiver.tried")
}

func (s *Pages) deleteReceiver(k *call) error {
	if k.get("sure") == "" {
		return usage("tick that the receiver is to be deleted")
	}
	if err := s.cfg.Alerts.DeleteReceiver(k.ctx(), alert.Actor(k.actor()), k.get("id")); err != nil {
		return err
	}
	return k.done("/fleet/alerts/receivers", "receiver.deleted")
}
