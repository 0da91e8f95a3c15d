package notice

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
)

// Sealer keeps the secrets of webhooks from those who read the database without the key.
type Sealer struct{ aead cipher.AEAD }

// NewSealer takes a key of 32 bytes.
func NewSealer(key []byte) (Sealer, error) {
	if len(key) != 32 {
		return Sealer{}, fmt.Errorf("key has %d bytes, want 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return Sealer{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return Sealer{aead}, err
}

// Seal seals a secret, so that it opens for the same id only.
func (s Sealer) Seal(id, secret string) []byte {
	return s.aead.Seal(nil, nil, []byte(secret), []byte(id))
}

// Open opens what Seal sealed for the id.
func (s Sealer) Open(id string, sealed []byte) (string, error) {
	secret, err := s.aead.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return "", errors.New("the secret of the webhook was sealed with another key")
	}
	return string(secret), nil
}
