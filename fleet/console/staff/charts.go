package staff

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/console/frame"
)

// chartLine is one line, or with By one for each value of that label, the first four.
type chartLine struct {
	Key  string // of its word
	Expr string // WINDOW stands for the time over which rates are taken
	By   string
}

// drawn is a chart of a box.
type drawn struct {
	Name  string
	Unit  frame.Unit
	Lines []chartLine
}

var drawings = []drawn{
	{"cpu", frame.UnitShare, []chartLine{
		{"chartline.busy", `1 - sum(rate(croft_cpu_seconds_total{mode="idle"}[WINDOW])) / sum(rate(croft_cpu_seconds_total[WINDOW]))`, ""},
		{"chartline.iowait", `sum(rate(croft_cpu_seconds_total{mode="iowait"}[WINDOW])) / sum(rate(croft_cpu_seconds_total[WINDOW]))`, ""},
	}},
	{"memory", frame.UnitBytes, []chartLine{
		{"chartline.used", `max(croft_memory_bytes{kind="total"} - ignoring (kind) croft_memory_bytes{kind="available"})`, ""},
		{"chartline.total", `max(croft_memory_bytes{kind="total"})`, ""},
	}},
	{"heat", frame.UnitCelsius, []chartLine{
		{"chartline.hottest", `max(croft_temperature_celsius)`, ""},
		{"chartline.mean", `avg(croft_temperature_celsius)`, ""},
		{"chartline.gpu", `max(croft_gpu_temperature_celsius)`, ""},
	}},
	{"disk", frame.UnitShare, []chartLine{
		{"", `1 - max by (mount) (croft_filesystem_bytes{kind="available"}) / max by (mount) (croft_filesystem_bytes{kind="size"})`, "mount"},
	}},
	{"network", frame.UnitRate, []chartLine{
		{"chartline.in", `sum(rate(croft_network_bytes_total{direction="in"}[WINDOW]))`, ""},
		{"chartline.out", `sum(rate(croft_network_bytes_total{direction="out"}[WINDOW]))`, ""},
	}},
	{"leases", frame.UnitNumber, []chartLine{
		{"chartline.leases", `count(croft_lease_memory_bytes)`, ""},
		{"chartline.lease_cpu", `sum(rate(croft_lease_cpu_seconds_total[WINDOW]))`, ""},
	}},
}

// span is how far back a chart goes.
type span struct {
	name      string
	long      time.Duration
	step      time.Duration
	rateRange string
}

var spans = []span{
	{"3h", 3 * time.Hour, time.Minute, "5m"},
	{"day", 24 * time.Hour, 5 * time.Minute, "10m"},
	{"week", 7 * 24 * time.Hour, time.Hour, "2h"},
}

func spanOf(name string) span {
	if at := slices.IndexFunc(spans, func(s span) bool { return s.name == name }); at >= 0 {
		return spans[at]
	}
	return spans[0]
}

// chartView is a chart as its page names it.
type chartView struct{ ID, Title, URL string }

// charts is those of a box, and the spans to choose from.
func (k *call) charts(id croft.DeviceID) (views []chartView, chips []Choice) {
	chosen := spanOf(k.get("span"))
	for _, d := range drawings {
		views = append(views, chartView{d.Name, k.views.Say("chartname." + d.Name), link(boxPath(id, "/chart/", d.Name), "span", chosen.name)})
	}
	for _, s := range spans {
		chips = append(chips, Choice{link(boxPath(id), "span", s.name) + "#charts", k.views.Say("span." + s.name), s.name == chosen.name})
	}
	return views, chips
}

const mostLines = 4 // as many colours as there are

func (s *Pages) chart(k *call) error {
	b, err := k.of()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(drawings, func(d drawn) bool { return d.Name == k.r.PathValue("chart") })
	if at < 0 {
		return &croft.Error{Kind: croft.KindNotFound, Err: errNoChart}
	}
	d, over := drawings[at], spanOf(k.get("span"))
	to := time.Now().Truncate(over.step)
	c := frame.Chart{
		Title: s.views.Say("chartname."+d.Name) + " – " + cmp.Or(b.Name, b.ID.ShortName()), Unit: d.Unit,
		From: to.Add(-over.long), To: to, Step: over.step, Back: link(boxPath(b.ID), "span", over.name),
	}
	for _, line := range d.Lines {
		found, err := s.cfg.Series.Range(k.ctx(), only(b.ID), strings.ReplaceAll(line.Expr, "WINDOW", over.rateRange), c.From, c.To, c.Step)
		if err != nil {
			return err
		}
		for _, one := range found {
			name := one.Labels[line.By]
			if line.By == "" {
				name = s.views.Say(line.Key)
			}
			if len(c.Lines) < mostLines {
				c.Add(name, one.Points)
			}
		}
	}
	return s.frame.ShowChart(k.w, k.r, c)
}

var errNoChart = errors.New("there is no such chart")
