package fleetclient

import (
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Page is part of a list.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // cursor of the next page; empty: this is the last
}

// Duration is a time span in JSON, written as in Go: "10s", "1h30m".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil || parsed < 0 {
		return fmt.Errorf("%.40q is no time span such as 10s or 1h30m", text)
	}
	*d = Duration(parsed)
	return nil
}

// Problem is the body of every answer that reports an error (RFC 9457).
type Problem struct {
	Type   string     `json:"type"`   // urn:croft:problem:KIND, or about:blank
	Title  string     `json:"title"`  // of the status
	Status int        `json:"status"` // of the answer
	Detail string     `json:"detail"` // what went wrong, for people
	Remedy string     `json:"remedy,omitempty"`
	Kind   croft.Kind `json:"kind,omitempty"` // what programs decide by
}

// ProblemType is the media type of a [Problem].
const ProblemType = "application/problem+json"

// WhoAmI is who asks.
type WhoAmI struct {
	Account string   `json:"account"`
	Role    string   `json:"role"` // owner, support, operator or admin
	Name    string   `json:"name,omitempty"`
	Token   string   `json:"token,omitempty"`  // tok_…; empty for a session
	Scopes  []string `json:"scopes,omitempty"` // what the token may do, as far as its account may
}

// Device is a box. Lists leave Facts out.
type Device struct {
	ID               croft.DeviceID    `json:"id"`
	Name             string            `json:"name,omitempty"` // its owner's
	Serial           string            `json:"serial,omitempty"`
	SerialProven     bool              `json:"serial_proven,omitempty"` // by a voucher of the factory
	Board            string            `json:"board"`
	Release          croft.Version     `json:"release,omitempty"`        // what it runs
	WantedRelease    croft.Version     `json:"wanted_release,omitempty"` // what it should run; empty: what it runs
	Slot             croft.Slot        `json:"slot,omitempty"`
	BootID           string            `json:"boot_id,omitempty"`
	ClockSynced      bool              `json:"clock_synced"`
	Online           bool              `json:"online"`
	PresenceSince    fleetapi.Stamp    `json:"presence_since,omitzero"` // since when it is online or not
	Seen             fleetapi.Stamp    `json:"seen,omitzero"`           // last sign of life
	Enrolled         fleetapi.Stamp    `json:"enrolled"`
	Address          string            `json:"address,omitempty"` // public
	CertificateUntil fleetapi.Stamp    `json:"certificate_until,omitzero"`
	Claim            Claim             `json:"claim"`
	Labels           map[string]string `json:"labels"`
	Interval         Duration          `json:"interval"`         // between readings
	Alerts           string            `json:"alerts,omitempty"` // what is wrong, as the staff is told; empty for owners, see Client.Alerts
	Facts            map[string]string `json:"facts,omitempty"`  // what it says about itself
}

// Claim is whose a box is.
type Claim struct {
	State      string         `json:"state"` // unclaimed, claiming, claimed, transferring, accepting, released or retired
	Owner      string         `json:"owner,omitempty"`
	Since      fleetapi.Stamp `json:"since,omitzero"`       // when it became the owner's
	Until      fleetapi.Stamp `json:"until,omitzero"`       // when a claim that was begun ends
	OfferUntil fleetapi.Stamp `json:"offer_until,omitzero"` // when the seller's code ends
}

// DevicePatch changes what is not nil. Labels are merged: null takes one away.
type DevicePatch struct {
	Name     *string            `json:"name,omitempty"`
	Labels   map[string]*string `json:"labels,omitempty"`
	Interval *Duration          `json:"interval,omitempty"` // 0s: the fleet's default
}

// Event is one line of a box's timeline.
type Event struct {
	ID          string            `json:"id"`
	At          fleetapi.Stamp    `json:"at"`                // when it happened, as far as is known
	BoxTime     fleetapi.Stamp    `json:"box_time,omitzero"` // what the box's clock said
	ClockSynced bool              `json:"clock_synced"`
	Received    fleetapi.Stamp    `json:"received"`
	Kind        string            `json:"kind"`
	Severity    fleetapi.Severity `json:"severity"`
	Fields      map[string]string `json:"fields,omitempty"`
}

// LogLine is one line of a box's log.
type LogLine struct {
	N        int64          `json:"n"` // grows
	At       fleetapi.Stamp `json:"at"`
	Received fleetapi.Stamp `json:"received"`
	Level    string         `json:"level"`
	Text     string         `json:"text"`
}

// Change is what a watch tells. The first ones are how things are.
type Change struct {
	Device *Device        `json:"device,omitempty"`
	Gone   croft.DeviceID `json:"gone,omitempty"` // it is no longer among those watched
}

// ClaimCode is what an owner typed or scanned.
type ClaimCode struct {
	Code string `json:"code"`
}

// FoundBox is the box of a claim code, kept for who asked until he confirms.
type FoundBox struct {
	Device   croft.DeviceID `json:"device"`
	Board    string         `json:"board"`
	Online   bool           `json:"online"`
	Transfer bool           `json:"transfer"` // it comes from another owner
	Until    fleetapi.Stamp `json:"until"`
}

// TransferCode is with what a buyer claims a box, once.
type TransferCode struct {
	Code  string         `json:"code"`
	Until fleetapi.Stamp `json:"until"`
}

// SerialImport is what became of a list of serial numbers.
type SerialImport struct {
	Added int `json:"added"`
	Known int `json:"known"`
}

// Group is a selector with a name.
type Group struct {
	ID       string `json:"id,omitempty"` // grp_…; the fleet makes it
	Name     string `json:"name"`
	Selector string `json:"selector"`
}

// Job is one job of one box.
type Job struct {
	ID        string            `json:"id"`
	Device    croft.DeviceID    `json:"device"`
	Kind      fleetapi.JobKind  `json:"kind"`
	Args      map[string]string `json:"args,omitempty"`
	State     fleetapi.JobState `json:"state"`
	Canceling bool              `json:"canceling,omitempty"` // the box has not said that it ended it
	Delivered bool              `json:"delivered"`           // the broker has it
	Detail    string            `json:"detail,omitempty"`    // what the box says about it
	Results   map[string]string `json:"results,omitempty"`
	By        string            `json:"by,omitempty"`   // account; not told to owners
	Bulk      string            `json:"bulk,omitempty"` // the same for jobs ordered together; not told to owners
	Created   fleetapi.Stamp    `json:"created"`
	Deadline  fleetapi.Stamp    `json:"deadline"`
	Finished  fleetapi.Stamp    `json:"finished,omitzero"`
}

// NewJob asks one box.
type NewJob struct {
	Device   croft.DeviceID    `json:"device"`
	Kind     fleetapi.JobKind  `json:"kind"`
	Args     map[string]string `json:"args,omitempty"`
	Deadline fleetapi.Stamp    `json:"deadline,omitzero"` // none: in a day
}

// BulkJob asks all boxes that a selector matches.
type BulkJob struct {
	Selector string            `json:"selector,omitempty"`
	All      bool              `json:"all,omitempty"` // every box is meant; then no selector
	Kind     fleetapi.JobKind  `json:"kind"`
	Args     map[string]string `json:"args,omitempty"`
	Deadline fleetapi.Stamp    `json:"deadline,omitzero"`
}

// BulkResult is what became of an order to many.
type BulkResult struct {
	Bulk    string           `json:"bulk"` // for [JobQuery]
	Queued  int              `json:"queued"`
	Skipped []croft.DeviceID `json:"skipped"` // boxes with too many jobs
}

// JobStatus is one thing a box said about a job.
type JobStatus struct {
	State    fleetapi.JobState `json:"state"`
	At       fleetapi.Stamp    `json:"at"` // device clock
	Received fleetapi.Stamp    `json:"received"`
	Detail   string            `json:"detail,omitempty"`
	Taken    bool              `json:"taken"` // false: it came too late to change the job
}

// Alert is one time that a rule fired.
type Alert struct {
	ID       string            `json:"id"`
	Rule     string            `json:"rule"`
	Name     string            `json:"name"` // of the rule
	Severity fleetapi.Severity `json:"severity"`
	Device   croft.DeviceID    `json:"device,omitempty"` // empty: it is about a group, or the fleet
	Target   string            `json:"target"`
	Box      string            `json:"box,omitempty"` // name of the box
	Labels   map[string]string `json:"labels,omitempty"`
	Sentence string            `json:"sentence"`
	Value    *float64          `json:"value,omitempty"` // what the rule's expression found; none where that is no number
	Since    fleetapi.Stamp    `json:"since"`           // when it became bad
	Fired    fleetapi.Stamp    `json:"fired"`
	Ended    fleetapi.Stamp    `json:"ended,omitzero"`
	Reason   string            `json:"reason,omitempty"`   // why it ended
	Told     bool              `json:"told"`               // those who are to know were told
	Withheld string            `json:"withheld,omitempty"` // why not: group or silence
	Acked    fleetapi.Stamp    `json:"acked,omitzero"`
	AckedBy  string            `json:"acked_by,omitempty"`
	Note     string            `json:"note,omitempty"`
}

// Ack takes an alert on.
type Ack struct {
	Note string `json:"note,omitempty"`
}

// Rule says what is bad, for how long it may be, and what is said then. It has
// one of Expr, Condition and Of.
type Rule struct {
	ID        string            `json:"id,omitempty"` // the fleet makes it
	Name      string            `json:"name"`
	Expr      string            `json:"expr,omitempty"` // PromQL; its answer has a value for each bad box, by the label "device"
	Condition string            `json:"condition,omitempty"`
	Of        string            `json:"of,omitempty"` // bad for groups of boxes, by this rule
	By        string            `json:"by,omitempty"`
	AtLeast   int               `json:"at_least,omitempty"`
	Percent   int               `json:"percent,omitempty"`
	Within    Duration          `json:"within,omitempty"`
	For       Duration          `json:"for"`
	Clear     Duration          `json:"clear,omitempty"`
	Selector  string            `json:"selector,omitempty"`
	Severity  fleetapi.Severity `json:"severity"`
	Sentence  string            `json:"sentence"`
	Owner     string            `json:"owner,omitempty"` // the sentence for owners; without one they are not told
	Off       bool              `json:"off,omitempty"`
}

// JudgedRule is a rule and how it was last judged.
type JudgedRule struct {
	Rule    Rule           `json:"rule"`
	Builtin bool           `json:"builtin"`
	Judged  fleetapi.Stamp `json:"judged,omitzero"`
	Error   string         `json:"error,omitempty"` // why it cannot be judged now
}

// Silence holds back alerts that its selector matches.
type Silence struct {
	ID       string         `json:"id,omitempty"`
	Selector string         `json:"selector"`
	Until    fleetapi.Stamp `json:"until"`
	Why      string         `json:"why"`
	Made     fleetapi.Stamp `json:"made,omitzero"`
	By       string         `json:"by,omitempty"`
}

// Receiver is whom of the staff, or which program of theirs, to tell of alerts.
// One of kind webhook gets each by POST as JSON, signed: see package notice.
type Receiver struct {
	ID       string            `json:"id,omitempty"`
	Name     string            `json:"name"`
	Kind     string            `json:"kind"` // webhook or email
	Address  string            `json:"address"`
	Severity fleetapi.Severity `json:"severity,omitempty"` // this and above; default warning
	Selector string            `json:"selector,omitempty"`
}

// NewReceiver is a receiver just made, with the secret that signs what a webhook
// gets. It is told this once.
type NewReceiver struct {
	Receiver Receiver `json:"receiver"`
	Secret   string   `json:"secret,omitempty"`
}

// ReceiverPatch is what may change of a receiver.
type ReceiverPatch struct {
	Name     *string            `json:"name,omitempty"`
	Severity *fleetapi.Severity `json:"severity,omitempty"`
	Selector *string            `json:"selector,omitempty"`
}

// Message is some news for one receiver.
type Message struct {
	ID       string         `json:"id"`
	Receiver string         `json:"receiver"`
	Fate     string         `json:"fate"` // queued, sent or failed
	Made     fleetapi.Stamp `json:"made"`
	Tries    int            `json:"tries"`
	NextTry  fleetapi.Stamp `json:"next_try,omitzero"`
	Done     fleetapi.Stamp `json:"done,omitzero"`
	Subject  string         `json:"subject"`
	Error    string         `json:"error,omitempty"`
}

// QuietHours is when an owner is left in peace.
type QuietHours struct {
	From int    `json:"from"`           // minutes after midnight, 0 to 1439
	To   int    `json:"to"`             // the same as From: no quiet hours
	Zone string `json:"zone,omitempty"` // "Europe/Vienna"; empty: UTC
	Mute bool   `json:"mute,omitempty"` // nothing is told at all
}

// Overview is the fleet in numbers, up to five seconds old.
type Overview struct {
	Total  int     `json:"total"` // boxes that are not retired
	Online int     `json:"online"`
	Firing int     `json:"firing"` // alerts; 500 stands for more
	Counts []Count `json:"counts"`
}

// Count is how many boxes there are of something.
type Count struct {
	Board   string        `json:"board"`
	Release croft.Version `json:"release"`
	State   string        `json:"state"` // of the claim
	Online  int           `json:"online"`
	All     int           `json:"all"`
}

// Account is one person.
type Account struct {
	ID       string         `json:"id"`
	Role     string         `json:"role"`
	Name     string         `json:"name"`
	Email    string         `json:"email,omitempty"`
	Disabled bool           `json:"disabled,omitempty"`
	Created  fleetapi.Stamp `json:"created"`
}

// Bundle is a support bundle of a box.
type Bundle struct {
	ID     string         `json:"id"`
	Device croft.DeviceID `json:"device"`
	Job    string         `json:"job,omitempty"` // that asked for it
	Made   fleetapi.Stamp `json:"made"`
	Bytes  int64          `json:"bytes"`
	Name   string         `json:"name,omitempty"` // of the file
}

// AuditEntry is one change that somebody made.
type AuditEntry struct {
	Seq     int64             `json:"seq"`
	ID      string            `json:"id"`
	At      fleetapi.Stamp    `json:"at"`
	Actor   string            `json:"actor"`
	Role    string            `json:"role,omitempty"`
	Address string            `json:"address,omitempty"`
	Action  string            `json:"action"`
	Kind    string            `json:"kind,omitempty"`
	Object  string            `json:"object,omitempty"`
	Before  map[string]string `json:"before,omitempty"`
	After   map[string]string `json:"after,omitempty"`
}
