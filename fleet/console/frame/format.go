package frame

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"rsc.io/qr"

	"github.com/croft-cloud/croft"
)

// funcs is what templates can call. They are:
//
//	t "key" args…      a text          n "key" count args…  a text about a number of things
//	ago time           "3 minutes ago" when time            date and time, in the reader's zone
//	span duration      "3 minutes"     bytes number         "1.5 GB"
//	percent share      "12 %"          number value         "12,345"
//	price "1500000" "uact"             "1.50 ACT"
//	short device       "croft-k7qm"    badge "good" text    a word with a sign
//	icon "name"        a sign          asset "file"         its URL
//	qr text            a QR code       args "name" value …  a map, for a template with several arguments
func (f *Frame) funcs(w words) template.FuncMap {
	return template.FuncMap{
		"t": w.say, "n": w.count, "ago": w.agoTime, "when": whenTime, "span": w.span, "percent": Percent,
		"bytes":  func(v any) (string, error) { n, err := toFloat(v); return Bytes(n), err },
		"number": func(v any) (string, error) { n, err := toFloat(v); return Number(n), err },
		"price":  Price, "short": func(id croft.DeviceID) string { return id.ShortName() },
		"badge": Badge, "icon": icon, "asset": f.assets.url, "qr": QR, "args": argsOf,
	}
}

func toFloat(v any) (float64, error) {
	switch v := v.(type) {
	case int:
		return float64(v), nil
	case int64:
		return float64(v), nil
	case uint64:
		return float64(v), nil
	case float64:
		return v, nil
	}
	return 0, fmt.Errorf("%T is no number", v)
}

func argsOf(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("%v is no name of an argument", pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// span is a duration as people say it, rounded down.
func (w words) span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Minute:
		return w.count("time.second", int(d/time.Second))
	case d < time.Hour:
		return w.count("time.minute", int(d/time.Minute))
	case d < 48*time.Hour:
		return w.count("time.hour", int(d/time.Hour))
	}
	return w.count("time.day", int(d/(24*time.Hour)))
}

// ago is a time as far from now.
func (w words) ago(at, now time.Time) string {
	d := now.Sub(at)
	switch {
	case at.IsZero():
		return w.say("time.never")
	case d.Abs() < 10*time.Second:
		return w.say("time.now")
	case d < 0:
		return w.say("time.in", w.span(d))
	}
	return w.say("time.ago", w.span(d))
}

// Ago is a time as far from now: "3 minutes ago".
func (v *Views) Ago(at time.Time) string { return v.words.ago(at, time.Now()) }

// Span is a duration as people say it, rounded down: "3 minutes".
func (v *Views) Span(d time.Duration) string { return v.words.span(d) }

func (w words) agoTime(at time.Time) template.HTML {
	text := template.HTMLEscapeString(w.ago(at, time.Now()))
	if at.IsZero() {
		return template.HTML(text)
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`, at.UTC().Format(time.RFC3339), clock(at), text))
}

func whenTime(at time.Time) template.HTML {
	if at.IsZero() {
		return "–"
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" data-local>%s</time>`, at.UTC().Format(time.RFC3339), clock(at)))
}

func clock(at time.Time) string { return at.UTC().Format("2 Jan 2006, 15:04 UTC") }

// Bytes is a number of bytes in units of 1,000: "1.5 GB".
func Bytes(n float64) string {
	if n < 1000 && n > -1000 {
		return fmt.Sprintf("%.0f B", n)
	}
	unit := -1
	for ; math.Abs(n) >= 999.5 && unit < 4; unit++ {
		n /= 1000
	}
	return digits(n) + " " + string("kMGTP"[unit]) + "B"
}

// digits has three digits that matter at most.
func digits(n float64) string {
	switch a := math.Abs(n); {
	case a >= 99.95:
		return fmt.Sprintf("%.0f", n)
	case a >= 9.995:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0")
	}
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", n), "0"), ".")
}

// Percent is a share of one: "12 %".
func Percent(share float64) string {
	if share = share * 100; share > 0 && share < 1 {
		return "<1 %"
	}
	return fmt.Sprintf("%.0f %%", share)
}

// Number is a number with commas: "12,345", "0.5".
func Number(n float64) string {
	if n != math.Trunc(n) {
		return digits(n)
	}
	text := strconv.FormatFloat(math.Abs(n), 'f', 0, 64)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	if n < 0 {
		text = "−" + text
	}
	return text
}

// Price is an amount of a coin's base unit, an integer in text, in whole coins:
// "1500000", "uact" is "1.50 ACT". What it cannot read it returns as it is.
func Price(amount, denom string) string {
	whole := strings.TrimLeft(amount, "0")
	if amount == "" || strings.Trim(amount, "0123456789") != "" || !strings.HasPrefix(denom, "u") {
		return strings.TrimSpace(amount + " " + denom)
	}
	for len(whole) < 7 {
		whole = "0" + whole
	}
	at := len(whole) - 6
	part := strings.TrimRight(whole[at:], "0")
	for len(part) < 2 {
		part += "0"
	}
	for i := at - 3; i > 0; i -= 3 {
		whole, at = whole[:i]+","+whole[i:], at+1
	}
	return whole[:at] + "." + part + " " + strings.ToUpper(denom[1:])
}

// signs are drawn on 16 × 16, in the colour of the text.
var signs = map[string]template.HTML{
	string(Good):  `<circle cx="8" cy="8" r="6.5"/><path d="m5 8.3 2.1 2L11 6"/>`,
	string(Note):  `<circle cx="8" cy="8" r="6.5"/><path d="M8 7.4v3.6M8 4.9v.1"/>`,
	string(Warn):  `<path d="M8 2.2 14.5 13.6h-13z"/><path d="M8 6.4v3.4M8 11.7v.1"/>`,
	string(Bad):   `<circle cx="8" cy="8" r="6.5"/><path d="m5.8 5.8 4.4 4.4m0-4.4-4.4 4.4"/>`,
	string(Quiet): `<circle cx="8" cy="8" r="6.5" stroke-dasharray="2.6 2.5"/>`,
	"box":         `<path d="m8 1.8 5.6 2.9v6.6L8 14.2l-5.6-2.9V4.7zM2.6 4.8 8 7.6l5.4-2.8M8 7.6V14"/>`,
	"key":         `<circle cx="5.2" cy="10.8" r="3"/><path d="m7.4 8.6 6-6m-2.6 2.6 2 2"/>`,
	"person":      `<circle cx="8" cy="5.2" r="2.9"/><path d="M2.4 14c.5-3 2.8-4.4 5.6-4.4s5.100 1.400 5.600 4.400"/>`,
	"mail":        `<rect x="1.800" y="3.300" width="12.400" height="9.400" rx="1.500"/><path d="m2.200 4.300 5.800 4.700 5.800-4.700"/>`,
	"light":       `<path d="M5.800 11.500h4.400M6.400 13.800h3.200M5.900 11.400C5.800 9.600 3.900 8.800 3.900 6a4.100 4.100 0 0 1 8.200 0c0 2.800-1.900 3.600-2 5.400"/>`,
	"restart":     `<path d="M13.300 8a5.300 5.300 0 1 1-1.700-3.900M13.500 1.800v2.800h-2.800"/>`,
	"give":        `<path d="M2 5.400h11m-2.700-2.700L13 5.400l-2.700 2.700M14 10.800H3m2.700-2.700L3 10.800l2.700 2.700"/>`,
	"out":         `<path d="M6.200 2.300H3v11.400h3.200M6.400 8h7.200m-2.600-2.600L13.600 8 11 10.600"/>`,
	"more":        `<path d="m6 3.500 4.500 4.500L6 12.500"/>`,
	"plus":        `<path d="M8 3v10M3 8h10"/>`,
	"pen":         `<path d="m10.600 2.600 2.800 2.800-8 8-3.400.600.600-3.400z"/>`,
}

// icon is a sign beside words, which screen readers leave out.
func icon(name string) (template.HTML, error) {
	body, ok := signs[name]
	if !ok {
		return "", fmt.Errorf("there is no sign %q", name)
	}
	return `<svg class="icon" viewBox="0 0 16 16" width="16" height="16" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">` + body + `</svg>`, nil
}

// Badge is a word about how something is, with a sign: colour never says it alone.
func Badge(tone Tone, text string) (template.HTML, error) {
	sign, err := icon(string(tone))
	return `<span class="badge ` + template.HTML(template.HTMLEscapeString(string(tone))) + `">` + sign + template.HTML(template.HTMLEscapeString(text)) + `</span>`, err
}

// QR is text as a picture that phones read. label says what it is for.
func QR(text, label string) (template.HTML, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return "", fmt.Errorf("draw QR code: %w", err)
	}
	var path strings.Builder
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			from := x
			for x < code.Size && code.Black(x, y) {
				x++
			}
			if x > from {
				fmt.Fprintf(&path, "M%d %dh%dv1h-%dz", from+4, y+4, x-from, x-from)
			}
		}
	}
	side := code.Size + 8 // four light modules around it
	return template.HTML(fmt.Sprintf(
		`<svg class="qr" role="img" aria-label="%s" viewBox="0 0 %d %d" shape-rendering="crispEdges"><path fill="#fff" d="M0 0h%dv%dH0z"/><path fill="#000" d="%s"/></svg>`,
		template.HTMLEscapeString(label), side, side, side, side, path.String())), nil
}
