package ownerpage

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage/letting"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and review the diff); got:\n%s", path, got)
	}
}

const (
	testCode  = "K7QM2XWP"
	testShown = "K7QM-2XWP"
	testWords = "river-lemon-castle"
)

func healthy() Status {
	return Status{
		Name: "croft-k7qm", DeviceID: "k7qm2222333344445555666677aabbcc",
		Addresses: []string{"http://croft-k7qm.local", "http://192.168.1.23"},
		Version:   "1.0.0", Slot: "a", State: Healthy,
		Network: Online, Uptime: 3*time.Hour + 20*time.Minute, Storage: "The storage works.",
		MemoryUsed: 412 << 20, MemoryTotal: 4 << 30, DiskUsed: 3_200_000_000, DiskTotal: 120_000_000_000,
	}
}

func unclaimed() Status {
	s := healthy()
	s.Claim, s.ClaimAt = testCode, "https://croft.example/claim"
	return s
}

// faces are statuses worth looking at, by name.
func faces() map[string]Status {
	starting := unclaimed()
	starting.State, starting.Addresses, starting.Uptime, starting.Network = Starting, nil, 8*time.Second, NoAddress

	trial := healthy()
	trial.State, trial.Version, trial.Slot = Trial, "1.1.0", "b"

	unplugged := unclaimed()
	unplugged.Network, unplugged.Addresses = Unplugged, nil

	attention := healthy()
	attention.State = Attention
	attention.Problems = []string{
		"The storage was damaged and could not be repaired: the box works, but forgets everything when it is switched off. Ask support for a new disk.",
		"Only 12 MB of memory are free: switch the box off and on again.",
	}

	rolledBack := healthy()
	rolledBack.LastUpdate = "Version 1.1.0 was tried and given up: the agent crashed 12 times."

	seeking := hostingFace(func(h *letting.Report) {
		h.State, h.Tenants, h.Leases, h.Leased, h.Offered, h.Earned, h.Due, h.Events = letting.Open, 0, nil, letting.Room{}, letting.Room{}, nil, nil, nil
		h.WhyNot = h.WhyNot[:1]
	})
	noCoins := hostingFace(func(h *letting.Report) {
		*h = letting.Report{Network: "croft-1", State: letting.NoCoins, Account: providerAccount, Capacity: h.Capacity, Relays: h.Relays}
	})
	noChain := hostingFace(func(h *letting.Report) { h.State = letting.NoChain })
	paused := hostingFace(func(h *letting.Report) { h.State, h.Tenants, h.Leases = letting.Paused, 1, h.Leases[:1] })
	unable := hostingFace(func(h *letting.Report) {
		*h = letting.Report{Network: "croft-1", State: letting.Unable, Why: "The box cannot write down what it decides: ask support for a new disk."}
	})

	// Everything at once, all of it too long.
	crowded := unclaimed()
	crowded.State, crowded.LastUpdate = Attention, rolledBack.LastUpdate
	crowded.Hosting = hostingFace(func(h *letting.Report) {
		h.State, h.Tenants = letting.Full, 12
		for i := range 12 {
			h.Leases = append(h.Leases, h.Leases[i%2])
		}
	}).Hosting
	for i := range 9 {
		crowded.Problems = append(crowded.Problems, fmt.Sprintf(
			"Problem number %d is told in a long sentence because nobody made it shorter: tell support.", i+1))
	}

	endless := unclaimed()
	endless.Name = strings.Repeat("croft-", 30)
	endless.State = Attention
	endless.Problems = []string{strings.Repeat("endless", 300) + ": tell support."}
	endless.ClaimAt = "https://" + strings.Repeat("long.", 30) + "example/claim"
	endless.Addresses = []string{"http://" + strings.Repeat("long.", 30)}

	fleet := func(s Status, f Fleet) Status {
		s.Fleet = &f
		return s
	}
	fresh := fleet(unclaimed(), Fleet{Connected: true, Words: testWords})
	alone := fleet(healthy(), Fleet{Owned: true, Name: "Living room", Problem: "The fleet at fleet.example:8883 does not answer."})
	here := fleet(healthy(), Fleet{Connected: true, Owned: true})
	here.Here = true

	return map[string]Status{
		"fleet_unclaimed": fresh, "fleet_alone": alone, "fleet_here": here,
		"healthy": healthy(), "unclaimed": unclaimed(), "starting": starting, "trial": trial, "unplugged": unplugged,
		"attention": attention, "rolled_back": rolledBack, "crowded": crowded, "endless": endless, "nothing": {},
		"working": hostingFace(func(*letting.Report) {}), "seeking": seeking, "no_coins": noCoins, "no_chain": noChain, "paused": paused, "unable": unable,
		"hostile": hostingFace(func(h *letting.Report) { *h = *hostile() }),
	}
}

func TestSlateWakesReadersOnChangesOnly(t *testing.T) {
	slate := NewSlate(healthy(), func(s *Status) { s.Uptime += time.Hour })
	if got := slate.Status().Uptime; got != 4*time.Hour+20*time.Minute {
		t.Errorf("uptime = %v, want it live", got)
	}
	changed := slate.Changed()
	isClosed := func() bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*Status)
		want   bool
	}{
		{"nothing", func(*Status) {}, false},
		{"the same addresses again", func(s *Status) { s.Addresses = healthy().Addresses }, false},
		{"figures that move all the time", func(s *Status) { s.Uptime++; s.MemoryUsed++; s.DiskUsed++ }, false},
		{"still no hosting", func(s *Status) { s.Hosting = nil }, false},
		{"hosting begins", func(s *Status) { s.Hosting = &letting.Report{State: letting.Open} }, true},
		{"a problem", func(s *Status) { s.Problems = []string{"It rains: close the window."} }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			slate.Update(tc.change)
			if got := isClosed(); got != tc.want {
				t.Errorf("readers woken: %v, want %v", got, tc.want)
			}
		})
	}
	if got := slate.Status().Problems; len(got) != 1 {
		t.Errorf("problems = %q", got)
	}
}

func TestStatusMayBeLogged(t *testing.T) {
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("status", "status", unclaimed())
	fmt.Fprintf(&logged, "%v %+v %#v", unclaimed(), unclaimed(), unclaimed())
	fleet := Fleet{Words: testWords}
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("fleet", "fleet", fleet)
	fmt.Fprintf(&logged, "%v %+v %#v %q", fleet, fleet, fleet, fleet.Words)
	if strings.Contains(logged.String(), "2XWP") || strings.Contains(logged.String(), "lemon") {
		t.Errorf("claim code or words in the log: %s", logged.String())
	}
}

func TestView(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Status)
		look   State
		head   string
		wrong  []string
	}{
		{"a healthy box", func(*Status) {}, Healthy, "Your box is running.", nil},
		{"a healthy box with a problem is not shown as healthy", func(s *Status) { s.Problems = []string{"It rains."} }, Attention, "Your box needs your help.", []string{"It rains."}},
		{"a cable that is out is a problem, and the first", func(s *Status) { s.Network = Unplugged; s.Problems = []string{"It rains."} }, Attention, "Your box needs your help.", []string{sayUnplugged, "It rains."}},
		{"no address is a problem", func(s *Status) { s.Network = NoAddress }, Attention, "Your box needs your help.", []string{sayNoAddress}},
		{"at first the router may take a moment", func(s *Status) { s.Network, s.State = NoAddress, Starting }, Starting, "Your box is starting.", nil},
		{"a trial stays a trial whatever is wrong", func(s *Status) { s.Network, s.State = Unplugged, Trial }, Trial, "Your box is trying a new version.", []string{sayUnplugged}},
		{"an empty state means starting", func(s *Status) { s.State = "" }, Starting, "Your box is starting.", nil},
		{"control characters are not shown", func(s *Status) { s.Problems = []string{"\x1b[2J It \n rains.", "\x00"} }, Attention, "Your box needs your help.", []string{"[2J It rains."}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := healthy()
			tc.change(&s)
			v := newView(s)
			if v.Look != tc.look || v.Headline != tc.head || strings.Join(v.Wrong, "|") != strings.Join(tc.wrong, "|") {
				t.Errorf("look %q, headline %q, wrong %q", v.Look, v.Headline, v.Wrong)
			}
			if (v.Explain == "") != (len(v.Wrong) > 0) {
				t.Errorf("explain = %q with %d problems", v.Explain, len(v.Wrong))
			}
		})
	}
}

func TestUseInWords(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{useWords(0, 0, 1000), ""},
		{useWords(3_200_000_000, 120_000_000_000, 1000), "3.2 of 120 GB used"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}
