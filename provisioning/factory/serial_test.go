package factory

import (
	"strings"
	"testing"
	"testing/cryptotest"

	"pgregory.net/rapid"

	"github.com/croft-cloud/croft"
)

// someSerial is a serial number whose eleven digits rapid chose.
func someSerial(t *rapid.T) Serial {
	digits := rapid.StringMatching(`[0-9]{11}`).Draw(t, "digits")
	return serialOf(digits + string('0'+rune(damm(digits))))
}

// digits are those of a serial number.
func digitsOf(s Serial) []byte {
	return []byte(strings.ReplaceAll(strings.TrimPrefix(string(s), serialPrefix), "-", ""))
}

func TestEveryWrongDigitIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		serial := someSerial(t)
		if got, err := ParseSerial(string(serial)); got != serial || err != nil {
			t.Fatalf("ParseSerial(%q) = %q, %v", serial, got, err)
		}
		right := digitsOf(serial)
		for i := range right {
			wrong := append([]byte{}, right...)
			for digit := byte('0'); digit <= '9'; digit++ {
				if wrong[i] = digit; digit == right[i] {
					continue
				}
				if got, err := ParseSerial(string(wrong)); err == nil {
					t.Fatalf("%s with a wrong digit is read as %s", serial, got)
				}
			}
		}
	})
}

func TestEverySwapOfNeighboursIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		serial := someSerial(t)
		right := digitsOf(serial)
		for i := range len(right) - 1 {
			if right[i] == right[i+1] {
				continue
			}
			wrong := append([]byte{}, right...)
			wrong[i], wrong[i+1] = wrong[i+1], wrong[i]
			if got, err := ParseSerial(string(wrong)); err == nil {
				t.Fatalf("%s with digits %d and %d swapped is read as %s", serial, i, i+1, got)
			}
		}
	})
}

// The two properties above hold for all numbers, if these hold for the table.
func TestTheTableIsAntiSymmetric(t *testing.T) {
	for state := range 10 {
		if dammTable[state][state] != 0 {
			t.Errorf("the check digit %d does not close its number", state)
		}
		for a := range 10 {
			for b := range 10 {
				if a == b {
					continue
				}
				if dammTable[state][a] == dammTable[state][b] {
					t.Errorf("after state %d, %d and %d are the same", state, a, b)
				}
				if dammTable[dammTable[state][a]][b] == dammTable[dammTable[state][b]][a] {
					t.Errorf("after state %d, %d%d and %d%d are the same", state, a, b, b, a)
				}
			}
		}
	}
}

func TestNewSerial(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	seen := map[Serial]bool{}
	for range 1000 {
		serial := NewSerial()
		if got, err := ParseSerial(string(serial)); got != serial || err != nil || len(serial) != 17 {
			t.Fatalf("ParseSerial(%q) = %q, %v", serial, got, err)
		}
		seen[serial] = true
	}
	if len(seen) != 1000 {
		t.Errorf("of 1000 serial numbers %d differ", len(seen))
	}
}

func TestSerialsAsPeopleTypeThem(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"as printed", "CR-4821-3077-5567", "CR-4821-3077-5567"},
		{"small letters", "cr-4821-3077-5567", "CR-4821-3077-5567"},
		{"no dashes", "CR482130775567", "CR-4821-3077-5567"},
		{"no prefix", "4821 3077 5567", "CR-4821-3077-5567"},
		{"letters for digits", "CR-482I-3O77-5567", "CR-4821-3077-5567"},
		{"l for 1", "cr 482l 3o77 5567", "CR-4821-3077-5567"},
		{"a telephone's dashes", "CR–4821—3077−5567\n", "CR-4821-3077-5567"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := ParseSerial(tc.typed); string(got) != tc.want || err != nil {
				t.Errorf("ParseSerial(%q) = %q, %v, want %q", tc.typed, got, err, tc.want)
			}
		})
	}
	for _, tc := range []struct{ name, typed, want string }{
		{"nothing", "", "has 0 digits, want 12; type it as on the label"},
		{"too short", "CR-4821", "has 4 digits, want 12"},
		{"too long", "CR-4821-3077-5567-1", "has 13 digits, want 12"},
		{"a claim code", "K7QM-2XWP", `has 'K', which none has; after CR`},
		{"another prefix", "XR-4821-3077-5567", `has 'X'`},
		{"a wrong digit", "CR-4821-3077-5568", "CR-4821-3077-5568 is mistyped: its check digit does not fit; compare it with the label"},
		{"digits of another script", "CR-4821-3077-556٧", `has '٧'`},
		{"very long", strings.Repeat("9", 5000), "has 5000 digits"},
		{"not UTF-8", "CR\xff", "has '�'"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseSerial(tc.typed)
			if err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != croft.KindUsage {
				t.Errorf("ParseSerial = %q, %v, want an error with %q", got, err, tc.want)
			}
			if err != nil && len(err.Error()) > 250 {
				t.Errorf("the error has %d characters", len(err.Error()))
			}
		})
	}
}

func FuzzParseSerial(f *testing.F) {
	for _, seed := range []string{"CR-4821-3077-5567", "cr 482l 3o77 5567", "", "CR", "K7QM-2XWP", "–", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		serial, err := ParseSerial(typed)
		if err != nil {
			if serial != "" || croft.KindOf(err) != croft.KindUsage {
				t.Errorf("ParseSerial(%q) = %q, %v", typed, serial, err)
			}
			return
		}
		if again, err := ParseSerial(string(serial)); again != serial || err != nil {
			t.Errorf("ParseSerial(%q) = %q, which is read as %q, %v", typed, serial, again, err)
		}
	})
}
