package ownerpage

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/croft-cloud/croft"
)

// Every word an owner reads, on page, screen and serial port, is in this file
// (and those of a page no owner should ever see, in refusals below). The box is
// "your box"; what it does is said in the present tense; what to do comes last.
const (
	sayUnplugged = "No network cable is plugged in: connect the box to your router with a network cable."
	sayNoAddress = "The cable is plugged in but your router gave the box no address: check that the router is on, or restart it."

	sayClaimTitle  = "Make it yours"
	sayClaimScan   = "Scan this with your phone"
	sayClaimType   = "or type this code at"
	sayClaimOnly   = "Your claim code"
	sayClaimSerial = "Scan, or type the code at %s"
	sayClaimOnPage = "This box has no owner yet. Its claim code is on the screen connected to the box, or on the sticker underneath."
	sayClaimOpen   = "Go to the claim page"

	sayAllWell = "Everything works. Nothing to do."
	sayReady   = "Everything works. Now make it yours."
	sayOpen    = "See this on your phone or computer"
	sayOr      = "or"
	sayMore    = "And %d more: see the page on your phone or computer."

	sayNoAnswer    = "The box does not answer at the moment. It may be starting again; this page keeps trying."
	sayNetworkOnly = "Only devices in your home network can see this page."
)

// Words for support, shown small.
const (
	sayFacts    = "About this box"
	sayName     = "Name"
	sayNetwork  = "Network"
	sayAddress  = "Address"
	saySoftware = "Software"
	sayUptime   = "Running for"
	sayMemory   = "Memory"
	sayDisk     = "Storage"
	sayUpdate   = "Last update"
	sayID       = "Number for support"
	sayJSON     = "Details for support"
	sayWrong    = "What is wrong"
)

// Words of refusals: the three ways in which a request is not for this page.
const (
	refuseFar  = "This page can only be seen from the home network the box is connected to.\n"
	refuseHost = "This box answers as http://%s.local or under its IP address only.\n"
)

// headline is the sentence that is read first.
func headline(s State) string {
	switch s {
	case Trial:
		return "Your box is trying a new version."
	case Healthy:
		return "Your box is running."
	case Attention:
		return "Your box needs your help."
	case Starting:
	}
	return "Your box is starting."
}

// explain is the sentence below the headline when nothing is wrong.
func explain(s State) string {
	switch s {
	case Trial:
		return "Please leave it plugged in. If the new version does not work well, the old one comes back by itself."
	case Healthy:
		return sayAllWell
	case Starting:
		return "This takes about a minute."
	case Attention:
	}
	return ""
}

// Words says how the network is, in a line of facts.
func (n Network) Words() string {
	switch n {
	case Unplugged:
		return "No cable"
	case Online:
		return "Connected"
	case NoAddress:
	}
	return "Waiting for the router"
}

// view is a [Status] in words: what all three faces show.
type view struct {
	Status
	Look      State    // the state shown; a healthy box with a problem is not shown as healthy
	Headline  string   // the sentence on the state
	Explain   string   // what that means, if nothing is wrong
	Wrong     []string // what is wrong
	ClaimURL  string   // behind the QR code; a secret
	ClaimSite string   // where to type the code, as a person would
	Software  string   // "Version 1.0.0, slot A"
	Running   string   // "3 hours"
}

// newView puts s into words.
func newView(s Status) view {
	v := view{Status: s, Look: s.State}
	v.Name = cmp.Or(oneLine(s.Name), "croft")
	switch v.Look {
	case Starting, Trial, Healthy, Attention:
	default:
		v.Look = Starting
	}
	switch {
	case s.Network == Unplugged:
		v.Wrong = append(v.Wrong, sayUnplugged)
	case s.Network != Online && v.Look != Starting: // at first the router just needs a moment
		v.Wrong = append(v.Wrong, sayNoAddress)
	}
	for _, p := range s.Problems {
		if p = oneLine(p); p != "" {
			v.Wrong = append(v.Wrong, p)
		}
	}
	v.LastUpdate, v.Storage = oneLine(s.LastUpdate), oneLine(s.Storage)
	if len(v.Wrong) > 0 && v.Look == Healthy {
		v.Look = Attention
	}
	v.Headline = headline(v.Look)
	if len(v.Wrong) == 0 {
		v.Explain = explain(v.Look)
		if v.Look == Healthy && v.Claim != "" {
			v.Explain = sayReady
		}
	}
	if s.Claim != "" && s.ClaimAt != "" {
		v.ClaimURL = s.Claim.URL(s.ClaimAt)
		v.ClaimSite = strings.TrimPrefix(strings.TrimPrefix(s.ClaimAt, "https://"), "http://")
	}
	v.Software = softwareWords(s.Version, s.Slot)
	v.Running = durationWords(s.Uptime)
	return v
}

func softwareWords(version croft.Version, slot croft.Slot) string {
	switch {
	case version == "":
		return ""
	case slot == "":
		return "Version " + string(version)
	}
	return "Version " + string(version) + ", slot " + strings.ToUpper(string(slot))
}

// oneLine makes text from elsewhere safe for a line of a screen: no control
// characters, single spaces.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// durationWords says a duration as people do: one unit, rounded down.
func durationWords(d time.Duration) string {
	const day = 24 * time.Hour
	count := func(n time.Duration, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < time.Hour:
		return count(d/time.Minute, "minute")
	case d < 2*day:
		return count(d/time.Hour, "hour")
	}
	return count(d/day, "day")
}

// sizeWords says bytes as they stand on packages: in decimal units for disks,
// in binary ones for memory, both called GB.
func sizeWords(bytes, unit int64) string {
	mega, giga := unit*unit, unit*unit*unit
	if bytes < giga {
		return fmt.Sprintf("%d MB", bytes/mega)
	}
	if tenths := bytes * 10 / giga; tenths < 100 {
		return fmt.Sprintf("%d.%d GB", tenths/10, tenths%10)
	}
	return fmt.Sprintf("%d GB", bytes/giga)
}

// useWords says "1.2 of 8.0 GB"; it is empty when total is not known.
func useWords(used, total, unit int64) string {
	if total <= 0 {
		return ""
	}
	a, b := sizeWords(used, unit), sizeWords(total, unit)
	if a[len(a)-2:] == b[len(b)-2:] {
		a = a[:len(a)-3]
	}
	return a + " of " + b + " used"
}

// percent is used as a share of total, 0 to 100.
func percent(used, total int64) int {
	if total <= 0 || used <= 0 {
		return 0
	}
	return int(min(100, float64(used)/float64(total)*100))
}
