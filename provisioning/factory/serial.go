package factory

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"strings"
	"unicode"
)

// Serial is the serial number on a box's case, e.g. "CR-4821-3077-5567":
// eleven digits drawn by chance, and a check digit. Digits alone are read out on
// the telephone in every language, have no look-alikes among themselves, and are
// not taken for a claim code. Chance keeps people from guessing the number of a
// box that is still in its carton: under the policy [enroll.FirstUseListed] who
// knows a number may enrol with it.
//
// The check digit is that of H. Michael Damm: it finds every digit that is wrong,
// and every swap of neighbours.
type Serial string

const (
	serialPrefix = "CR"
	serialDigits = 12 // the check digit is the last
)

// NewSerial draws a serial number.
func NewSerial() Serial {
	n, err := rand.Int(rand.Reader, big.NewInt(100_000_000_000))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	digits := fmt.Sprintf("%0*d", serialDigits-1, n)
	return serialOf(digits + string('0'+damm(digits)))
}

func serialOf(digits string) Serial {
	return Serial(serialPrefix + "-" + digits[:4] + "-" + digits[4:8] + "-" + digits[8:])
}

// ParseSerial reads a serial number as a person types it: with or without CR,
// dashes and spaces, in either case, the letter O for zero, I or L for one. Its
// errors are of kind usage.
func ParseSerial(typed string) (Serial, error) {
	digits := strings.Map(symbol, typed)
	digits = strings.TrimPrefix(digits, serialPrefix)
	for _, r := range digits {
		if r < '0' || r > '9' {
			return "", usage("after CR, type only the digits on the label", "serial number %.40q has %q, which none has", typed, r)
		}
	}
	if len(digits) != serialDigits {
		return "", usage("type it as on the label, like CR-4821-3077-5567", "serial number %.40q has %d digits, want %d", typed, len(digits), serialDigits)
	}
	if damm(digits) != 0 {
		return "", usage("compare it with the label digit by digit", "serial number %s is mistyped: its check digit does not fit", serialOf(digits))
	}
	return serialOf(digits), nil
}

// symbol is how a typed symbol counts; below 0 it does not.
func symbol(r rune) rune {
	if separates(r) {
		return -1
	}
	if r <= unicode.MaxASCII {
		r = unicode.ToUpper(r)
	}
	switch r {
	case 'O':
		return '0'
	case 'I', 'L':
		return '1'
	}
	return r
}

// separates tells what stands between groups; phones turn "-" into longer dashes.
func separates(r rune) bool {
	return unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) || r == '\u2212' || r == '_'
}

// dammTable is a quasigroup of order ten that is totally anti-symmetric.
var dammTable = [10][10]byte{
	{0, 3, 1, 7, 5, 9, 8, 6, 4, 2},
	{7, 0, 9, 2, 1, 5, 4, 8, 6, 3},
	{4, 2, 0, 6, 8, 7, 1, 3, 5, 9},
	{1, 7, 5, 0, 9, 8, 3, 4, 2, 6},
	{6, 1, 2, 3, 0, 4, 5, 9, 7, 8},
	{3, 6, 7, 4, 2, 0, 9, 5, 8, 1},
	{5, 8, 6, 9, 7, 2, 0, 1, 3, 4},
	{8, 9, 4, 5, 3, 6, 2, 0, 1, 7},
	{9, 4, 3, 8, 6, 1, 7, 2, 0, 5},
	{2, 5, 8, 1, 4, 3, 6, 7, 9, 0},
}

// damm is the check digit of digits; with the check digit behind them it is 0.
func damm(digits string) byte {
	var state byte
	for i := range len(digits) {
		state = dammTable[state][digits[i]-'0']
	}
	return state
}
