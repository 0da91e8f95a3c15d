package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
)

// ErrDead reports a transaction that is not in a block and never can be: its
// place was taken by another, or its time is over. It is answered only where the
// caller forbade a new signature ([Tx.Once], [Client.Resume]).
var ErrDead = errors.New("transaction was never executed and cannot be any more")

// ErrTxNotFound reports a hash that the node's index does not have.
var ErrTxNotFound = errors.New("no transaction with this hash")

// Signed is a transaction as it leaves, with what is needed to find it again.
// It is safe to store: it holds no secret, and everything in it becomes public
// when it is sent.
type Signed struct {
	Hash          Hash            `json:"hash"`
	Raw           []byte          `json:"raw"`
	Account       account.Address `json:"account"`
	Sequence      uint64          `json:"sequence"`                 // its place; 0 when unordered
	TimeoutHeight int64           `json:"timeout_height,omitempty"` // the last block that may hold it; 0 when unordered
	Expires       time.Time       `json:"expires,omitzero"`         // when unordered: no later block may hold it
	Height        int64           `json:"height"`                   // the chain's when it was signed; no block up to it holds it
}

// UnconfirmedError reports that a transaction was signed and perhaps sent, and
// that its fate was unknown when the caller's context ended or the node gave no
// answer that decides it. [Client.Resume] takes it up again; after the height or
// time in Signed it is decided either way.
type UnconfirmedError struct {
	Signed Signed
	Err    error // what ended the wait
}

func (e *UnconfirmedError) Error() string {
	until := fmt.Sprintf("height %d", e.Signed.TimeoutHeight)
	if e.Signed.TimeoutHeight == 0 {
		until = e.Signed.Expires.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("transaction %s is not confirmed and may still be executed until %s: %v", e.Signed.Hash, until, e.Err)
}

func (e *UnconfirmedError) Unwrap() error { return e.Err }

// GapError reports a height that [Client.Watch] cannot have: the node has
// removed it (First is above Wanted), or the chain of the node ends below it.
// The caller reconciles by queries and watches again from First, or from the
// node's height.
type GapError struct {
	Wanted int64 // the height that came next
	First  int64 // the lowest that the node has
	Latest int64 // the highest
}

func (e *GapError) Error() string {
	if e.Wanted < e.First {
		return fmt.Sprintf("block %d is no longer kept by the node, which has %d to %d", e.Wanted, e.First, e.Latest)
	}
	return fmt.Sprintf("block %d is far ahead of the node, which has %d to %d", e.Wanted, e.First, e.Latest)
}

func usage(err error, remedy string) error {
	return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: remedy}
}

// queryError gives a failed query a kind.
func (c *Client) queryError(ctx context.Context, method string, err error) error {
	wrapped := &queryFailure{what: whatOf(method), err: err}
	if starting(ctx, err) {
		return &croft.Error{Kind: croft.KindOther, Err: wrapped, Remedy: "wait for the next block: the node at " + c.cfg.GRPC + " has just begun"}
	}
	switch status.Code(err) {
	case codes.NotFound:
		return &croft.Error{Kind: croft.KindNotFound, Err: wrapped, Remedy: "look at the id, and at the chain it is asked of"}
	case codes.InvalidArgument:
		return &croft.Error{Kind: croft.KindUsage, Err: wrapped, Remedy: "correct the request"}
	case codes.Unimplemented:
		return &croft.Error{Kind: croft.KindMissing, Err: wrapped, Remedy: "use a node of an Akash-compatible chain"}
	case codes.Unavailable, codes.DeadlineExceeded:
		return &croft.Error{Kind: croft.KindOther, Err: wrapped, Remedy: "see that the node at " + c.cfg.GRPC + " runs and can be reached"}
	default:
		return wrapped
	}
}

// queryFailure is a failed query in words for people. Its code is that of err.
type queryFailure struct {
	what string
	err  error
}

func (e *queryFailure) Error() string { return e.what + ": " + nodeWords(e.err) }

func (e *queryFailure) Unwrap() error { return e.err }

// nodeWords is what a node said, without gRPC's own words around it.
func nodeWords(err error) string {
	return akash.FirstLine(status.Convert(err).Message())
}

// whatOf is a gRPC method for people: "query all balances" for
// /cosmos.bank.v1beta1.Query/AllBalances.
func whatOf(method string) string {
	switch name := method[strings.LastIndexByte(method, '/')+1:]; name {
	case "BroadcastTx":
		return "send transaction to node"
	case "GetTx":
		return "look transaction up"
	default:
		var words strings.Builder
		words.WriteString("query")
		for _, r := range name {
			if unicode.IsUpper(r) {
				words.WriteByte(' ')
			}
			words.WriteRune(unicode.ToLower(r))
		}
		return words.String()
	}
}

// final reports errors of a call that repeating it cannot cure.
func final(err error) bool {
	if _, ok := errors.AsType[*akash.TxError](err); ok {
		return true
	}
	switch croft.KindOf(err) {
	case croft.KindNotFound, croft.KindUsage, croft.KindMissing, croft.KindRefused:
		return true
	default:
	}
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		return true
	default:
		return errors.Is(err, context.Canceled)
	}
}
