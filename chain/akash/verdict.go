package akash

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
)

// TxError is the chain's verdict on a transaction: what refused it and why.
// Codes are stable, texts are not: compare with [errors.Is] and one of the
// variables below, or with a TxError of your own that has no Log. For people,
// package client wraps it in a [croft.Error] that says what to do.
type TxError struct {
	Codespace string // the module that refused, "sdk" for what all chains share
	Code      uint32 // not 0
	Log       string // the chain's words
}

func (e *TxError) Error() string {
	what := advice[codeOf{e.Codespace, e.Code}].what
	switch {
	case what == "":
		return fmt.Sprintf("%s error %d: %s", e.Codespace, e.Code, plainLog(e.Log))
	case e.Log == "":
		return fmt.Sprintf("%s (%s %d)", what, e.Codespace, e.Code)
	default:
		return fmt.Sprintf("%s (%s %d: %s)", what, e.Codespace, e.Code, plainLog(e.Log))
	}
}

// wrappings are what cosmos-sdk writes before a module's own words.
var wrappings = regexp.MustCompile(`^(failed to simulate tx|failed to execute message; message index: (\d+)): `)

// plainLog is the words of a module, on one line. The number of the message that
// failed stays when it is not the first.
func plainLog(log string) string {
	place := ""
	for {
		m := wrappings.FindStringSubmatch(log)
		if m == nil {
			return place + FirstLine(log)
		}
		if m[2] != "" && m[2] != "0" {
			place = "message " + m[2] + ", counted from 0: "
		}
		log = log[len(m[0]):]
	}
}

// FirstLine keeps the words of a node on one line and printable: a node may add a stack
// trace, and addresses as bytes.
func FirstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// Is compares codespace and code.
func (e *TxError) Is(target error) bool {
	t, ok := target.(*TxError)
	return ok && t.Codespace == e.Codespace && t.Code == e.Code && (t.Log == "" || t.Log == e.Log)
}

// Verdicts that callers act upon. All others: see facts of the chain, or compare
// with a TxError of your own.
var (
	ErrInsufficientFunds  error = &TxError{Codespace: "sdk", Code: 5}
	ErrOutOfGas           error = &TxError{Codespace: "sdk", Code: 11}
	ErrInsufficientFee    error = &TxError{Codespace: "sdk", Code: 13}
	ErrInCache            error = &TxError{Codespace: "sdk", Code: 19}
	ErrMempoolFull        error = &TxError{Codespace: "sdk", Code: 20}
	ErrTimeoutHeight      error = &TxError{Codespace: "sdk", Code: 30}
	ErrWrongSequence      error = &TxError{Codespace: "sdk", Code: 32}
	ErrDeploymentExists   error = &TxError{Codespace: "deployment", Code: 3}
	ErrDeploymentNotFound error = &TxError{Codespace: "deployment", Code: 4}
	ErrDeploymentClosed   error = &TxError{Codespace: "deployment", Code: 5}
	ErrBidNotOpen         error = &TxError{Codespace: "market", Code: 12}
	ErrOrderNotOpen       error = &TxError{Codespace: "market", Code: 13}
	ErrOrderNotFound      error = &TxError{Codespace: "market", Code: 15}
	ErrBidNotFound        error = &TxError{Codespace: "market", Code: 18}
	ErrLeaseNotFound      error = &TxError{Codespace: "market", Code: 20}
	ErrBidExists          error = &TxError{Codespace: "market", Code: 21}
	ErrLeaseNotActive     error = &TxError{Codespace: "market", Code: 10}
	ErrUnknownProvider    error = &TxError{Codespace: "market", Code: 30}
	ErrProviderNotFound   error = &TxError{Codespace: "provider", Code: 3}
	ErrProviderExists     error = &TxError{Codespace: "provider", Code: 4}
	ErrCertificateExists  error = &TxError{Codespace: "cert", Code: 3}
)

// Explain is the verdict for people: with a kind and a sentence on what to do.
func (e *TxError) Explain() error {
	a := advice[codeOf{e.Codespace, e.Code}]
	return &croft.Error{
		Kind: cmp.Or(a.kind, croft.KindRefused), Err: e,
		Remedy: cmp.Or(a.do, "look the code up in the documentation of the chain's module "+e.Codespace),
	}
}
