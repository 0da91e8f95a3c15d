package frame

import (
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/croft-cloud/croft/fleet/timeseries"
)

// Unit is what a chart's numbers are.
type Unit string

// The units.
const (
	UnitShare   Unit = "share"   // of one, shown in percent
	UnitBytes   Unit = "bytes"   //
	UnitRate    Unit = "rate"    // bytes per second
	UnitCelsius Unit = "celsius" //
	UnitNumber  Unit = "number"  //
)

// Chart is some lines over time. Its address answers scripts with JSON and people
// with a table: give it to the template "chart" as .URL, with .ID and .Title.
type Chart struct {
	Title    string
	Unit     Unit
	From, To time.Time
	Step     time.Duration // between two points
	Back     string        // page it belongs to
	Lines    []Line
}

// Line is one line of a chart.
type Line struct {
	Name   string
	Values []float64 // one for each step; NaN where nothing is known
}

// Times is the instants of a chart.
func (c *Chart) Times() []time.Time {
	var times []time.Time
	for at := c.From; !at.After(c.To); at = at.Add(c.Step) {
		times = append(times, at)
	}
	return times
}

// Add adds a line of the points that were found.
func (c *Chart) Add(name string, points []timeseries.Point) {
	line := Line{name, make([]float64, len(c.Times()))}
	for i := range line.Values {
		line.Values[i] = math.NaN()
	}
	for _, p := range points {
		if i := int(p.At.Sub(c.From).Round(c.Step) / c.Step); i >= 0 && i < len(line.Values) {
			line.Values[i] = p.Value
		}
	}
	c.Lines = append(c.Lines, line)
}

// Format is a number with its unit.
func (u Unit) Format(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case u == UnitShare:
		return Percent(v)
	case u == UnitBytes:
		return Bytes(v)
	case u == UnitRate:
		return Bytes(v) + "/s"
	case u == UnitCelsius:
		return digits(v) + " °C"
	}
	return Number(v)
}

// row is a line of the table: one instant.
type row struct {
	At    time.Time
	Cells []string
}

// chartPage is the table of a chart.
type chartPage struct {
	Chart
	Rows []row // newest first, thirty at most
}

const chartRows = 30

// ShowChart answers with a chart, in the way that is asked for.
func (f *Frame) ShowChart(w http.ResponseWriter, r *http.Request, c Chart) error {
	times := c.Times()
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		page := chartPage{Chart: c}
		step := max(1, (len(times)+chartRows-1)/chartRows)
		for i := len(times) - 1; i >= 0; i -= step {
			one := row{At: times[i]}
			for _, line := range c.Lines {
				one.Cells = append(one.Cells, c.Unit.Format(line.Values[i]))
			}
			page.Rows = append(page.Rows, one)
		}
		return f.own.Show(w, r, Page{Template: "chart", Title: c.Title, Nav: c.Back, Data: page})
	}
	type lineJSON struct {
		Name   string     `json:"name"`
		Values []*float64 `json:"values"`
	}
	out := struct {
		Title   string     `json:"title"`
		Unit    Unit       `json:"unit"`
		Summary string     `json:"summary"`
		Times   []int64    `json:"times"`
		Lines   []lineJSON `json:"lines"`
	}{Title: c.Title, Unit: c.Unit, Summary: f.summary(c), Times: []int64{}, Lines: []lineJSON{}}
	for _, at := range times {
		out.Times = append(out.Times, at.Unix())
	}
	for _, line := range c.Lines {
		one := lineJSON{line.Name, make([]*float64, len(line.Values))}
		for i, v := range line.Values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				one.Values[i] = &v
			}
		}
		out.Lines = append(out.Lines, one)
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(out)
}

// summary is a chart in words, for those who do not see it.
func (f *Frame) summary(c Chart) string {
	var parts []string
	for _, line := range c.Lines {
		low, high, last := math.Inf(1), math.Inf(-1), math.NaN()
		for _, v := range line.Values {
			if !math.IsNaN(v) {
				low, high, last = min(low, v), max(high, v), v
			}
		}
		if !math.IsNaN(last) {
			parts = append(parts, f.own.Say("chart.summary", line.Name, c.Unit.Format(last), c.Unit.Format(low), c.Unit.Format(high)))
		}
	}
	if len(parts) == 0 {
		return f.own.Say("chart.empty")
	}
	return strings.Join(parts, " ")
}
