package attributesv1

import (
	"regexp"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	long := strings.Repeat("a", MaxKeyBytes-1)
	for _, tc := range []struct {
		name, key         string
		offered, required bool
	}{
		{"a path is a key", "capabilities/gpu/vendor/nvidia/model/rtx-4090.x_1", true, true},
		{"a key begins with a letter", "1region", false, false},
		{"a key has two characters at least", "a", false, false},
		{"an empty key is refused", "", false, false},
		{"only a requirement may end in a star", "vendor/nvidia/model/*", false, true},
		{"a star stands at the end only", "vendor/*/model", false, false},
		{"a star needs two characters before it", "a*", false, false},
		{"a space is refused", "my region", false, false},
		{"letters are ASCII", "régio", false, false},
		{"127 characters are accepted", long, true, true},
		{"only a requirement may have a 128th character", long + "a", false, true},
		{"the 128th may be a star", long + "*", false, true},
		{"the 128th is no slash", long + "/", false, false},
		{"129 characters are refused", long + "aa", false, false},
		{"a line break is refused", "region\n", false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			attributes := []Attribute{{Key: tc.key, Value: "v"}}
			if err := ValidateOffered(attributes); (err == nil) != tc.offered {
				t.Errorf("ValidateOffered(%q) = %v", tc.key, err)
			}
			if err := ValidateRequired(attributes); (err == nil) != tc.required {
				t.Errorf("ValidateRequired(%q) = %v", tc.key, err)
			}
		})
	}
}

func TestLists(t *testing.T) {
	for _, tc := range []struct {
		name       string
		attributes []Attribute
		want       string
	}{
		{"no attributes are fine", nil, ""},
		{"a key is there once", []Attribute{{"region", "a"}, {"region", "b"}}, "key region is there twice"},
		{"an empty value is fine", []Attribute{{"region", ""}}, ""},
		{"a value is bounded", []Attribute{{"region", strings.Repeat("x", MaxValueBytes+1)}}, "1025 bytes"},
		{"a list is bounded", make([]Attribute, MaxAttributes+1), "513 attributes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, err := range []error{ValidateOffered(tc.attributes), ValidateRequired(tc.attributes)} {
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
			}
		})
	}
}

// FuzzKeys compares the scanner with the patterns of the contract.
func FuzzKeys(f *testing.F) {
	offered := regexp.MustCompile(`^([a-zA-Z][\w\/\.\-]{1,126})$`)
	required := regexp.MustCompile(`^([a-zA-Z][\w\/\.\-]{1,126}[\w\*]?)$`)
	for _, key := range []string{"region", "a*", "ab*", "ab**", "a/", strings.Repeat("a", 127) + "*", "é"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		attributes := []Attribute{{Key: key}}
		if got, want := ValidateOffered(attributes) == nil, offered.MatchString(key); got != want {
			t.Errorf("offered %q: got %v, want %v", key, got, want)
		}
		if got, want := ValidateRequired(attributes) == nil, required.MatchString(key); got != want {
			t.Errorf("required %q: got %v, want %v", key, got, want)
		}
	})
}
