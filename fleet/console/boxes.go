package console

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/health"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// card is a box in a list, and the head of its page.
type card struct {
	device.Box
	Title string
	Path  string
	Doing string // what it does now, in a sentence
	Wrong string // what is wrong, in a sentence; empty: nothing
	Tone  frame.Tone
	Heat  string // empty: not known
	Busy  string
	Money []string // what it earned and earns, sentences; on pages of the owner's boxes
}

func (c *Console) card(box device.Box, exam frame.Exam) card {
	out := card{Box: box, Title: nameOf(box), Path: pathOf(box), Tone: frame.Good}
	if !exam.Well {
		out.Wrong, out.Tone = exam.Sentence, frame.Warn
		if worst := exam.Diagnoses[0].Severity; worst == fleetapi.SeverityCritical || worst == fleetapi.SeverityError {
			out.Tone = frame.Bad
		}
	}
	switch {
	case box.Presence == "":
		out.Doing = c.views.Say("box.starting")
	case !box.Online:
		out.Doing = c.views.Say("box.unheard")
	case exam.Leases < 0:
		out.Doing = c.views.Say("box.connected")
	case exam.Leases == 0:
		out.Doing = c.views.Say("box.waiting")
	case exam.Leases == 1:
		out.Doing = c.views.Say("box.working.one")
	default:
		out.Doing = c.views.Say("box.working.other", exam.Leases)
	}
	if celsius, ok := exam.Readings[health.Hottest]; ok && box.Online {
		out.Heat = frame.UnitCelsius.Format(math.Round(celsius))
	}
	if exam.Busy >= 0 && box.Online {
		out.Busy = frame.Percent(exam.Busy)
	}
	return out
}

// examine finds out how an owner's boxes are. Of alerts it has the words that are meant
// for owners, and none of rules that are not.
func (c *Console) examine(ctx context.Context, p rights.Principal, boxes []device.Box) (map[croft.DeviceID]frame.Exam, error) {
	firing, _, err := c.cfg.Alerts.List(ctx, alert.Actor(ownerOf(p)), alert.Query{Firing: true, Limit: 500})
	if err != nil {
		return nil, err
	}
	words := map[croft.DeviceID][]string{}
	for _, a := range firing {
		words[a.Device] = append(words[a.Device], a.Sentence)
	}
	boxes = slices.Clone(boxes)
	for n := range boxes {
		boxes[n].Alerts = strings.Join(words[boxes[n].ID], " ")
	}
	return c.doctor.Examine(ctx, boxes)
}

type boxesPage struct {
	Boxes []card
	Money string // what all his boxes together earned and earn; empty: nothing to say
	Next  string
	First bool // page
}

func (c *Console) boxes(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	if p.Role.Staff() {
		return c.home(w, r, p)
	}
	boxes, next, err := c.cfg.Devices.List(r.Context(), ownerOf(p), device.Query{Owner: p.Account, Sort: device.SortName, Cursor: r.FormValue("cursor")})
	if err != nil {
		return err
	}
	exams, err := c.examine(r.Context(), p, boxes)
	if err != nil {
		return err
	}
	data := boxesPage{First: r.FormValue("cursor") == ""}
	all := boxes
	if data.First && next != "" {
		if all, err = c.allOf(r.Context(), ownerOf(p)); err != nil {
			return err
		}
	}
	earned, err := c.earnings(r.Context(), all, time.Now())
	if err != nil {
		return err
	}
	if data.First && len(all) > 1 {
		var sum earnings
		for _, e := range earned {
			sum.plus(e)
		}
		data.Money = c.earnedByAll(sum)
	}
	live := []string{"alert"}
	for _, box := range boxes {
		one := c.card(box, exams[box.ID])
		one.Money = c.earned(earned[box.ID])
		data.Boxes = append(data.Boxes, one)
		live = append(live, device.Topic+":"+string(box.ID))
	}
	if next != "" {
		data.Next = frame.OwnerHome + "?" + url.Values{"cursor": {next}}.Encode()
	}
	return c.views.Show(w, r, frame.Page{Template: "boxes", Title: c.views.Say("boxes.title"), Nav: frame.OwnerHome, Data: data, Live: live})
}

// program is what runs for a tenant, who stays unnamed.
type program struct {
	Number        int
	Busy          string
	Memory, Moved float64
}

type chartLink struct{ ID, Title, URL string }

type boxPage struct {
	card
	Programs []program
	Events   []happening
	MoreURL  string
	Charts   []chartLink
	Restart  bool // was asked for, and has not been done yet
	Offered  bool // to a new owner
	Facts    []fact
}

type fact struct{ Name, Value string }

// boxCharts is the charts of a box.
var boxCharts = []struct {
	id, title string
	unit      frame.Unit
	lines     []struct{ name, expr string }
}{
	{"cpu", "charts.cpu", frame.UnitShare, []struct{ name, expr string }{
		{"charts.busy", `1 - sum(rate(croft_cpu_seconds_total{mode=~"idle|iowait"}[10m])) / sum(rate(croft_cpu_seconds_total[10m]))`},
	}},
	{"memory", "charts.memory", frame.UnitShare, []struct{ name, expr string }{
		{"charts.used", `max(1 - croft_memory_bytes{kind="available"} / ignoring (kind) croft_memory_bytes{kind="total"})`},
	}},
	{"heat", "charts.heat", frame.UnitCelsius, []struct{ name, expr string }{
		{"charts.hottest", `max(croft_temperature_celsius)`},
	}},
	{"network", "charts.network", frame.UnitRate, []struct{ name, expr string }{
		{"charts.in", `sum(rate(croft_network_bytes_total{direction="in"}[10m]))`},
		{"charts.out", `sum(rate(croft_network_bytes_total{direction="out"}[10m]))`},
	}},
}

func (c *Console) boxPage(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	exams, err := c.examine(r.Context(), p, []device.Box{box})
	if err != nil {
		return err
	}
	earned, err := c.earnings(r.Context(), []device.Box{box}, time.Now())
	if err != nil {
		return err
	}
	data := boxPage{card: c.card(box, exams[box.ID]), Offered: box.Claim.State == ownership.Transferring || box.Claim.State == ownership.Accepting}
	data.Money = c.earned(earned[box.ID])
	if data.Programs, err = c.programs(r, box); err != nil {
		return err
	}
	events, next, err := c.cfg.Devices.Timeline(r.Context(), ownerOf(p), box.ID, "", 8)
	if err != nil {
		return err
	}
	data.Events = c.happenings(events)
	if next != "" {
		data.MoreURL = data.Path + "/events?" + url.Values{"cursor": {next}}.Encode()
	}
	for _, chart := range boxCharts {
		data.Charts = append(data.Charts, chartLink{chart.id, c.views.Say(chart.title), data.Path + "/chart/" + chart.id})
	}
	jobs, _, err := c.cfg.Jobs.List(r.Context(), job.Actor{ID: p.Account}, job.Query{Device: box.ID, Limit: 10})
	if err != nil {
		return err
	}
	for _, j := range jobs {
		data.Restart = data.Restart || j.Kind == fleetapi.KindReboot && !j.State.Final()
	}
	data.Facts = c.facts(box)
	return c.views.Show(w, r, frame.Page{
		Template: "box", Title: data.Title, Nav: frame.OwnerHome, Data: data,
		Live: []string{device.Topic + ":" + string(box.ID), "alert"},
	})
}

// facts is what stands on the box, or would.
func (c *Console) facts(box device.Box) []fact {
	var out []fact
	for _, one := range []fact{
		{"facts.short", box.ID.ShortName()},
		{"facts.serial", box.Serial},
		{"facts.board", box.Board},
		{"facts.cpu", box.Facts["cpu_model"]},
		{"facts.release", string(box.Release)},
	} {
		if one.Value != "" {
			out = append(out, fact{c.views.Say(one.Name), one.Value})
		}
	}
	return out
}

// programs is what runs on a box for tenants, by numbers.
func (c *Console) programs(r *http.Request, box device.Box) ([]program, error) {
	scope, now := timeseries.Scope{Devices: []croft.DeviceID{box.ID}}, time.Now()
	ask := func(expr string) (map[string]float64, error) {
		series, err := c.cfg.Series.Instant(r.Context(), scope, expr, now)
		out := map[string]float64{}
		for _, one := range series {
			if len(one.Points) > 0 {
				out[one.Labels["lease"]] = one.Points[0].Value
			}
		}
		return out, err
	}
	memory, err := ask("sum by (lease) (croft_lease_memory_bytes)")
	if err != nil || len(memory) == 0 || !box.Online {
		return nil, err
	}
	cores, err := ask("sum by (lease) (rate(croft_lease_cpu_seconds_total[5m]))")
	if err != nil {
		return nil, err
	}
	moved, err := ask("sum by (lease) (increase(croft_lease_network_bytes_total[1h]))")
	if err != nil {
		return nil, err
	}
	leases := make([]string, 0, len(memory))
	for lease := range memory {
		leases = append(leases, lease)
	}
	slices.Sort(leases)
	var out []program
	for i, lease := range leases {
		out = append(out, program{i + 1, fmt.Sprintf("%.2f", cores[lease]), memory[lease], moved[lease]})
	}
	return out, nil
}

func (c *Console) chart(w http.ResponseWriter, r *http.Request, _ rights.Principal, box device.Box) error {
	from, to, step := span(box.Claim.Since, time.Now())
	for _, chart := range boxCharts {
		if chart.id != r.PathValue("chart") {
			continue
		}
		out := frame.Chart{Title: c.views.Say("charts.title", c.views.Say(chart.title), nameOf(box)), Unit: chart.unit, From: from, To: to, Step: step, Back: pathOf(box)}
		for _, line := range chart.lines {
			series, err := c.cfg.Series.Range(r.Context(), timeseries.Scope{Devices: []croft.DeviceID{box.ID}}, line.expr, from, to, step)
			if err != nil {
				return err
			}
			var points []timeseries.Point
			if len(series) > 0 {
				points = series[0].Points
			}
			out.Add(c.views.Say(line.name), points)
		}
		return c.frame.ShowChart(w, r, out)
	}
	return c.frame.ErrorPage(w, r, http.StatusNotFound, "")
}

// span is what a chart shows: the last day, or less of it if the box became the owner's
// since then (what was before is not his to see); and how far its points are apart, so
// that there are some hundreds of them at most.
func span(since, now time.Time) (from, to time.Time, step time.Duration) {
	const most = 300
	length := min(now.Sub(since), 24*time.Hour)
	for _, step = range []time.Duration{10 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute} {
		if length <= most*step {
			break
		}
	}
	to = now.Truncate(step)
	from = to.Add(-length.Truncate(step))
	return from, to, step
}

// happening is an event in words.
type happening struct {
	At   time.Time
	Text string
	Tone frame.Tone
}

var tones = map[fleetapi.Severity]frame.Tone{
	fleetapi.SeverityInfo: frame.Note, fleetapi.SeverityWarning: frame.Warn, fleetapi.SeverityError: frame.Bad, fleetapi.SeverityCritical: frame.Bad,
}

func (c *Console) happenings(events []device.Event) []happening {
	var out []happening
	for _, e := range events {
		h := happening{At: e.At, Tone: tones[e.Severity]}
		switch key := "event." + e.Kind; {
		case e.Fields["sentence"] != "":
			h.Text = e.Fields["sentence"]
		case c.views.Has(key):
			h.Text = c.views.Say(key)
		default:
			h.Text = c.views.Say("events.other", strings.ReplaceAll(e.Kind, "_", " "))
		}
		out = append(out, h)
	}
	return out
}

type eventsPage struct {
	Title, Path, Next string
	Events            []happening
}

func (c *Console) events(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	events, next, err := c.cfg.Devices.Timeline(r.Context(), ownerOf(p), box.ID, r.FormValue("cursor"), 50)
	if err != nil {
		return err
	}
	data := eventsPage{Title: c.views.Say("events.title", nameOf(box)), Path: pathOf(box), Events: c.happenings(events)}
	if next != "" {
		data.Next = data.Path + "/events?" + url.Values{"cursor": {next}}.Encode()
	}
	return c.views.Show(w, r, frame.Page{Template: "events", Title: data.Title, Nav: frame.OwnerHome, Data: data})
}
