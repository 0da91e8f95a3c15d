package staff

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/health"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// Finding is one thing that is wrong with a box.
type Finding struct {
	Tone         frame.Tone
	Text, Remedy string
}

// Fact is a line of what is known.
type Fact struct {
	Key, Text string
}

// Lease is what one lease uses now.
type Lease struct {
	ID                    string
	CPU                   float64 // cores
	Memory, Disk, In, Out float64 // bytes; In and Out a second
}

// EventRow is an event in words.
type EventRow struct {
	device.Event
	Tone   frame.Tone
	Text   string
	Detail []string
}

// JobRow is a job as lists show it.
type JobRow struct {
	job.Job
	Tone  frame.Tone
	Kind  string
	State string
	By    string
	Path  string
	Box   Row
	Open  bool // it can be canceled
}

type boxPage struct {
	Row
	Findings    []Finding
	Gauges      Gauges
	Neighbours  string
	Alerts      []Firing
	Last        *EventRow
	Owner       string
	OwnerPath   string
	Facts       []Fact
	ClaimWord   string
	Charts      []chartView
	Spans       []Choice // Value is an address
	Leases      []Lease
	NoReadings  bool // they could not be asked for
	Events      []EventRow
	Lines       []device.LogLine
	Jobs        []JobRow
	Bundles     []bundle.Info
	Collecting  bool // a bundle was ordered and is not there yet
	LabelText   string
	Interval    string
	Retired     bool
	Certificate string // key of the word for how it is
	Key         string // makes a job of a form that is sent twice one job
}

// Gauges is what a box measures now; what is not measured is not known.
type Gauges struct {
	CPU, Memory, Disk, Heat Gauge
}

// Any reports whether anything was measured.
func (g Gauges) Any() bool { return g.CPU.Known || g.Memory.Known || g.Disk.Known || g.Heat.Known }

// Gauge is one number with how it is meant.
type Gauge struct {
	Known bool
	Share float64 // of one, for the bar
	Text  string
	Tone  frame.Tone
}

func only(id croft.DeviceID) timeseries.Scope { return timeseries.Scope{Devices: []croft.DeviceID{id}} }

// gauge is a number that is bad from a value on, and worth a warning from another.
func gauge(value float64, known bool, warn, bad, whole float64, unit frame.Unit) Gauge {
	if !known || math.IsNaN(value) {
		return Gauge{}
	}
	g := Gauge{Known: true, Share: min(max(value/whole, 0), 1), Text: unit.Format(value), Tone: frame.Good}
	switch {
	case value >= bad:
		g.Tone = frame.Bad
	case value >= warn:
		g.Tone = frame.Warn
	}
	return g
}

// saidBy are the diagnoses that say what a built-in rule says.
var saidBy = map[string][]health.Code{
	"offline": {health.Offline, health.NoInternet}, "hot": {health.Hot}, "disk_full": {health.DiskFull}, "throttling": {health.Throttling},
	"crash_loop": {health.CrashLoop}, "clock_wrong": {health.ClockWrong}, "certificate_ends": {health.Certificate},
}

// diagnose says in words what is wrong with a box.
func (k *call) diagnose(b device.Box, page *boxPage) error {
	live, silent, err := k.cfg.Devices.Neighbours(k.ctx(), b.ID)
	if err != nil {
		return err
	}
	if page.Alerts, err = k.alertsOf(b.ID); err != nil {
		return err
	}
	b.Alerts = "" // each alert is told for itself
	exams, err := frame.Doctor{Devices: k.cfg.Devices, Series: k.cfg.Series}.Examine(k.ctx(), []device.Box{b})
	page.NoReadings = k.gap("readings", err)
	exam := exams[b.ID]
	codes := map[health.Code]bool{}
	for _, d := range exam.Diagnoses {
		codes[d.Code] = true
		page.Findings = append(page.Findings, Finding{toneOf(d.Severity), d.Text, d.Remedy})
	}
	for _, a := range page.Alerts {
		if !slices.ContainsFunc(saidBy[a.Rule], func(c health.Code) bool { return codes[c] }) {
			page.Findings = append(page.Findings, Finding{a.Tone, a.Sentence, k.views.Say("box.alert_since", a.Name, k.views.Ago(a.Since))})
		}
	}
	switch {
	case live+silent == 0:
		page.Neighbours = k.views.Say("box.neighbours_none")
	case live == 0:
		page.Neighbours = k.views.Say("box.neighbours_silent", silent)
	default:
		page.Neighbours = k.views.Say("box.neighbours_live", live, live+silent)
	}
	free, memory := exam.Readings[health.MemoryFree]
	disk, perm := exam.Readings[health.DiskUsed]
	celsius, heat := exam.Readings[health.Hottest]
	page.Gauges = Gauges{
		CPU: gauge(exam.Busy, exam.Busy >= 0 && exam.Readings != nil, 2, 2, 1, frame.UnitShare), Memory: gauge(1-free, memory, 0.9, 0.97, 1, frame.UnitShare),
		Disk: gauge(disk, perm, 0.9, 0.98, 1, frame.UnitShare), Heat: gauge(celsius, heat, 85, 95, 110, frame.UnitCelsius),
	}
	return nil
}

// leases is what runs on a box now, the greatest first.
func (k *call) leases(id croft.DeviceID) ([]Lease, error) {
	byLease := `sum by (lease) (`
	v, err := k.cfg.Series.Instant(k.ctx(), only(id), strings.Join([]string{
		`label_replace(` + byLease + `croft_lease_memory_bytes), "asked", "memory", "", "")`,
		`label_replace(` + byLease + `croft_lease_disk_bytes), "asked", "disk", "", "")`,
		`label_replace(` + byLease + `rate(croft_lease_cpu_seconds_total[5m])), "asked", "cpu", "", "")`,
		`label_replace(` + byLease + `rate(croft_lease_network_bytes_total{direction="in"}[5m])), "asked", "in", "", "")`,
		`label_replace(` + byLease + `rate(croft_lease_network_bytes_total{direction="out"}[5m])), "asked", "out", "", "")`,
	}, " or "), time.Now())
	if err != nil {
		return nil, err
	}
	found := map[string]*Lease{}
	for _, one := range v {
		id := one.Labels["lease"]
		if found[id] == nil {
			found[id] = &Lease{ID: id}
		}
		if n := len(one.Points); n > 0 {
			*map[string]*float64{
				"memory": &found[id].Memory, "disk": &found[id].Disk, "cpu": &found[id].CPU, "in": &found[id].In, "out": &found[id].Out,
			}[one.Labels["asked"]] = one.Points[n-1].Value
		}
	}
	var out []Lease
	for _, l := range found {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b Lease) int { return cmp.Or(cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// sentence is the field of an event that is meant for people.
const sentence = "sentence"

// eventRow puts an event into words: those of the box, else ours, else its kind.
func (s *Pages) eventRow(e device.Event) EventRow {
	row := EventRow{Event: e, Tone: toneOf(e.Severity)}
	if e.Severity == fleetapi.SeverityInfo {
		row.Tone = frame.Quiet
	}
	row.Text = cmp.Or(e.Fields[sentence], strings.ReplaceAll(e.Kind, "_", " "))
	if key := "event." + e.Kind; e.Fields[sentence] == "" && s.views.Has(key) {
		row.Text = s.views.Say(key)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		if name != sentence {
			row.Detail = append(row.Detail, name+": "+e.Fields[name])
		}
	}
	return row
}

func (s *Pages) jobRow(j job.Job) JobRow {
	row := JobRow{Job: j, Kind: s.kindWord(j.Kind), State: s.views.Say("jobstate." + string(j.State)), Path: boxPath(j.Device, "/jobs/", j.ID), Open: !j.State.Final() && !j.Canceling}
	row.Box = Row{Path: boxPath(j.Device), Title: j.Device.ShortName()}
	switch {
	case j.State == fleetapi.Succeeded:
		row.Tone = frame.Good
	case j.State == fleetapi.Canceled, j.State == fleetapi.Removed:
		row.Tone = frame.Quiet
	case j.State.Final():
		row.Tone = frame.Bad
	case j.Canceling:
		row.Tone, row.State = frame.Warn, s.views.Say("jobstate.canceling")
	default:
		row.Tone = frame.Note
		if j.State == fleetapi.Queued && !j.Delivered {
			row.State = s.views.Say("jobstate.waiting")
		}
	}
	return row
}

func (s *Pages) claimWord(state ownership.State) string { return s.views.Say("claim." + string(state)) }

// of is the box that a path names.
func (k *call) of() (device.Box, error) {
	id, err := croft.ParseDeviceID(k.r.PathValue("id"))
	if err != nil {
		return device.Box{}, device.ErrNoBox
	}
	return k.cfg.Devices.Box(k.ctx(), k.actor(), id)
}

func (k *call) owner(b device.Box) (name, path string) {
	if b.Claim.Owner == "" {
		return "", ""
	}
	return k.nameOf(b.Claim.Owner), link("/fleet/boxes", "owner", b.Claim.Owner)
}

const (
	shownEvents = 12
	shownLines  = 40
	shownJobs   = 6
)

func (s *Pages) box(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	page := boxPage{Row: rowOf(b), Retired: b.Claim.State == ownership.Retired, Key: rand.Text(), ClaimWord: s.claimWord(b.Claim.State), LabelText: strings.Join(tagsOf(b.Labels), "\n")}
	if err := k.diagnose(b, &page); err != nil {
		return err
	}
	page.Owner, page.OwnerPath = k.owner(b)
	page.Interval = strconv.Itoa(int(b.Desired.Interval / time.Second))
	for _, name := range slices.Sorted(maps.Keys(b.Facts)) {
		page.Facts = append(page.Facts, Fact{name, b.Facts[name]})
	}
	switch left := time.Until(b.CertificateUntil); {
	case b.CertificateUntil.IsZero():
		page.Certificate = "box.certificate_none"
	case left <= 0:
		page.Certificate = "box.certificate_over"
	case left < certificates:
		page.Certificate = "box.certificate_late"
	default:
		page.Certificate = "box.certificate_good"
	}
	events, _, err := s.cfg.Devices.Timeline(k.ctx(), k.actor(), b.ID, "", shownEvents)
	if err != nil {
		return err
	}
	for _, e := range events {
		page.Events = append(page.Events, s.eventRow(e))
	}
	if len(page.Events) > 0 {
		page.Last = &page.Events[0]
	}
	if page.Lines, err = s.cfg.Devices.LogAfter(k.ctx(), k.actor(), b.ID, 0, shownLines); err != nil {
		return err
	}
	live := []string{device.Topic + ":" + string(b.ID), alert.Topic, bundle.Topic}
	if k.may(rights.Job, rights.Read) {
		jobs, _, err := s.cfg.Jobs.List(k.ctx(), job.Actor(k.actor()), job.Query{Device: b.ID, Limit: shownJobs})
		if err != nil {
			return err
		}
		known := names{}
		for _, j := range jobs {
			row := s.jobRow(j)
			row.By = known.of(k, j.By)
			page.Jobs = append(page.Jobs, row)
			page.Collecting = page.Collecting || j.Kind == fleetapi.KindBundle && !j.State.Final()
			live = append(live, job.Topic+":"+j.ID)
		}
	}
	if k.may(rights.Lease, rights.Read) {
		page.Leases, err = k.leases(b.ID)
		page.NoReadings = k.gap("leases", err) || page.NoReadings
	}
	if s.cfg.Bundles != nil && k.may(rights.Device, rights.Bundle) {
		page.Bundles, err = s.cfg.Bundles.List(k.ctx(), b.ID)
		k.gap("bundles", err)
	}
	page.Charts, page.Spans = k.charts(b.ID)
	return k.show(frame.Page{Template: "box", Title: page.Title, Nav: "/fleet/boxes", Data: page, Live: live})
}

// boxList is a page with one list of a box.
type boxList struct {
	Row
	Events []EventRow
	Lines  []device.LogLine
	Jobs   []JobRow
	Chips  []Choice
	Next   string
	Newest string // address of the page of what came after these lines
}

var severities = []fleetapi.Severity{fleetapi.SeverityInfo, fleetapi.SeverityWarning, fleetapi.SeverityError, fleetapi.SeverityCritical}

const (
	pageEvents = 50
	mostRead   = 1000 // events read for one page of those that are severe enough
)

// events is the timeline, from a severity up.
func (s *Pages) events(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	least := max(slices.Index(severities, fleetapi.Severity(k.get("severity"))), 0)
	page := boxList{Row: rowOf(b)}
	for n, severity := range severities {
		page.Chips = append(page.Chips, Choice{link(boxPath(b.ID, "/events"), "severity", string(severity)), s.views.Say("severity_up." + string(severity)), n == least})
	}
	cursor := k.get("cursor")
	for read := 0; ; {
		found, next, err := s.cfg.Devices.Timeline(k.ctx(), k.actor(), b.ID, cursor, pageEvents)
		if err != nil {
			return err
		}
		for _, e := range found {
			if slices.Index(severities, e.Severity) >= least {
				page.Events = append(page.Events, s.eventRow(e))
			}
		}
		cursor, read = next, read+len(found)
		if next == "" || len(page.Events) >= pageEvents || read >= mostRead {
			break
		}
	}
	page.Next = k.next(cursor)
	return k.show(frame.Page{Template: "events", Title: s.views.Say("events.title", page.Title), Nav: "/fleet/boxes", Data: page, Live: []string{device.Topic + ":" + string(b.ID)}})
}

const pageLines = 200

// lines is the log: the newest lines, or those after one.
func (s *Pages) lines(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	after, _ := strconv.ParseInt(k.get("after"), 10, 64)
	page := boxList{Row: rowOf(b)}
	if page.Lines, err = s.cfg.Devices.LogAfter(k.ctx(), k.actor(), b.ID, max(after, 0), pageLines); err != nil {
		return err
	}
	if n := len(page.Lines); n > 0 {
		page.Newest = link(boxPath(b.ID, "/log"), "after", strconv.FormatInt(page.Lines[n-1].N, 10))
	}
	return k.show(frame.Page{Template: "log", Title: s.views.Say("log.title", page.Title), Nav: "/fleet/boxes", Data: page, Live: []string{device.Topic + ":" + string(b.ID)}})
}

func (s *Pages) jobs(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	found, next, err := s.cfg.Jobs.List(k.ctx(), job.Actor(k.actor()), job.Query{Device: b.ID, Cursor: k.get("cursor")})
	if err != nil {
		return err
	}
	page, known := boxList{Row: rowOf(b), Next: k.next(next)}, names{}
	for _, j := range found {
		row := s.jobRow(j)
		row.By = known.of(k, j.By)
		page.Jobs = append(page.Jobs, row)
	}
	return k.show(frame.Page{Template: "jobs", Title: s.views.Say("jobs.title", page.Title), Nav: "/fleet/boxes", Data: page, Live: []string{job.Topic}})
}

type jobPage struct {
	JobRow
	Args, Results []string
	History       []saidRow
}

type saidRow struct {
	job.Said
	Word string
}

// jobOf is the job of a path, of the box of that path.
func (k *call) jobOf() (device.Box, job.Job, error) {
	b, err := k.of()
	if err != nil {
		return b, job.Job{}, err
	}
	j, err := k.cfg.Jobs.Job(k.ctx(), job.Actor(k.actor()), k.r.PathValue("job"))
	if err == nil && j.Device != b.ID {
		err = job.ErrNoJob
	}
	return b, j, err
}

func (s *Pages) job(k *call) error {
	b, j, err := k.jobOf()
	if err != nil {
		return err
	}
	said, err := s.cfg.Jobs.History(k.ctx(), job.Actor(k.actor()), j.ID)
	if err != nil {
		return err
	}
	page := jobPage{JobRow: s.jobRow(j), Args: tagsOf(j.Args), Results: tagsOf(j.Results)}
	page.By, page.Box = k.nameOf(j.By), rowOf(b)
	for _, one := range said {
		page.History = append(page.History, saidRow{one, s.views.Say("jobstate." + string(one.State))})
	}
	return k.show(frame.Page{Template: "job", Title: page.Kind, Nav: "/fleet/boxes", Data: page, Live: []string{job.Topic + ":" + j.ID}})
}

func (s *Pages) startJob(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	kind := fleetapi.JobKind(k.get("kind"))
	if !slices.Contains(kinds, kind) {
		return usage("choose what the box is to do")
	}
	if kind == fleetapi.KindBundle && !k.may(rights.Device, rights.Bundle) {
		return usage("your account may not collect support bundles")
	}
	order := job.Order{Device: b.ID, Kind: kind}
	if key := k.get("key"); key != "" {
		order.Key = string(kind) + " " + key
	}
	if _, err := s.cfg.Jobs.Queue(k.ctx(), job.Actor(k.actor()), order); err != nil {
		return err
	}
	return k.done(boxPath(b.ID)+map[bool]string{true: "#bundles", false: "#jobs"}[kind == fleetapi.KindBundle], "ordered."+string(kind))
}

func (s *Pages) cancelJob(k *call) error {
	b, j, err := k.jobOf()
	if err != nil {
		return err
	}
	if _, err := s.cfg.Jobs.Cancel(k.ctx(), job.Actor(k.actor()), j.ID); err != nil {
		return err
	}
	return k.done(boxPath(b.ID, "#jobs"), "ordered.cancel")
}

// download hands a support bundle out, and writes down to whom.
func (s *Pages) download(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	if s.cfg.Bundles == nil {
		return bundle.ErrNoBundle
	}
	info, err := s.cfg.Bundles.Info(k.ctx(), k.r.PathValue("bundle"))
	if err == nil && info.Device != b.ID {
		err = bundle.ErrNoBundle
	}
	if err != nil {
		return err
	}
	in, err := s.cfg.Bundles.Open(k.ctx(), info.ID)
	if err != nil {
		return err
	}
	defer in.Close()
	err = s.cfg.DB.Write(k.ctx(), func(tx *db.Tx) error {
		return s.cfg.AuditLog.Record(tx, auditlog.Entry{
			Actor: k.p.Account, Role: string(k.p.Role), Address: s.frame.Door().Client(k.r).Address.String(),
			Action: "bundle.read", Kind: "device", Object: string(b.ID), After: map[string]string{"bundle": info.ID},
		})
	})
	if err != nil {
		return fmt.Errorf("write down who reads a bundle: %w", err)
	}
	name := fmt.Sprintf("%s-%s.zip", b.ID.ShortName(), info.Created.UTC().Format("20060102-1504"))
	k.w.Header().Set("Content-Type", "application/zip")
	k.w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	http.ServeContent(k.w, k.r, "", time.Time{}, in)
	return nil
}

// setLabels replaces the labels of a box by those of a text.
func (s *Pages) setLabels(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	set, gone, err := readChange(k.get("labels"))
	switch {
	case err != nil:
		return err
	case len(gone) > 0:
		return usage("labels that are not in the list are taken away: leave %q out", gone[0])
	}
	if err := s.cfg.Devices.SetLabels(k.ctx(), k.actor(), b.ID, set); err != nil {
		return err
	}
	return k.done(boxPath(b.ID, "#settings"), "ordered.labels")
}

func (s *Pages) setInterval(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	var seconds int
	if text := k.get("seconds"); text != "" {
		if seconds, err = strconv.Atoi(text); err != nil || seconds < 0 || seconds > 1e6 {
			return usage("interval: want a number of seconds, or nothing")
		}
	}
	if err := s.cfg.Devices.SetInterval(k.ctx(), k.actor(), b.ID, time.Duration(seconds)*time.Second); err != nil {
		return err
	}
	return k.done(boxPath(b.ID, "#settings"), "ordered.interval")
}

type askPage struct {
	Row
	What, To string // To is where the form goes
	Kind     string // of the job; empty: it is no job
	Key      string // as of boxPage
	Owner    string
}

// ask is the page that says what an action means.
func (s *Pages) ask(what string) func(*call) error {
	return func(k *call) error {
		b, err := k.of()
		if err != nil {
			return err
		}
		page := askPage{Row: rowOf(b), What: what, Key: rand.Text(), To: boxPath(b.ID, "/", what)}
		page.Owner, _ = k.owner(b)
		if what == "reboot" {
			page.Kind, page.To = string(fleetapi.KindReboot), boxPath(b.ID, "/jobs")
		}
		return k.show(frame.Page{Template: "ask", Title: s.views.Say("ask."+what+"_title", page.Title), Nav: "/fleet/boxes", Data: page})
	}
}

// end carries out what ask asked.
func (s *Pages) end(what string, do func(context.Context, device.Actor, croft.DeviceID) error) func(*call) error {
	return func(k *call) error {
		b, err := k.of()
		if err != nil {
			return err
		}
		if err := do(k.ctx(), k.actor(), b.ID); err != nil {
			return err
		}
		return k.done(boxPath(b.ID), "ordered."+what)
	}
}
