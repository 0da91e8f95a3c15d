// Package health says in words how a box is: one sentence for its owner, and a
// list of what is wrong for the support. It is a pure function of what the fleet
// knows; it asks nobody.
//
//	report := health.Of(health.Case{Now: now, Online: box.Online, …})
//
// What is not known says nothing: a box that sends no temperature is not cold.
package health

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Gauge is one number about a box, as the caller found it in its readings.
type Gauge string

// The gauges.
const (
	Hottest      Gauge = "hottest"        // degrees Celsius, of the hottest sensor
	DiskUsed     Gauge = "disk_used"      // share of /perm, 0 to 1
	Throttled    Gauge = "throttled"      // times it slowed down for heat or power, in the last hour
	Restarts     Gauge = "restarts"       // starts of the agent in the last hour
	ClockOff     Gauge = "clock_off"      // seconds that its clock is ahead of the fleet's
	PermReadOnly Gauge = "perm_read_only" // 1: nothing can be stored
	MemoryFree   Gauge = "memory_free"    // share that is available, 0 to 1
)

// Case is what is known of a box. Of readings older than ten minutes the caller
// gives none.
type Case struct {
	Now              time.Time
	Known            bool      // whether the box was ever heard of, apart from its enrolment
	Online           bool      // as of package device
	Seen             time.Time // last sign of life
	Farewell         bool      // its session was ended, by itself or by the broker; false: it just fell silent
	Synced           bool      // whether its clock was set by a server
	Retired          bool
	CertificateUntil time.Time
	LiveNeighbours   int // other boxes with its public address that are online
	SilentNeighbours int // and that are not
	Readings         map[Gauge]float64
	Alerts           string // what the operator's rules say, in words
}

// Code names a diagnosis.
type Code string

// The diagnoses, the gravest first.
const (
	Retired      Code = "retired"
	NeverSeen    Code = "never_seen"
	Offline      Code = "offline"
	NoInternet   Code = "no_internet" // offline, with all its neighbours
	ReadOnly     Code = "perm_read_only"
	DiskFull     Code = "disk_full"
	CrashLoop    Code = "crash_loop"
	Hot          Code = "hot"
	Throttling   Code = "throttling"
	MemoryShort  Code = "memory_short"
	ClockWrong   Code = "clock_wrong"
	Certificate  Code = "certificate_ends"
	OperatorRule Code = "alert"
)

// Codes is every diagnosis, the gravest first.
func Codes() []Code {
	return []Code{Retired, NeverSeen, Offline, NoInternet, ReadOnly, DiskFull, CrashLoop, Hot, Throttling, MemoryShort, ClockWrong, Certificate, OperatorRule}
}

// Diagnosis is one thing that is wrong.
type Diagnosis struct {
	Code     Code
	Severity fleetapi.Severity
	Text     string // for the support, with numbers
	Remedy   string // what the support can do; an imperative sentence
	owner    string // the same for the owner, with what he can do
}

// Report is how a box is.
type Report struct {
	Well      bool
	Sentence  string      // for the owner
	Diagnoses []Diagnosis // the gravest first; empty if it is well
}

// Of judges a case.
func Of(c Case) Report {
	var found []Diagnosis
	for _, judge := range []func(Case) *Diagnosis{
		presence, permReadOnly, disk, crashes, heat, throttling, memory, clock, certificate, alerts,
	} {
		if d := judge(c); d != nil {
			found = append(found, *d)
		}
		if len(found) > 0 && found[0].Code == Retired {
			break
		}
	}
	slices.SortStableFunc(found, func(a, b Diagnosis) int {
		return cmp.Or(cmp.Compare(rank(b.Severity), rank(a.Severity)),
			cmp.Compare(slices.Index(Codes(), a.Code), slices.Index(Codes(), b.Code)))
	})
	if len(found) == 0 {
		return Report{Well: true, Sentence: "Your box is well."}
	}
	return Report{Sentence: found[0].owner, Diagnoses: found}
}

func rank(s fleetapi.Severity) int {
	return slices.Index([]fleetapi.Severity{fleetapi.SeverityInfo, fleetapi.SeverityWarning, fleetapi.SeverityError, fleetapi.SeverityCritical}, s)
}

func presence(c Case) *Diagnosis {
	switch {
	case c.Retired:
		return &Diagnosis{Retired, fleetapi.SeverityInfo, "Retired: it was taken out of the fleet.", "", "This box was taken out of service."}
	case c.Online:
		return nil
	case !c.Known:
		return &Diagnosis{
			NeverSeen, fleetapi.SeverityWarning, "Enrolled, but never connected to the broker.",
			"Check that its network lets it out to the broker's port.",
			"Your box is starting. If this stays for ten minutes, unplug it and plug it in again.",
		}
	}
	since := fmt.Sprintf("Offline since %s (%s).", c.Seen.UTC().Format("2006-01-02 15:04 UTC"), Span(c.Now.Sub(c.Seen)))
	how := " It fell silent."
	if c.Farewell {
		how = " Its connection was ended."
	}
	switch {
	case c.LiveNeighbours > 0:
		return &Diagnosis{
			Offline, fleetapi.SeverityCritical,
			since + how + fmt.Sprintf(" %s at the same address online, so the line works.", boxesAre(c.LiveNeighbours)),
			"Ask the owner to check its power and cable.",
			fmt.Sprintf("Your box has been offline for %s, though the internet there works: check that it has power and that its network cable is plugged in.", Span(c.Now.Sub(c.Seen))),
		}
	case c.SilentNeighbours > 0:
		return &Diagnosis{
			NoInternet, fleetapi.SeverityCritical,
			since + how + fmt.Sprintf(" %s at the same address offline too: the line, the router or the power there.", boxesAre(c.SilentNeighbours)),
			"Ask the owner whether the internet works there.",
			fmt.Sprintf("Your box has been offline for %s, and so is every other one there: check your internet connection and your router.", Span(c.Now.Sub(c.Seen))),
		}
	}
	return &Diagnosis{
		Offline, fleetapi.SeverityCritical, since + how,
		"Ask the owner to check power, cable and internet.",
		fmt.Sprintf("Your box has been offline for %s: check that it has power, that its network cable is plugged in and that your internet works.", Span(c.Now.Sub(c.Seen))),
	}
}

func boxesAre(n int) string {
	if n == 1 {
		return "1 other box is"
	}
	return fmt.Sprintf("%d other boxes are", n)
}

func permReadOnly(c Case) *Diagnosis {
	if c.Readings[PermReadOnly] < 1 {
		return nil
	}
	return &Diagnosis{
		ReadOnly, fleetapi.SeverityCritical, "/perm is read-only: it takes no new leases.",
		"Reboot it once; if it comes back like this, replace its disk.",
		"The disk of your box can no longer be written to, so it earns nothing new. Please ask for support.",
	}
}

func disk(c Case) *Diagnosis {
	used, ok := c.Readings[DiskUsed]
	severity := fleetapi.SeverityError
	switch {
	case !ok || used < 0.90:
		return nil
	case used >= 0.98:
		severity = fleetapi.SeverityCritical
	}
	return &Diagnosis{
		DiskFull, severity, fmt.Sprintf("/perm is %.0f %% full.", math.Floor(used*100)),
		"See which lease fills it; end old ones.",
		"The disk of your box is nearly full, so it takes less work than it could. It tidies up by itself when work ends.",
	}
}

func crashes(c Case) *Diagnosis {
	n, ok := c.Readings[Restarts]
	if !ok || n < 4 {
		return nil
	}
	return &Diagnosis{
		CrashLoop, fleetapi.SeverityCritical, fmt.Sprintf("The agent started %.0f times in the last hour.", n),
		"Collect a support bundle, then reboot it.",
		"The software of your box keeps restarting. We see it too; unplug the box and plug it in again if it lasts.",
	}
}

func heat(c Case) *Diagnosis {
	celsius, ok := c.Readings[Hottest]
	severity := fleetapi.SeverityWarning
	switch {
	case !ok || celsius < 85:
		return nil
	case celsius >= 95:
		severity = fleetapi.SeverityError
	}
	return &Diagnosis{
		Hot, severity, fmt.Sprintf("Its hottest sensor reads %.0f °C.", celsius),
		"Ask the owner to give it air; check its fan in the charts.",
		fmt.Sprintf("Your box is hot (%.0f °C): give it more air and free its vents of dust.", celsius),
	}
}

func throttling(c Case) *Diagnosis {
	n, ok := c.Readings[Throttled]
	if !ok || n < 1 {
		return nil
	}
	return &Diagnosis{
		Throttling, fleetapi.SeverityWarning, fmt.Sprintf("It slowed itself down %.0f times in the last hour.", n),
		"Check its temperature and its power supply.",
		"Your box slows itself down: give it more air, and use the power supply it came with.",
	}
}

func memory(c Case) *Diagnosis {
	free, ok := c.Readings[MemoryFree]
	if !ok || free >= 0.03 {
		return nil
	}
	return &Diagnosis{
		MemoryShort, fleetapi.SeverityWarning, fmt.Sprintf("Only %.1f %% of its memory is available.", free*100),
		"See which lease holds it.",
		"Your box is short of memory. It goes on; we keep an eye on it.",
	}
}

func clock(c Case) *Diagnosis {
	off, measured := c.Readings[ClockOff]
	text := ""
	switch {
	case measured && math.Abs(off) >= 5:
		text = fmt.Sprintf("Its clock is %s %s.", Span(time.Duration(math.Min(math.Abs(off), 1e9)*float64(time.Second))),
			map[bool]string{true: "ahead", false: "behind"}[off > 0])
	case c.Online && !c.Synced:
		text = "No server has set its clock since it started."
	default:
		return nil
	}
	return &Diagnosis{
		ClockWrong, fleetapi.SeverityWarning, text, "Check that its network lets NTP out (UDP 123).",
		"The clock of your box is wrong. It asks the internet for the time by itself; your router may be keeping it from that.",
	}
}

// certificate speaks up when a box should have renewed long ago: it does so
// after a third of the certificate's life.
func certificate(c Case) *Diagnosis {
	left := c.CertificateUntil.Sub(c.Now)
	severity := fleetapi.SeverityWarning
	switch {
	case c.CertificateUntil.IsZero() || left > 30*24*time.Hour:
		return nil
	case left <= 7*24*time.Hour:
		severity = fleetapi.SeverityError
	}
	text := fmt.Sprintf("Its certificate ends on %s, in %s, and should have been renewed.", c.CertificateUntil.UTC().Format(time.DateOnly), Span(left))
	if left <= 0 {
		text = fmt.Sprintf("Its certificate ended on %s.", c.CertificateUntil.UTC().Format(time.DateOnly))
	}
	return &Diagnosis{
		Certificate, severity, text, "Check that it reaches the fleet's device port.",
		"Your box could not renew its papers with us. It tries again by itself; please ask for support if this stays for a day.",
	}
}

func alerts(c Case) *Diagnosis {
	if c.Alerts == "" {
		return nil
	}
	return &Diagnosis{OperatorRule, fleetapi.SeverityWarning, c.Alerts, "See the alert rule.", "We are looking at something about your box: " + c.Alerts}
}

// Span is a duration as people say it: "3 minutes", "1 day". It rounds down.
func Span(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := d / unit.of; n == 1 {
			return "1 " + unit.name
		} else if n > 1 {
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}
	return "less than a second"
}
