// Package app is croft's chain: the cosmos-sdk application, wired by hand, and
// the node that runs it with CometBFT in one process.
//
// The application ([New]) is the stock modules (accounts, bank, proof of stake,
// governance, grants, upgrades) and croft's own under chain/x: escrow,
// deployment, market, provider, cert and audit, which speak Akash's wire
// format. The keepers of chain/x see each other through the interfaces they
// declare; this package passes the parts in (modules.go) and holds the one hook
// between them (hooks.go).
//
// The node ([StartNode]) listens on three ports: CometBFT's JSON-RPC with the
// extra method "akash" that the Akash command line asks for first, gRPC, and
// HTTP with the REST paths, /healthz, /metrics and, on a local chain, /faucet.
//
// What survives a crash or a power cut: everything a client was told is in a
// block. Keys, genesis and accounts are written once, through a temporary file,
// fsync and rename; blocks and state go through CometBFT's write-ahead log.
// What does not: the mempool, so a transaction that was only accepted, not
// included, must be sent again.
//
// What it promises: block hooks return errors and never panic, a block does a
// bounded amount of work (block gas, and no module walks its whole state), the
// state is a function of the blocks alone. What it does not do: it opens no
// port that its config does not name, and reads no flag and no environment.
package app

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	abci "github.com/cometbft/cometbft/abci/types"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/cosmos/gogoproto/proto"

	"cosmossdk.io/log/v2"

	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/client/grpc/cmtservice"
	nodeservice "github.com/cosmos/cosmos-sdk/client/grpc/node"
	"github.com/cosmos/cosmos-sdk/codec"
	"github.com/cosmos/cosmos-sdk/codec/address"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/server"
	"github.com/cosmos/cosmos-sdk/server/api"
	"github.com/cosmos/cosmos-sdk/server/config"
	servertypes "github.com/cosmos/cosmos-sdk/server/types"
	"github.com/cosmos/cosmos-sdk/std"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/types/msgservice"
	authtx "github.com/cosmos/cosmos-sdk/x/auth/tx"
	txsigning "github.com/cosmos/cosmos-sdk/x/tx/signing"

	"github.com/croft-cloud/croft/chain/cometnode"
)

// Name is the application's name in CometBFT's handshake.
const Name = "croft"

// The denominations. One AKT or ACT is 10^6 of its base unit.
const (
	// BondDenom is staked, pays fees and may pay leases.
	BondDenom = "uakt"
	// CreditDenom pays leases; one ACT is nominally one US dollar.
	CreditDenom = "uact"
)

// AddressPrefix begins every account address.
const AddressPrefix = "akash"

// queryGas bounds one query, as transactions are bounded: a page of a thousand
// deployments with large specifications stays below it.
const queryGas = 300_000_000

// SetAddressPrefix makes the SDK's process-wide configuration speak akash1…
// addresses. [New] calls it; a program that handles addresses before it has an
// app calls it first. Two chains with different prefixes do not fit in one
// process.
var SetAddressPrefix = sync.OnceFunc(func() {
	// Without a name for its configuration the SDK makes one up at each address
	// it reads, of the program's path and the host's name: two system calls.
	if os.Getenv(sdk.EnvConfigScope) == "" {
		_ = os.Setenv(sdk.EnvConfigScope, Name) // fails for malformed names only
	}
	c := sdk.GetConfig()
	c.SetBech32PrefixForAccount(AddressPrefix, AddressPrefix+"pub")
	c.SetBech32PrefixForValidator(AddressPrefix+"valoper", AddressPrefix+"valoperpub")
	c.SetBech32PrefixForConsensusNode(AddressPrefix+"valcons", AddressPrefix+"valconspub")
})

// Options are what an [App] needs beside its log and its database. The zero
// value is a chain without a minimum gas price.
type Options struct {
	ChainID      string    // expected chain id; empty takes any that InitChain brings
	Home         string    // where an upgrade leaves its note; empty in memory-only chains
	MinGasPrices string    // e.g. "0.0025uakt"; empty asks no fee. Each node's own choice, not consensus
	Version      string    // this program's version, shown by discovery; default "devel"
	Upgrades     []Upgrade // default [Upgrades]; replaced by tests alone

	// Base are baseapp options of the node: pruning, retention.
	Base []func(*baseapp.BaseApp)
	// Snapshots for state sync; default: none are taken.
	Snapshots *cometnode.Snapshots
}

// App is one chain's state machine. It answers ABCI calls; it starts nothing.
type App struct {
	*baseapp.BaseApp
	keepers

	options  Options
	cdc      codec.Codec
	amino    *codec.LegacyAmino
	registry codectypes.InterfaceRegistry
	txConfig client.TxConfig
	keys     map[string]*storetypes.KVStoreKey
	manager  *module.Manager
	basics   module.BasicManager
	services module.Configurator
	close    func() error // of baseapp, once
}

var _ servertypes.Application = (*App)(nil)

// New wires the chain over db and loads its latest state. It takes db over:
// [App.Close] closes it.
func New(logger log.Logger, db dbm.DB, options Options) (*App, error) {
	SetAddressPrefix()
	if options.Version == "" {
		options.Version = "devel"
	}
	if options.Upgrades == nil {
		options.Upgrades = Upgrades()
	}

	registry, err := codectypes.NewInterfaceRegistryWithOptions(codectypes.InterfaceRegistryOptions{
		ProtoFiles: proto.HybridResolver,
		SigningOptions: txsigning.Options{
			AddressCodec:          address.NewBech32Codec(AddressPrefix),
			ValidatorAddressCodec: address.NewBech32Codec(AddressPrefix + "valoper"),
			CustomGetSigners:      customSigners(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make interface registry: %w", err)
	}
	if err := registry.SigningContext().Validate(); err != nil {
		return nil, fmt.Errorf("check signers of messages: %w", err)
	}
	cdc := codec.NewProtoCodec(registry)
	amino := codec.NewLegacyAmino()
	std.RegisterInterfaces(registry)
	std.RegisterLegacyAminoCodec(amino)
	txConfig, err := authtx.NewTxConfigWithOptions(cdc, authtx.ConfigOptions{})
	if err != nil {
		return nil, fmt.Errorf("make transaction config: %w", err)
	}

	base := baseapp.NewBaseApp(Name, logger, db, txConfig.TxDecoder(), append([]func(*baseapp.BaseApp){
		baseapp.SetChainID(options.ChainID),
		baseapp.SetMinGasPrices(options.MinGasPrices),
		baseapp.EnableBlockGasMeter(),
		baseapp.SetQueryGasLimit(queryGas),
		options.Snapshots.Option,
	}, options.Base...)...)
	base.SetVersion(options.Version)
	base.SetInterfaceRegistry(registry)
	base.SetTxEncoder(txConfig.TxEncoder())

	a := &App{
		BaseApp:  base,
		options:  options,
		cdc:      cdc,
		amino:    amino,
		registry: registry,
		txConfig: txConfig,
		keys:     storetypes.NewKVStoreKeys(storeKeys()...),
		close:    sync.OnceValue(base.Close),
	}
	if err := a.wire(); err != nil {
		return nil, err
	}

	a.services = module.NewConfigurator(cdc, a.MsgServiceRouter(), a.GRPCQueryRouter())
	if err := a.manager.RegisterServices(a.services); err != nil {
		return nil, fmt.Errorf("register services: %w", err)
	}
	a.registerDiscovery()
	if err := a.registerReflection(); err != nil {
		return nil, err
	}
	if err := a.registerUpgrades(); err != nil {
		return nil, err
	}
	files, err := proto.MergedRegistry()
	if err != nil {
		return nil, fmt.Errorf("merge descriptors: %w", err)
	}
	if err := msgservice.ValidateProtoAnnotations(files); err != nil {
		return nil, fmt.Errorf("check annotations of messages: %w", err)
	}

	a.MountKVStores(a.keys)
	ante, err := a.anteHandler()
	if err != nil {
		return nil, err
	}
	a.SetAnteHandler(ante)
	a.SetInitChainer(a.initChain)
	a.SetPreBlocker(func(ctx sdk.Context, _ *abci.RequestFinalizeBlock) (*sdk.ResponsePreBlock, error) {
		return a.manager.PreBlock(ctx)
	})
	a.SetBeginBlocker(a.manager.BeginBlock)
	a.SetEndBlocker(a.manager.EndBlock)
	if err := a.LoadLatestVersion(); err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	return a, nil
}

// Codec is the codec that knows every message of the chain.
func (a *App) Codec() codec.Codec { return a.cdc }

// InterfaceRegistry knows every message of the chain by its type URL.
func (a *App) InterfaceRegistry() codectypes.InterfaceRegistry { return a.registry }

// TxConfig signs, encodes and decodes transactions.
func (a *App) TxConfig() client.TxConfig { return a.txConfig }

// DefaultGenesis is the state of every module on an empty chain, with this
// chain's denominations. [Genesis.Doc] makes a chain that can start of it.
func (a *App) DefaultGenesis() map[string]json.RawMessage {
	return a.defaultGenesis()
}

// Close waits for a snapshot that is being taken and closes the database and the
// snapshots. No block may be committed any more. It may be called more than once.
func (a *App) Close() error {
	a.options.Snapshots.Wait()
	return a.close()
}

// Commit stores the block's state, and takes a snapshot of it now and then.
func (a *App) Commit() (*abci.ResponseCommit, error) {
	resp, err := a.BaseApp.Commit()
	if err == nil {
		a.options.Snapshots.Take(a.BaseApp)
	}
	return resp, err
}

func (a *App) initChain(ctx sdk.Context, req *abci.RequestInitChain) (*abci.ResponseInitChain, error) {
	var state map[string]json.RawMessage
	if err := json.Unmarshal(req.AppStateBytes, &state); err != nil {
		return nil, fmt.Errorf("read genesis state: %w", err)
	}
	if err := a.UpgradeKeeper.SetModuleVersionMap(ctx, a.manager.GetVersionMap()); err != nil {
		return nil, fmt.Errorf("store module versions: %w", err)
	}
	return a.manager.InitGenesis(ctx, a.cdc, state)
}

// RegisterAPIRoutes adds the REST paths to a gateway.
func (a *App) RegisterAPIRoutes(s *api.Server, _ config.APIConfig) {
	authtx.RegisterGRPCGatewayRoutes(s.ClientCtx, s.GRPCGatewayRouter)
	cmtservice.RegisterGRPCGatewayRoutes(s.ClientCtx, s.GRPCGatewayRouter)
	nodeservice.RegisterGRPCGatewayRoutes(s.ClientCtx, s.GRPCGatewayRouter)
	a.basics.RegisterGRPCGatewayRoutes(s.ClientCtx, s.GRPCGatewayRouter)
	a.registerDiscoveryRoutes(s.ClientCtx, s.GRPCGatewayRouter)
}

// RegisterTxService adds simulate, broadcast and look-up of transactions.
func (a *App) RegisterTxService(ctx client.Context) {
	authtx.RegisterTxService(a.GRPCQueryRouter(), ctx, a.Simulate, a.registry)
}

// RegisterTendermintService adds queries about blocks and validators.
func (a *App) RegisterTendermintService(ctx client.Context) {
	cmtservice.RegisterTendermintService(ctx, a.GRPCQueryRouter(), a.registry, server.NewCometABCIWrapper(a).Query)
}

// RegisterNodeService adds queries about the node's own settings.
func (a *App) RegisterNodeService(ctx client.Context, cfg config.Config) {
	nodeservice.RegisterNodeService(ctx, a.GRPCQueryRouter(), cfg, func() int64 {
		return a.CommitMultiStore().EarliestVersion()
	})
}

var _ io.Closer = (*App)(nil)
