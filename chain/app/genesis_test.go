package app_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cmttypes "github.com/cometbft/cometbft/types"
	dbm "github.com/cosmos/cosmos-db"

	"cosmossdk.io/log/v2"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	"github.com/cosmos/cosmos-sdk/x/authz"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
	"github.com/cosmos/cosmos-sdk/x/feegrant"
	govtypes "github.com/cosmos/cosmos-sdk/x/gov/types"
	govv1 "github.com/cosmos/cosmos-sdk/x/gov/types/v1"
	stakingtypes "github.com/cosmos/cosmos-sdk/x/staking/types"
	upgradetypes "github.com/cosmos/cosmos-sdk/x/upgrade/types"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

var validator = chaintest.NewAccount(chaintest.Validator)

func valoper(a chaintest.Account) string {
	app.SetAddressPrefix()
	return sdk.ValAddress(a.Addr()).String()
}

// busyChain is a chain in which every stock module has something to export.
func busyChain(t *testing.T) *chaintest.App {
	t.Helper()
	a := chaintest.NewApp(t, chaintest.Config{})
	a.MustDeliver(tenant, send(tenant, provider, app.CreditDenom, 7))
	a.MustDeliver(tenant, stakingtypes.NewMsgDelegate(tenant.Address(), valoper(validator), sdk.NewInt64Coin(app.BondDenom, 5_000_000)))
	a.MustDeliver(tenant, stakingtypes.NewMsgUndelegate(tenant.Address(), valoper(validator), sdk.NewInt64Coin(app.BondDenom, 1_000_000)))
	allowance, err := feegrant.NewMsgGrantAllowance(&feegrant.BasicAllowance{}, tenant.Addr(), provider.Addr())
	if err != nil {
		t.Fatal(err)
	}
	expires := a.Now().Add(time.Hour)
	grant, err := authz.NewMsgGrant(tenant.Addr(), provider.Addr(), authz.NewGenericAuthorization(sdk.MsgTypeURL(&banktypes.MsgSend{})), &expires)
	if err != nil {
		t.Fatal(err)
	}
	a.MustDeliver(tenant, allowance, grant)
	proposal, err := govv1.NewMsgSubmitProposal(nil, sdk.NewCoins(sdk.NewInt64Coin(app.BondDenom, 1_000_000_000)), tenant.Address(), "a note", "text", "a text", false)
	if err != nil {
		t.Fatal(err)
	}
	a.MustDeliver(tenant, proposal)
	return a
}

func TestExportThenImportGivesTheSameState(t *testing.T) {
	for _, tc := range []struct {
		name     string
		fromZero bool
	}{{"from the next height", false}, {"from height 1", true}} {
		t.Run(tc.name, func(t *testing.T) {
			a := busyChain(t)
			doc, err := a.Export(tc.fromZero)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := app.EncodeGenesis(doc)
			if err != nil {
				t.Fatal(err)
			}
			if doc, err = app.ParseGenesis(raw); err != nil {
				t.Fatal(err)
			}
			var want map[string]json.RawMessage
			if err := json.Unmarshal(doc.AppState, &want); err != nil {
				t.Fatal(err)
			}
			got := imported(t, doc)
			for module := range want {
				if w, g := compact(t, want[module]), compact(t, got[module]); w != g {
					t.Errorf("%s: exported\n%s\nafter import\n%s", module, w, g)
				}
			}

			b := chaintest.NewApp(t, chaintest.Config{Doc: doc})
			if wantHeight := doc.InitialHeight; b.Height() != wantHeight {
				t.Errorf("first block is %d, want %d", b.Height(), wantHeight)
			}
			b.MustDeliver(provider, send(provider, tenant, app.CreditDenom, 7))
			b.Blocks(3)
		})
	}
}

// imported is the state that a document gives, before the first block.
func imported(t *testing.T, doc *cmttypes.GenesisDoc) map[string]json.RawMessage {
	t.Helper()
	a, err := app.New(log.NewTestLoggerError(t), dbm.NewMemDB(), app.Options{ChainID: doc.ChainID})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	params := doc.ConsensusParams.ToProto()
	var validators []abci.ValidatorUpdate
	for _, v := range doc.Validators {
		validators = append(validators, cmttypes.TM2PB.NewValidatorUpdate(v.PubKey, v.Power))
	}
	if _, err := a.InitChain(&abci.RequestInitChain{
		Time: doc.GenesisTime, ChainId: doc.ChainID, ConsensusParams: &params, Validators: validators,
		AppStateBytes: doc.AppState, InitialHeight: doc.InitialHeight,
	}); err != nil {
		t.Fatal(err)
	}
	state, err := a.ExportPending(doc.InitialHeight)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	if len(raw) == 0 {
		return ""
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestGenesisIsTheSameForTheSameInput(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := chaintest.NewGenesis(t, chaintest.Config{Begin: begin}), chaintest.NewGenesis(t, chaintest.Config{Begin: begin})
	if !bytes.Equal(a.AppState, b.AppState) {
		t.Error("two documents of one genesis differ")
	}
}

func TestUpgradeRunsAtItsHeight(t *testing.T) {
	db := dbm.NewMemDB()
	home := t.TempDir()
	genesis := func(g *app.Genesis) { g.VotingPeriod = time.Minute }
	old := chaintest.NewApp(t, chaintest.Config{DB: db, Genesis: genesis, Options: app.Options{Home: home}})

	at := old.Height() + 20
	plan := &upgradetypes.MsgSoftwareUpgrade{
		Authority: authtypes.NewModuleAddress(govtypes.ModuleName).String(),
		Plan:      upgradetypes.Plan{Name: "next", Height: at},
	}
	proposal, err := govv1.NewMsgSubmitProposal([]sdk.Msg{plan}, sdk.NewCoins(sdk.NewInt64Coin(app.BondDenom, 1_000_000_000)), validator.Address(), "", "upgrade", "to the next version", false)
	if err != nil {
		t.Fatal(err)
	}
	old.MustDeliver(validator, proposal)
	old.MustDeliver(validator, govv1.NewMsgVote(validator.Addr(), 1, govv1.OptionYes, ""))
	for old.Height() < at-1 {
		old.NextBlock()
	}
	if _, err := old.TryBlock(); err == nil || !strings.Contains(err.Error(), "UPGRADE") {
		t.Fatalf("the old program went on past the upgrade: %v", err)
	}

	next := chaintest.NewApp(t, chaintest.Config{DB: db, Options: app.Options{Home: home, Upgrades: []app.Upgrade{{Name: plan.Plan.Name}}}})
	if next.Height() != at-1 {
		t.Fatalf("the new program begins at %d, want %d", next.Height(), at-1)
	}
	next.NextBlock()
	name, height, err := next.UpgradeKeeper.GetLastCompletedUpgrade(next.Context())
	if err != nil {
		t.Fatal(err)
	}
	if name != plan.Plan.Name || height != at {
		t.Errorf("last upgrade is %q at %d, want %q at %d", name, height, plan.Plan.Name, at)
	}
	next.MustDeliver(tenant, send(tenant, provider, app.BondDenom, 1))
}

func TestBlockGasIsCapped(t *testing.T) {
	a := chaintest.NewApp(t, chaintest.Config{Genesis: func(g *app.Genesis) { g.BlockGas = 150_000 }})
	msg := send(tenant, provider, app.CreditDenom, 1)
	var txs [][]byte
	for i := range uint64(4) {
		txs = append(txs, a.Sign(tenant, chaintest.TxConfig{Gas: 100_000, Offset: i}, msg))
	}
	ran := 0
	for _, r := range a.NextBlock(txs...) {
		if r.Err() == nil {
			ran++
		}
	}
	if ran == 0 || ran == len(txs) {
		t.Errorf("%d of %d transactions ran in a block with gas for two", ran, len(txs))
	}
}

func TestDoubleSignatureIsSlashed(t *testing.T) {
	a := chaintest.NewApp(t, chaintest.Config{})
	a.Equivocate()
	v, err := a.StakingKeeper.Validator(a.Context(), sdk.ValAddress(validator.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	if want := math.NewInt(950_000_000); !v.GetTokens().Equal(want) || !v.IsJailed() {
		t.Errorf("after a double signature: stake %s, jailed %t; want %s, true", v.GetTokens(), v.IsJailed(), want)
	}
}
