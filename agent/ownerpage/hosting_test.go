package ownerpage

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage/letting"
)

const (
	providerAccount = "akash1qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9"
	tenantAccount   = "akash1yg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zut8mlj"
)

// hostingFace is a healthy box that is a provider, as change makes it.
func hostingFace(change func(*letting.Report)) Status {
	at := func(day, hour, minute int) time.Time {
		return time.Date(2026, time.November, day, hour, minute, 0, 0, time.UTC)
	}
	h := letting.Report{
		Network: "croft-1", State: letting.Working, Account: providerAccount, Tenants: 2,
		Leases: []letting.Lease{
			{Since: at(18, 9, 30), Room: letting.Room{CPU: 500, Memory: 576 << 20, Storage: 1 << 30}, Month: letting.Coin{Denom: "uact", Amount: 1_234_567}},
			{Since: at(2, 23, 5), Room: letting.Room{CPU: 2000, Memory: 4 << 30, Storage: 40 << 30, GPUs: 1}, Month: letting.Coin{Denom: "uakt", Amount: 45_678_901}},
		},
		Capacity: letting.Room{CPU: 8000, Memory: 12 << 30, Storage: 400 << 30, GPUs: 2},
		Leased:   letting.Room{CPU: 2500, Memory: 4<<30 + 576<<20, Storage: 41 << 30, GPUs: 1},
		Offered:  letting.Room{CPU: 1000, Memory: 1 << 30, Storage: 5 << 30},
		Prices: &letting.Prices{
			Currency: "USD", CPU: 1_600_000, Memory: 800_000, Endpoint: 50_000,
			Storage: map[string]int64{"ephemeral": 20_000, "beta3": 40_000}, GPU: map[string]int64{"nvidia/rtx4090": 100_000_000},
			PowerWatts: 65, PowerKWh: 300_000,
		},
		Earned:  []letting.Coin{{Denom: "uakt", Amount: 12_345_678}, {Denom: "uact", Amount: 900_000}},
		Due:     []letting.Coin{{Denom: "uakt", Amount: 250_000}},
		Balance: []letting.Coin{{Denom: "uakt", Amount: 15_000_000}},
		WhyNot: []letting.Refusal{
			{At: at(21, 14, 5), Why: "room", Sentence: "not enough memory: 8256 MiB wanted, 6656 of 12288 free"},
			{At: at(21, 13, 58), Why: "price", Sentence: "the tenant pays at most 0.50 a month, the box asks 3.27"},
			{At: at(21, 13, 50), Why: "room", Sentence: "not enough CPU: 9000 thousandths of a core wanted, 4500 of 8000 free"},
		},
		Relays: []letting.Relay{{Name: "relay-a.croft.example", Up: true, Since: at(20, 6, 1)}, {Name: "relay-b.croft.example", Since: at(21, 14, 0)}, {Name: "relay-c.croft.example"}},
		Events: []letting.Event{{At: at(21, 12, 0), What: letting.OutOfMemory}, {At: at(18, 9, 30), What: letting.LeaseWon}, {At: at(3, 0, 0), What: letting.LeaseEnded}},
	}
	change(&h)
	s := healthy()
	s.Hosting = &h
	return s
}

// hostile is what strangers would write if they could: all of it too long, too
// large, below zero, or code.
func hostile() *letting.Report {
	evil := `<script>alert(1)</script>"'\x1b[2J` + strings.Repeat("evil ", 100) + tenantAccount
	h := &letting.Report{
		Network: evil, State: "<b>", Why: evil, Account: evil, Tenants: -1,
		Capacity: letting.Room{CPU: math.MaxInt64, Memory: 1, Storage: -1, GPUs: 1},
		Leased:   letting.Room{CPU: -5, Memory: math.MaxInt64, Storage: 7, GPUs: math.MaxInt64},
		Offered:  letting.Room{CPU: math.MaxInt64, Memory: math.MaxInt64},
		Prices: &letting.Prices{
			Currency: evil, CPU: math.MaxInt64, Memory: -1, Storage: map[string]int64{evil: 1}, GPU: map[string]int64{evil: 1},
			PowerWatts: math.MaxInt64, PowerKWh: math.MaxInt64,
		},
		Earned: []letting.Coin{{Denom: evil, Amount: math.MaxInt64}, {Denom: "u<b>", Amount: math.MinInt64}, {Denom: "", Amount: 1}},
	}
	for range 100 {
		h.Leases = append(h.Leases, letting.Lease{Room: letting.Room{CPU: math.MaxInt64, Storage: -1}, Month: letting.Coin{Denom: "uakt", Amount: math.MaxInt64}})
		h.WhyNot = append(h.WhyNot, letting.Refusal{Why: evil, Sentence: evil, Orders: -3})
		h.Relays = append(h.Relays, letting.Relay{Name: evil})
		h.Events = append(h.Events, letting.Event{What: letting.Happening(evil)})
	}
	return h
}

func TestWhatHostingDoesToTheHeadline(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(*Status)
		look    State
		explain string
		wrong   string
		below   string // the sentence beside the line
	}{
		{"work is well", func(s *Status) { s.Hosting.State = letting.Working }, Healthy, sayAllWell, "", "There is room for more."},
		{"while it waits not everything works", func(s *Status) { s.Hosting.State = letting.NoRelay }, Healthy, sayWaits, "", letting.Report{State: letting.NoRelay}.Words().Sentence},
		{"a claim comes first", func(s *Status) { s.Hosting.State, s.Claim = letting.NoRelay, testCode }, Healthy, sayReady, "", letting.Report{State: letting.NoRelay}.Words().Sentence},
		{"what is wrong comes first", func(s *Status) { s.Hosting.State, s.Network = letting.NoInternet, Unplugged }, Attention, "", sayUnplugged, letting.Report{State: letting.NoInternet}.Words().Sentence},
		{"a box that cannot work needs help", func(s *Status) { s.Hosting.State, s.Hosting.Why = letting.Unable, "It rains: close the window." }, Attention, "", "It rains: close the window.", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := healthy()
			s.Hosting = &letting.Report{}
			tc.change(&s)
			v := newView(s)
			if v.Look != tc.look || v.Explain != tc.explain || strings.Join(v.Wrong, "|") != tc.wrong || v.Work.Sentence != tc.below {
				t.Errorf("look %q, explain %q, wrong %q, below %q", v.Look, v.Explain, v.Wrong, v.Work.Sentence)
			}
		})
	}
}

func TestHostingTellsNothingOfTenants(t *testing.T) {
	s := hostingFace(func(h *letting.Report) {
		h.State, h.Why = letting.Unable, "bid on "+tenantAccount+"/123/1/1 fails: ask support."
		h.WhyNot = []letting.Refusal{{Why: "chain", Sentence: "deployment of " + strings.ToUpper(tenantAccount) + "/77 is closed\n\x00by (x_" + tenantAccount + "_y)"}}
	})
	server := newServer(t, s, "")
	page := ask(server, "GET", "/", "localhost", nearby).Body.String()
	details := ask(server, "GET", "/status.json", "localhost", nearby).Body.String()
	text, err := Text(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"page": page, "status.json": details, "text": text} {
		if strings.Contains(strings.ToLower(body), tenantAccount) || strings.Contains(body, "/123/1/1") {
			t.Errorf("%s names a tenant: %s", name, body)
		}
		if !strings.Contains(body, "bid on (an account) fails: ask support.") {
			t.Errorf("%s does not say what is wrong: %s", name, body)
		}
	}
	if !strings.Contains(page, "deployment of (an account) is closed by (x_(an account)_y)") || !strings.Contains(page, providerAccount) {
		t.Errorf("page hides too much: %s", page)
	}
}

func TestHostileHostingIsHarmless(t *testing.T) {
	s := healthy()
	s.Hosting = hostile()
	server := newServer(t, s, "")
	page := ask(server, "GET", "/", "localhost", nearby).Body.String()
	for _, evil := range []string{"<script>alert", "<b>", "\x1b", "-9223372036854775808"} {
		if strings.Contains(page, evil) {
			t.Errorf("page has %q: %s", evil, page)
		}
	}
	const most = 32 << 10
	details := ask(server, "GET", "/status.json", "localhost", nearby).Body.Bytes()
	if len(page) > most || len(details) > 2*most {
		t.Errorf("page has %d bytes, details %d", len(page), len(details))
	}
	var got StatusJSON
	if err := json.Unmarshal(details, &got); err != nil {
		t.Fatal(err)
	}
	if got.Hosting.State != letting.NoInternet || len(got.Hosting.Events) != 0 || len(got.Hosting.WhyNot) != 1 || got.Hosting.WhyNot[0].Orders != 100 || got.Hosting.Free != (letting.Room{}) {
		t.Errorf("details are not tidied: %s", details)
	}
	if s.Hosting.State != "<b>" || len(s.Hosting.WhyNot) != 100 || s.Hosting.WhyNot[0].Orders != -3 || strings.Contains(s.Hosting.Relays[0].Name, "…") {
		t.Error("the status itself was changed")
	}
}

func TestNoHostingNoWork(t *testing.T) {
	server := newServer(t, healthy(), "")
	for _, path := range []string{"/", "/status.json"} {
		if body := ask(server, "GET", path, "localhost", nearby).Body.String(); strings.Contains(body, `"hosting"`) || strings.Contains(body, `"card work"`) {
			t.Errorf("%s speaks of work: %s", path, body)
		}
	}
}
