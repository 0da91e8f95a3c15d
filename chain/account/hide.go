package account

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// errHidden answers every encoder that asks a secret for its text.
var errHidden = errors.New("a secret is not written: reveal it on purpose")

// What a secret shows instead of itself.
const (
	hiddenMnemonic = "mnemonic(hidden)"
	hiddenKey      = "key(hidden)"
)

// Format implements [fmt.Formatter]: every verb shows that there is a secret,
// none shows it.
func (m Mnemonic) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, hiddenMnemonic) }

// String implements [fmt.Stringer].
func (m Mnemonic) String() string { return hiddenMnemonic }

// LogValue implements [slog.LogValuer].
func (m Mnemonic) LogValue() slog.Value { return slog.StringValue(hiddenMnemonic) }

// MarshalText refuses: see [Mnemonic.Reveal].
func (m Mnemonic) MarshalText() ([]byte, error) { return nil, errHidden }

// Format implements [fmt.Formatter]: every verb shows the address, none the
// secret.
func (k Key) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, k.String()) }

// String implements [fmt.Stringer].
func (k Key) String() string { return hiddenKey + " " + string(k.Address()) }

// LogValue implements [slog.LogValuer].
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText refuses.
func (k Key) MarshalText() ([]byte, error) { return nil, errHidden }
