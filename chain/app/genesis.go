package app

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmttypes "github.com/cometbft/cometbft/types"
	dbm "github.com/cosmos/cosmos-db"

	"cosmossdk.io/log/v2"
	"cosmossdk.io/math"

	cryptocodec "github.com/cosmos/cosmos-sdk/crypto/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
	govtypes "github.com/cosmos/cosmos-sdk/x/gov/types"
	govv1 "github.com/cosmos/cosmos-sdk/x/gov/types/v1"
	slashingtypes "github.com/cosmos/cosmos-sdk/x/slashing/types"
	stakingtypes "github.com/cosmos/cosmos-sdk/x/staking/types"
)

// Genesis describes a new chain. [Genesis.Doc] turns it into the document that
// every node of the chain starts from.
//
// Coins of both denominations may be sent freely. Akash forbids bank sends of
// uact because its supply is bound to AKT by a burn-and-mint module; this chain
// has no such module and no inflation: what the accounts hold here is all there
// is. A network that wants Akash's rule switches uact off by a governance
// proposal on bank's SendEnabled; escrow pays leases all the same.
type Genesis struct {
	ChainID    string             // required
	Time       time.Time          // when the chain begins; default now
	Accounts   []GenesisAccount   // who holds coins at the start
	Validators []GenesisValidator // at least one; their stakes come on top of Accounts

	BlockTime      time.Duration // only scales the limits below; default 1 s
	BlockGas       int64         // most gas of one block; default 100,000,000
	EvidenceBlocks int64         // how long a double signature can be reported, and the least number of blocks a node keeps; default 20,000
	Unbonding      time.Duration // from undelegation to coins; default 21 days
	VotingPeriod   time.Duration // of governance; default 2 days
	MinDeposit     int64         // uakt a proposal needs; default 1,000 AKT

	// State replaces the state of the named modules; tests use it.
	State map[string]json.RawMessage
}

// GenesisAccount is an account that holds coins when the chain begins.
type GenesisAccount struct {
	Address string    `json:"address"` // akash1…
	Coins   sdk.Coins `json:"coins"`
}

// GenesisValidator is a member of the first validator set.
type GenesisValidator struct {
	Moniker  string         `json:"moniker"`
	Operator string         `json:"operator"` // akash1… account that owns the stake
	Key      ed25519.PubKey `json:"key"`      // consensus key, 32 bytes
	Stake    int64          `json:"stake"`    // uakt, at least 1 AKT
}

// Doc builds the genesis document. The same Genesis gives the same document,
// byte for byte, on every machine.
func (g Genesis) Doc() (*cmttypes.GenesisDoc, error) {
	if g.ChainID == "" {
		return nil, errors.New("chain id is missing")
	}
	if len(g.Validators) == 0 {
		return nil, errors.New("genesis has no validator")
	}
	begin := g.Time
	if begin.IsZero() {
		begin = time.Now()
	}
	a, err := New(log.NewNopLogger(), dbm.NewMemDB(), Options{}) // only for its codec and defaults
	if err != nil {
		return nil, err
	}
	defer a.Close()

	state := a.defaultGenesis()
	set := func(module string, s interface {
		Reset()
		String() string
		ProtoMessage()
	},
	) {
		state[module] = a.cdc.MustMarshalJSON(s)
	}
	accounts, balances, err := g.balances()
	if err != nil {
		return nil, err
	}
	staking, pool, err := g.staking()
	if err != nil {
		return nil, err
	}
	balances = append(balances, banktypes.Balance{
		Address: authtypes.NewModuleAddress(stakingtypes.NotBondedPoolName).String(),
		Coins:   sdk.NewCoins(sdk.NewCoin(BondDenom, pool)),
	})
	set(authtypes.ModuleName, authtypes.NewGenesisState(authtypes.DefaultParams(), accounts))
	set(banktypes.ModuleName, banktypes.NewGenesisState(banktypes.DefaultParams(), banktypes.SanitizeGenesisBalances(balances), nil, denomMetadata(), nil))
	set(stakingtypes.ModuleName, staking)
	set(govtypes.ModuleName, g.governance())
	maps.Copy(state, g.State)
	if err := a.basics.ValidateGenesis(a.cdc, a.txConfig, state); err != nil {
		return nil, fmt.Errorf("check genesis state: %w", err)
	}
	raw, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode genesis state: %w", err)
	}
	doc := &cmttypes.GenesisDoc{
		GenesisTime:     begin.UTC().Round(0),
		ChainID:         g.ChainID,
		ConsensusParams: g.consensusParams(),
		AppState:        raw,
	}
	if err := doc.ValidateAndComplete(); err != nil {
		return nil, fmt.Errorf("check genesis document: %w", err)
	}
	return doc, nil
}

func (g Genesis) balances() ([]authtypes.GenesisAccount, []banktypes.Balance, error) {
	var accounts []authtypes.GenesisAccount
	var balances []banktypes.Balance
	seen := make(map[string]bool)
	add := func(address string) error {
		addr, err := sdk.AccAddressFromBech32(address)
		if err != nil {
			return fmt.Errorf("address %q: %w", address, err)
		}
		if !seen[address] {
			seen[address] = true
			accounts = append(accounts, authtypes.NewBaseAccountWithAddress(addr))
		}
		return nil
	}
	for _, account := range g.Accounts {
		if seen[account.Address] {
			return nil, nil, fmt.Errorf("account %s is there twice", account.Address)
		}
		if err := add(account.Address); err != nil {
			return nil, nil, err
		}
		balances = append(balances, banktypes.Balance{Address: account.Address, Coins: account.Coins.Sort()})
	}
	for _, v := range g.Validators {
		if err := add(v.Operator); err != nil {
			return nil, nil, fmt.Errorf("operator of validator %q: %w", v.Moniker, err)
		}
	}
	return accounts, balances, nil
}

// staking is the first validator set. The validators begin unbonded: staking
// bonds them in its own genesis, so that the hooks of slashing and distribution
// run as for any validator.
func (g Genesis) staking() (*stakingtypes.GenesisState, math.Int, error) {
	state := stakingtypes.DefaultGenesisState()
	state.Params.BondDenom = BondDenom
	state.Params.KeyRotationFee = sdk.NewCoin(BondDenom, stakingtypes.DefaultKeyRotationFeeAmount)
	state.Params.HistoricalEntries = 0 // only IBC reads them, at the cost of a write per block
	state.Params.UnbondingTime = cmp.Or(g.Unbonding, 21*24*time.Hour)
	pool := math.ZeroInt()
	for _, v := range g.Validators {
		if len(v.Key) != ed25519.PubKeySize {
			return nil, pool, fmt.Errorf("validator %q: consensus key has %d bytes, want %d", v.Moniker, len(v.Key), ed25519.PubKeySize)
		}
		if v.Stake < sdk.DefaultPowerReduction.Int64() {
			return nil, pool, fmt.Errorf("validator %q: stake of %d%s is below %s%s", v.Moniker, v.Stake, BondDenom, sdk.DefaultPowerReduction, BondDenom)
		}
		owner, err := sdk.AccAddressFromBech32(v.Operator)
		if err != nil {
			return nil, pool, fmt.Errorf("operator of validator %q: %w", v.Moniker, err)
		}
		key, err := cryptocodec.FromCmtPubKeyInterface(v.Key)
		if err != nil {
			return nil, pool, fmt.Errorf("key of validator %q: %w", v.Moniker, err)
		}
		operator := sdk.ValAddress(owner).String()
		validator, err := stakingtypes.NewValidator(operator, key, stakingtypes.Description{Moniker: v.Moniker})
		if err != nil {
			return nil, pool, fmt.Errorf("make validator %q: %w", v.Moniker, err)
		}
		stake := math.NewInt(v.Stake)
		validator.Tokens = stake
		validator.DelegatorShares = math.LegacyNewDecFromInt(stake)
		validator.UnbondingTime = time.Unix(0, 0).UTC()
		state.Validators = append(state.Validators, validator)
		state.Delegations = append(state.Delegations, stakingtypes.NewDelegation(v.Operator, operator, validator.DelegatorShares))
		pool = pool.Add(stake)
	}
	return state, pool, nil
}

func (g Genesis) governance() *govv1.GenesisState {
	voting := cmp.Or(g.VotingPeriod, govv1.DefaultPeriod)
	expedited := voting / 2
	deposit := math.NewInt(cmp.Or(g.MinDeposit, 1_000_000_000))
	state := govv1.DefaultGenesisState()
	state.Params.VotingPeriod = &voting
	state.Params.ExpeditedVotingPeriod = &expedited
	state.Params.MinDeposit = sdk.NewCoins(sdk.NewCoin(BondDenom, deposit))
	state.Params.ExpeditedMinDeposit = sdk.NewCoins(sdk.NewCoin(BondDenom, deposit.MulRaw(5)))
	return state
}

func (g Genesis) consensusParams() *cmttypes.ConsensusParams {
	blocks := cmp.Or(g.EvidenceBlocks, 20_000)
	params := cmttypes.DefaultConsensusParams()
	params.Block.MaxBytes = 4 << 20
	params.Block.MaxGas = cmp.Or(g.BlockGas, 100_000_000)
	params.Evidence.MaxAgeNumBlocks = blocks
	params.Evidence.MaxAgeDuration = time.Duration(blocks) * cmp.Or(g.BlockTime, time.Second)
	return params
}

// defaultGenesis is every module's own default with this chain's denominations.
func (a *App) defaultGenesis() map[string]json.RawMessage {
	state := a.basics.DefaultGenesis(a.cdc)
	var slashing slashingtypes.GenesisState
	a.cdc.MustUnmarshalJSON(state[slashingtypes.ModuleName], &slashing)
	slashing.Params.SignedBlocksWindow = 10_000 // at 1 s blocks a validator may be away for two and a half hours
	slashing.Params.MinSignedPerWindow = math.LegacyNewDecWithPrec(5, 2)
	state[slashingtypes.ModuleName] = a.cdc.MustMarshalJSON(&slashing)
	return state
}

func denomMetadata() []banktypes.Metadata {
	unit := func(base, display, name, description string) banktypes.Metadata {
		return banktypes.Metadata{
			Description: description,
			DenomUnits:  []*banktypes.DenomUnit{{Denom: base}, {Denom: "m" + display, Exponent: 3}, {Denom: display, Exponent: 6}},
			Base:        base,
			Display:     display,
			Name:        name,
			Symbol:      name,
		}
	}
	return []banktypes.Metadata{
		unit(BondDenom, "akt", "AKT", "stake and fees"),
		unit(CreditDenom, "act", "ACT", "credit for leases"),
	}
}
