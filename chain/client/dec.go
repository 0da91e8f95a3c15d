package client

import (
	"fmt"
	"math/big"
	"regexp"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
)

// gasPrice is what a unit of gas costs.
type gasPrice struct {
	denom  string
	amount akash.Dec
}

var gasPriceForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]{1,18})?)([a-zA-Z][a-zA-Z0-9/:._-]{2,127})$`)

func parseGasPrice(s string) (gasPrice, error) {
	m := gasPriceForm.FindStringSubmatch(s)
	if m == nil {
		return gasPrice{}, fmt.Errorf("gas price %q: want a number and a denom", s)
	}
	amount, err := akash.ParseDec(m[1])
	if err != nil {
		return gasPrice{}, fmt.Errorf("gas price: %w", err)
	}
	return gasPrice{denom: m[2], amount: amount}, nil
}

// fee is the price of this much gas, rounded up; no coins when gas is free.
func (p gasPrice) fee(gas uint64) []*basev1beta1.Coin {
	if p.amount.Sign() == 0 {
		return nil
	}
	one := akash.NewDec(1).Atto()
	total := new(big.Int).Mul(p.amount.Atto(), new(big.Int).SetUint64(gas))
	total.Add(total, new(big.Int).Sub(one, big.NewInt(1)))
	return []*basev1beta1.Coin{{Denom: p.denom, Amount: total.Quo(total, one).String()}}
}
