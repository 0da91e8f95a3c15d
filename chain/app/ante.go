package app

import (
	"fmt"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/x/auth/ante"
)

// anteHandler is what a transaction must pass before its messages run: basic
// validation, timeout, memo size, fee (of the signer or of a granter),
// signature in DIRECT or amino JSON mode, and sequence or, for unordered
// transactions, a nonce that was not seen before. A simulation costs what the
// transaction will.
func (a *App) anteHandler() (sdk.AnteHandler, error) {
	handler, err := ante.NewAnteHandler(ante.HandlerOptions{
		AccountKeeper:   a.AccountKeeper,
		BankKeeper:      a.BankKeeper,
		FeegrantKeeper:  a.FeegrantKeeper,
		SignModeHandler: a.txConfig.SignModeHandler(),
		SigGasConsumer:  ante.DefaultSigVerificationGasConsumer,
	})
	if err != nil {
		return nil, fmt.Errorf("make ante handler: %w", err)
	}
	return func(ctx sdk.Context, tx sdk.Tx, simulate bool) (sdk.Context, error) {
		ctx, err := handler(ctx, tx, simulate)
		if fee, ok := tx.(sdk.FeeTx); err == nil && simulate && ok && fee.GetFee().IsZero() {
			ctx.GasMeter().ConsumeGas(feeGas, "fee of the transaction to come")
		}
		return ctx, err
	}, nil
}

// feeGas is about what it costs to take a fee, the granter's allowance not
// counted. Clients simulate without a fee and add a share of the answer (cosmjs
// 30 %), which for small messages is less than that: they would run out of gas.
const feeGas = 20_000
