package app

import (
	"encoding/json"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
)

// ExportPending is the state between InitChain and the first block.
func (a *App) ExportPending(height int64) (map[string]json.RawMessage, error) {
	return a.manager.ExportGenesis(a.NewContextLegacy(false, cmtproto.Header{Height: height, ChainID: a.ChainID()}), a.cdc)
}

// SignerMessages are the messages with a signer path of their own.
func SignerMessages() []string {
	var names []string
	for name := range signerPaths {
		names = append(names, string(name))
	}
	return names
}
