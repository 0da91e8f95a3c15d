package webapi

import (
	"math"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

func alertOf(a alert.Alert) fleetclient.Alert {
	out := fleetclient.Alert{
		ID: a.ID, Rule: a.Rule, Name: a.Name, Severity: a.Severity, Device: a.Device, Target: a.Target, Box: a.Box, Labels: a.Labels, Sentence: a.Sentence,
		Since: fleetapi.StampOf(a.Since), Fired: fleetapi.StampOf(a.Fired), Ended: fleetapi.StampOf(a.Ended), Reason: a.Reason, Told: a.Told, Withheld: a.Withheld,
		Acked: fleetapi.StampOf(a.Acked), AckedBy: a.AckedBy, Note: a.Note,
	}
	if !math.IsNaN(a.Value) && !math.IsInf(a.Value, 0) { // JSON has no such numbers
		out.Value = &a.Value
	}
	return out
}

func (k *call) listAlerts() (fleetclient.Page[fleetclient.Alert], error) {
	found, next, err := k.cfg.Alerts.List(k.r.Context(), alert.Actor(k.actor(readAlert)), alert.Query{
		Firing: k.boolean("firing"), Device: croft.DeviceID(k.q.Get("device")), Rule: k.q.Get("rule"), Cursor: k.q.Get("cursor"), Limit: k.integer("limit"),
	})
	return listOf(found, next, err, alertOf)
}

func (k *call) ack(in fleetclient.Ack) (none, error) {
	return none{}, k.cfg.Alerts.Acknowledge(k.r.Context(), alert.Actor(k.actor(writeAlert)), k.r.PathValue("id"), in.Note)
}

func ruleOf(r alert.Rule) fleetclient.Rule {
	return fleetclient.Rule{
		ID: r.ID, Name: r.Name, Expr: r.Expr, Condition: string(r.Condition), Of: r.Of, By: r.By, AtLeast: r.AtLeast, Percent: r.Percent,
		Within: fleetclient.Duration(r.Within), For: fleetclient.Duration(r.For), Clear: fleetclient.Duration(r.Clear),
		Selector: r.Selector, Severity: r.Severity, Sentence: r.Sentence, Owner: r.Owner, Off: r.Off,
	}
}

func (k *call) rules() (fleetclient.Page[fleetclient.JudgedRule], error) {
	found, err := k.cfg.Alerts.Rules(k.r.Context())
	return listOf(found, "", err, func(r alert.Judged) fleetclient.JudgedRule {
		return fleetclient.JudgedRule{Rule: ruleOf(r.Rule), Builtin: r.Builtin, Judged: fleetapi.StampOf(r.At), Error: r.Err}
	})
}

func (k *call) saveRule(id string, r fleetclient.Rule) (fleetclient.Rule, error) {
	saved, err := k.cfg.Alerts.SaveRule(k.r.Context(), alert.Actor(k.actor(writeAlert)), alert.Rule{
		ID: id, Name: r.Name, Expr: r.Expr, Condition: alert.Condition(r.Condition), Of: r.Of, By: r.By, AtLeast: r.AtLeast, Percent: r.Percent,
		Within: time.Duration(r.Within), For: time.Duration(r.For), Clear: time.Duration(r.Clear),
		Selector: r.Selector, Severity: r.Severity, Sentence: r.Sentence, Owner: r.Owner, Off: r.Off,
	})
	return ruleOf(saved), err
}

func (k *call) addRule(r fleetclient.Rule) (fleetclient.Rule, error) {
	if r.ID != "" {
		return r, usage("the id of a new rule is the fleet's to make")
	}
	return k.saveRule("", r)
}

func (k *call) changeRule(r fleetclient.Rule) (fleetclient.Rule, error) {
	if id := k.r.PathValue("id"); r.ID != "" && r.ID != id {
		return r, usage("the id is not that of the address")
	}
	return k.saveRule(k.r.PathValue("id"), r)
}

func (k *call) deleteRule() error {
	return k.cfg.Alerts.DeleteRule(k.r.Context(), alert.Actor(k.actor(writeAlert)), k.r.PathValue("id"))
}

func silenceOf(s alert.Silence) fleetclient.Silence {
	return fleetclient.Silence{ID: s.ID, Selector: s.Selector, Until: fleetapi.StampOf(s.Until), Why: s.Why, Made: fleetapi.StampOf(s.Made), By: s.By}
}

func (k *call) silences() (fleetclient.Page[fleetclient.Silence], error) {
	found, err := k.cfg.Alerts.Silences(k.r.Context())
	return listOf(found, "", err, silenceOf)
}

func (k *call) addSilence(s fleetclient.Silence) (fleetclient.Silence, error) {
	if s.ID != "" || s.By != "" || !s.Made.IsZero() {
		return s, usage("a new silence has a selector, an end and a reason")
	}
	made, err := k.cfg.Alerts.AddSilence(k.r.Context(), alert.Actor(k.actor(writeAlert)), alert.Silence{Selector: s.Selector, Until: s.Until.Time, Why: s.Why})
	return silenceOf(made), err
}

func (k *call) endSilence() error {
	return k.cfg.Alerts.EndSilence(k.r.Context(), alert.Actor(k.actor(writeAlert)), k.r.PathValue("id"))
}

func receiverOf(r alert.Receiver) fleetclient.Receiver {
	return fleetclient.Receiver{ID: r.ID, Name: r.Name, Kind: string(r.Kind), Address: r.Address, Severity: r.Severity, Selector: r.Selector}
}

func (k *call) receivers() (fleetclient.Page[fleetclient.Receiver], error) {
	found, err := k.cfg.Alerts.Receivers(k.r.Context())
	return listOf(found, "", err, receiverOf)
}

func (k *call) addReceiver(r fleetclient.Receiver) (fleetclient.NewReceiver, error) {
	if r.ID != "" {
		return fleetclient.NewReceiver{}, usage("the id of a new receiver is the fleet's to make")
	}
	made, secret, err := k.cfg.Alerts.AddReceiver(k.r.Context(), alert.Actor(k.actor(writeHook)), alert.Receiver{
		Name: r.Name, Kind: alert.Kind(r.Kind), Address: r.Address, Severity: r.Severity, Selector: r.Selector,
	})
	return fleetclient.NewReceiver{Receiver: receiverOf(made), Secret: secret}, err
}

// receiver is the one that the address names.
func (k *call) receiver() (alert.Receiver, error) {
	all, err := k.cfg.Alerts.Receivers(k.r.Context())
	if err != nil {
		return alert.Receiver{}, err
	}
	i := slices.IndexFunc(all, func(r alert.Receiver) bool { return r.ID == k.r.PathValue("id") })
	if i < 0 {
		return alert.Receiver{}, errNothing
	}
	return all[i], nil
}

func (k *call) changeReceiver(p fleetclient.ReceiverPatch) (fleetclient.Receiver, error) {
	r, err := k.receiver()
	if err != nil {
		return fleetclient.Receiver{}, err
	}
	if p.Name != nil {
		r.Name = *p.Name
	}
	if p.Severity != nil {
		r.Severity = *p.Severity
	}
	if p.Selector != nil {
		r.Selector = *p.Selector
	}
	return receiverOf(r), k.cfg.Alerts.ChangeReceiver(k.r.Context(), alert.Actor(k.actor(writeHook)), r)
}

func (k *call) deleteReceiver() error {
	return k.cfg.Alerts.DeleteReceiver(k.r.Context(), alert.Actor(k.actor(writeHook)), k.r.PathValue("id"))
}

func (k *call) tryReceiver() error {
	return k.cfg.Alerts.Try(k.r.Context(), k.r.PathValue("id"))
}

func (k *call) messages() (fleetclient.Page[fleetclient.Message], error) {
	r, err := k.receiver()
	if err != nil {
		return fleetclient.Page[fleetclient.Message]{}, err
	}
	found, next, err := k.cfg.Alerts.Messages(k.r.Context(), r.ID, k.q.Get("cursor"), k.integer("limit"))
	return listOf(found, next, err, func(m alert.Message) fleetclient.Message {
		return fleetclient.Message{
			ID: m.ID, Receiver: m.Receiver, Fate: string(m.Fate), Made: fleetapi.StampOf(m.Made), Tries: m.Tries,
			NextTry: fleetapi.StampOf(m.NextTry), Done: fleetapi.StampOf(m.Done), Subject: m.Subject, Error: m.Error,
		}
	})
}

func (k *call) quietHours() (fleetclient.QuietHours, error) {
	q, err := k.cfg.Alerts.Quiet(k.r.Context(), k.p.Account)
	return fleetclient.QuietHours{From: q.From, To: q.To, Zone: q.Zone, Mute: q.Mute}, err
}

func (k *call) setQuietHours(q fleetclient.QuietHours) (fleetclient.QuietHours, error) {
	if !rights.Allowed(k.p, rights.Write, rights.Object{Resource: rights.Person, Owner: k.p.Account}) {
		return q, errNothing
	}
	return q, k.cfg.Alerts.SetQuiet(k.r.Context(), k.p.Account, alert.Quiet{From: q.From, To: q.To, Zone: q.Zone, Mute: q.Mute})
}
