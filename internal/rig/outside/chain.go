package outside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/client"
)

// The accounts of the chain that hold coins from its first block.
const (
	TenantAccount    = "tenant"
	ProviderAccount  = "provider"
	FleetAccount     = "fleet"
	FaucetAccount    = "faucet"
	ValidatorAccount = "validator"
)

// ChainID is the id of every chain made here: the one that `croft tenant` knows.
const ChainID = "croft-local"

// ChainConfig is copied by NewChain.
type ChainConfig struct {
	Dir     string // required; the chain's own folder, made if it is not there
	Program string // required; croft-chaind, see [Build]

	RPC, GRPC, REST uint16 // ports on 127.0.0.1; default: free ones

	// BlockTime is the pause after each block, the same for the life of a chain;
	// default 1 s.
	BlockTime time.Duration
}

// Audit is an auditor's signature on a provider's attributes. On a chain that is
// being made, no key is needed for it.
type Audit struct {
	Provider   account.Address
	Auditor    account.Address
	Attributes map[string]string
}

// Chain is a chain of one validator, run by the real croft-chaind as a child
// process. Its addresses are fixed from the beginning, so a box can be told where
// the chain is before there is one. Its methods may be called from any goroutine.
type Chain struct {
	cfg  ChainConfig
	home string
	log  string

	mu     sync.Mutex
	daemon *child // guarded by mu; nil while stopped
}

// NewChain chooses ports and starts nothing.
func NewChain(cfg ChainConfig) (*Chain, error) {
	if cfg.BlockTime == 0 {
		cfg.BlockTime = time.Second
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare chain: %w", err)
	}
	if err := choosePorts(&cfg.RPC, &cfg.GRPC, &cfg.REST); err != nil {
		return nil, fmt.Errorf("prepare chain: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare chain: %w", err)
	}
	return &Chain{cfg: cfg, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "croft-chaind.log")}, nil
}

// RPC is the URL of the node's JSON-RPC.
func (c *Chain) RPC() string { return "http://" + loopback(c.cfg.RPC) }

// GRPC is the address of its gRPC.
func (c *Chain) GRPC() string { return "grpc://" + loopback(c.cfg.GRPC) }

// REST is the URL of its REST, with /healthz and /faucet.
func (c *Chain) REST() string { return "http://" + loopback(c.cfg.REST) }

// Log is the file with what croft-chaind has said.
func (c *Chain) Log() string { return c.log }

// Accounts is the file with the mnemonics of the accounts, in the form that
// `croft tenant keys use-local --accounts` reads.
func (c *Chain) Accounts() string { return filepath.Join(c.home, "accounts.json") }

// Make makes the chain, with audits on record from its first block. It is called
// once, before the first Start.
func (c *Chain) Make(ctx context.Context, audits ...Audit) error {
	if err := os.Mkdir(c.home, 0o700); err != nil {
		return fmt.Errorf("make chain: %w", err)
	}
	if err := c.make(ctx, audits); err != nil {
		return fmt.Errorf("make chain: %w", err)
	}
	return nil
}

// make goes the way of a validator who founds a chain. A home with an account
// "faucet" gets a faucet.
func (c *Chain) make(ctx context.Context, audits []Audit) error {
	const coins, faucetCoins = 1_000_000_000_000, 1_000_000_000_000_000
	accounts := map[string]localAccount{}
	genesis := filepath.Join(filepath.Dir(c.home), "genesis.json")
	args := []string{
		"genesis", "--chain-id", ChainID, "--block-time", c.cfg.BlockTime.String(), "--out", genesis,
		"--unbonding", "10m", "--voting-period", "1m", "--evidence-blocks", "500",
	}
	for _, name := range []string{TenantAccount, ProviderAccount, FleetAccount, FaucetAccount, ValidatorAccount} {
		words, err := account.NewMnemonic()
		if err != nil {
			return err
		}
		key, err := words.Key(0, 0)
		if err != nil {
			return err
		}
		accounts[name] = localAccount{Address: key.Address(), Mnemonic: words.Reveal()}
		amount := coins
		switch name {
		case FaucetAccount:
			amount = faucetCoins
		case ValidatorAccount:
			continue // its coins come with its stake
		}
		args = append(args, "--account", fmt.Sprintf("%s=%duakt,%duact", key.Address(), amount, amount))
	}
	raw, err := json.MarshalIndent(accounts, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.Accounts(), raw, 0o600); err != nil {
		return err
	}
	if err := c.run(ctx, "init", "--home", c.home, "--moniker", "local", "--stake", fmt.Sprint(coins), "--p2p", "127.0.0.1:0", "--address", "127.0.0.1:0"); err != nil {
		return err
	}
	if err := c.run(ctx, append(args, filepath.Join(c.home, "validator.json"))...); err != nil {
		return err
	}
	if err := writeAudits(genesis, audits); err != nil {
		return err
	}
	return c.run(ctx, "join", "--home", c.home, "--genesis", genesis)
}

// run executes one command of croft-chaind that ends by itself.
func (c *Chain) run(ctx context.Context, args ...string) error {
	if said, err := exec.CommandContext(ctx, c.cfg.Program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", c.cfg.Program, args[0], err, said)
	}
	return nil
}

// writeAudits adds records to the state of a genesis.
func writeAudits(path string, audits []Audit) error {
	type attribute struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	type record struct {
		Owner      account.Address `json:"owner"`
		Auditor    account.Address `json:"auditor"`
		Attributes []attribute     `json:"attributes"`
	}
	var records []record
	for _, a := range audits {
		r := record{Owner: a.Provider, Auditor: a.Auditor}
		for _, key := range slices.Sorted(maps.Keys(a.Attributes)) {
			r.Attributes = append(r.Attributes, attribute{key, a.Attributes[key]})
		}
		records = append(records, r)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc, state map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	if err := json.Unmarshal(doc["app_state"], &state); err != nil {
		return err
	}
	if state["audit"], err = json.Marshal(map[string]any{"providers": records}); err != nil {
		return err
	}
	if doc["app_state"], err = json.Marshal(state); err != nil {
		return err
	}
	if raw, err = json.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

// Start runs the chain and returns when it makes blocks. It goes on where it was
// stopped or killed.
func (c *Chain) Start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.daemon != nil {
		select {
		case <-c.daemon.done: // it ended by itself
		default:
			return nil
		}
	}
	// In a home without a genesis croft-chaind would make a chain of its own.
	if _, err := os.Stat(filepath.Join(c.home, "config", "genesis.json")); err != nil {
		return fmt.Errorf("start chain: it is not made: %w", err)
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start chain: %w", err)
	}
	defer log.Close() // the child has a descriptor of its own
	cmd := exec.Command(c.cfg.Program, "start", "--home", c.home, "--block-time", c.cfg.BlockTime.String(), "--p2p", "127.0.0.1:0",
		"--rpc", loopback(c.cfg.RPC), "--grpc", loopback(c.cfg.GRPC), "--rest", loopback(c.cfg.REST))
	cmd.Stdout, cmd.Stderr = log, log
	daemon, err := startChild(cmd)
	if err != nil {
		return fmt.Errorf("start chain: %w", err)
	}
	if err := c.awaitBlocks(ctx, daemon); err != nil {
		daemon.kill()
		return fmt.Errorf("start chain: %w: %s", err, lastOf(c.log))
	}
	c.daemon = daemon
	return nil
}

// awaitBlocks waits until the node is healthy.
func (c *Chain) awaitBlocks(ctx context.Context, daemon *child) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	doer := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.REST()+"/healthz", nil)
		if err != nil {
			return err
		}
		if resp, err := doer.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-daemon.done:
			return fmt.Errorf("croft-chaind ended: %w", errors.Join(daemon.err, errors.New("it made no block")))
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// stopGrace is how long croft-chaind may take to end.
const stopGrace = 20 * time.Second

// Stop ends the chain as an operator does. Stopping what is stopped is no error.
func (c *Chain) Stop() error {
	return c.end(func(d *child) error { return d.stop(stopGrace) })
}

// Kill ends the chain at once, as a crash does.
func (c *Chain) Kill() {
	_ = c.end(func(d *child) error { d.kill(); return nil }) // it returns what the function returns
}

func (c *Chain) end(how func(*child) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.daemon == nil {
		return nil
	}
	defer func() { c.daemon = nil }()
	if err := how(c.daemon); err != nil {
		return fmt.Errorf("stop chain: %w", err)
	}
	return nil
}

// localAccount is an account in accounts.json.
type localAccount struct {
	Address  account.Address `json:"address"`
	Mnemonic string          `json:"mnemonic"`
}

// Key is the key of one of the chain's accounts.
func (c *Chain) Key(name string) (*account.Key, error) {
	text, err := c.Mnemonic(name)
	if err != nil {
		return nil, err
	}
	words, err := account.ParseMnemonic(text)
	if err != nil {
		return nil, fmt.Errorf("read the chain's accounts: %w", err)
	}
	return words.Key(0, 0)
}

// Mnemonic is what other clients make that key of.
func (c *Chain) Mnemonic(name string) (string, error) {
	raw, err := os.ReadFile(c.Accounts())
	if err != nil {
		return "", fmt.Errorf("read the chain's accounts: %w", err)
	}
	var all map[string]localAccount
	if err := json.Unmarshal(raw, &all); err != nil {
		return "", fmt.Errorf("read the chain's accounts: %w", err)
	}
	a, ok := all[name]
	if !ok {
		return "", &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("the chain has no account %q", name)}
	}
	return a.Mnemonic, nil
}

// Dial connects to the chain, which must run. The caller closes the client.
func (c *Chain) Dial(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, client.Config{ChainID: ChainID, GRPC: c.GRPC(), RPC: c.RPC(), Poll: min(c.cfg.BlockTime, time.Second) / 2})
}
