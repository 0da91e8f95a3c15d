// Package chaintest is the chain for tests: [NewApp] is the whole application
// in memory, driven block by block over ABCI with really signed transactions
// and no consensus (a new chain takes some 40 ms, a block with one transaction
// below one); [StartNode] is a real node with one validator, its ports on
// loopback and its files in a temporary directory.
//
// Both begin with the accounts tenant, provider, fleet and faucet, which hold
// both denominations.
package chaintest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cmttypes "github.com/cometbft/cometbft/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/gogoproto/proto"

	"cosmossdk.io/log/v2"

	"github.com/cosmos/cosmos-sdk/crypto/keys/secp256k1"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/tx/signing"
	authsigning "github.com/cosmos/cosmos-sdk/x/auth/signing"

	"github.com/croft-cloud/croft/chain/app"
)

// ChainID is the id of the chains of this package.
const ChainID = "croft-test"

// Funds is what each account begins with, of each denomination.
const Funds = 1_000_000_000_000

// The accounts every chain begins with.
const (
	Tenant    = "tenant"
	Provider  = "provider"
	Fleet     = "fleet"
	Faucet    = "faucet"
	Validator = "validator"
)

// Account is an account and its key.
type Account struct {
	Name string
	Key  *secp256k1.PrivKey
}

// Addr is the account's address.
func (a Account) Addr() sdk.AccAddress { return sdk.AccAddress(a.Key.PubKey().Address()) }

// Address is the account's address as akash1….
func (a Account) Address() string {
	app.SetAddressPrefix()
	return a.Addr().String()
}

// NewAccount is the account of that name: the same key for the same name.
func NewAccount(name string) Account {
	return Account{Name: name, Key: secp256k1.GenPrivKeyFromSecret([]byte("chaintest " + name))}
}

// Config changes what a chain begins with. The zero value will do.
type Config struct {
	Accounts []string             // further accounts with funds
	Genesis  func(*app.Genesis)   // changes the genesis before it is made
	Doc      *cmttypes.GenesisDoc // starts from this document instead
	Options  app.Options          // options of the application
	DB       dbm.DB               // default: a new one in memory; one with blocks in it is continued
	Begin    time.Time            // time of the genesis; default 2026-01-01
	Step     time.Duration        // time between blocks; default 6 s
}

// App is a chain in memory. It belongs to one test and is not for use by
// several goroutines.
type App struct {
	*app.App

	// Check makes every block end with a check of all invariants. It is set.
	Check bool

	t       testing.TB
	height  int64
	now     time.Time
	step    time.Duration
	hash    []byte
	address []byte // of the proposing validator
}

// NewApp makes a chain and its first block.
func NewApp(t testing.TB, cfg Config) *App {
	t.Helper()
	if cfg.Begin.IsZero() {
		cfg.Begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if cfg.Step == 0 {
		cfg.Step = 6 * time.Second
	}
	if cfg.Options.ChainID == "" {
		cfg.Options.ChainID = ChainID
	}
	if cfg.DB == nil {
		cfg.DB = dbm.NewMemDB()
	}
	chain, err := app.New(log.NewTestLoggerError(t), cfg.DB, cfg.Options)
	if err != nil {
		t.Fatalf("make app: %v", err)
	}
	t.Cleanup(func() { _ = chain.Close() })
	a := &App{App: chain, Check: true, t: t, now: cfg.Begin, step: cfg.Step, address: consensusKey().PubKey().Address()}
	if height := chain.LastBlockHeight(); height > 0 {
		a.height, a.hash = height, chain.LastCommitID().Hash
		a.now = cfg.Begin.Add(time.Duration(height) * cfg.Step)
		return a
	}
	doc := cfg.Doc
	if doc == nil {
		doc = NewGenesis(t, cfg)
	}
	a.begin(doc)
	a.NextBlock()
	return a
}

// NewGenesis is the document that [NewApp] starts from.
func NewGenesis(t testing.TB, cfg Config) *cmttypes.GenesisDoc {
	t.Helper()
	g := app.Genesis{
		ChainID: ChainID,
		Time:    cfg.Begin,
		Validators: []app.GenesisValidator{{
			Moniker:  Validator,
			Operator: NewAccount(Validator).Address(),
			Key:      consensusKey().PubKey().(ed25519.PubKey),
			Stake:    1_000_000_000,
		}},
	}
	for _, name := range append([]string{Tenant, Provider, Fleet, Faucet, Validator}, cfg.Accounts...) {
		g.Accounts = append(g.Accounts, app.GenesisAccount{
			Address: NewAccount(name).Address(),
			Coins:   sdk.NewCoins(sdk.NewInt64Coin(app.BondDenom, Funds), sdk.NewInt64Coin(app.CreditDenom, Funds)),
		})
	}
	if cfg.Genesis != nil {
		cfg.Genesis(&g)
	}
	doc, err := g.Doc()
	if err != nil {
		t.Fatalf("make genesis: %v", err)
	}
	return doc
}

func consensusKey() ed25519.PrivKey {
	return ed25519.GenPrivKeyFromSecret([]byte("chaintest consensus"))
}

func (a *App) begin(doc *cmttypes.GenesisDoc) {
	a.t.Helper()
	params := doc.ConsensusParams.ToProto()
	var validators []abci.ValidatorUpdate
	for _, v := range doc.Validators {
		validators = append(validators, cmttypes.TM2PB.NewValidatorUpdate(v.PubKey, v.Power))
	}
	resp, err := a.InitChain(&abci.RequestInitChain{
		Time:            doc.GenesisTime,
		ChainId:         doc.ChainID,
		ConsensusParams: &params,
		Validators:      validators,
		AppStateBytes:   doc.AppState,
		InitialHeight:   doc.InitialHeight,
	})
	if err != nil {
		a.t.Fatalf("init chain: %v", err)
	}
	a.hash = resp.AppHash
	a.height = doc.InitialHeight - 1
	a.now = doc.GenesisTime
}

// Height is the height of the last block.
func (a *App) Height() int64 { return a.height }

// Now is the time of the last block.
func (a *App) Now() time.Time { return a.now }

// Hash is the hash of the state after the last block.
func (a *App) Hash() []byte { return slices.Clone(a.hash) }

// Context reads the state after the last block. What is written to it is lost.
func (a *App) Context() sdk.Context {
	a.t.Helper()
	ctx, err := a.CreateQueryContext(a.height, false)
	if err != nil {
		a.t.Fatalf("read state at %d: %v", a.height, err)
	}
	return ctx.WithBlockTime(a.now)
}

// Result is what became of one transaction.
type Result struct {
	Height    int64
	Code      uint32 // 0: it ran
	Codespace string
	Log       string
	GasUsed   int64
	Data      []byte
	Events    []abci.Event
}

// Err is nil for a transaction that ran, else it says why not.
func (r Result) Err() error {
	if r.Code == 0 {
		return nil
	}
	return fmt.Errorf("%s/%d: %s", r.Codespace, r.Code, r.Log)
}

// Event is the values of the attributes of the first event of that type, and
// whether there is one.
func (r Result) Event(kind string) (map[string]string, bool) {
	for _, e := range r.Events {
		if e.Type == kind {
			attributes := make(map[string]string, len(e.Attributes))
			for _, at := range e.Attributes {
				attributes[at.Key] = at.Value
			}
			return attributes, true
		}
	}
	return nil, false
}

// NextBlock makes the next block of these encoded transactions.
func (a *App) NextBlock(txs ...[]byte) []Result {
	a.t.Helper()
	results, err := a.TryBlock(txs...)
	if err != nil {
		a.t.Fatalf("block %d: %v", a.height+1, err)
	}
	return results
}

// TryBlock is NextBlock for chains that are expected to stop. After an error
// the App is of no more use.
func (a *App) TryBlock(txs ...[]byte) ([]Result, error) {
	a.t.Helper()
	return a.block(nil, txs)
}

// Equivocate makes a block with evidence that the validator signed twice.
func (a *App) Equivocate() {
	a.t.Helper()
	if _, err := a.block([]abci.Misbehavior{{
		Type:             abci.MisbehaviorType_DUPLICATE_VOTE,
		Validator:        abci.Validator{Address: a.address, Power: 1000},
		Height:           a.height,
		Time:             a.now,
		TotalVotingPower: 1000,
	}}, nil); err != nil {
		a.t.Fatalf("block %d: %v", a.height+1, err)
	}
}

func (a *App) block(misbehavior []abci.Misbehavior, txs [][]byte) ([]Result, error) {
	now := a.now.Add(a.step)
	resp, err := a.FinalizeBlock(&abci.RequestFinalizeBlock{
		Misbehavior:     misbehavior,
		Height:          a.height + 1,
		Time:            now,
		Txs:             txs,
		ProposerAddress: a.address,
		DecidedLastCommit: abci.CommitInfo{Votes: []abci.VoteInfo{{
			Validator:   abci.Validator{Address: a.address, Power: 1000},
			BlockIdFlag: 2, // commit
		}}},
	})
	if err != nil {
		return nil, fmt.Errorf("finalize block: %w", err)
	}
	if _, err := a.Commit(); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	a.height, a.now, a.hash = a.height+1, now, resp.AppHash
	results := make([]Result, len(resp.TxResults))
	for i, r := range resp.TxResults {
		results[i] = Result{
			Height: a.height, Code: r.Code, Codespace: r.Codespace, Log: r.Log,
			GasUsed: r.GasUsed, Data: r.Data, Events: r.Events,
		}
	}
	if a.Check {
		if err := a.Invariants(a.Context()); err != nil {
			return nil, fmt.Errorf("invariants after block %d: %w", a.height, err)
		}
	}
	return results, nil
}

// Blocks makes n empty blocks.
func (a *App) Blocks(n int) {
	a.t.Helper()
	for range n {
		a.NextBlock()
	}
}

// Deliver makes a block of one transaction that signer signs.
func (a *App) Deliver(signer Account, msgs ...sdk.Msg) Result {
	a.t.Helper()
	return a.NextBlock(a.Sign(signer, TxConfig{}, msgs...))[0]
}

// MustDeliver is Deliver for a transaction that has to run.
func (a *App) MustDeliver(signer Account, msgs ...sdk.Msg) Result {
	a.t.Helper()
	r := a.Deliver(signer, msgs...)
	if err := r.Err(); err != nil {
		a.t.Fatalf("deliver %s: %v", sdk.MsgTypeURL(msgs[0]), err)
	}
	return r
}

// TxConfig says how a transaction is signed. The zero value is an ordered
// transaction in DIRECT mode with enough gas and a fee of the signer.
type TxConfig struct {
	Amino     bool           // amino JSON instead of DIRECT
	Gas       uint64         // default 2,000,000
	Fee       sdk.Coins      // default 5,000uakt
	Granter   sdk.AccAddress // pays the fee
	Memo      string
	Offset    uint64        // earlier transactions of the signer in the same block
	Unordered time.Duration // > 0: unordered, valid that long after the last block
}

// Sign encodes a transaction of msgs with the sequence that the last block left.
func (a *App) Sign(signer Account, cfg TxConfig, msgs ...sdk.Msg) []byte {
	a.t.Helper()
	raw, err := a.sign(signer, cfg, msgs...)
	if err != nil {
		a.t.Fatalf("sign: %v", err)
	}
	return raw
}

func (a *App) sign(signer Account, cfg TxConfig, msgs ...sdk.Msg) ([]byte, error) {
	mode := signing.SignMode_SIGN_MODE_DIRECT
	if cfg.Amino {
		mode = signing.SignMode_SIGN_MODE_LEGACY_AMINO_JSON
	}
	if cfg.Gas == 0 {
		cfg.Gas = 2_000_000
	}
	if cfg.Fee == nil {
		cfg.Fee = sdk.NewCoins(sdk.NewInt64Coin(app.BondDenom, 5000))
	}
	var number, sequence uint64
	if account := a.AccountKeeper.GetAccount(a.Context(), signer.Addr()); account != nil {
		number, sequence = account.GetAccountNumber(), account.GetSequence()+cfg.Offset
	}
	builder := a.TxConfig().NewTxBuilder()
	if err := builder.SetMsgs(msgs...); err != nil {
		return nil, err
	}
	builder.SetGasLimit(cfg.Gas)
	builder.SetFeeAmount(cfg.Fee)
	builder.SetFeeGranter(cfg.Granter)
	builder.SetMemo(cfg.Memo)
	if cfg.Unordered > 0 {
		sequence = 0
		builder.SetUnordered(true)
		builder.SetTimeoutTimestamp(a.now.Add(cfg.Unordered))
	}
	signature := func(raw []byte) signing.SignatureV2 {
		return signing.SignatureV2{
			PubKey:   signer.Key.PubKey(),
			Data:     &signing.SingleSignatureData{SignMode: mode, Signature: raw},
			Sequence: sequence,
		}
	}
	if err := builder.SetSignatures(signature(nil)); err != nil { // the signer's key is part of what is signed
		return nil, err
	}
	bytes, err := authsigning.GetSignBytesAdapter(context.Background(), a.TxConfig().SignModeHandler(), mode, authsigning.SignerData{
		Address:       signer.Address(),
		ChainID:       a.ChainID(),
		AccountNumber: number,
		Sequence:      sequence,
		PubKey:        signer.Key.PubKey(),
	}, builder.GetTx())
	if err != nil {
		return nil, err
	}
	raw, err := signer.Key.Sign(bytes)
	if err != nil {
		return nil, err
	}
	if err := builder.SetSignatures(signature(raw)); err != nil {
		return nil, err
	}
	return a.TxConfig().TxEncoder()(builder.GetTx())
}

// Query asks the chain by the full name of a gRPC method, as a client would
// through abci_query.
func (a *App) Query(method string, req, resp proto.Message) error {
	a.t.Helper()
	raw, err := proto.Marshal(req)
	if err != nil {
		a.t.Fatalf("encode query: %v", err)
	}
	answer, err := a.App.Query(context.Background(), &abci.RequestQuery{Path: method, Data: raw, Height: a.height})
	if err != nil {
		return err
	}
	if answer.Code != 0 {
		return fmt.Errorf("%s/%d: %s", answer.Codespace, answer.Code, answer.Log)
	}
	if err := proto.Unmarshal(answer.Value, resp); err != nil {
		a.t.Fatalf("decode answer: %v", err)
	}
	return nil
}

// Balance is what an address holds of a denomination, in base units.
func (a *App) Balance(addr sdk.AccAddress, denom string) int64 {
	a.t.Helper()
	return a.BankKeeper.GetBalance(a.Context(), addr, denom).Amount.Int64()
}
