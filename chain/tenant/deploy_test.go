package tenant_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/chain/tenant/gatewaystub"
)

func parseSerial(cert, public []byte) (string, error) {
	c, err := credential.ParseCertificate(cert, public)
	return c.Serial, err
}

func TestDeployTakesTheCheapestBidAndWaitsUntilItAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{Name: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	var stages []string
	var offers int
	cfg := quick()
	cfg.Progress = func(p tenant.Progress) {
		if s := string(p.Record.Stage); len(stages) == 0 || stages[len(stages)-1] != s {
			stages = append(stages, s)
		}
		offers = max(offers, len(p.Offers))
	}
	r, err := a.Deploy(t.Context(), plan.ID(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(stages, " "), "planned created chosen leased sent answering"; got != want {
		t.Errorf("stages = %s, want %s", got, want)
	}
	if offers != 2 || len(r.Leases) != 1 || r.Leases[0].Provider != cheap.Address() || r.Leases[0].Amount != "40.000000000000000000" {
		t.Errorf("%d offers, leases %+v", offers, r.Leases)
	}
	if len(r.URIs) != 1 || !strings.HasPrefix(r.URIs[0], "http://127.0.0.1:") {
		t.Errorf("URIs = %v", r.URIs)
	}
	raw, times := w.stubs[cheap.Address()].Manifest(r.ID())
	if sum := sha256.Sum256(raw); times != 1 || string(sum[:]) != string(r.Hash) {
		t.Errorf("the provider took %d manifests, the last %s", times, raw)
	}
	if raw, _ := w.stubs[dear.Address()].Manifest(r.ID()); raw != nil {
		t.Error("the loser got the manifest, too")
	}
	info, err := os.Stat(filepath.Join(w.dir, "croft-test", string(alice.Address()), "1001.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v", info, err)
	}
	if _, err := a.Deploy(t.Context(), plan.ID(), quick()); err != nil || w.chain.executed != 2 {
		t.Errorf("deploying what answers = %v, %d transactions", err, w.chain.executed)
	}
}

// crash is what the tests below die of.
type crash struct{}

// deploy is what a person types: the same command, whatever happened before. It
// reports whether it crashed.
func deploy(t *testing.T, w *world, onSave func(*tenant.Record)) (r *tenant.Record, crashed bool) {
	t.Helper()
	defer func() {
		if got := recover(); got != nil {
			if _, ok := got.(crash); !ok {
				panic(got)
			}
			crashed = true
		}
	}()
	a := w.tenant(t, onSave)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	r, err = a.Deploy(t.Context(), plan.ID(), quick())
	if err != nil {
		t.Fatal(err)
	}
	return r, false
}

// The command is killed after each stored state in turn, and given again.
func TestACrashAfterAnyStoredStateLosesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		dead bool
	}{
		{"when a signed transaction is sent again", false},
		{"when a signed transaction never arrived", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := newWorld(t)
				w.chain.dead = tc.dead
				saves := 0
				_, crashed := deploy(t, w, func(*tenant.Record) {
					if saves++; saves == n {
						panic(crash{})
					}
				})
				if !crashed {
					if n < 8 {
						t.Errorf("only %d states are stored", n)
					}
					return
				}
				r, _ := deploy(t, w, nil)
				checkOne(t, w, r, n)
			}
		})
	}
}

// checkOne says that there is one deployment, paid once, that answers.
func checkOne(t *testing.T, w *world, r *tenant.Record, n int) {
	t.Helper()
	w.chain.mu.Lock()
	defer w.chain.mu.Unlock()
	if r.Stage != tenant.Answering || r.Pending != nil {
		t.Errorf("crash %d: stage %s, pending %v", n, r.Stage, r.Pending)
	}
	if len(w.chain.deployments) != 1 || len(w.chain.leases) != 1 || w.chain.balance != 95_000_000 {
		t.Errorf("crash %d: %d deployments, %d leases, balance %d", n, len(w.chain.deployments), len(w.chain.leases), w.chain.balance)
	}
}

// The command is killed while the chain's answer is on its way.
func TestACrashAfterTheChainExecutedLosesNothing(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 2; n++ {
		w := newWorld(t)
		count := 0
		w.chain.onExec = func(proto.Message) {
			if count++; count == n {
				panic(crash{})
			}
		}
		if _, crashed := deploy(t, w, nil); !crashed {
			t.Fatalf("transaction %d was not sent", n)
		}
		r, _ := deploy(t, w, nil)
		checkOne(t, w, r, n)
	}
}

func TestACrashWhileClosingIsGoneOnWith(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 2; n++ {
		w := newWorld(t)
		_, r := w.deployed(t)
		saves := 0
		func() {
			defer func() { _ = recover() }()
			_, _ = w.tenant(t, func(*tenant.Record) {
				if saves++; saves == n {
					panic(crash{})
				}
			}).Close(t.Context(), r.ID(), nil)
			t.Errorf("crash %d did not happen", n)
		}()
		r, err := w.tenant(t, nil).Close(t.Context(), r.ID(), nil)
		if err != nil || r.Stage != tenant.Closed || w.chain.balance != 100_000_000 {
			t.Errorf("crash %d: Close = %v, stage %s, balance %d", n, err, r.Stage, w.chain.balance)
		}
		if _, err := w.tenant(t, nil).Close(t.Context(), r.ID(), nil); err != nil {
			t.Errorf("closing again = %v", err)
		}
	}
}

func TestDeployFailures(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		prepare func(*world, *tenant.DeployConfig)
		want    error
		stage   tenant.Stage
		closed  tenant.Stage // with CloseOnFailure
	}{
		{
			"nobody bids", func(w *world, c *tenant.DeployConfig) { w.chain.prices, c.BidTimeout = nil, time.Millisecond },
			tenant.ErrNoBids, tenant.Created, tenant.Closed,
		},
		{
			"all bids are too dear", func(_ *world, c *tenant.DeployConfig) {
				c.BidTimeout = 10 * time.Millisecond
				c.Choose = tenant.Cheapest(tenant.Want{MaxPrice: akash.Price{Denom: "uact", Amount: akash.NewDec(39)}, Patience: 1})
			},
			tenant.ErrNoBids, tenant.Created, tenant.Closed,
		},
		{
			"the provider refuses the manifest", func(w *world, _ *tenant.DeployConfig) {
				w.stubs[cheap.Address()].Fail(gatewaystub.Fault{Path: "/manifest", Status: http.StatusUnprocessableEntity, Text: "hostname demo.example.invalid is taken"})
			},
			gatewayclient.ErrManifestRefused, tenant.Leased, tenant.Closed,
		},
		{
			"the provider's server is an impostor", func(w *world, _ *tenant.DeployConfig) {
				w.chain.providers[cheap.Address()].HostUri = w.stubs[dear.Address()].URI()
			},
			gatewayclient.ErrImpostor, tenant.Leased, tenant.Leased,
		},
		{
			"the workload never runs", func(w *world, c *tenant.DeployConfig) {
				w.stubs[cheap.Address()].SetDown(true)
				c.AnswerTimeout = 20 * time.Millisecond
			},
			tenant.ErrNotAnswering, tenant.Sent, tenant.Closed,
		},
		{
			"the lease is lost before the manifest", func(w *world, c *tenant.DeployConfig) {
				c.Progress = func(p tenant.Progress) {
					if p.Record.Stage == tenant.Leased {
						w.chain.loseLease(cheap.Address())
					}
				}
			},
			tenant.ErrLeaseLost, tenant.Failed, tenant.Closed,
		},
		{
			"the money is missing", func(w *world, _ *tenant.DeployConfig) { w.chain.balance = 1 },
			akash.ErrInsufficientFunds, tenant.Planned, tenant.Planned,
		},
	} {
		for _, closing := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				w := newWorld(t)
				a := w.tenant(t, nil)
				cfg := quick()
				cfg.CloseOnFailure = closing
				tc.prepare(w, &cfg)
				balance := w.chain.balance
				plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
				if err != nil {
					t.Fatal(err)
				}
				r, err := a.Deploy(t.Context(), plan.ID(), cfg)
				if !errors.Is(err, tc.want) {
					t.Errorf("Deploy = %v, want %v", err, tc.want)
				}
				want := tc.stage
				if closing {
					want = tc.closed
				}
				if r.Stage != want {
					t.Errorf("stage = %s, want %s", r.Stage, want)
				}
				if want == tenant.Closed && w.chain.balance != balance {
					t.Errorf("balance = %d, want %d back", w.chain.balance, balance)
				}
				if e, ok := errors.AsType[*croft.Error](err); tc.stage != tenant.Planned && (!ok || e.Remedy == "") {
					t.Errorf("error %v says not what to do", err)
				}
			})
		}
	}
}

func TestALostLeaseIsReplacedOnRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, r := w.deployed(t)
	w.chain.loseLease(cheap.Address())
	r, err := a.Deploy(t.Context(), r.ID(), quick())
	if !errors.Is(err, tenant.ErrLeaseLost) || !strings.Contains(err.Error(), "workload was unstable") {
		t.Fatalf("Deploy = %v, want the loss", err)
	}
	cfg := quick()
	cfg.Choose = tenant.Cheapest(tenant.Want{Provider: string(dear.Address())})
	if r, err = a.Deploy(t.Context(), r.ID(), cfg); err != nil {
		t.Fatal(err)
	}
	if r.Stage != tenant.Answering || r.Leases[0].Provider != dear.Address() || r.Leases[0].OSeq != 2 || w.chain.balance != 95_000_000 {
		t.Errorf("stage %s, leases %+v, balance %d", r.Stage, r.Leases, w.chain.balance)
	}
}

func TestAChosenBidThatIsGoneIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	cfg := quick()
	cfg.Progress = func(p tenant.Progress) {
		if p.Record.Stage == tenant.Chosen && p.Record.Chosen[0].Provider == cheap.Address() {
			w.chain.mu.Lock()
			defer w.chain.mu.Unlock()
			for _, b := range w.chain.bids {
				if b.GetBid().GetId().GetProvider() == string(cheap.Address()) {
					b.Bid.State = marketv1beta5.Bid_closed
				}
			}
		}
	}
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.Deploy(t.Context(), plan.ID(), cfg)
	if err != nil || r.Leases[0].Provider != dear.Address() {
		t.Errorf("Deploy = %v, leases %+v", err, r.Leases)
	}
}

func TestAProviderThatIsSlowIsAskedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stubs[cheap.Address()].Fail(
		gatewaystub.Fault{Path: "/manifest", Status: http.StatusNotFound, Text: "no lease for deployment"},
		gatewaystub.Fault{Path: "/manifest"}, // breaks the connection
		gatewaystub.Fault{Path: "/manifest", Status: http.StatusServiceUnavailable, Text: "backend is away"},
		gatewaystub.Fault{Path: "/status", Status: http.StatusInternalServerError, Text: "oops"},
	)
	_, r := w.deployed(t)
	if _, times := w.stubs[cheap.Address()].Manifest(r.ID()); times != 1 {
		t.Errorf("manifest was taken %d times", times)
	}
}

func TestTwoCallsExcludeEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := quick()
	cfg.Choose = func(ctx context.Context, _ tenant.Choice) ([]akash.BidID, error) {
		if _, err := w.tenant(t, nil).Deploy(ctx, plan.ID(), quick()); croft.KindOf(err) != croft.KindRefused {
			t.Errorf("second Deploy = %v, want a refusal", err)
		}
		return nil, errNoKey
	}
	if _, err := a.Deploy(t.Context(), plan.ID(), cfg); !errors.Is(err, errNoKey) {
		t.Errorf("Deploy = %v, want the chooser's error", err)
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan := func(text string, cfg tenant.PlanConfig) *tenant.Record {
		t.Helper()
		r, err := a.Plan(t.Context(), parse(t, text), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := plan(file, tenant.PlanConfig{})
	if again := plan(file, tenant.PlanConfig{}); again.DSeq != first.DSeq {
		t.Errorf("the same file is planned twice: %d and %d", first.DSeq, again.DSeq)
	}
	if other := plan(file, tenant.PlanConfig{Another: true}); other.DSeq == first.DSeq {
		t.Error("another is the same")
	}
	if dearer := plan(strings.Replace(file, "amount: 100", "amount: 200", 1), tenant.PlanConfig{}); dearer.DSeq == first.DSeq {
		t.Error("a file with another price goes on with the old one")
	}
	if _, err := a.Plan(t.Context(), parse(t, strings.Replace(file, "nginx", "caddy", 1)), tenant.PlanConfig{DSeq: first.DSeq}); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("planning under a used number = %v", err)
	}
}

func TestAnotherDeploymentWithTheNumberIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := &world{chain: w.chain, stubs: w.stubs, dir: t.TempDir()}
	b := elsewhere.tenant(t, nil)
	other, err := b.Plan(t.Context(), parse(t, strings.Replace(file, "nginx", "caddy", 1)), tenant.PlanConfig{DSeq: plan.DSeq})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Deploy(t.Context(), other.ID(), quick()); err != nil {
		t.Fatal(err)
	}
	cfg := quick()
	cfg.CloseOnFailure = true
	for range 2 {
		if r, err := a.Deploy(t.Context(), plan.ID(), cfg); croft.KindOf(err) != croft.KindRefused || r.Stage != tenant.Failed {
			t.Errorf("Deploy = %v, want a refusal", err)
		}
	}
	if _, err := a.Close(t.Context(), plan.ID(), nil); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("Close = %v, want a refusal", err)
	}
	if o, err := b.Look(t.Context(), other.ID()); err != nil || o.Deployment.GetDeployment().GetState().String() != "active" {
		t.Errorf("the other deployment was touched: %v %v", o.Deployment.GetDeployment(), err)
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	newer := strings.Replace(file, "nginx:1.27", "nginx:1.28", 1)
	t.Run("a new image goes to the chain and to the provider", func(t *testing.T) {
		w := newWorld(t)
		a, r := w.deployed(t)
		r, err := a.Update(t.Context(), r.ID(), parse(t, newer), quick())
		if err != nil || r.Stage != tenant.Answering {
			t.Fatalf("Update = %v, stage %s", err, r.Stage)
		}
		if raw, times := w.stubs[cheap.Address()].Manifest(r.ID()); times != 2 || !strings.Contains(string(raw), "nginx:1.28") {
			t.Errorf("the provider took %d manifests, the last %s", times, raw)
		}
	})
	t.Run("the same manifest is sent again without a transaction", func(t *testing.T) {
		w := newWorld(t)
		a, r := w.deployed(t)
		before := w.chain.executed
		if _, err := a.Update(t.Context(), r.ID(), parse(t, file), quick()); err != nil || w.chain.executed != before {
			t.Errorf("Update = %v, %d transactions", err, w.chain.executed-before)
		}
	})
	t.Run("groups cannot change", func(t *testing.T) {
		w := newWorld(t)
		a, r := w.deployed(t)
		changed := strings.NewReplacer("units: 0.5", "units: 2", "amount: 100", "amount: 50", "eu-west", "us").Replace(file)
		_, err := a.Update(t.Context(), r.ID(), parse(t, changed), quick())
		e, ok := errors.AsType[*tenant.GroupsChangedError](err)
		want := `placement "home": attributes was region=eu-west, is region=us|placement "home": resources 1 cpu was 500, is 2000|` +
			`placement "home": resources 1 price was 100uact, is 50uact`
		if !ok || strings.Join(e.Changes, "|") != want {
			t.Errorf("Update = %v, want %s", err, want)
		}
	})
	t.Run("a crash after any stored state loses nothing", func(t *testing.T) {
		for n := 1; ; n++ {
			w := newWorld(t)
			_, r := w.deployed(t)
			saves, crashed := 0, false
			func() {
				defer func() { crashed = recover() != nil }()
				_, _ = w.tenant(t, func(*tenant.Record) {
					if saves++; saves == n {
						panic(crash{})
					}
				}).Update(t.Context(), r.ID(), parse(t, newer), quick())
			}()
			if !crashed {
				return
			}
			r, err := w.tenant(t, nil).Deploy(t.Context(), r.ID(), quick())
			if err != nil || r.Stage != tenant.Answering || !strings.Contains(string(r.Manifest), "nginx:1.28") {
				t.Errorf("crash %d: Deploy = %v, stage %s, manifest %s", n, err, r.Stage, r.Manifest)
			}
		}
	})
	t.Run("a deployment made elsewhere is taken over", func(t *testing.T) {
		w := newWorld(t)
		_, r := w.deployed(t)
		w.dir = t.TempDir()
		a := w.tenant(t, nil)
		if r, err := a.Update(t.Context(), r.ID(), parse(t, newer), quick()); err != nil || r.Stage != tenant.Answering {
			t.Errorf("Update = %v, %v", r, err)
		}
		all, err := a.List(t.Context(), "active")
		if err != nil || len(all) != 1 || len(all[0].Leases) != 1 || all[0].Record == nil {
			t.Errorf("List = %+v, %v", all, err)
		}
		if rates, err := all[0].Rates(); err != nil || len(rates) != 1 || rates[0].String() != "40.000000000000000000uact" {
			t.Errorf("Rates = %v, %v", rates, err)
		}
	})
}

func TestDeployWithAClientCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	certificate, err := w.tenant(t, nil).Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.tenant(t, nil).Certificate(t.Context()); err != nil || string(again.Certificate[0]) != string(certificate.Certificate[0]) || w.chain.executed != 1 {
		t.Errorf("a second certificate was made: %v, %d transactions", err, w.chain.executed)
	}
	store, err := tenant.OpenStore(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := tenant.New(tenant.Config{Chain: w.chain, Signer: alice, Store: store, Certificate: &certificate, Poll: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Deploy(t.Context(), plan.ID(), quick()); err != nil {
		t.Error(err)
	}
}

func TestEachPlacementGetsALeaseOfItsOwn(t *testing.T) {
	t.Parallel()
	two := strings.NewReplacer(
		"deployment:\n  web: {home: {profile: web, count: 1}}", "deployment:\n  web: {home: {profile: web, count: 1}}\n  api: {away: {profile: web, count: 1}}",
		"  placement:\n", "  placement:\n    away: {pricing: {web: {denom: uact, amount: 100}}}\n",
		"services:\n", "services:\n  api: {image: caddy:2, expose: [{port: 8080, to: [{global: true}]}]}\n",
	).Replace(file)
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, two), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := quick()
	cfg.Choose = func(_ context.Context, c tenant.Choice) ([]akash.BidID, error) { // the dear one for the first group, the cheap one for the other
		return []akash.BidID{c.Of(1)[1].ID, c.Of(2)[0].ID}, nil
	}
	r, err := a.Deploy(t.Context(), plan.ID(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Leases) != 2 || r.Leases[0].Provider != dear.Address() || r.Leases[1].Provider != cheap.Address() || w.chain.executed != 2 {
		t.Errorf("leases = %+v after %d transactions", r.Leases, w.chain.executed)
	}
	for p, stub := range w.stubs {
		if _, times := stub.Manifest(r.ID()); times != 1 {
			t.Errorf("provider %s took %d manifests", p, times)
		}
	}
}

func TestWantAccepts(t *testing.T) {
	t.Parallel()
	offer := tenant.Offer{
		ID:    akash.BidID{Provider: cheap.Address()},
		Price: akash.Price{Denom: "uact", Amount: akash.NewDec(40)},
		Provider: &providerv1beta4.Provider{
			HostUri: "https://provider.home.example:8443", Attributes: []*attributesv1.Attribute{{Key: "organization", Value: "croft"}},
		},
	}
	for _, tc := range []struct {
		name string
		want tenant.Want
		lack string
	}{
		{"anything", tenant.Want{}, ""},
		{"the provider's address", tenant.Want{Provider: string(cheap.Address())}, ""},
		{"another address", tenant.Want{Provider: string(dear.Address())}, "provider is not " + string(dear.Address())},
		{"the provider's host name, in any case", tenant.Want{Provider: "Provider.Home.Example"}, ""},
		{"an attribute as a name", tenant.Want{Provider: "organization=croft"}, ""},
		{"an attribute that is missing", tenant.Want{Attributes: map[string]string{"region": "eu"}}, "provider lacks region=eu"},
		{"a price at the limit", tenant.Want{MaxPrice: akash.Price{Denom: "uact", Amount: akash.NewDec(40)}}, ""},
		{"a price above the limit", tenant.Want{MaxPrice: akash.Price{Denom: "uact", Amount: akash.NewDec(39)}}, "price 40.000000000000000000uact is above 39.000000000000000000uact"},
		{"a limit in another denom", tenant.Want{MaxPrice: akash.Price{Denom: "uakt", Amount: akash.NewDec(99)}}, "price is in uact, not in uakt"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.want.Accepts(offer); got != tc.lack {
				t.Errorf("Accepts = %q, want %q", got, tc.lack)
			}
		})
	}
}

func TestADamagedRecordIsReportedAndLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.tenant(t, nil)
	plan, err := a.Plan(t.Context(), parse(t, file), tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, "croft-test", string(alice.Address()), "1001.json")
	for _, content := range []string{"", "{", `{"version":2}`, `{"version":1,"chain":"x","owner":"` + string(alice.Address()) + `","dseq":7,"stage":"created"}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Deploy(t.Context(), plan.ID(), quick()); croft.KindOf(err) != croft.KindInvalid || !strings.Contains(err.Error(), path) {
			t.Errorf("Deploy with record %q = %v", content, err)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != content {
			t.Errorf("record %q became %q, %v", content, left, err)
		}
	}
}
