package agent

import "testing"

func TestResidentPages(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       int64
	}{
		{"the second number counts", "412013 4096 2750 1251 0 18023 0\n", 4096},
		{"a file that says less tells nothing", "412013\n", 0},
		{"nor does one that says something else", "no such file", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := residentPages(tc.text); got != tc.want {
				t.Errorf("residentPages(%q) = %d, want %d", tc.text, got, tc.want)
			}
		})
	}
}
