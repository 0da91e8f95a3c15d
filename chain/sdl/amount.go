package sdl

import (
	"math/big"
	"regexp"
	"strings"
)

// Amounts are read exactly: as decimal text, never through floating point.

var (
	integerForm = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,18})$`)
	decimalForm = regexp.MustCompile(`^([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})$`)
	sizeForm    = regexp.MustCompile(`^([0-9.]+)[ \t]*([a-zA-Z]*)$`)
)

// parseDecimal reads 12, 12.5 or .5; no sign, no exponent.
func parseDecimal(text string) (*big.Rat, bool) {
	if !decimalForm.MatchString(text) {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

const (
	thousand = 1000
	kibi     = 1024
)

// sizeUnits are the suffixes of sizes and how often their base is multiplied.
var sizeUnits = map[string]struct {
	base  int64
	times int64
}{
	"": {1, 0}, "k": {thousand, 1}, "Ki": {kibi, 1}, "M": {thousand, 2}, "Mi": {kibi, 2}, "G": {thousand, 3}, "Gi": {kibi, 3},
	"T": {thousand, 4}, "Ti": {kibi, 4}, "P": {thousand, 5}, "Pi": {kibi, 5}, "E": {thousand, 6}, "Ei": {kibi, 6},
}

// parseSize reads a number of bytes such as 512Mi. A fraction of a byte counts
// as a byte. If the text is no size, better is what was probably meant.
func parseSize(text string) (size *big.Int, better string) {
	m := sizeForm.FindStringSubmatch(text)
	if m == nil {
		return nil, ""
	}
	number, ok := parseDecimal(m[1])
	unit, known := sizeUnits[m[2]]
	switch {
	case !ok:
		return nil, ""
	case !known || m[1]+m[2] != text:
		suffix := strings.TrimSuffix(strings.ToLower(m[2]), "b")
		for name := range sizeUnits {
			if strings.ToLower(name) == suffix {
				return nil, m[1] + name
			}
		}
		return nil, ""
	}
	factor := new(big.Int).Exp(big.NewInt(unit.base), big.NewInt(unit.times), nil)
	number.Mul(number, new(big.Rat).SetInt(factor))
	size, rest := new(big.Int).QuoRem(number.Num(), number.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		size.Add(size, big.NewInt(1))
	}
	return size, ""
}

// parseCores reads cores (0.5) or thousandths of a core (500m), as thousandths.
// It is nil for what is neither, and for parts of a thousandth.
func parseCores(text string) *big.Int {
	scale := int64(thousand)
	if milli, ok := strings.CutSuffix(text, "m"); ok {
		text, scale = milli, 1
	}
	number, ok := parseDecimal(text)
	if !ok {
		return nil
	}
	if number.Mul(number, new(big.Rat).SetInt64(scale)); !number.IsInt() {
		return nil
	}
	return number.Num()
}

// priceDigits is how many decimals a price on chain has.
const priceDigits = 18

// parsePrice reads a decimal as an integer of 10^-18. It is nil for what is no
// decimal or finer than that.
func parsePrice(text string) *big.Int {
	number, ok := parseDecimal(text)
	if !ok {
		return nil
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(priceDigits), nil)
	if number.Mul(number, new(big.Rat).SetInt(scale)); !number.IsInt() {
		return nil
	}
	return number.Num()
}
