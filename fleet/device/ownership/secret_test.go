package ownership_test

import (
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func TestReadSecret(t *testing.T) {
	for _, tc := range []struct {
		typed, means string
		long, words  bool
	}{
		{"K7QM-2XWP", "K7QM2XWP", false, false},
		{" k7qm\u20142xwp ", "K7QM2XWP", false, false},
		{"0123-4567-89ab-cdef", "0123456789ABCDEF", true, false},
		{"River  candle\tSEVEN", "river-candle-seven", false, true},
	} {
		got, err := ownership.ReadSecret(tc.typed)
		if err != nil || got.Hash != enroll.HashClaim(tc.means) || got.Long != tc.long || got.Words != tc.words {
			t.Errorf("%q is read as long %v, words %v, %v; want %s", tc.typed, got.Long, got.Words, err, tc.means)
		}
		if code := !tc.long && !tc.words; code != (got.Prefix != enroll.ClaimHash{}) {
			t.Errorf("%q: its first half is counted: %v", tc.typed, !code)
		}
	}
}

// FuzzReadSecret holds that errors repeat nothing of what was typed, and that case and
// spaces around it change nothing.
func FuzzReadSecret(f *testing.F) {
	for _, typed := range []string{"", "K7QM-2XWP", "0123-4567-89ab-cdef", "river-candle-seven", "\xff\xff\xff\xff\xff\xff\xff\xff", "KKKKKKKK", strings.Repeat("a", 300)} {
		f.Add(typed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		got, err := ownership.ReadSecret(typed)
		if err != nil {
			if k := croft.KindOf(err); k != croft.KindUsage && k != croft.KindInvalid {
				t.Errorf("error %v of kind %q", err, k)
			}
			if len(typed) >= 8 && strings.Contains(err.Error(), typed) {
				t.Errorf("the error repeats it: %v", err)
			}
			return
		}
		again, err := ownership.ReadSecret(" " + strings.ToLower(typed) + "\n")
		if len(typed) < 190 && (err != nil || again != got) {
			t.Errorf("in small letters, with spaces: %v", err)
		}
	})
}
