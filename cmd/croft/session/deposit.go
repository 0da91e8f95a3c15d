package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/escrowidv1"
	"github.com/croft-cloud/croft/chain/api/escrowv1"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
)

var coinForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]{1,18})?)([a-zA-Z][a-zA-Z0-9/:._-]{2,127})$`)

// units are the other names of the two denoms: how often the base unit.
var units = map[string]struct {
	base  string
	times int64
}{
	"akt": {"uakt", 1_000_000}, "makt": {"uakt", 1_000}, "act": {"uact", 1_000_000}, "mact": {"uact", 1_000},
}

// ParsePrice reads an amount and a denom. The amount may have decimals.
func ParsePrice(what, s string) (akash.Price, error) {
	bad := Usage(fmt.Errorf("%s %q is no amount with a denom", what, s), "write it like 5000000uakt or 5akt")
	m := coinForm.FindStringSubmatch(s)
	if m == nil {
		return akash.Price{}, bad
	}
	amount, err := akash.ParseDec(m[1])
	if err != nil {
		return akash.Price{}, bad
	}
	if unit, ok := units[m[2]]; ok {
		return akash.Price{Denom: unit.base, Amount: amount.Mul(unit.times)}, nil
	}
	return akash.Price{Denom: m[2], Amount: amount}, nil
}

// ParseCoin reads whole coins.
func ParseCoin(what, s string) (*basev1beta1.Coin, error) {
	p, err := ParsePrice(what, s)
	if err != nil {
		return nil, err
	}
	whole, _ := new(big.Int).SetString(p.Amount.Wire(), 10)
	if new(big.Int).Mul(p.Amount.Int(), big.NewInt(1e18)).Cmp(whole) != 0 {
		return nil, Usage(fmt.Errorf("%s %q has a fraction of the smallest unit", what, s), "write whole "+p.Denom)
	}
	return &basev1beta1.Coin{Denom: p.Denom, Amount: p.Amount.Int().String()}, nil
}

// ParseCoins reads coins with commas between them and sorts them by denom.
func ParseCoins(what, s string) ([]*basev1beta1.Coin, error) {
	var coins []*basev1beta1.Coin
	for part := range strings.SplitSeq(s, ",") {
		coin, err := ParseCoin(what, part)
		if err != nil {
			return nil, err
		}
		coins = append(coins, coin)
	}
	slices.SortFunc(coins, func(a, b *basev1beta1.Coin) int { return strings.Compare(a.Denom, b.Denom) })
	return coins, nil
}

// DepositFlags are where a deposit comes from, and how much.
type DepositFlags struct {
	Amount  string // of --deposit; empty: not said
	sources string
}

// Add adds --deposit and --deposit-sources; amount says what no --deposit means.
func (d *DepositFlags) Add(cmd *cobra.Command, amount string) {
	cmd.Flags().StringVar(&d.Amount, "deposit", "", "what to put into escrow, like 5000000uact (default: "+amount+")")
	d.AddSources(cmd)
}

// AddSources adds --deposit-sources alone.
func (d *DepositFlags) AddSources(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.sources, "deposit-sources", "grant,balance", "where the deposit comes from, in this order: grant, balance")
}

// Deposit puts coin, or what --deposit says, into the form of messages.
func (d *DepositFlags) Deposit(coin *basev1beta1.Coin) (*depositv1.Deposit, error) {
	if d.Amount != "" {
		var err error
		if coin, err = ParseCoin("--deposit", d.Amount); err != nil {
			return nil, err
		}
	}
	deposit := &depositv1.Deposit{Amount: coin}
	for source := range strings.SplitSeq(d.sources, ",") {
		number, ok := depositv1.Source_value[strings.TrimSpace(source)]
		if !ok || number == 0 {
			return nil, Usage(fmt.Errorf("--deposit-sources: %q is no source", source), "choose of grant and balance")
		}
		deposit.Sources = append(deposit.Sources, depositv1.Source(number))
	}
	return deposit, nil
}

// ReadSDL reads the SDL file of a command line, - for standard input, and prints
// what is wrong with it, each mistake on a line that begins with the name of the
// file, so that editors find the place.
func ReadSDL(cmd *cobra.Command, name string) (*sdl.SDL, error) {
	var data []byte
	var err error
	if name == "-" {
		name = "stdin"
		data, err = io.ReadAll(cmd.InOrStdin())
	} else {
		data, err = os.ReadFile(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s does not exist", name), Remedy: "name an SDL file, or - for standard input"}
	}
	if err != nil {
		return nil, fmt.Errorf("read SDL: %w", err)
	}
	file, err := sdl.Parse(data)
	mistakes, ok := errors.AsType[sdl.Errors](err)
	if !ok {
		return file, err
	}
	for _, m := range mistakes {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s:%v\n", name, m)
	}
	some := "1 mistake"
	if len(mistakes) != 1 {
		some = fmt.Sprintf("%d mistakes", len(mistakes))
	}
	return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is not a right SDL: %s", name, some)}
}

// MinDeposit is the least that a deployment with these prices may begin with.
func MinDeposit(ctx context.Context, c *client.Client, file *sdl.SDL) (*basev1beta1.Coin, error) {
	params, err := c.DeploymentParams(ctx)
	if err != nil {
		return nil, err
	}
	denom := file.Groups()[0].GetResources()[0].GetPrice().GetDenom()
	for _, coin := range params.GetMinDeposits() {
		if coin.GetDenom() == denom {
			return coin, nil
		}
	}
	return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("the chain takes no deposits in %s", denom), Remedy: "change the denom of the prices in the SDL"}
}

// DepositMsg adds an amount to what a deployment is paid from.
func DepositMsg(signer account.Address, id akash.DeploymentID, amount string, d DepositFlags) (proto.Message, error) {
	coin, err := ParseCoin("amount", amount)
	if err != nil {
		return nil, err
	}
	deposit, err := d.Deposit(coin)
	if err != nil {
		return nil, err
	}
	return &escrowv1.MsgAccountDeposit{
		Signer: string(signer), Id: &escrowidv1.Account{Scope: escrowidv1.Scope_deployment, Xid: id.String()}, Deposit: deposit,
	}, nil
}
