package fleetlink

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const (
	toldKey   = "fleetlink/told"
	tellEvery = 3 * time.Second
	tellAtOne = 64 // so many events at once, that none is left out on the way
	newsFor   = time.Minute
)

// told is how far the journal's events were handed to the line.
type told struct {
	Journal string `json:"journal"` // its ID
	Seq     uint64 `json:"seq"`
}

// events of the journal in words, with how much they matter. Others are told as
// they are.
var eventWords = map[journal.Kind]struct {
	severity fleetapi.Severity
	sentence string
}{
	"agent_started":    {fleetapi.SeverityInfo, "The box's software started."},
	"boot_confirmed":   {fleetapi.SeverityInfo, "The box started and found itself well."},
	"trial_began":      {fleetapi.SeverityInfo, "The box tries a new version out."},
	"ended_uncleanly":  {fleetapi.SeverityWarning, "The box was not shut down before it started: the power was cut, or it crashed."},
	"kernel_panicked":  {fleetapi.SeverityError, "The kernel of the box panicked before this start."},
	"slot_given_up":    {fleetapi.SeverityError, "A new version did not work well, and the box went back to the old one."},
	"slot_passed_over": {fleetapi.SeverityWarning, "The box's other version cannot be started."},
	"identity_noted":   {fleetapi.SeverityWarning, "Something was wrong with the box's keys."},
	"lease_won":        {fleetapi.SeverityInfo, "A lease began."},
	"lease_ended":      {fleetapi.SeverityInfo, "A lease ended."},
}

// tellEvents hands the journal's events to the line, each once, until ctx ends;
// then the line takes no more, and what is left is told at the next start. One that
// is handed on in the last moments before a power cut may be lost, or told twice.
func (l *Link) tellEvents(ctx context.Context) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		if err := l.tellNew(); err != nil {
			l.log.Warn("event may be told twice", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *Link) tellNew() error {
	j := l.cfg.Journal
	at := told{Journal: j.ID()}
	var last told
	if found, err := j.Get(toldKey, &last); err == nil && found && last.Journal == at.Journal {
		at = last
	}
	at.Seq = max(at.Seq, l.toldSeq)
	n := 0
	for e := range j.Events(at.Seq) {
		if n++; n > tellAtOne {
			break
		}
		l.tellEvent(e)
		at.Seq = e.Seq
	}
	if n == 0 {
		return nil
	}
	l.toldSeq = at.Seq // also if it cannot be written
	return j.Put(toldKey, at)
}

func (l *Link) tellEvent(e journal.Event) {
	words, known := eventWords[e.Kind]
	if !known {
		words.severity = fleetapi.SeverityInfo
	}
	fields := eventFields(e.Fields)
	if time.Since(e.At) > newsFor {
		fields["happened_at"] = e.At.UTC().Format(time.RFC3339)
	}
	if words.sentence == "" { // some bring their own
		words.sentence = fields["note"]
		delete(fields, "note")
	}
	l.line.Event(string(e.Kind), words.severity, words.sentence, fields)
}

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// eventFields is an event's fields as names and texts. What has no form that the
// fleet takes is left out.
func eventFields(raw json.RawMessage) map[string]string {
	var all map[string]any
	fields := map[string]string{}
	if json.Unmarshal(raw, &all) != nil {
		return fields
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if len(fields) == fleetapi.MaxFields-2 { // happened_at and the sentence
			break
		}
		text := ""
		switch v := all[name].(type) {
		case string:
			text = v
		case bool, float64:
			text = fmt.Sprint(v)
		default:
			continue
		}
		if text != "" && fieldName.MatchString(name) {
			fields[name] = text
		}
	}
	return fields
}
