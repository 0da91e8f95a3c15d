package factory

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

const testSecret = Secret("Z4QM2XVPWDTB40HN")

func TestSecretsAsPeopleTypeThem(t *testing.T) {
	for _, typed := range []string{
		"Z4QM-2XVP-WDTB-40HN", "Z4QM2XVPWDTB40HN", "z4qm 2xvp wdtb 4ohn", " Z4QM–2XVP—WDTB−40HN\n", "Z4QM_2XVP_WDTB_4OHN",
		"Z4QM2XVPW DTB40HN", "Z-4-Q-M-2-X-V-P-W-D-T-B-4-0-H-N",
	} {
		if got, err := ParseSecret(typed); got != testSecret || err != nil {
			t.Errorf("ParseSecret(%q) = %s, %v", typed, got.Shown(), err)
		}
	}
	if got, err := ParseSecret("iIlL-oO00-1111-0000"); got != "1111000011110000" || err != nil {
		t.Errorf("look-alikes are read as %s, %v", got.Shown(), err)
	}
	for _, tc := range []struct{ name, typed, want string }{
		{"nothing", "", "has 0 symbols, want 16; type all four groups"},
		{"the code on the screen", "Z4QM-2XVP", "has 8 symbols, want 16"},
		{"one symbol too many", "Z4QM-2XVP-WDTB-40HNX", "has 17 symbols"},
		{"the letter U", "Z4QM-2XVP-WDTB-4UHN", "has the letter U"},
		{"a letter of another script", "Z4QM-2XVP-WDTB-40HÑ", "which no code has"},
		{"not UTF-8", "Z4QM-2XVP-WDTB-40H\xff", "which no code has"},
		{"very long", strings.Repeat("K", 100_000), "has 100000 symbols"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseSecret(tc.typed)
			if err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != croft.KindUsage {
				t.Fatalf("ParseSecret = %q, %v, want an error with %q", string(got), err, tc.want)
			}
			if strings.Contains(err.Error(), "WDTB") {
				t.Errorf("the error repeats what was typed: %v", err)
			}
		})
	}
}

func TestSecretHas80BitsOfChance(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	var seen [secretSymbols]map[byte]bool // by place
	for i := range seen {
		seen[i] = map[byte]bool{}
	}
	for range 2000 {
		secret := NewSecret()
		if got, err := ParseSecret(secret.Shown()); got != secret || err != nil {
			t.Fatalf("a new secret is read back as %q, %v", string(got), err)
		}
		for i := range seen {
			seen[i][secret[i]] = true
		}
	}
	for i, symbols := range seen {
		if len(symbols) != 32 {
			t.Errorf("at place %d there are %d symbols, want 32 of 5 bits", i, len(symbols))
		}
	}
}

func TestSecretLeadsToTheConsole(t *testing.T) {
	if got := testSecret.Shown(); got != "Z4QM-2XVP-WDTB-40HN" {
		t.Errorf("it is shown as %q", got)
	}
	if got := testSecret.URL("https://fleet.example/claim"); got != "https://fleet.example/claim#Z4QM2XVPWDTB40HN" {
		t.Errorf("its URL is %q", got)
	}
	if testSecret.Hash() != enroll.HashClaim("Z4QM2XVPWDTB40HN") {
		t.Error("its hash is not that of the canonical form")
	}
}

func TestSecretIsHidden(t *testing.T) {
	box := Box{Serial: "CR-4821-3077-5567", Secret: testSecret}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "secret", testSecret)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("made", "secret", testSecret)
	said := fmt.Sprintf("%v %+v %#v %s %q %x", box, box, box, testSecret, testSecret, testSecret) + log.String()
	if strings.Contains(said, "Z4QM") || strings.Contains(said, "5a34514d") {
		t.Errorf("it shows: %s", said)
	}
	if !strings.Contains(said, "CR-4821-3077-5567") {
		t.Errorf("nothing was printed: %s", said)
	}
	if raw, err := json.Marshal(box); err != nil || !strings.Contains(string(raw), `"secret":"Z4QM-2XVP-WDTB-40HN"`) {
		t.Errorf("the batch file would say %s, %v", raw, err)
	}
}

func FuzzParseSecret(f *testing.F) {
	for _, seed := range []string{"Z4QM-2XVP-WDTB-40HN", "iIlL-oO00-1111-0000", "", "Z4QM-2XVP", "UUUU-UUUU-UUUU-UUUU", "Z4QM–2XVP—WDTB−40HN", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		secret, err := ParseSecret(typed)
		if err != nil {
			if secret != "" || croft.KindOf(err) != croft.KindUsage {
				t.Errorf("ParseSecret(%q) = %q, %v", typed, string(secret), err)
			}
			return
		}
		if len(secret) != secretSymbols {
			t.Errorf("ParseSecret(%q) = %q", typed, string(secret))
		}
		for _, form := range []string{string(secret), secret.Shown(), strings.ToLower(secret.Shown())} {
			if again, err := ParseSecret(form); again != secret || err != nil {
				t.Errorf("%q is read as %q, %v, want %q", form, string(again), err, string(secret))
			}
		}
	})
}
