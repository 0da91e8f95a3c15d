// Package account is a person or device on the chain: its address, the key that
// proves it, and the twenty-four words the key comes from.
//
//	words, err := account.NewMnemonic()     // shown once to its owner, on paper ever after
//	key, err := words.Key(0, 0)             // m/44'/118'/0'/0/0, as every Akash client derives it
//	fmt.Println(key.Address())              // akash1…
//	sig, err := key.Sign(ctx, signDocBytes) // 64 bytes, always the same for the same message
//
// What needs a signature takes a [Signer], so a key may stay elsewhere: in the
// agent's memory, in another process, in hardware. [Key] is the one that holds
// the secret itself.
//
// Promises:
//   - Addresses and keys equal the cosmos-sdk's for the same words (tested
//     against it).
//   - Signatures are deterministic (RFC 6979) and have a low S, so the same
//     message never has two of them.
//   - A [Mnemonic] or [Key] shows nothing of its secret in %v, %+v, %#v, a log
//     line or JSON, also inside another struct. Only [Mnemonic.Reveal] does.
//
// It does no I/O and keeps nothing between calls; package keystore puts keys on
// a disk. Go gives no way to erase a secret from memory for sure: none is
// claimed.
package account

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/btcsuite/btcd/btcutil/bech32"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"golang.org/x/crypto/ripemd160" //nolint:staticcheck // the address of a Cosmos account is defined with it; a collision buys nothing without a preimage
)

// Prefix begins every account address.
const Prefix = "akash"

// addressBytes is the length of an account's hash.
const addressBytes = ripemd160.Size

// Address names an account: "akash1" and 38 more characters. It is the bech32
// text of ripemd160(sha256(public key)), or of a module's hash.
type Address string

// ParseAddress accepts a bech32 account address with a right checksum, in lower
// case as the chain writes it.
func ParseAddress(s string) (Address, error) {
	if _, err := Address(s).Bytes(); err != nil {
		return "", err
	}
	return Address(s), nil
}

// AddressFromBytes is the address with this 20-byte hash.
func AddressFromBytes(hash []byte) (Address, error) {
	if len(hash) != addressBytes {
		return "", fmt.Errorf("address of %d bytes: want %d", len(hash), addressBytes)
	}
	groups, err := bech32.ConvertBits(hash, 8, 5, true)
	if err != nil {
		return "", fmt.Errorf("encode address: %w", err)
	}
	text, err := bech32.Encode(Prefix, groups)
	if err != nil {
		return "", fmt.Errorf("encode address: %w", err)
	}
	return Address(text), nil
}

// Bytes is the hash the address stands for.
func (a Address) Bytes() ([]byte, error) {
	prefix, groups, err := bech32.Decode(string(a))
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", string(a), err)
	}
	if prefix != Prefix {
		return nil, fmt.Errorf("address %q: want one that begins with %s1", string(a), Prefix)
	}
	hash, err := bech32.ConvertBits(groups, 5, 8, false)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", string(a), err)
	}
	canonical, err := AddressFromBytes(hash)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", string(a), err)
	}
	if canonical != a { // bech32 also allows all capitals; the chain's stores do not
		return nil, fmt.Errorf("address %q: want lower case, as in %q", string(a), string(canonical))
	}
	return hash, nil
}

// PublicKey is a compressed secp256k1 point: 33 bytes.
type PublicKey []byte

// Address is the account this key controls. A key that is no point on the curve
// has none.
func (p PublicKey) Address() (Address, error) {
	if _, err := p.point(); err != nil {
		return "", err
	}
	inner := sha256.Sum256(p)
	h := ripemd160.New()
	h.Write(inner[:])
	return AddressFromBytes(h.Sum(nil))
}

func (p PublicKey) point() (*secp256k1.PublicKey, error) {
	if len(p) != secp256k1.PubKeyBytesLenCompressed {
		return nil, fmt.Errorf("public key of %d bytes: want %d, compressed", len(p), secp256k1.PubKeyBytesLenCompressed)
	}
	point, err := secp256k1.ParsePubKey(p)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return point, nil
}

// SignatureBytes is the length of a signature: R and S, 32 bytes each.
const SignatureBytes = 64

// ErrSignature reports a signature that is not by this key over this message.
var ErrSignature = errors.New("signature does not match")

// Verify checks a signature over the SHA-256 of message. A signature with a high
// S is refused, as the chain refuses it: it would be a second one for the same
// message.
func (p PublicKey) Verify(message, signature []byte) error {
	point, err := p.point()
	if err != nil {
		return err
	}
	if len(signature) != SignatureBytes {
		return fmt.Errorf("signature of %d bytes, want %d: %w", len(signature), SignatureBytes, ErrSignature)
	}
	var r, s secp256k1.ModNScalar
	if r.SetByteSlice(signature[:32]) || s.SetByteSlice(signature[32:]) || r.IsZero() || s.IsZero() || s.IsOverHalfOrder() {
		return ErrSignature
	}
	sum := sha256.Sum256(message)
	if !ecdsa.NewSignature(&r, &s).Verify(sum[:], point) {
		return ErrSignature
	}
	return nil
}

// Signer proves that an account wants something. Implementations are safe for
// use by several goroutines.
type Signer interface {
	// PublicKey never changes during the life of the Signer.
	PublicKey() PublicKey
	// Sign makes the 64-byte signature over the SHA-256 of message. It fails
	// rather than blocks when ctx ends.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// Key is a [Signer] with the secret in memory. The zero Key signs nothing; make
// one with [Mnemonic.Key] or [KeyFromSecret].
type Key struct {
	secret *secp256k1.PrivateKey // a pointer, so that no %v of a struct around a Key prints it
	public PublicKey
}

// KeyFromSecret is the key with this 32-byte secret.
func KeyFromSecret(secret []byte) (*Key, error) {
	if len(secret) != secp256k1.PrivKeyBytesLen {
		return nil, fmt.Errorf("secret of %d bytes: want %d", len(secret), secp256k1.PrivKeyBytesLen)
	}
	var scalar secp256k1.ModNScalar
	if scalar.SetByteSlice(secret) || scalar.IsZero() {
		return nil, errors.New("secret is not a number below the curve's order")
	}
	private := secp256k1.NewPrivateKey(&scalar)
	return &Key{secret: private, public: private.PubKey().SerializeCompressed()}, nil
}

// PublicKey implements [Signer].
func (k *Key) PublicKey() PublicKey { return append(PublicKey(nil), k.public...) }

// Address is the account the key controls.
func (k Key) Address() Address {
	address, err := k.public.Address()
	if err != nil { // only a zero Key: it has no account
		return ""
	}
	return address
}

// Sign implements [Signer].
func (k *Key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if k == nil || k.secret == nil {
		return nil, errors.New("sign: key is empty")
	}
	sum := sha256.Sum256(message)
	// The compact form is one recovery byte, then R and S; S is already low.
	return ecdsa.SignCompact(k.secret, sum[:], true)[1:], nil
}
