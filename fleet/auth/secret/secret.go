// Package secret holds what must not be seen: texts that hide themselves from logs,
// the fleet's keys, and what is stored instead of passwords and codes.
package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"unique"
)

const hidden = "[hidden]"

// Text is a text that must not stand in a log: printed in any way, logged or
// made into JSON it is "[hidden]". [Text.Reveal] is the only way to it.
//
// Two are equal if their texts are; the zero value is the empty one.
type Text struct {
	// A pointer: package fmt asks no methods of fields that are not exported, and
	// prints what stands in them.
	text unique.Handle[string]
}

// New hides text.
func New(text string) Text {
	if text == "" {
		return Text{}
	}
	return Text{unique.Make(text)}
}

// Reveal is the text. Whoever calls it sends it where it belongs, at once.
func (s Text) Reveal() string {
	if s == (Text{}) {
		return ""
	}
	return s.text.Value()
}

// String implements fmt.Stringer.
func (Text) String() string { return hidden }

// Format implements fmt.Formatter, for every verb.
func (Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue implements slog.LogValuer.
func (Text) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements encoding.TextMarshaler.
func (Text) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Random draws 256 random bits, as 43 letters that fit URLs and cookies.
func Random() Text {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // it never fails
	return New(base64.RawURLEncoding.EncodeToString(raw[:]))
}

// Hash is what tables hold of a secret that Random drew. Nobody finds
// 256 bits by trying, so a plain hash is enough.
func (s Text) Hash() []byte {
	sum := sha256.Sum256([]byte(s.Reveal()))
	return sum[:]
}

// KeySize is how many bytes the fleet's key has.
const KeySize = 32

// Keys are derived from the fleet's one key.
type Keys struct {
	mac  []byte // of forms, recovery codes and passwords
	seal cipher.AEAD
}

// NewKeys derives keys.
func NewKeys(key []byte) (Keys, error) {
	if len(key) != KeySize {
		return Keys{}, fmt.Errorf("key has %d bytes, want %d", len(key), KeySize)
	}
	mac, err := hkdf.Key(sha256.New, key, nil, "croft auth mac v1", 32)
	if err != nil {
		return Keys{}, err
	}
	raw, err := hkdf.Key(sha256.New, key, nil, "croft auth seal v1", 32)
	if err != nil {
		return Keys{}, err
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return Keys{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return Keys{mac, aead}, err
}

// Tag is the HMAC of the parts, one purpose apart from the other.
func (k Keys) Tag(purpose string, parts ...string) []byte {
	mac := hmac.New(sha256.New, k.mac)
	_, _ = fmt.Fprintf(mac, "%s\x00", purpose)
	for _, part := range parts {
		_, _ = fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	return mac.Sum(nil)
}

// Encrypt seals a secret, so that it opens for the same account only.
func (k Keys) Encrypt(account string, s Text) []byte {
	return k.seal.Seal(nil, nil, []byte(s.Reveal()), []byte(account))
}

// Decrypt opens what Encrypt sealed for the account.
func (k Keys) Decrypt(account string, sealed []byte) (Text, error) {
	text, err := k.seal.Open(nil, nil, sealed, []byte(account))
	if err != nil {
		return Text{}, errors.New("decrypt secret: the fleet's key is another one than when it was stored, or the row was changed")
	}
	return New(string(text)), nil
}
