package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/argon2"

	"github.com/croft-cloud/croft/fleet/auth/secret"
)

func keys(t *testing.T, fill byte) secret.Keys {
	t.Helper()
	k, err := secret.NewKeys(bytes.Repeat([]byte{fill}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTextsHideThemselves(t *testing.T) {
	s := secret.New("sesame")
	type row struct{ S secret.Text }
	type inner struct{ s secret.Text } // package fmt asks nothing of fields that are not exported
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "row", row{s}, "inner", inner{s})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "row", row{s}, "p", &s, "inner", inner{s})
	text, err := json.Marshal(map[string]any{"s": s, "row": &row{s}})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(text)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		all += fmt.Sprintf(verb+verb+verb+verb+verb, s, row{s}, &row{s}, inner{s}, &inner{s})
	}
	if strings.Contains(all, "sesame") || strings.Contains(all, fmt.Sprintf("%x", "sesame")) || s.Reveal() != "sesame" {
		t.Errorf("the secret shows: %s", all)
	}
	if secret.New("sesame") != s || secret.New("") != (secret.Text{}) || (secret.Text{}).Reveal() != "" {
		t.Error("texts that are the same are not equal")
	}
	if a, b := secret.Random(), secret.Random(); a == b || len(a.Reveal()) != 43 || bytes.Equal(a.Hash(), b.Hash()) {
		t.Error("two secrets are the same, or have another length")
	}
}

func TestSealedSecretsOpenForTheirAccountAndKeyOnly(t *testing.T) {
	k := keys(t, 1)
	sealed := k.Encrypt("ann", secret.New("sesame"))
	if bytes.Contains(sealed, []byte("sesame")) || bytes.Equal(sealed, k.Encrypt("ann", secret.New("sesame"))) {
		t.Error("the sealed text shows what it holds")
	}
	if got, err := k.Decrypt("ann", sealed); err != nil || got.Reveal() != "sesame" {
		t.Errorf("Decrypt = %q, %v", got.Reveal(), err)
	}
	if _, err := k.Decrypt("bob", sealed); err == nil {
		t.Error("it opens for another account")
	}
	if _, err := keys(t, 2).Decrypt("ann", sealed); err == nil {
		t.Error("it opens with another key")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Decrypt("ann", bad); err == nil {
			t.Errorf("it opens with byte %d changed", i)
		}
	}
	if _, err := secret.NewKeys([]byte("short")); err == nil {
		t.Error("a short key was accepted")
	}
	if bytes.Equal(k.Tag("a", "bc"), k.Tag("a", "b", "c")) || bytes.Equal(k.Tag("a", "b"), k.Tag("b", "b")) {
		t.Error("two tags of different things are the same")
	}
}

func TestPasswords(t *testing.T) {
	p := secret.NewPasswords(keys(t, 1))
	stored, err := p.New(t.Context(), secret.New("a field of 7 sheep"), "ann@example.org", "Ann")
	if err != nil || !strings.HasPrefix(stored, "$argon2id$v=19$m=32768,t=2,p=1$") {
		t.Fatalf("New = %q, %v", stored, err)
	}
	again, err := p.New(t.Context(), secret.New("a field of 7 sheep"), "", "")
	if err != nil || again == stored {
		t.Errorf("two of the same password are stored alike: %v", err)
	}
	for _, tc := range []struct {
		name, typed, stored string
		by                  *secret.Passwords
		want                bool
	}{
		{"the password", "a field of 7 sheep", stored, p, true},
		{"another one", "a field of 8 sheep", stored, p, false},
		{"none", "", stored, p, false},
		{"one nobody has", "a field of 7 sheep", "", p, false},
		{"with another key", "a field of 7 sheep", stored, secret.NewPasswords(keys(t, 2)), false},
	} {
		if ok, old, err := tc.by.Matches(t.Context(), tc.stored, secret.New(tc.typed)); err != nil || ok != tc.want || old {
			t.Errorf("%s: %v, %v, %v", tc.name, ok, old, err)
		}
	}
	salt := []byte("0123456789abcdef")
	cheap := fmt.Sprintf("$argon2id$v=19$m=64,t=1,p=1$%s$%s", base64.RawStdEncoding.EncodeToString(salt),
		base64.RawStdEncoding.EncodeToString(argon2.IDKey(keys(t, 1).Tag("password", "a field of 7 sheep"), salt, 1, 64, 1, 32)))
	if ok, old, err := p.Matches(t.Context(), cheap, secret.New("a field of 7 sheep")); err != nil || !ok || !old {
		t.Errorf("stored with another cost: %v, %v, %v", ok, old, err)
	}
	for _, bad := range []string{"x", "$argon2id$v=19$m=99999999,t=1,p=1$AAAA$AAAA", "$argon2id$v=19$m=64,t=0,p=1$AAAA$AAAA", "$argon2i$v=19$m=64,t=1,p=1$AAAA$AAAA", "$argon2id$v=19$m=64,t=1,p=1$!$!"} {
		if ok, _, err := p.Matches(t.Context(), bad, secret.New("x")); err == nil || ok {
			t.Errorf("stored %q: %v, %v", bad, ok, err)
		}
	}
	for _, bad := range []string{
		"", "short", "elevenchars", "Password1234", "CorrectHorseBatteryStaple", "aaaaaaaaaaaaaaaa", "abababababababab", "ann@example.org.", strings.Repeat("long ", 60), "bad\xff utf eight!",
	} {
		if _, err := p.New(t.Context(), secret.New(bad), "ann@example.org.", ""); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestTOTPStep(t *testing.T) {
	shared, now := secret.New("JBSWY3DPEHPK3PXP"), time.Unix(1_700_000_000, 0)
	for skew := -3; skew <= 3; skew++ {
		at := now.Add(time.Duration(skew) * 30 * time.Second)
		code, err := totp.GenerateCode(shared.Reveal(), at)
		if err != nil {
			t.Fatal(err)
		}
		want := int64(0)
		if -1 <= skew && skew <= 1 {
			want = at.Unix() / 30
		}
		if got, err := secret.TOTPStep(shared, code, now); err != nil || got != want {
			t.Errorf("a code %d periods away: %d, %v, want %d", skew, got, err, want)
		}
	}
}
