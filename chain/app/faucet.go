package app

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	rpcclient "github.com/cometbft/cometbft/rpc/client"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/tx/signing"
	authsigning "github.com/cosmos/cosmos-sdk/x/auth/signing"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
)

// The faucet's limits.
const (
	faucetCoins  = 100_000_000      // of each denomination: 100 AKT and 100 ACT
	faucetEvery  = time.Minute      // between two gifts to one address
	faucetMinute = 60               // gifts to all in a minute
	faucetWait   = 30 * time.Second // for the block with the gift
	faucetGas    = 200_000
)

// faucet gives coins of a local chain to whoever asks: POST /faucet with
// {"address":"akash1…"} is answered, once the coins are there, with
// {"tx_hash":"…","coins":"…","height":n}. Its transactions are unordered, so
// any number of gifts fits in one block.
type faucet struct {
	app    *App
	rpc    rpcclient.Client
	sender LocalAccount

	mu     sync.Mutex
	minute time.Time            // guarded by mu; when the current minute began
	given  map[string]time.Time // guarded by mu; addresses served, and when
	count  int                  // guarded by mu; gifts in the current minute
}

type faucetRequest struct {
	Address string `json:"address"`
}

type faucetAnswer struct {
	TxHash string `json:"tx_hash"`
	Coins  string `json:"coins"`
	Height int64  `json:"height"`
}

var errFaucetLimit = errors.New("the faucet has just given; ask again in a minute")

func (f *faucet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		httpError(w, http.StatusMethodNotAllowed, errors.New("the faucet takes POST"))
		return
	}
	var req faucetRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&req); err != nil {
		httpError(w, http.StatusBadRequest, fmt.Errorf("read request: %w; send {\"address\":\"akash1…\"}", err))
		return
	}
	to, err := sdk.AccAddressFromBech32(req.Address)
	if err != nil {
		httpError(w, http.StatusBadRequest, fmt.Errorf("address: %w", err))
		return
	}
	if err := f.take(req.Address, time.Now()); err != nil {
		w.Header().Set("Retry-After", "60")
		httpError(w, http.StatusTooManyRequests, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), faucetWait)
	defer cancel()
	answer, err := f.give(ctx, to)
	if err != nil {
		f.putBack(req.Address)
		httpError(w, http.StatusServiceUnavailable, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // the asker has gone
}

// take books a gift, or says that it is too early for one.
func (f *faucet) take(address string, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.minute) >= time.Minute {
		f.minute, f.count = now, 0
		for a, at := range f.given {
			if now.Sub(at) >= faucetEvery {
				delete(f.given, a)
			}
		}
	}
	at, again := f.given[address]
	if f.count >= faucetMinute || again && now.Sub(at) < faucetEvery {
		return errFaucetLimit
	}
	if f.given == nil {
		f.given = make(map[string]time.Time)
	}
	f.given[address] = now
	f.count++
	return nil
}

// putBack lets an address ask again whose gift failed.
func (f *faucet) putBack(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.given, address)
}

func (f *faucet) give(ctx context.Context, to sdk.AccAddress) (*faucetAnswer, error) {
	coins := sdk.NewCoins(sdk.NewInt64Coin(BondDenom, faucetCoins), sdk.NewInt64Coin(CreditDenom, faucetCoins))
	raw, err := f.sign(ctx, to, coins)
	if err != nil {
		return nil, fmt.Errorf("sign gift: %w", err)
	}
	sent, err := f.rpc.BroadcastTxSync(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("send gift: %w", err)
	}
	if sent.Code != 0 {
		return nil, fmt.Errorf("send gift: %s/%d: %s", sent.Codespace, sent.Code, sent.Log)
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for gift %X: %w", []byte(sent.Hash), ctx.Err())
		case <-ticker.C:
		}
		tx, err := f.rpc.Tx(ctx, sent.Hash, false)
		if err != nil {
			continue // not in a block yet
		}
		if tx.TxResult.Code != 0 {
			return nil, fmt.Errorf("give: %s/%d: %s", tx.TxResult.Codespace, tx.TxResult.Code, tx.TxResult.Log)
		}
		return &faucetAnswer{TxHash: hex.EncodeToString(sent.Hash), Coins: coins.String(), Height: tx.Height}, nil
	}
}

func (f *faucet) sign(ctx context.Context, to sdk.AccAddress, coins sdk.Coins) ([]byte, error) {
	key, err := f.sender.key()
	if err != nil {
		return nil, err
	}
	from := sdk.AccAddress(key.PubKey().Address())
	state, err := f.app.CreateQueryContext(0, false)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	account := f.app.AccountKeeper.GetAccount(state, from)
	if account == nil {
		return nil, fmt.Errorf("faucet account %s is not on this chain", from)
	}
	config := f.app.txConfig
	builder := config.NewTxBuilder()
	if err := builder.SetMsgs(banktypes.NewMsgSend(from, to, coins)); err != nil {
		return nil, err
	}
	builder.SetGasLimit(faucetGas)
	builder.SetFeeAmount(f.app.fee(faucetGas))
	builder.SetUnordered(true)
	builder.SetTimeoutTimestamp(time.Now().Add(2 * faucetWait)) // also what makes it unlike the last one
	signature := func(raw []byte) signing.SignatureV2 {
		return signing.SignatureV2{
			PubKey: key.PubKey(),
			Data:   &signing.SingleSignatureData{SignMode: signing.SignMode_SIGN_MODE_DIRECT, Signature: raw},
		}
	}
	if err := builder.SetSignatures(signature(nil)); err != nil {
		return nil, err
	}
	bytes, err := authsigning.GetSignBytesAdapter(ctx, config.SignModeHandler(), signing.SignMode_SIGN_MODE_DIRECT, authsigning.SignerData{
		Address:       from.String(),
		ChainID:       f.app.ChainID(),
		AccountNumber: account.GetAccountNumber(),
		PubKey:        key.PubKey(),
	}, builder.GetTx())
	if err != nil {
		return nil, err
	}
	raw, err := key.Sign(bytes)
	if err != nil {
		return nil, err
	}
	if err := builder.SetSignatures(signature(raw)); err != nil {
		return nil, err
	}
	return config.TxEncoder()(builder.GetTx())
}

// fee is what this node asks at least for that much gas, in the bond
// denomination.
func (a *App) fee(gas int64) sdk.Coins {
	prices, err := sdk.ParseDecCoins(a.options.MinGasPrices)
	if err != nil {
		return nil
	}
	amount := prices.AmountOf(BondDenom).MulInt64(gas).Ceil().TruncateInt()
	return sdk.NewCoins(sdk.NewCoin(BondDenom, amount))
}

// httpError answers with {"error":"…"}.
func httpError(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) //nolint:errcheck // the asker has gone
}
