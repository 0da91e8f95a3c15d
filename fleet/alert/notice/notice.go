// Package notice is what people and programs are told of alerts: the words of
// mails, the JSON of webhooks, its signature, and how it gets there.
//
//	poster := notice.NewPoster(nil)
//	err = poster.Post(ctx, address, secret, id, body)
//
// A poster reaches the public internet and the networks it was allowed, follows
// no redirect and uses no proxy. It tries once.
package notice

import (
	"fmt"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// State is what there is to tell of an alert.
type State string

// The states.
const (
	Firing   State = "firing"
	Resolved State = "resolved"
)

// News is what a receiver is told of one alert.
type News struct {
	Alert    string            `json:"alert"` // alr_…
	State    State             `json:"state"`
	Rule     string            `json:"rule,omitempty"`
	Name     string            `json:"name,omitempty"` // of the rule
	Severity fleetapi.Severity `json:"severity"`
	Device   croft.DeviceID    `json:"device,omitempty"`
	Box      string            `json:"box,omitempty"`     // name of the box
	Devices  []croft.DeviceID  `json:"devices,omitempty"` // of a group: the first 100 that were bad
	Labels   map[string]string `json:"labels,omitempty"`
	Value    float64           `json:"value"`
	Sentence string            `json:"sentence"`
	Since    fleetapi.Stamp    `json:"since"` // when it became bad
	Fired    fleetapi.Stamp    `json:"fired"`
	Ended    fleetapi.Stamp    `json:"ended,omitzero"`
	Reason   string            `json:"reason,omitempty"` // why it ended
}

// Delivery is what a webhook gets, as JSON. One that repeats an ID is the same
// message. A test has no alerts.
type Delivery struct {
	ID     string         `json:"id"`    // ntf_…
	Fleet  string         `json:"fleet"` // its name
	At     fleetapi.Stamp `json:"at"`    // when it was written
	Alerts []News         `json:"alerts"`
}

// Bounds of mails.
const (
	maxSubject = 120
	maxLines   = 50
)

// split is the news that is still news, and what is over. What began and ended in
// one message is over.
func split(news []News) (now, over []News) {
	ended := map[string]bool{}
	for _, n := range news {
		if n.State == Resolved {
			ended[n.Alert] = true
			over = append(over, n)
		}
	}
	for _, n := range news {
		if !ended[n.Alert] {
			now = append(now, n)
		}
	}
	return now, over
}

// Subject is one line about news of a fleet; without news, of a test.
func Subject(fleet string, news []News) string {
	now, over := split(news)
	text := fmt.Sprintf("%d new, %d over", len(now), len(over))
	switch {
	case len(now) == 1 && len(over) == 0:
		text = now[0].Sentence
	case len(now) == 0 && len(over) == 1:
		text = "Over: " + over[0].Sentence
	case len(news) == 0:
		text = "Test of alerts"
	}
	return fleetapi.CleanText(fleet+": "+text, maxSubject)
}

// ForStaff is the text of a mail with all details; without news, of a test.
func ForStaff(news []News) string {
	if len(news) == 0 {
		return "This is a test. Alerts will come to this address.\n"
	}
	now, over := split(news)
	return part("These alerts fire:", now, details) + part("These are over:", over, details)
}

// ForOwner is the text of a mail in plain sentences.
func ForOwner(news []News) string {
	now, over := split(news)
	return part("This needs a look:", now, plain) + part("This is over:", over, plain)
}

func part(head string, list []News, line func(News) string) string {
	if len(list) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(head + "\n\n")
	for _, one := range list[:min(len(list), maxLines)] {
		b.WriteString(line(one) + "\n\n")
	}
	if more := len(list) - maxLines; more > 0 {
		fmt.Fprintf(&b, "And %d more.\n\n", more)
	}
	return b.String()
}

// span is from when to when it was, as far as it is known.
func (n News) span() string {
	const form = "2006-01-02 15:04"
	text := "since " + n.Since.UTC().Format(form)
	if n.State == Resolved {
		text = "from " + n.Since.UTC().Format(form) + " to " + n.Ended.UTC().Format(form)
	}
	return text + " UTC"
}

func plain(n News) string {
	text := n.Sentence
	if n.Box != "" {
		text = n.Box + ": " + text
	}
	return text + " (" + n.span() + ")"
}

func details(n News) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[%s] %s\n  rule %s, %s", n.Severity, n.Sentence, n.Rule, n.span())
	if n.Reason != "" {
		b.WriteString(". " + n.Reason)
	}
	devices := n.Devices
	if n.Device != "" {
		devices = []croft.DeviceID{n.Device}
	}
	for _, id := range devices {
		fmt.Fprintf(&b, "\n  device %s", id)
	}
	fmt.Fprintf(&b, "\n  alert %s", n.Alert)
	return b.String()
}
