package akash

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"

	"github.com/croft-cloud/croft/chain/api/basev1beta1"
)

// decPlaces is how many decimals the chain's Dec has.
const decPlaces = 18

var decOne = new(big.Int).Exp(big.NewInt(10), big.NewInt(decPlaces), nil)

// maxDecDigits bounds what is parsed; the chain's own limit is 315 bits.
const maxDecDigits = 96

// Dec is a decimal number with 18 places, as prices are. The zero Dec is 0.
// On the wire a Dec is the integer of its 10^-18 ("250500000000000000000"), in
// JSON and for people it has a point ("250.500000000000000000").
type Dec struct{ atto *big.Int }

var decForm = regexp.MustCompile(`^(-?)([0-9]+)(?:\.([0-9]{1,18}))?$`)

// ParseDec reads the form with a point; it need not have all places.
func ParseDec(s string) (Dec, error) {
	m := decForm.FindStringSubmatch(s)
	if m == nil || len(s) > maxDecDigits {
		return Dec{}, fmt.Errorf("number %q: want digits with at most %d decimals", s, decPlaces)
	}
	digits := m[2] + m[3] + strings.Repeat("0", decPlaces-len(m[3]))
	n, _ := new(big.Int).SetString(digits, 10)
	if m[1] == "-" {
		n.Neg(n)
	}
	return Dec{n}, nil
}

var integerForm = regexp.MustCompile(`^-?[0-9]+$`)

// ParseWireDec reads the wire's form.
func ParseWireDec(s string) (Dec, error) {
	if !integerForm.MatchString(s) || len(s) > maxDecDigits {
		return Dec{}, fmt.Errorf("number %q on the wire: want an integer", s)
	}
	n, _ := new(big.Int).SetString(s, 10)
	return Dec{n}, nil
}

// NewDec is a whole number.
func NewDec(n int64) Dec { return Dec{new(big.Int).Mul(big.NewInt(n), decOne)} }

func (d Dec) value() *big.Int {
	if d.atto == nil {
		return new(big.Int)
	}
	return d.atto
}

// Atto is the integer of d's 10^-18.
func (d Dec) Atto() *big.Int { return new(big.Int).Set(d.value()) }

// Wire is [Dec.Atto] as text.
func (d Dec) Wire() string { return d.value().String() }

// String has a point and 18 places.
func (d Dec) String() string {
	whole, rest := new(big.Int).QuoRem(new(big.Int).Abs(d.value()), decOne, new(big.Int))
	sign := ""
	if d.value().Sign() < 0 {
		sign = "-"
	}
	return fmt.Sprintf("%s%s.%0*s", sign, whole, decPlaces, rest)
}

// Sign is -1, 0 or 1.
func (d Dec) Sign() int { return d.value().Sign() }

// Cmp is -1, 0 or 1 as d is below, equal to or above e.
func (d Dec) Cmp(e Dec) int { return d.value().Cmp(e.value()) }

// Add is d + e.
func (d Dec) Add(e Dec) Dec { return Dec{new(big.Int).Add(d.value(), e.value())} }

// Mul is d × n.
func (d Dec) Mul(n int64) Dec { return Dec{new(big.Int).Mul(d.value(), big.NewInt(n))} }

// Int is d without its decimals: 2.9 gives 2, -2.9 gives -2.
func (d Dec) Int() *big.Int { return new(big.Int).Quo(d.value(), decOne) }

// Price is an amount of a denom for each block.
type Price struct {
	Denom  string
	Amount Dec
}

// PriceOf reads a price of the wire.
func PriceOf(c *basev1beta1.DecCoin) (Price, error) {
	amount, err := ParseWireDec(c.GetAmount())
	if err != nil {
		return Price{}, fmt.Errorf("price: %w", err)
	}
	if c.GetDenom() == "" {
		return Price{}, errors.New("price has no denom")
	}
	return Price{Denom: c.GetDenom(), Amount: amount}, nil
}

// Wire is the price in the wire's form.
func (p Price) Wire() *basev1beta1.DecCoin {
	return &basev1beta1.DecCoin{Denom: p.Denom, Amount: p.Amount.Wire()}
}

// String is the amount followed by the denom.
func (p Price) String() string { return p.Amount.String() + p.Denom }
