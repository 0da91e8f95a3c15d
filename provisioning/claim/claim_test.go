package claim_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/claim"
)

func TestNew(t *testing.T) {
	for _, tc := range []struct {
		name   string
		random []byte
		want   claim.Code
	}{
		{"all bits clear", []byte{0, 0, 0, 0, 0}, "00000000"},
		{"all bits set", []byte{255, 255, 255, 255, 255}, "ZZZZZZZZ"},
		{"every symbol takes five bits", []byte{0x00, 0x44, 0x32, 0x14, 0xc7}, "01234567"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := claim.New(bytes.NewReader(tc.random))
			if err != nil || string(got) != string(tc.want) {
				t.Errorf("New = %q, %v; want %q", string(got), err, string(tc.want))
			}
		})
	}
	t.Run("a source that fails gives no code", func(t *testing.T) {
		broken := errors.New("no entropy")
		if got, err := claim.New(iotest.ErrReader(broken)); !errors.Is(err, broken) || got != "" {
			t.Errorf("New = %q, %v", string(got), err)
		}
	})
	t.Run("a source that ends early gives no code", func(t *testing.T) {
		if got, err := claim.New(strings.NewReader("1234")); err == nil {
			t.Errorf("New = %q from four bytes", string(got))
		}
	})
}

func TestNormalize(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"the canonical form is kept", "K7QM2XWP", "K7QM2XWP"},
		{"dashes and lower case are accepted", "k7qm-2xwp", "K7QM2XWP"},
		{"spaces around and between are accepted", "  k7qm 2xwp\n", "K7QM2XWP"},
		{"a non-breaking space and a long dash are accepted", "k7qm\u00a0–\u00a02xwp", "K7QM2XWP"},
		{"the letter O means zero", "K7QM2XO0", "K7QM2X00"},
		{"the letters I and L mean one", "iIlL-0000", "11110000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := claim.Normalize(tc.typed); err != nil || string(got) != tc.want {
				t.Errorf("Normalize(%q) = %q, %v; want %q", tc.typed, string(got), err, tc.want)
			}
		})
	}
}

func TestNormalizeRefuses(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"nothing", "", "claim code is empty; type the code shown on the box, like K7QM-2XWP"},
		{"only separators", " - ", "claim code is empty; type the code shown on the box, like K7QM-2XWP"},
		{"too few symbols", "K7QM-2XW", "claim code has 7 of 8 symbols; type the rest of it"},
		{"too many symbols", "K7QM-2XWPP", "claim code has more than 8 symbols; type only the code, like K7QM-2XWP"},
		{"the letter U", "K7QM-2XWU", "claim code has the letter U, which no code has; look again, it may be a V"},
		{"a sign", "K7QM-2XW!", `claim code has '!', which no code has; type only the letters and digits shown on the box`},
		{"a letter of another script", "К7QM-2XWP", `claim code has 'К', which no code has; type only the letters and digits shown on the box`},
		{"a letter whose upper case is ASCII", "K7QM-2XWſ", `claim code has 'ſ', which no code has; type only the letters and digits shown on the box`},
		{"bytes that are not text", "K7QM\xff", `claim code has '�', which no code has; type only the letters and digits shown on the box`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := claim.Normalize(tc.typed)
			if err == nil || err.Error() != tc.want || got != "" {
				t.Errorf("Normalize(%q) = %q, %v; want %s", tc.typed, string(got), err, tc.want)
			}
			if croft.KindOf(err) != croft.KindUsage {
				t.Errorf("kind = %q, want usage", croft.KindOf(err))
			}
		})
	}
}

func TestCodeShows(t *testing.T) {
	code := claim.Code("K7QM2XWP")
	if got := code.Shown(); got != "K7QM-2XWP" {
		t.Errorf("Shown = %q", got)
	}
	if got := code.URL("https://croft.example/claim"); got != "https://croft.example/claim#K7QM2XWP" {
		t.Errorf("URL = %q", got)
	}
	if got := claim.Code("").Shown(); got != "" {
		t.Errorf("Shown of no code = %q", got)
	}
}

func TestCodeHides(t *testing.T) {
	code := claim.Code("K7QM2XWP")
	nested := struct{ Claim claim.Code }{code}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("drawn", "code", code)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("drawn", "code", code, "box", nested)
	for _, text := range []string{
		fmt.Sprint(code), fmt.Sprintf("%s %v %+v %#v %q", code, code, code, code, code),
		fmt.Sprintf("%v %+v %#v", nested, nested, nested), logged.String(),
	} {
		if strings.Contains(text, "K7QM") || !strings.Contains(text, "[claim code]") {
			t.Errorf("code leaks or is missing: %s", text)
		}
	}
}

func TestCodeIsStoredAsItIs(t *testing.T) {
	raw, err := json.Marshal(claim.Code("K7QM2XWP"))
	if err != nil || string(raw) != `"K7QM2XWP"` {
		t.Fatalf("Marshal = %s, %v", raw, err)
	}
	var back claim.Code
	if err := json.Unmarshal(raw, &back); err != nil || back != "K7QM2XWP" {
		t.Errorf("Unmarshal = %q, %v", string(back), err)
	}
}

func FuzzNormalize(f *testing.F) {
	for _, seed := range []string{"", "K7QM-2XWP", "k7qm 2xwp", "oil0-OIL1", "K7QM–2XWP", "K7QM-2XWPP", "\xff", "ſ", "U"} {
		f.Add(seed)
	}
	drawn, err := claim.New(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(drawn.Shown())
	f.Fuzz(func(t *testing.T, typed string) {
		code, err := claim.Normalize(typed)
		if err != nil {
			if code != "" || croft.KindOf(err) != croft.KindUsage {
				t.Fatalf("Normalize(%q) = %q, %v", typed, string(code), err)
			}
			return
		}
		if len(code) != claim.Symbols {
			t.Fatalf("Normalize(%q) has %d symbols", typed, len(code))
		}
		for _, form := range []string{string(code), code.Shown(), strings.ToLower(code.Shown()), " " + code.Shown() + "\n"} {
			if again, err := claim.Normalize(form); err != nil || again != code {
				t.Fatalf("Normalize(%q) = %q, %v; want %q", form, string(again), err, string(code))
			}
		}
	})
}
