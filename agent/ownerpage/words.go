package ownerpage

import (
	"cmp"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage/figures"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
)

// Every word an owner reads, on page, screen and serial port, is in this file
// (and those of a page no owner should ever see, in refusals below), but for
// figures and what agent/ownerpage/letting says. The box is "your box"; what it
// does is said in the present tense; what to do comes last.
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

	sayWordsTitle = "Without screen and sticker"
	sayWords      = "You can also claim it with these three words, from this home network only:"

	sayHere      = "Here I am."
	sayHereMeans = "Somebody asked this box to show itself."

	sayConnected = "Connected to the fleet."
	sayAlone     = "Not connected to the fleet."
	sayTrying    = "The box keeps trying by itself."
	sayOwned     = "It has an owner."
	sayUnowned   = "It has no owner yet."

	sayAllWell = "Everything works. Nothing to do."
	sayWaits   = "The box itself works."
	sayReady   = "Everything works. Now make it yours."
	sayOpen    = "See this on your phone or computer"
	sayOr      = "or"
	sayMore    = "And %d more: see the page on your phone or computer."

	sayNoAnswer    = "The box does not answer at the moment. It may be starting again; this page keeps trying."
	sayNetworkOnly = "Only devices in your home network can see this page."
)

// Words for support, shown small.
const (
	sayFleet    = "Fleet"
	sayOwner    = "Owner"
	sayCalled   = "Called"
	sayWork     = "Work"
	sayFacts    = "About this box"
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

// Words of refusals: the two ways in which a request is not for this page.
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
	Look      State          // the state shown; a healthy box with a problem is not shown as healthy
	Headline  string         // the sentence on the state
	Explain   string         // what that means, if nothing is wrong
	Wrong     []string       // what is wrong
	ClaimURL  string         // behind the QR code; a secret
	ClaimSite string         // where to type the code, as a person would
	Software  string         // "Version 1.0.0, slot A"
	Running   string         // "3 hours"
	FleetLine string         // "Connected to the fleet."; empty without one
	OwnerLine string         // "It has an owner."; empty without a fleet
	Called    string         // by its owner; may be empty
	ClaimBy   string         // the three words; a secret of the home network, for the page alone
	Work      *letting.Words // nil: the box is no provider yet. A sentence on what is wrong is above
}

// newView puts s into words.
func newView(s Status) view {
	v := view{Status: s, Look: s.State}
	v.Name = cmp.Or(figures.Line(s.Name), "croft")
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
		if p = figures.Line(p); p != "" {
			v.Wrong = append(v.Wrong, p)
		}
	}
	if s.Hosting != nil {
		work := s.Hosting.Words()
		if work.State == letting.Unable {
			v.Wrong = append(v.Wrong, work.Sentence)
			work.Sentence = ""
		}
		v.Work = &work
	}
	v.LastUpdate, v.Storage = figures.Line(s.LastUpdate), figures.Line(s.Storage)
	if len(v.Wrong) > 0 && v.Look == Healthy {
		v.Look = Attention
	}
	v.Headline = headline(v.Look)
	v.addFleet()
	if len(v.Wrong) == 0 {
		v.Explain = explain(v.Look)
		switch {
		case v.Look != Healthy:
		case v.Claim != "":
			v.Explain = sayReady
		case v.Work != nil && v.Work.Waits:
			v.Explain = sayWaits
		}
	}
	if s.Here {
		v.Headline, v.Explain = sayHere, sayHereMeans
	}
	if s.Claim != "" && s.ClaimAt != "" {
		v.ClaimURL = s.Claim.URL(s.ClaimAt)
		v.ClaimSite = strings.TrimPrefix(strings.TrimPrefix(s.ClaimAt, "https://"), "http://")
	}
	v.Software = softwareWords(s.Version, s.Slot)
	v.Running = figures.Duration(s.Uptime)
	return v
}

// addFleet says how the box stands with its fleet. That a fleet is out of reach is
// no need for help: the box works on.
func (v *view) addFleet() {
	f := v.Fleet
	if f == nil {
		return
	}
	v.FleetLine = sayConnected
	if !f.Connected {
		v.FleetLine = strings.Join(strings.Fields(sayAlone+" "+figures.Line(f.Problem)+" "+sayTrying), " ")
	}
	v.OwnerLine, v.Called = sayOwned, figures.Line(f.Name)
	if !f.Owned {
		v.OwnerLine, v.ClaimBy = sayUnowned, figures.Line(f.Words.Shown())
	}
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

// useWords says "1.2 of 8.0 GB used"; it is empty when total is not known.
func useWords(used, total, unit int64) string {
	if total <= 0 {
		return ""
	}
	return figures.Share(used, total, unit) + " used"
}
