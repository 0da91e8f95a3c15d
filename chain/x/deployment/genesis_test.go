package deployment

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/math"
)

// reborn imports what a world exports and returns what the new one exports.
func reborn(t testing.TB, w *world) (exported, again []byte) {
	t.Helper()
	m := NewAppModule(w.cdc, w.k)
	exported = m.ExportGenesis(w.ctx, w.cdc)
	if err := m.ValidateGenesis(w.cdc, nil, exported); err != nil {
		t.Fatal(err)
	}
	next := newWorld(t)
	next.escrow.accounts = w.escrow.accounts
	m = NewAppModule(next.cdc, next.k)
	m.InitGenesis(next.ctx, next.cdc, exported)
	if err := next.k.Invariants(next.ctx); err != nil {
		t.Fatal(err)
	}
	return exported, m.ExportGenesis(next.ctx, next.cdc)
}

func TestExportAndImportGiveTheSameState(t *testing.T) {
	w := three(t, 1_000_000)
	succeeds(t, w.create(w.createMsg(7)))
	w.pass(6)
	succeeds(t, w.close(1001))
	exported, again := reborn(t, w)
	if !bytes.Equal(exported, again) {
		t.Errorf("got  %s\nwant %s", again, exported)
	}
}

func TestValidateGenesis(t *testing.T) {
	w := three(t, 50)
	for _, tc := range []struct {
		name   string
		change func(s *deploymentv1beta4.GenesisState)
	}{
		{"a deployment is there once", func(s *deploymentv1beta4.GenesisState) { s.Deployments = append(s.Deployments, s.Deployments[0]) }},
		{"a deployment has a state", func(s *deploymentv1beta4.GenesisState) {
			s.Deployments[0].Deployment.State = deploymentv1.DeploymentInvalid
		}},
		{"a deployment has an id", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Deployment.ID.DSeq = 0 }},
		{"a deployment has a hash", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Deployment.Hash = nil }},
		{"a deployment has a height", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Deployment.CreatedAt = -1 }},
		{"a deployment has groups", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Groups = nil }},
		{"a closed deployment has no open group", func(s *deploymentv1beta4.GenesisState) {
			s.Deployments[0].Deployment.State = deploymentv1.DeploymentClosed
		}},
		{"an active deployment has no dry group", func(s *deploymentv1beta4.GenesisState) {
			s.Deployments[0].Groups[0].State = deploymentv1beta4.GroupInsufficientFunds
		}},
		{"a group has a state", func(s *deploymentv1beta4.GenesisState) {
			s.Deployments[0].Groups[0].State = deploymentv1beta4.GroupInvalid
		}},
		{"groups are numbered in order", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Groups[0].ID.GSeq = 2 }},
		{"groups are their deployment's", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Groups[0].ID.DSeq = 2 }},
		{"groups are as old as their deployment", func(s *deploymentv1beta4.GenesisState) { s.Deployments[0].Groups[0].CreatedAt++ }},
		{"groups are valid", func(s *deploymentv1beta4.GenesisState) {
			s.Deployments[0].Groups[0].GroupSpec.Resources[0].Price.Amount = math.LegacyDec{}
		}},
		{"parameters are valid", func(s *deploymentv1beta4.GenesisState) { s.Params.MinDeposits = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, err := w.k.ExportGenesis(w.ctx)
			succeeds(t, err)
			succeeds(t, ValidateGenesis(state))
			tc.change(state)
			if err := newWorld(t).k.InitGenesis(w.ctx, state); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// Random messages of one tenant, its providers and time never break what must
// hold; money is never made or lost; any state survives export and import.
func TestAnySequenceOfMessagesKeepsTheInvariants(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		dseq := func() uint64 { return rapid.Uint64Range(1, 3).Draw(r, "dseq") }
		group := func() deploymentv1.GroupID { return w.group(dseq(), rapid.Uint32Range(1, 3).Draw(r, "gseq")) }
		market := func(do func(ctx context.Context, id deploymentv1.GroupID) error) func(*rapid.T) {
			return func(*rapid.T) {
				id := group()
				_ = w.try(func(ctx context.Context) error { return do(ctx, id) })
			}
		}
		// Messages may be refused; what they leave behind is checked.
		r.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) {
				var groups []deploymentv1beta4.GroupSpec
				for i := range rapid.IntRange(1, 3).Draw(r, "groups") {
					groups = append(groups, groupSpec(fmt.Sprint("g", i)))
				}
				_ = w.create(w.createMsg(dseq(), groups...))
			},
			"update": func(*rapid.T) {
				_ = w.update(dseq(), rapid.SliceOfN(rapid.Byte(), HashBytes, HashBytes).Draw(r, "hash"))
			},
			"close":       func(*rapid.T) { _ = w.close(dseq()) },
			"close group": func(*rapid.T) { _ = w.closeGroup(group()) },
			"pause group": func(*rapid.T) { _ = w.pauseGroup(group()) },
			"start group": func(*rapid.T) { _ = w.startGroup(group()) },
			"lease": market(func(ctx context.Context, id deploymentv1.GroupID) error {
				return w.market.lease(ctx, id, rapid.Int64Range(1, 1_000_000).Draw(r, "rate"))
			}),
			"close lease": market(w.market.closeLease),
			"close bid":   market(w.market.closeBid),
			"pass":        func(*rapid.T) { w.pass(rapid.Int64Range(0, 5).Draw(r, "blocks")) },
			"": func(r *rapid.T) {
				w.sound(r)
				sum := w.escrow.wallets[w.tenant+"uact"]
				for _, a := range w.escrow.accounts {
					sum = sum.Add(a.State.Transferred[0].Amount)
					for _, d := range a.State.Deposits {
						sum = sum.Add(d.Balance.Amount)
					}
				}
				if !sum.Equal(math.LegacyNewDec(1_000_000_000)) {
					r.Fatalf("there are %s uact in all", sum)
				}
			},
		})
		if exported, again := reborn(t, w); !bytes.Equal(exported, again) {
			r.Fatalf("got  %s\nwant %s", again, exported)
		}
	})
}
