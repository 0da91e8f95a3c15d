package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cometbft/cometbft/blocksync"
	cmtconfig "github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/node"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/proxy"
	"github.com/cometbft/cometbft/rpc/client/local"
	"github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/statesync"
	cmttypes "github.com/cometbft/cometbft/types"
	"golang.org/x/sync/errgroup"

	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/server"
	pruningtypes "github.com/cosmos/cosmos-sdk/store/v2/pruning/types"
	sdk "github.com/cosmos/cosmos-sdk/types"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/cometnode"
)

// LocalChainID is the id of the chain that [StartNode] makes on its own.
const LocalChainID = "croft-local"

// ErrStalled reports that the chain made no block for too long. The node has
// stopped; starting it again is the remedy.
var ErrStalled = cometnode.ErrStalled

// NodeConfig is what a node is to be. [StartNode] copies it and never changes
// it. Only Home and Log are required.
//
// What an idle chain costs is decided by RetainBlocks and KeepStates; TestIdle
// has the figures.
type NodeConfig struct {
	Home    Home         // directory of the node; made if it is not there
	Log     *slog.Logger // required: a chain without a log cannot be looked after
	ChainID string       // of the local chain to make if Home has no genesis; default croft-local
	NoLocal bool         // refuse to make a local chain in a home without genesis

	RPC  string // CometBFT's JSON-RPC, host:port; default 127.0.0.1:26657; port 0 takes a free one
	GRPC string // gRPC, host:port; default 127.0.0.1:9090
	REST string // REST, /healthz, /metrics, /faucet, host:port; default 127.0.0.1:1317
	P2P  string // other nodes, host:port; default 127.0.0.1:0, which none can find

	Origins []string // browser origins that may call RPC and REST, or "*"; default none

	Peers     []string // id@host:port of other nodes; none for a lone validator
	PeersOnly bool     // talk to Peers alone, and do not ask them for more
	StateSync []string // two or more RPC addresses (http://host:port) to fetch and check a snapshot by, if there are no blocks yet

	BlockTime        time.Duration // pause after each block; default 1 s. Prices are per block, so a chain keeps one pace for life
	MinGasPrices     string        // least gas price this node takes, e.g. "0.0025uakt"; default "", no fee
	RetainBlocks     int64         // blocks kept, at least the chain's evidence age; default 2,000; -1 keeps all
	KeepStates       int64         // states kept for queries about the past; default 100; -1 keeps all
	SnapshotInterval int64         // blocks between snapshots for state sync; default 500; -1 takes none
	StallAfter       time.Duration // standstill after which the node stops with ErrStalled; default 60 block times, at least 1 minute; -1 never
	Version          string        // of the program; default "devel"

	// CometMetrics adds CometBFT's own metrics to /metrics. They live in a
	// registry of the process, so only one node of a process should have them.
	CometMetrics bool
}

func (c NodeConfig) withDefaults() (NodeConfig, error) {
	if c.Home == "" {
		return c, errors.New("home directory is missing")
	}
	if c.Log == nil {
		return c, errors.New("log is missing")
	}
	home, err := filepath.Abs(string(c.Home))
	if err != nil {
		return c, fmt.Errorf("home directory: %w", err)
	}
	c.Home = Home(home)
	c.ChainID = cmp.Or(c.ChainID, LocalChainID)
	c.RPC = cmp.Or(c.RPC, "127.0.0.1:26657")
	c.GRPC = cmp.Or(c.GRPC, "127.0.0.1:9090")
	c.REST = cmp.Or(c.REST, "127.0.0.1:1317")
	c.P2P = cmp.Or(c.P2P, "127.0.0.1:0")
	c.BlockTime = cmp.Or(c.BlockTime, time.Second)
	c.RetainBlocks = cmp.Or(c.RetainBlocks, 2_000)
	c.KeepStates = cmp.Or(c.KeepStates, 100)
	c.SnapshotInterval = cmp.Or(c.SnapshotInterval, 500)
	c.StallAfter = cmp.Or(c.StallAfter, max(60*c.BlockTime, time.Minute))
	if _, err := sdk.ParseDecCoins(c.MinGasPrices); err != nil {
		return c, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("minimum gas price %q: %w", c.MinGasPrices, err), Remedy: "write it as 0.0025uakt"}
	}
	if len(c.StateSync) == 1 {
		return c, &croft.Error{Kind: croft.KindUsage, Err: errors.New("state sync has one server"), Remedy: "name two, so that one can check the other"}
	}
	return c, nil
}

// Node is a running node. Stop it, or end the context it was started with.
type Node struct {
	cfg    NodeConfig
	app    *App
	comet  *node.Node
	rpc    *local.Local
	dbs    *cometnode.Databases
	failed chan struct{}
	addrs  Addrs

	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// Addrs are where a node listens.
type Addrs struct {
	RPC  string // host:port of the JSON-RPC
	GRPC string // host:port of gRPC
	REST string // host:port of REST and the rest
	P2P  string // id@host:port for other nodes
}

// StartNode starts a node and returns when its ports answer; the first block
// may still be to come. In a home without genesis it first makes a local chain:
// one validator and the accounts tenant, provider, fleet and faucet, whose
// mnemonics are in the home's accounts.json.
//
// The node runs until ctx ends, [Node.Stop] is called or it fails.
func StartNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := cfg.checkAddrs(); err != nil {
		return nil, err
	}
	SetAddressPrefix()
	doc, err := cfg.ensureGenesis()
	if err != nil {
		return nil, err
	}
	nodeKey, validator, err := cfg.Home.Keys()
	if err != nil {
		return nil, err
	}

	n := &Node{cfg: cfg, dbs: &cometnode.Databases{}, failed: make(chan struct{}, 1), done: make(chan struct{})}
	servers, err := n.listen()
	if err != nil {
		return nil, err
	}
	n.app, err = n.openApp(doc)
	if err != nil {
		servers.close()
		return nil, err
	}
	comet, err := n.cometConfig(ctx, nodeKey.ID())
	if err == nil {
		n.comet, err = node.NewNodeWithContext(ctx, comet, validator, nodeKey,
			proxy.NewConnSyncLocalClientCreator(server.NewCometABCIWrapper(n.app)),
			func() (*cmttypes.GenesisDoc, error) { return doc, nil },
			n.dbs.Open, n.cometMetrics(), cometnode.CometLog{Log: n.libraryLog()})
	}
	if err != nil {
		servers.close()
		return nil, errors.Join(fmt.Errorf("make node: %w", err), n.dbs.Close(), n.app.Close())
	}
	n.rpc = local.New(n.comet)
	n.addrs.P2P = string(nodeKey.ID()) + "@" + cfg.P2P
	handlers, err := n.handlers(servers)
	if err == nil {
		err = n.comet.Start()
	}
	if err != nil {
		servers.close()
		return nil, errors.Join(fmt.Errorf("start node: %w", err), n.dbs.Close(), n.app.Close())
	}
	ctx, n.cancel = context.WithCancel(ctx)
	go n.run(ctx, handlers)
	cfg.Log.Info("node started", "chain_id", doc.ChainID, "height", n.Height(), "rpc", n.addrs.RPC, "grpc", n.addrs.GRPC, "rest", n.addrs.REST, "peer", n.addrs.P2P)
	return n, nil
}

// run owns the node's goroutines: it starts them, waits for the first reason to
// stop, and stops them all.
func (n *Node) run(ctx context.Context, handlers *handlers) {
	defer close(n.done)
	defer n.cancel()
	group, ctx := errgroup.WithContext(ctx)
	handlers.serve(group)
	group.Go(func() error {
		return cometnode.KeepWALShort(ctx, filepath.Join(n.cfg.Home.data(), "cs.wal"), n.cfg.Log)
	})
	if n.cfg.StallAfter > 0 {
		group.Go(func() error {
			return cometnode.Watchdog{
				Every:  n.cfg.BlockTime,
				Limit:  n.cfg.StallAfter,
				Height: n.Height,
				Idle:   n.syncing,
				Failed: n.failed,
				Log:    n.cfg.Log,
			}.Run(ctx)
		})
	}
	<-ctx.Done()
	handlers.shutdown()
	n.err = errors.Join(group.Wait(), n.closeAll())
	n.cfg.Log.Info("node stopped", "height", n.app.LastBlockHeight())
}

// stopWait is how long a node may take to stop. CometBFT waits for its
// consensus, and a consensus that hangs would make it wait for ever.
const stopWait = 15 * time.Second

func (n *Node) closeAll() error {
	stopped := make(chan error, 1)
	go func() { // abandoned if it hangs: the caller then ends the process
		err := n.comet.Stop()
		n.comet.Wait()
		stopped <- errors.Join(err, n.dbs.Close(), n.app.Close())
	}()
	select {
	case err := <-stopped:
		return err
	case <-time.After(stopWait):
		return fmt.Errorf("stop node: consensus did not end within %s", stopWait)
	}
}

// Wait blocks until the node has stopped and says why: nil if it was asked to,
// [ErrStalled] if the chain stood still.
func (n *Node) Wait() error {
	<-n.done
	return n.err
}

// Stop stops the node and waits until its files are closed.
func (n *Node) Stop() error {
	n.cancel()
	return n.Wait()
}

// Addrs is where the node listens.
func (n *Node) Addrs() Addrs { return n.addrs }

// ChainID is the id of the node's chain.
func (n *Node) ChainID() string { return n.app.ChainID() }

// Height is the height of the last block the node has executed.
func (n *Node) Height() int64 { return n.app.LastBlockHeight() }

// Local says whether this home holds a chain of its own, with a faucet.
func (n *Node) Local() bool {
	accounts, err := n.cfg.Home.Accounts()
	_, ok := accounts[FaucetAccount]
	return err == nil && ok
}

// syncing says that the node fetches blocks or a snapshot and takes no part in
// consensus yet.
func (n *Node) syncing() bool { return n.comet.ConsensusReactor().WaitSync() }

func (n *Node) libraryLog() cometnode.Log {
	return cometnode.Log{Slog: n.cfg.Log, OnFailed: func() {
		select {
		case n.failed <- struct{}{}:
		default: // one is enough
		}
	}}
}

// ensureGenesis is the home's genesis; a home without one becomes a local
// chain. Every step leaves a whole file and is repeated if it is not there, so
// a start that was cut off is simply started again.
func (c NodeConfig) ensureGenesis() (*cmttypes.GenesisDoc, error) {
	has, err := c.Home.HasGenesis()
	if err != nil {
		return nil, fmt.Errorf("look for genesis: %w", err)
	}
	if has {
		return c.Home.Genesis()
	}
	if c.NoLocal {
		return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("%s belongs to no chain yet", c.Home), Remedy: "join one with `croft-chaind join`"}
	}
	_, validator, err := c.Home.Keys()
	if err != nil {
		return nil, err
	}
	accounts, err := c.Home.ensureAccounts(TenantAccount, ProviderAccount, FleetAccount, FaucetAccount, ValidatorAccount)
	if err != nil {
		return nil, err
	}
	doc, err := c.localGenesis(accounts, validator.Key.PubKey.(ed25519.PubKey)).Doc()
	if err != nil {
		return nil, fmt.Errorf("make local chain: %w", err)
	}
	return doc, c.Home.SetGenesis(doc)
}

// What the accounts of a local chain begin with, in base units of each
// denomination.
const (
	localFunds  = 1_000_000_000_000     // a million AKT and ACT
	localFaucet = 1_000_000_000_000_000 // a billion
)

// localGenesis is a chain for one machine: its times are short, because who
// tries an upgrade or an undelegation on it does not want to wait for days.
func (c NodeConfig) localGenesis(accounts map[string]LocalAccount, key ed25519.PubKey) Genesis {
	g := Genesis{
		ChainID:        c.ChainID,
		BlockTime:      c.BlockTime,
		EvidenceBlocks: 500,
		Unbonding:      10 * time.Minute,
		VotingPeriod:   time.Minute,
		MinDeposit:     1_000_000,
		Validators: []GenesisValidator{{
			Moniker:  "local",
			Operator: accounts[ValidatorAccount].Address,
			Key:      key,
			Stake:    localFunds,
		}},
	}
	names := make([]string, 0, len(accounts))
	for name := range accounts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		funds := int64(localFunds)
		if name == FaucetAccount {
			funds = localFaucet
		}
		g.Accounts = append(g.Accounts, GenesisAccount{
			Address: accounts[name].Address,
			Coins:   sdk.NewCoins(sdk.NewInt64Coin(BondDenom, funds), sdk.NewInt64Coin(CreditDenom, funds)),
		})
	}
	return g
}

// openApp opens the application's database, its snapshots and the application.
func (n *Node) openApp(doc *cmttypes.GenesisDoc) (*App, error) {
	var offered *cometnode.Snapshots
	if n.cfg.SnapshotInterval > 0 {
		var err error
		if offered, err = cometnode.OpenSnapshots(filepath.Join(n.cfg.Home.data(), "snapshots"), n.cfg.SnapshotInterval, keepSnapshots); err != nil {
			return nil, n.cfg.Home.inUse(err)
		}
	}
	return n.cfg.Home.open(n.libraryLog(), Options{
		ChainID:      doc.ChainID,
		MinGasPrices: n.cfg.MinGasPrices,
		Version:      n.cfg.Version,
		Base:         n.baseOptions(),
		Snapshots:    offered,
	})
}

// keepSnapshots is how many snapshots a node offers to others.
const keepSnapshots = 2

// baseOptions say what the node keeps: states and blocks.
func (n *Node) baseOptions() []func(*baseapp.BaseApp) {
	// States are dropped in the commit that makes them superfluous, not by a
	// goroutine that may outlive the database.
	options := []func(*baseapp.BaseApp){baseapp.SetIAVLSyncPruning(true)}
	if n.cfg.KeepStates > 0 {
		options = append(options, baseapp.SetPruning(pruningtypes.NewCustomPruningOptions(uint64(n.cfg.KeepStates), 10)))
	} else {
		options = append(options, baseapp.SetPruning(pruningtypes.NewPruningOptions(pruningtypes.PruningNothing)))
	}
	if n.cfg.RetainBlocks > 0 { // whoever restores a snapshot goes on with the blocks after it
		retain := max(n.cfg.RetainBlocks, n.cfg.SnapshotInterval*keepSnapshots)
		options = append(options, baseapp.SetMinRetainBlocks(uint64(retain)))
	}
	return options
}

func (n *Node) cometConfig(ctx context.Context, self p2p.ID) (*cmtconfig.Config, error) {
	c := cmtconfig.DefaultConfig()
	c.SetRoot(string(n.cfg.Home))
	c.RPC.ListenAddress = "" // we serve it, with one method more
	c.P2P.ListenAddress = "tcp://" + n.cfg.P2P
	others := slices.DeleteFunc(slices.Clone(n.cfg.Peers), func(peer string) bool { return strings.HasPrefix(peer, string(self)+"@") })
	c.P2P.PersistentPeers = strings.Join(others, ",")
	c.P2P.PexReactor = len(others) > 0 && !n.cfg.PeersOnly
	c.P2P.AddrBookStrict = false // peers in private networks are peers
	c.P2P.AllowDuplicateIP = true
	c.Consensus.TimeoutCommit = n.cfg.BlockTime
	c.Consensus.CreateEmptyBlocks = true // leases are paid per block: a chain that rests would let them run for nothing
	c.Instrumentation.Prometheus = false // see metrics
	if len(n.cfg.StateSync) > 0 && n.app.LastBlockHeight() == 0 {
		height, hash, err := cometnode.FetchTrust(ctx, n.cfg.StateSync)
		if err != nil {
			return nil, err
		}
		c.StateSync.Enable = true
		c.StateSync.RPCServers = n.cfg.StateSync
		c.StateSync.TrustHeight = height
		c.StateSync.TrustHash = hash
		c.StateSync.DiscoveryTime = 5 * time.Second
	}
	if err := c.ValidateBasic(); err != nil {
		return nil, fmt.Errorf("check config: %w", err)
	}
	return c, nil
}

// cometMetrics makes CometBFT's metrics, once in a process: a second set would
// not fit in the process's registry.
func (n *Node) cometMetrics() node.MetricsProvider {
	return func(chainID string) (*consensus.Metrics, *p2p.Metrics, *mempool.Metrics, *state.Metrics, *proxy.Metrics, *blocksync.Metrics, *statesync.Metrics) {
		instrumentation := &cmtconfig.InstrumentationConfig{Namespace: "cometbft", Prometheus: n.cfg.CometMetrics}
		return node.DefaultMetricsProvider(instrumentation)(chainID)
	}
}
