package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sdk "github.com/cosmos/cosmos-sdk/types"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// validatorFile is what a validator-to-be gives to whoever makes the genesis.
// Nothing in it is secret.
type validatorFile struct {
	app.GenesisValidator
	Peer string `json:"peer"` // id@host:port
}

// settings are what `init` and `join` were told and `start` needs.
type settings struct {
	P2P       string   `json:"p2p,omitempty"`        // host:port to listen on for other nodes
	Peers     []string `json:"peers,omitempty"`      // id@host:port
	StateSync []string `json:"state_sync,omitempty"` // RPC addresses
}

func settingsFile(home string) string { return filepath.Join(home, "node.json") }

func readSettings(home string) (settings, error) {
	var s settings
	raw, err := os.ReadFile(settingsFile(home))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		return s, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read settings: %w", err), Remedy: "run `croft-chaind join` again"}
	}
	return s, nil
}

func (s settings) write(home string) error { return writeJSON(settingsFile(home), s) }

// apply fills in what the flags left open. A home with settings belongs to a
// set, so it never becomes a local chain.
func (s settings) apply(cfg *app.NodeConfig) {
	if cfg.P2P == "" {
		cfg.P2P = s.P2P
	}
	if len(cfg.Peers) == 0 {
		cfg.Peers = s.Peers
	}
	cfg.StateSync = s.StateSync
	cfg.NoLocal = s.P2P != ""
}

func writeJSON(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return atomicfile.WriteFile(file, append(raw, '\n'), 0o644)
}

func newInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --moniker NAME [flags]",
		Short: "Make the keys of a validator and the file that tells who it is",
		Long: `Make the keys of a validator-to-be and of the account that operates it, and write
validator.json into the directory: give that file to whoever makes the genesis. The account's
mnemonic is in accounts.json; keep it.`,
		Args: exactArgs(0),
	}
	home := homeFlag(cmd)
	flags := cmd.Flags()
	moniker := flags.String("moniker", "", "name of the validator")
	p2p := flags.String("p2p", "0.0.0.0:26656", "address to listen on for other nodes")
	address := flags.String("address", "127.0.0.1:26656", "host:port at which other nodes find this one")
	stake := flags.Int64("stake", 1_000_000_000, "stake in uakt")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *moniker == "" {
			return &croft.Error{Kind: croft.KindUsage, Err: errors.New("the validator has no name"), Remedy: "add --moniker NAME"}
		}
		validator, id, err := app.Home(*home).InitValidator(*moniker, *stake)
		if err != nil {
			return err
		}
		old, err := readSettings(*home)
		if err != nil {
			return err
		}
		old.P2P = *p2p
		if err := old.write(*home); err != nil {
			return err
		}
		file := filepath.Join(*home, "validator.json")
		if err := writeJSON(file, validatorFile{GenesisValidator: validator, Peer: id + "@" + *address}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", file)
		return err
	}
	return cmd
}

func newGenesisCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "genesis --chain-id ID [flags] VALIDATOR.json...",
		Short: "Make the genesis of a chain from its validators' files",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &croft.Error{Kind: croft.KindUsage, Err: errors.New("no validator"), Remedy: "name the files that `croft-chaind init` made"}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	var g app.Genesis
	flags.StringVar(&g.ChainID, "chain-id", "", "id of the chain")
	flags.DurationVar(&g.BlockTime, "block-time", time.Second, "pause after each block that the validators will keep")
	flags.DurationVar(&g.Unbonding, "unbonding", 0, "from undelegation to coins (default 504h)")
	flags.DurationVar(&g.VotingPeriod, "voting-period", 0, "of governance (default 48h)")
	flags.Int64Var(&g.EvidenceBlocks, "evidence-blocks", 0, "blocks for which a double signature can be reported; nodes keep at least as many (default 20000)")
	accounts := flags.StringArray("account", nil, "further account with coins, ADDRESS=1000000uakt,1000000uact; may be repeated")
	fees := flags.Int64("operator-coins", 1_000_000_000, "uakt for each operator beside the stake, for fees")
	out := flags.String("out", "genesis.json", "file to write")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if g.ChainID == "" {
			return &croft.Error{Kind: croft.KindUsage, Err: errors.New("the chain has no id"), Remedy: "add --chain-id ID"}
		}
		app.SetAddressPrefix()
		members, err := readValidators(args)
		if err != nil {
			return err
		}
		var peers []string
		for _, m := range members {
			g.Validators = append(g.Validators, m.GenesisValidator)
			g.Accounts = append(g.Accounts, app.GenesisAccount{Address: m.Operator, Coins: sdk.NewCoins(sdk.NewInt64Coin(app.BondDenom, *fees))})
			peers = append(peers, m.Peer)
		}
		for _, text := range *accounts {
			address, amount, _ := strings.Cut(text, "=")
			coins, err := sdk.ParseCoinsNormalized(amount)
			if err != nil {
				return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("account %q: %w", text, err), Remedy: "write it as akash1…=1000000uakt,1000000uact"}
			}
			g.Accounts = append(g.Accounts, app.GenesisAccount{Address: address, Coins: coins})
		}
		doc, err := g.Doc()
		if err != nil {
			return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("make genesis: %w", err)}
		}
		raw, err := app.EncodeGenesis(doc)
		if err != nil {
			return err
		}
		if err := atomicfile.WriteFile(*out, raw, 0o644); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nsha256 %x\npeers %s\n", *out, sha256.Sum256(raw), strings.Join(peers, ","))
		return err
	}
	return cmd
}

func readValidators(files []string) ([]validatorFile, error) {
	var members []validatorFile
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read validator: %w", err)}
		}
		var m validatorFile
		if err := json.Unmarshal(raw, &m); err != nil || m.Moniker == "" {
			return nil, &croft.Error{Kind: croft.KindInvalid, Err: errors.Join(fmt.Errorf("%s is not a validator's file", file), err), Remedy: "make it with `croft-chaind init`"}
		}
		members = append(members, m)
	}
	// The order of the arguments must not decide what chain it is.
	slices.SortFunc(members, func(a, b validatorFile) int { return strings.Compare(a.Operator, b.Operator) })
	return members, nil
}

func newJoinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join --genesis FILE|URL [flags]",
		Short: "Make the directory part of a chain",
		Long: `Make the directory part of a chain; ` + "`croft-chaind start`" + ` then runs it.

With --state-sync the node fetches a recent state instead of all blocks since the beginning. It
asks the named nodes for the hash to check it by and wants the same answer from all: name nodes of
different owners.`,
		Args: exactArgs(0),
	}
	home := homeFlag(cmd)
	flags := cmd.Flags()
	genesis := flags.String("genesis", "", "the chain's genesis: a file, its URL, or the URL of a node's RPC")
	p2p := flags.String("p2p", "", "address to listen on for other nodes (default as `init` was told, or 0.0.0.0:26656)")
	peers := flags.StringSlice("peers", nil, "nodes of the chain, id@host:port")
	stateSync := flags.StringSlice("state-sync", nil, "RPC addresses of two or more nodes, http://host:26657")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *genesis == "" {
			return &croft.Error{Kind: croft.KindUsage, Err: errors.New("no genesis"), Remedy: "add --genesis FILE or URL"}
		}
		raw, err := readGenesis(cmd.Context(), *genesis)
		if err != nil {
			return err
		}
		doc, err := app.ParseGenesis(raw)
		if err != nil {
			return err
		}
		s, err := readSettings(*home)
		if err != nil {
			return err
		}
		if err := app.Home(*home).SetGenesis(doc); err != nil {
			return err
		}
		if *p2p != "" {
			s.P2P = *p2p
		} else if s.P2P == "" {
			s.P2P = "0.0.0.0:26656"
		}
		if len(*peers) > 0 {
			s.Peers = *peers
		}
		s.StateSync = *stateSync
		if err := s.write(*home); err != nil {
			return err
		}
		text, err := app.EncodeGenesis(doc)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is part of %s\ngenesis sha256 %x\nstart it: croft-chaind start --home %s\n", *home, doc.ChainID, sha256.Sum256(text), *home)
		return err
	}
	return cmd
}

// maxGenesis bounds what is read from a URL.
const maxGenesis = 256 << 20

// readGenesis reads a genesis from a file, from a URL or from a node's RPC.
func readGenesis(ctx context.Context, from string) ([]byte, error) {
	if !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://") {
		raw, err := os.ReadFile(from)
		if err != nil {
			return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read genesis: %w", err)}
		}
		return raw, nil
	}
	if !strings.HasSuffix(from, ".json") && !strings.HasSuffix(from, "/genesis") {
		from = strings.TrimSuffix(from, "/") + "/genesis"
	}
	raw, err := fetch(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("fetch genesis: %w", err)
	}
	var rpc struct {
		Result struct {
			Genesis json.RawMessage `json:"genesis"`
		} `json:"result"`
	}
	if json.Unmarshal(raw, &rpc) == nil && len(rpc.Result.Genesis) > 0 {
		return rpc.Result.Genesis, nil
	}
	return raw, nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxGenesis))
}
