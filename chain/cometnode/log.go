package cometnode

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	cmtlog "github.com/cometbft/cometbft/libs/log"

	"cosmossdk.io/log/v2"
)

// Log passes what CometBFT and the SDK say to our log. Several lines per
// block are information to them; here they are for debugging, warnings and
// errors stay what they are.
type Log struct {
	Slog     *slog.Logger
	OnFailed func() // called when consensus says that it gave up
}

var (
	_ log.Logger    = Log{}
	_ cmtlog.Logger = CometLog{}
)

// consensusFailed begins CometBFT's message that its consensus recovered a
// panic and has stopped for good, while everything else goes on.
const consensusFailed = "CONSENSUS FAILURE"

// runTxPanicked is the SDK's message for a panic in a transaction, which is also
// how gas runs out.
const runTxPanicked = "panic recovered in runTx"

// Debug logs for debugging.
func (l Log) Debug(msg string, kv ...any) { l.Slog.Debug(msg, kv...) } //nolint:sloglint // the library's message

// Info logs for debugging: it is what every block says.
func (l Log) Info(msg string, kv ...any) { l.Slog.Debug(msg, kv...) } //nolint:sloglint // the library's message

// Warn logs a warning.
func (l Log) Warn(msg string, kv ...any) { l.Slog.Warn(msg, kv...) } //nolint:sloglint // the library's message

// Error logs an error, and hears whether it is the end of consensus. What anyone
// can bring about for a small fee, a transaction that runs out of gas, is for
// debugging: it would fill the log.
func (l Log) Error(msg string, kv ...any) {
	if msg == runTxPanicked && strings.Contains(fmt.Sprint(kv...), "out of gas") {
		l.Debug(msg, kv...)
		return
	}
	l.Slog.Error(msg, kv...) //nolint:sloglint // the library's message
	if l.OnFailed != nil && strings.HasPrefix(msg, consensusFailed) {
		l.OnFailed()
	}
}

// DebugContext is Debug.
func (l Log) DebugContext(_ context.Context, msg string, kv ...any) { l.Debug(msg, kv...) }

// InfoContext is Info.
func (l Log) InfoContext(_ context.Context, msg string, kv ...any) { l.Info(msg, kv...) }

// WarnContext is Warn.
func (l Log) WarnContext(_ context.Context, msg string, kv ...any) { l.Warn(msg, kv...) }

// ErrorContext is Error.
func (l Log) ErrorContext(_ context.Context, msg string, kv ...any) { l.Error(msg, kv...) }

// With adds keys to every line.
func (l Log) With(kv ...any) log.Logger {
	return Log{Slog: l.Slog.With(kv...), OnFailed: l.OnFailed}
}

// Impl returns the *slog.Logger.
func (l Log) Impl() any { return l.Slog }

// CometLog is Log with CometBFT's type of With.
type CometLog struct{ Log }

// With adds keys to every line.
func (l CometLog) With(kv ...any) cmtlog.Logger {
	return CometLog{Log{Slog: l.Slog.With(kv...), OnFailed: l.OnFailed}}
}
