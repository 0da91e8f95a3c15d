package figures

import (
	"math"
	"testing"
	"time"
)

func TestFigures(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{Decimal(0, 2), "0.00"},
		{Decimal(-1, 2), "0.00"},
		{Decimal(0, 0), "0"},
		{Decimal(100_000_000, 0), "100"},
		{Decimal(100_000_000, 6), "100.000000"},
		{Decimal(1_605_000, 2), "1.605"},
		{Decimal(math.MaxInt64, 2), "9223372036854.775807"},
		{Line(" a\n\x1b[2J\tb\x00 "), "a [2J b"},
		{Clip("äöü", 3), "äöü"},
		{Clip("äöüß", 3), "äö…"},
		{Count(1, "tenant"), "1 tenant"},
		{Count(0, "tenant"), "0 tenants"},
		{List(nil), ""},
		{List([]string{"a"}), "a"},
		{List([]string{"a", "b"}), "a and b"},
		{List([]string{"a", "b", "c"}), "a, b and c"},
		{Size(5_000_000, 1000), "5 MB"},
		{Size(-1, 1000), "0 MB"},
		{Size(9_999_999_999, 1000), "9.9 GB"},
		{Size(10_000_000_000, 1000), "10 GB"},
		{Size(math.MaxInt64, 1024), "8589934591 GB"},
		{Duration(0), "less than a minute"},
		{Duration(time.Minute), "1 minute"},
		{Duration(59*time.Minute + 59*time.Second), "59 minutes"},
		{Duration(time.Hour), "1 hour"},
		{Duration(47 * time.Hour), "47 hours"},
		{Duration(50 * time.Hour), "2 days"},
		{Share(3_200_000_000, 120_000_000_000, 1000), "3.2 of 120 GB"},
		{Share(412<<20, 4<<30, 1024), "412 MB of 4.0 GB"},
		{Share(5_000_000, 90_000_000, 1000), "5 of 90 MB"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
	for _, tc := range []struct {
		used, total int64
		want        int
	}{{0, 0, 0}, {1, 0, 0}, {-1, 2, 0}, {1, 2, 50}, {3, 2, 100}, {1 << 62, 1 << 62, 100}} {
		if got := Percent(tc.used, tc.total); got != tc.want {
			t.Errorf("Percent(%d, %d) = %d, want %d", tc.used, tc.total, got, tc.want)
		}
	}
}
