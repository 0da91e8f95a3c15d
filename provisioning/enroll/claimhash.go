package enroll

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
)

// ClaimHash stands for a claim secret on its way to the fleet: the code of 40
// bits that the box shows, or the secret of 80 bits on its sticker. It is itself
// a secret: 40 bits are found from it in a minute. So it travels by TLS only, is
// never logged and never stored: what is stored is [ClaimKey.Seal]. The zero
// value means that there is none.
type ClaimHash [sha256.Size]byte

// HashClaim hashes a claim secret in its canonical form: upper case, no dash.
func HashClaim(secret string) ClaimHash {
	return sha256.Sum256([]byte("croft claim 1\x00" + secret))
}

// encoding is base64 with one text for each value.
var encoding = base64.RawURLEncoding.Strict()

// MarshalText is for the wire.
func (h ClaimHash) MarshalText() ([]byte, error) {
	return encoding.AppendEncode(nil, h[:]), nil
}

// UnmarshalText reads what [ClaimHash.MarshalText] wrote.
func (h *ClaimHash) UnmarshalText(text []byte) error {
	if len(text) != encoding.EncodedLen(len(h)) {
		return fmt.Errorf("claim hash has %d characters, want %d", len(text), encoding.EncodedLen(len(h)))
	}
	if _, err := encoding.Decode(h[:], text); err != nil {
		return errors.New("claim hash is not base64")
	}
	return nil
}

const hiddenHash = "[claim hash]"

// String hides the hash, so that no format verb prints it by accident.
func (h ClaimHash) String() string { return hiddenHash }

// GoString hides the hash from %#v.
func (h ClaimHash) GoString() string { return hiddenHash }

// LogValue hides the hash from logs.
func (h ClaimHash) LogValue() slog.Value { return slog.StringValue(hiddenHash) }

// minClaimKey is the fewest bytes of a claim key.
const minClaimKey = 32

// ClaimKey is the fleet's secret without which stored claim secrets are of no
// use. It is kept outside the database.
type ClaimKey struct{ secret []byte }

// NewClaimKey takes at least 32 random bytes, the same for the fleet's life:
// with another key no box that is not claimed yet can be claimed.
func NewClaimKey(secret []byte) (*ClaimKey, error) {
	if len(secret) < minClaimKey {
		return nil, fmt.Errorf("make claim key: secret has %d bytes, want %d at least", len(secret), minClaimKey)
	}
	return &ClaimKey{secret: bytes.Clone(secret)}, nil
}

// SealedClaim is a claim secret as the fleet stores it, and finds its box by it:
// the same secret gives the same text, under the same key.
type SealedClaim string

// Seal is what is stored of a claim secret.
func (k *ClaimKey) Seal(h ClaimHash) SealedClaim {
	mac := hmac.New(sha256.New, k.secret)
	mac.Write([]byte("croft sealed claim 1\x00"))
	mac.Write(h[:])
	return SealedClaim(encoding.EncodeToString(mac.Sum(nil)))
}

// Matches tells whether what was stored is of this secret, in a time that does
// not depend on how much of it is right. Nothing matches the zero hash.
func (k *ClaimKey) Matches(stored SealedClaim, h ClaimHash) bool {
	return h != ClaimHash{} && hmac.Equal([]byte(stored), []byte(k.Seal(h)))
}
