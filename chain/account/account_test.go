package account

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/btcsuite/btcd/btcutil/bech32"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

const abandon = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

func mustKey(t testing.TB, words string) *Key {
	t.Helper()
	m, err := ParseMnemonic(words)
	if err != nil {
		t.Fatal(err)
	}
	k, err := m.Key(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The published seed 000102…0f of BIP-32 and the secrets along its path.
func TestDeriveFollowsBIP32(t *testing.T) {
	seed, _ := hex.DecodeString("000102030405060708090a0b0c0d0e0f")
	for _, tc := range []struct {
		name string
		path []uint32
		want string
	}{
		{"the master key is the seed's", nil, "e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35"},
		{"a hardened child comes from the secret", []uint32{hardened}, "edb2e14f9ee77d26dd93b4ecede8d16ed408ce149b6cd80b0715a2d911a0afea"},
		{"a plain child comes from the public key", []uint32{hardened, 1}, "3c6cb8d0f6a264c91ea8b5030fadaa8e538b020f0a387421a12de9319dc93368"},
		{"the steps alternate", []uint32{hardened, 1, hardened | 2}, "cbce0d719ecf7431d88e6a89fa1483e02e35092af60c042b1df2ff59fa424dca"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := derive(seed, tc.path...)
			if err != nil || hex.EncodeToString(got) != tc.want {
				t.Errorf("derive = %x, %v, want %s", got, err, tc.want)
			}
		})
	}
}

func TestKnownWordsGiveTheKnownAddress(t *testing.T) {
	// The same account under the prefix of the Cosmos hub, as wallets show it.
	_, groups, err := bech32.Decode("cosmos19rl4cm2hmr8afy4kldpxz3fka4jguq0auqdal4")
	if err != nil {
		t.Fatal(err)
	}
	hash, _ := bech32.ConvertBits(groups, 5, 8, false)
	want, err := AddressFromBytes(hash)
	if err != nil {
		t.Fatal(err)
	}
	if got := mustKey(t, abandon).Address(); got != want || !strings.HasPrefix(string(got), "akash1") || len(got) != 44 {
		t.Errorf("address = %s, want %s", got, want)
	}
	m, _ := ParseMnemonic(abandon)
	other, _ := m.Key(0, 1)
	if other.Address() == want {
		t.Error("index 1 has the address of index 0")
	}
}

func TestParseMnemonic(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"case and space do not matter", "  Abandon " + strings.TrimPrefix(abandon, "abandon ") + "\n", ""},
		{"eleven words are too few", strings.TrimSuffix(abandon, " about"), "has 11 words"},
		{"a word that is not in the list is named by place", strings.Replace(abandon, "about", "abuot", 1), "word 12 "},
		{"a wrong last word fails the checksum", strings.Replace(abandon, "about", "able", 1), "checksum"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := ParseMnemonic(tc.typed)
			if tc.want == "" {
				if err != nil || m.Reveal() != abandon {
					t.Errorf("ParseMnemonic = %v, want the phrase", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "abuot") {
				t.Errorf("ParseMnemonic error = %v, want one with %q and no word of the phrase", err, tc.want)
			}
		})
	}
}

func TestNewMnemonicsDiffer(t *testing.T) {
	a, err := NewMnemonic()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := NewMnemonic()
	if a.Reveal() == b.Reveal() || len(strings.Fields(a.Reveal())) != 24 {
		t.Error("two new mnemonics are equal, or not of 24 words")
	}
	if _, err := ParseMnemonic(a.Reveal()); err != nil {
		t.Errorf("a new mnemonic does not parse: %v", err)
	}
}

func TestAddress(t *testing.T) {
	good := string(mustKey(t, abandon).Address())
	for _, tc := range []struct{ name, typed, want string }{
		{"an account address is accepted", good, ""},
		{"capitals are refused, as the chain's stores know one spelling", strings.ToUpper(good), "lower case"},
		{"another chain's address is refused", "cosmos19rl4cm2hmr8afy4kldpxz3fka4jguq0auqdal4", "begins with akash1"},
		{"a wrong letter fails the checksum", good[:len(good)-1] + "q", "checksum"},
		{"nothing is no address", "", "address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseAddress(tc.typed)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ParseAddress(%q) = %v, want %q", tc.typed, err, tc.want)
			}
		})
	}
}

func TestSignatures(t *testing.T) {
	k := mustKey(t, abandon)
	message := []byte("to be signed")
	sig, err := k.Sign(t.Context(), message)
	if err != nil || len(sig) != SignatureBytes {
		t.Fatalf("Sign = %d bytes, %v", len(sig), err)
	}
	again, _ := k.Sign(t.Context(), message)
	if !bytes.Equal(sig, again) {
		t.Error("the same message has two signatures")
	}
	if err := k.PublicKey().Verify(message, sig); err != nil {
		t.Errorf("Verify of the signature: %v", err)
	}
	var s secp256k1.ModNScalar
	s.SetByteSlice(sig[32:])
	s.Negate()
	high := append(append([]byte(nil), sig[:32]...), scalarBytes(&s)...)
	for _, tc := range []struct {
		name         string
		message, sig []byte
	}{
		{"another message does not verify", []byte("to be signeD"), sig},
		{"the mirrored signature with high S does not verify", message, high},
		{"a signature of zeros does not verify", message, make([]byte, 64)},
		{"a cut signature does not verify", message, sig[:63]},
		{"an empty signature does not verify", message, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := k.PublicKey().Verify(tc.message, tc.sig); !errors.Is(err, ErrSignature) {
				t.Errorf("Verify = %v, want ErrSignature", err)
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Sign(ended, message); err == nil {
		t.Error("Sign worked under a context that had ended")
	}
	if _, err := new(Key).Sign(t.Context(), message); err == nil {
		t.Error("an empty key signed")
	}
	if _, err := PublicKey(make([]byte, 33)).Address(); err == nil {
		t.Error("33 zeros are a public key")
	}
}

func TestKeyFromSecretRefusesNumbersOutsideTheOrder(t *testing.T) {
	for _, secret := range [][]byte{nil, make([]byte, 32), bytes.Repeat([]byte{0xff}, 32), make([]byte, 33)} {
		if _, err := KeyFromSecret(secret); err == nil {
			t.Errorf("KeyFromSecret(%x) worked", secret)
		}
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	m, _ := ParseMnemonic(abandon)
	k := mustKey(t, abandon)
	secret := hex.EncodeToString(k.secret.Serialize())
	type wrapped struct { // unexported fields: fmt cannot call their methods
		m Mnemonic
		k Key
		p *Key
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("secrets", "mnemonic", m, "key", k, "pointer", *k)
	slog.New(slog.NewTextHandler(&log, nil)).Info("secrets", "mnemonic", m, "key", k, "all", wrapped{m, *k, k})
	shown := log.String()
	for _, v := range []any{m, &m, *k, k, wrapped{m, *k, k}, &wrapped{m, *k, k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			shown += fmt.Sprintf(verb, v) + "\n"
		}
		if b, err := json.Marshal(v); err == nil {
			shown += string(b)
		}
	}
	low := strings.ToLower(shown)
	for _, bad := range []string{"abandon", "about", secret, hex.EncodeToString([]byte("abandon")), fmt.Sprintf("%d", k.secret.Serialize())} {
		if strings.Contains(low, bad) {
			t.Errorf("a secret was printed: %q", bad)
		}
	}
	if _, err := json.Marshal(struct{ M Mnemonic }{m}); err == nil {
		t.Error("a mnemonic was encoded as JSON")
	}
	if _, err := json.Marshal(struct{ K *Key }{k}); err == nil {
		t.Error("a key was encoded as JSON")
	}
}

func FuzzParseMnemonic(f *testing.F) {
	f.Add(abandon)
	f.Add("zoo zoo zoo")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMnemonic(s)
		if err != nil {
			return
		}
		again, err := ParseMnemonic(m.Reveal())
		if err != nil || again.Reveal() != m.Reveal() {
			t.Errorf("the phrase does not parse again: %v", err)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	f.Add("akash19rl4cm2hmr8afy4kldpxz3fka4jguq0axpetws")
	f.Add("akash1")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		hash, err := a.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := AddressFromBytes(hash); err != nil || back != a {
			t.Errorf("%q has the bytes of %q", a, back)
		}
	})
}
