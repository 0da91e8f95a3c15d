package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

func newExportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [flags]",
		Short: "Write the state of a stopped node as a genesis",
		Long: `Write the state of a stopped node as the genesis of a chain that goes on with it. The new chain
begins at the next height, with the same validators, unless told otherwise.`,
		Args: exactArgs(0),
	}
	home := homeFlag(cmd)
	log := logFlags(cmd)
	flags := cmd.Flags()
	chainID := flags.String("chain-id", "", "id of the new chain (default the old one)")
	fromZero := flags.Bool("from-zero", false, "begin at height 1")
	out := flags.String("out", "-", "file to write, - for standard output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		logger, err := log()
		if err != nil {
			return err
		}
		a, err := app.Home(*home).OpenApp(logger)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.Close()) }()
		doc, err := a.Export(*fromZero)
		if err != nil {
			return err
		}
		if *chainID != "" {
			doc.ChainID = *chainID
		}
		raw, err := app.EncodeGenesis(doc)
		if err != nil {
			return err
		}
		if *out == "-" {
			_, err = cmd.OutOrStdout().Write(raw)
			return err
		}
		return atomicfile.WriteFile(*out, raw, 0o644)
	}
	return cmd
}

// nodeStatus is what `status` prints.
type nodeStatus struct {
	ChainID    string    `json:"chain_id"`
	Moniker    string    `json:"moniker"`
	Height     int64     `json:"height,string"`
	BlockTime  time.Time `json:"block_time"`
	CatchingUp bool      `json:"catching_up"`
	Validator  bool      `json:"validator"` // it has voting power
}

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Ask a running node how it is",
		Args:  exactArgs(0),
	}
	rpc := cmd.Flags().String("rpc", "127.0.0.1:26657", "address of the node's JSON-RPC")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		raw, err := fetch(cmd.Context(), "http://"+*rpc+"/status")
		if err != nil {
			return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("ask node: %w", err), Remedy: "see that it runs, and name its address with --rpc"}
		}
		var answer struct {
			Result struct {
				NodeInfo struct {
					Network string `json:"network"`
					Moniker string `json:"moniker"`
				} `json:"node_info"`
				SyncInfo struct {
					Height     int64     `json:"latest_block_height,string"`
					Time       time.Time `json:"latest_block_time"`
					CatchingUp bool      `json:"catching_up"`
				} `json:"sync_info"`
				ValidatorInfo struct {
					Power int64 `json:"voting_power,string"`
				} `json:"validator_info"`
			} `json:"result"`
		}
		if err := json.Unmarshal(raw, &answer); err != nil {
			return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read status: %w", err), Remedy: "see that --rpc is the address of a node"}
		}
		r := answer.Result
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		return encoder.Encode(nodeStatus{
			ChainID:    r.NodeInfo.Network,
			Moniker:    r.NodeInfo.Moniker,
			Height:     r.SyncInfo.Height,
			BlockTime:  r.SyncInfo.Time,
			CatchingUp: r.SyncInfo.CatchingUp,
			Validator:  r.ValidatorInfo.Power > 0,
		})
	}
	return cmd
}
