package fleetclient

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// values makes a query of what is not empty.
func values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func instant(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

func yes(b bool) string {
	if !b {
		return ""
	}
	return "true"
}

func get(path ...string) ask { return ask{method: http.MethodGet, path: join(path)} }
func post(key string, path ...string) ask {
	return ask{method: http.MethodPost, path: join(path), key: key}
}
func other(method string, path ...string) ask { return ask{method: method, path: join(path)} }

func join(parts []string) string {
	var path strings.Builder
	for _, p := range parts {
		path.WriteString("/" + url.PathEscape(p))
	}
	return path.String()
}

// WhoAmI is who the token belongs to.
func (c *Client) WhoAmI(ctx context.Context) (WhoAmI, error) {
	return fetch[WhoAmI](ctx, c, get("whoami"), nil)
}

// DeviceQuery says which boxes a list has. Empty fields restrict nothing.
type DeviceQuery struct {
	Selector string // of labels: "site=lab,tier in (a,b)"
	State    string // of the claim
	Online   *bool
	Release  croft.Version
	Board    string
	Owner    string
	Sort     string // id (default), name or seen
	PageSize int    // 1 to 500; default 50
}

// Devices lists boxes.
func (c *Client) Devices(ctx context.Context, q DeviceQuery) iter.Seq2[Device, error] {
	v := values("selector", q.Selector, "state", q.State, "release", string(q.Release), "board", q.Board, "owner", q.Owner, "sort", q.Sort, "limit", number(q.PageSize))
	if q.Online != nil {
		v.Set("online", strconv.FormatBool(*q.Online))
	}
	return pages[Device](ctx, c, "/devices", v)
}

// Device is one box.
func (c *Client) Device(ctx context.Context, id croft.DeviceID) (Device, error) {
	return fetch[Device](ctx, c, get("devices", string(id)), nil)
}

// Search finds up to 50 boxes by the beginning of an id, short name, serial number,
// address or word of the name; for staff also by an owner's e-mail address or a
// claim code.
func (c *Client) Search(ctx context.Context, text string) ([]Device, error) {
	return all[Device](ctx, c, "/search", values("q", text))
}

// ChangeDevice changes a box.
func (c *Client) ChangeDevice(ctx context.Context, id croft.DeviceID, p DevicePatch) (Device, error) {
	return fetch[Device](ctx, c, other(http.MethodPatch, "devices", string(id)), p)
}

// Events is the timeline of a box, newest first.
func (c *Client) Events(ctx context.Context, id croft.DeviceID, pageSize int) iter.Seq2[Event, error] {
	return pages[Event](ctx, c, join([]string{"devices", string(id), "events"}), values("limit", number(pageSize)))
}

// Log is lines of a box's log after line n, oldest first; with 0 the newest ones.
func (c *Client) Log(ctx context.Context, id croft.DeviceID, after int64, limit int) ([]LogLine, error) {
	v := values("limit", number(limit))
	if after > 0 {
		v.Set("after", strconv.FormatInt(after, 10))
	}
	return all[LogLine](ctx, c, join([]string{"devices", string(id), "log"}), v)
}

// WatchDevice yields a box, and again whenever it changes, until ctx ends.
func (c *Client) WatchDevice(ctx context.Context, id croft.DeviceID) iter.Seq2[Change, error] {
	return c.watch(ctx, join([]string{"devices", string(id), "watch"}), nil)
}

// WatchDevices yields the boxes that a selector matches, and then changes. At most
// 1,000 boxes can be watched at once.
func (c *Client) WatchDevices(ctx context.Context, selector string) iter.Seq2[Change, error] {
	return c.watch(ctx, "/devices/watch", values("selector", selector))
}

// StartClaim finds the box of a code and keeps it for ten minutes.
func (c *Client) StartClaim(ctx context.Context, code string) (FoundBox, error) {
	return fetch[FoundBox](ctx, c, post("", "claims"), ClaimCode{Code: code})
}

// ConfirmClaim makes a box that was found the account's own.
func (c *Client) ConfirmClaim(ctx context.Context, id croft.DeviceID) (Device, error) {
	return fetch[Device](ctx, c, post("", "claims", string(id), "confirm"), nil)
}

// UndoClaim lets go of a box that was found.
func (c *Client) UndoClaim(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, other(http.MethodDelete, "claims", string(id)), nil, nil)
}

// OfferTransfer makes the code with which somebody else can claim the box.
func (c *Client) OfferTransfer(ctx context.Context, id croft.DeviceID) (TransferCode, error) {
	return fetch[TransferCode](ctx, c, post("", "devices", string(id), "transfer"), nil)
}

// WithdrawTransfer takes that code back.
func (c *Client) WithdrawTransfer(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, other(http.MethodDelete, "devices", string(id), "transfer"), nil, nil)
}

// Release gives a box up: then it is nobody's.
func (c *Client) Release(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, post("", "devices", string(id), "release"), nil, nil)
}

// Retire takes a box out of the fleet for good.
func (c *Client) Retire(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, post("", "devices", string(id), "retire"), nil, nil)
}

// Revoke makes a box's certificates worthless; it enrols again.
func (c *Client) Revoke(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, post("", "devices", string(id), "revoke"), nil, nil)
}

// FreeVoucher lets another key come with the voucher of a retired box.
func (c *Client) FreeVoucher(ctx context.Context, id croft.DeviceID) error {
	return c.call(ctx, post("", "devices", string(id), "free-voucher"), nil, nil)
}

// ImportSerials gives the fleet a list of serial numbers that `croft factory` wrote
// (CSV, 1 MiB at most).
func (c *Client) ImportSerials(ctx context.Context, csv []byte) (SerialImport, error) {
	a := post("", "serials")
	a.body, a.kind = csv, "text/csv"
	return fetch[SerialImport](ctx, c, a, nil)
}

// Groups lists the staff's groups.
func (c *Client) Groups(ctx context.Context) ([]Group, error) {
	return all[Group](ctx, c, "/groups", nil)
}

// AddGroup makes a group.
func (c *Client) AddGroup(ctx context.Context, g Group) (Group, error) {
	return fetch[Group](ctx, c, post("", "groups"), g)
}

// ChangeGroup stores a group that is there.
func (c *Client) ChangeGroup(ctx context.Context, g Group) (Group, error) {
	id := g.ID
	g.ID = ""
	return fetch[Group](ctx, c, other(http.MethodPut, "groups", id), g)
}

// DeleteGroup deletes a group.
func (c *Client) DeleteGroup(ctx context.Context, id string) error {
	return c.call(ctx, other(http.MethodDelete, "groups", id), nil, nil)
}

// JobQuery says which jobs a list has. One of Device, Bulk and Pending is needed,
// and owners say Device.
type JobQuery struct {
	Device   croft.DeviceID
	Bulk     string
	Pending  bool // those that are not ended
	PageSize int
}

// Jobs lists jobs, newest first.
func (c *Client) Jobs(ctx context.Context, q JobQuery) iter.Seq2[Job, error] {
	return pages[Job](ctx, c, "/jobs", values("device", string(q.Device), "bulk", q.Bulk, "pending", yes(q.Pending), "limit", number(q.PageSize)))
}

// Job is one job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return fetch[Job](ctx, c, get("jobs", id), nil)
}

// StartJob asks a box. With a key of the caller's it can be asked again.
func (c *Client) StartJob(ctx context.Context, j NewJob, key string) (Job, error) {
	return fetch[Job](ctx, c, post(key, "jobs"), j)
}

// StartJobs asks many boxes. If it fails, some may have the job: with the same key
// the others get it.
func (c *Client) StartJobs(ctx context.Context, j BulkJob, key string) (BulkResult, error) {
	return fetch[BulkResult](ctx, c, post(key, "jobs", "bulk"), j)
}

// CancelJob takes a job back.
func (c *Client) CancelJob(ctx context.Context, id string) (Job, error) {
	return fetch[Job](ctx, c, post("", "jobs", id, "cancel"), nil)
}

// JobHistory is what the box said about a job.
func (c *Client) JobHistory(ctx context.Context, id string) ([]JobStatus, error) {
	return all[JobStatus](ctx, c, join([]string{"jobs", id, "history"}), nil)
}

// AlertQuery says which alerts a list has.
type AlertQuery struct {
	Firing   bool
	Device   croft.DeviceID
	Rule     string
	PageSize int
}

// Alerts lists alerts, newest first.
func (c *Client) Alerts(ctx context.Context, q AlertQuery) iter.Seq2[Alert, error] {
	return pages[Alert](ctx, c, "/alerts", values("firing", yes(q.Firing), "device", string(q.Device), "rule", q.Rule, "limit", number(q.PageSize)))
}

// Ack takes an alert on.
func (c *Client) Ack(ctx context.Context, id, note string) error {
	return c.call(ctx, post("", "alerts", id, "ack"), Ack{Note: note}, nil)
}

// Rules lists the alert rules.
func (c *Client) Rules(ctx context.Context) ([]JudgedRule, error) {
	return all[JudgedRule](ctx, c, "/rules", nil)
}

// AddRule makes a rule.
func (c *Client) AddRule(ctx context.Context, r Rule) (Rule, error) {
	return fetch[Rule](ctx, c, post("", "rules"), r)
}

// ChangeRule stores a rule that is there, a built-in one too.
func (c *Client) ChangeRule(ctx context.Context, r Rule) (Rule, error) {
	id := r.ID
	r.ID = ""
	return fetch[Rule](ctx, c, other(http.MethodPut, "rules", id), r)
}

// DeleteRule deletes a rule, or brings a built-in one back as it was.
func (c *Client) DeleteRule(ctx context.Context, id string) error {
	return c.call(ctx, other(http.MethodDelete, "rules", id), nil, nil)
}

// Silences lists those that last.
func (c *Client) Silences(ctx context.Context) ([]Silence, error) {
	return all[Silence](ctx, c, "/silences", nil)
}

// AddSilence makes a silence of Selector, Until and Why.
func (c *Client) AddSilence(ctx context.Context, s Silence) (Silence, error) {
	return fetch[Silence](ctx, c, post("", "silences"), s)
}

// EndSilence ends a silence before its time.
func (c *Client) EndSilence(ctx context.Context, id string) error {
	return c.call(ctx, other(http.MethodDelete, "silences", id), nil, nil)
}

// Receivers lists whom alerts are told.
func (c *Client) Receivers(ctx context.Context) ([]Receiver, error) {
	return all[Receiver](ctx, c, "/receivers", nil)
}

// AddReceiver makes a receiver. The secret of a webhook is in this answer and in
// none after it.
func (c *Client) AddReceiver(ctx context.Context, r Receiver) (NewReceiver, error) {
	return fetch[NewReceiver](ctx, c, post("", "receivers"), r)
}

// ChangeReceiver changes a receiver.
func (c *Client) ChangeReceiver(ctx context.Context, id string, p ReceiverPatch) (Receiver, error) {
	return fetch[Receiver](ctx, c, other(http.MethodPatch, "receivers", id), p)
}

// DeleteReceiver deletes a receiver.
func (c *Client) DeleteReceiver(ctx context.Context, id string) error {
	return c.call(ctx, other(http.MethodDelete, "receivers", id), nil, nil)
}

// TryReceiver sends a message without alerts at once.
func (c *Client) TryReceiver(ctx context.Context, id string) error {
	return c.call(ctx, post("", "receivers", id, "test"), nil, nil)
}

// Messages is what a receiver was told, newest first.
func (c *Client) Messages(ctx context.Context, receiver string) iter.Seq2[Message, error] {
	return pages[Message](ctx, c, join([]string{"receivers", receiver, "messages"}), url.Values{})
}

// QuietHours is when the account is left in peace.
func (c *Client) QuietHours(ctx context.Context) (QuietHours, error) {
	return fetch[QuietHours](ctx, c, get("quiet-hours"), nil)
}

// SetQuietHours says when.
func (c *Client) SetQuietHours(ctx context.Context, q QuietHours) (QuietHours, error) {
	return fetch[QuietHours](ctx, c, other(http.MethodPut, "quiet-hours"), q)
}

// Overview is the fleet in numbers.
func (c *Client) Overview(ctx context.Context) (Overview, error) {
	return fetch[Overview](ctx, c, get("overview"), nil)
}

// Owners lists owners whose e-mail address or name begins with text.
func (c *Client) Owners(ctx context.Context, text string, pageSize int) iter.Seq2[Account, error] {
	return pages[Account](ctx, c, "/owners", values("q", text, "limit", number(pageSize)))
}

// Owner is one account.
func (c *Client) Owner(ctx context.Context, id string) (Account, error) {
	return fetch[Account](ctx, c, get("owners", id), nil)
}

// AuditQuery says which entries a list has.
type AuditQuery struct {
	Actor, Object string
	Action        string // or with a dot at the end all that begin so
	Address       string
	From, Until   time.Time
	PageSize      int
}

// Audit is who changed what, newest first.
func (c *Client) Audit(ctx context.Context, q AuditQuery) iter.Seq2[AuditEntry, error] {
	return pages[AuditEntry](ctx, c, "/audit", values("actor", q.Actor, "object", q.Object, "action", q.Action,
		"address", q.Address, "from", instant(q.From), "until", instant(q.Until), "limit", number(q.PageSize)))
}

// StartBundle asks a box for a support bundle. Bundles of that job are there once
// it is SUCCEEDED.
func (c *Client) StartBundle(ctx context.Context, id croft.DeviceID) (Job, error) {
	return fetch[Job](ctx, c, post("", "devices", string(id), "bundles"), nil)
}

// Bundles lists the support bundles of a box.
func (c *Client) Bundles(ctx context.Context, id croft.DeviceID) ([]Bundle, error) {
	return all[Bundle](ctx, c, join([]string{"devices", string(id), "bundles"}), nil)
}

// OpenBundle is the content of a support bundle.
func (c *Client) OpenBundle(ctx context.Context, id string) (io.ReadCloser, error) {
	a := get("bundles", id)
	a.accept = "application/octet-stream"
	answer, err := c.send(ctx, a)
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}
