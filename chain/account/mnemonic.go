package account

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cosmos/go-bip39"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// Mnemonic is a valid BIP-39 phrase of English words. Whoever reads it owns the
// accounts made from it.
type Mnemonic struct {
	words *string // a pointer, so that no %v of a struct around a Mnemonic prints it
}

// NewMnemonic draws twenty-four words (256 bits) from the system's randomness.
func NewMnemonic() (Mnemonic, error) {
	entropy := make([]byte, 32)
	if _, err := rand.Read(entropy); err != nil {
		return Mnemonic{}, fmt.Errorf("draw mnemonic: %w", err)
	}
	words, err := bip39.NewMnemonic(entropy)
	if err != nil {
		return Mnemonic{}, fmt.Errorf("draw mnemonic: %w", err)
	}
	return Mnemonic{&words}, nil
}

// ParseMnemonic accepts 12, 15, 18, 21 or 24 words with a right checksum; case
// and space between them do not matter. Its errors name the place of a bad word,
// never the word.
func ParseMnemonic(s string) (Mnemonic, error) {
	fields := strings.Fields(strings.ToLower(s))
	switch len(fields) {
	case 12, 15, 18, 21, 24:
	default:
		return Mnemonic{}, fmt.Errorf("mnemonic has %d words: want 12, 15, 18, 21 or 24", len(fields))
	}
	for i, word := range fields {
		if _, ok := bip39.ReverseWordMap[word]; !ok {
			return Mnemonic{}, fmt.Errorf("mnemonic: word %d is not in the BIP-39 English list", i+1)
		}
	}
	words := strings.Join(fields, " ")
	if _, err := bip39.MnemonicToByteArray(words); err != nil { // IsMnemonicValid looks at the words alone
		return Mnemonic{}, errors.New("mnemonic: checksum does not match: a word is wrong or in the wrong place")
	}
	return Mnemonic{&words}, nil
}

// Reveal is the phrase itself, lower case, one space between words. It is for
// its owner's eyes and for an encrypted file.
func (m Mnemonic) Reveal() string {
	if m.words == nil {
		return ""
	}
	return *m.words
}

// IsZero reports that there is no phrase.
func (m Mnemonic) IsZero() bool { return m.words == nil }

// coinType is the number of ATOM in SLIP-44, which Akash uses as well.
const coinType = 118

// hardened marks a step of a path whose child cannot be computed from public
// data (BIP-32).
const hardened = 1 << 31

// Key derives m/44'/118'/acct'/0/index (BIP-44) without a BIP-39 passphrase.
// Wallets begin with (0, 0).
func (m Mnemonic) Key(acct, index uint32) (*Key, error) {
	if m.words == nil {
		return nil, errors.New("derive key: mnemonic is empty")
	}
	if acct >= hardened || index >= hardened {
		return nil, fmt.Errorf("derive key %d/%d: want numbers below 2^31", acct, index)
	}
	seed, err := bip39.NewSeedWithErrorChecking(*m.words, "")
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	secret, err := derive(seed, 44|hardened, coinType|hardened, acct|hardened, 0, index)
	if err != nil {
		return nil, fmt.Errorf("derive key %d/%d: %w", acct, index, err)
	}
	return KeyFromSecret(secret)
}

// derive walks a path of private BIP-32 children from the seed's master key.
func derive(seed []byte, path ...uint32) ([]byte, error) {
	secret, chainCode, err := split([]byte("Bitcoin seed"), seed, nil)
	if err != nil {
		return nil, err
	}
	for _, step := range path {
		data := make([]byte, 0, 37)
		if step&hardened != 0 {
			data = append(data, 0)
			data = append(data, scalarBytes(secret)...)
		} else {
			data = append(data, secp256k1.NewPrivateKey(secret).PubKey().SerializeCompressed()...)
		}
		data = binary.BigEndian.AppendUint32(data, step)
		if secret, chainCode, err = split(chainCode, data, secret); err != nil {
			return nil, err
		}
	}
	return scalarBytes(secret), nil
}

// split is BIP-32's I: the left half of the HMAC, added to the parent, is the
// secret; the right half is the chain code. The chance of the error is 1 in
// 2^127.
func split(key, data []byte, parent *secp256k1.ModNScalar) (*secp256k1.ModNScalar, []byte, error) {
	mac := hmac.New(sha512.New, key)
	mac.Write(data)
	sum := mac.Sum(nil)
	child := new(secp256k1.ModNScalar)
	if child.SetByteSlice(sum[:32]) {
		return nil, nil, errors.New("path has no key: use the next index")
	}
	if parent != nil {
		child.Add(parent)
	}
	if child.IsZero() {
		return nil, nil, errors.New("path has no key: use the next index")
	}
	return child, sum[32:], nil
}

func scalarBytes(s *secp256k1.ModNScalar) []byte {
	b := s.Bytes()
	return b[:]
}
