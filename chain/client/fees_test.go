package client

import "testing"

func TestFees(t *testing.T) {
	for _, tc := range []struct {
		name, price string
		gas         uint64
		want        string
	}{
		{"the usual price is rounded up", "0.025uakt", 123_456, "3087uakt"},
		{"a fee that comes out even is not raised", "0.025uakt", 40, "1uakt"},
		{"free gas has no fee", "0uakt", 123_456, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := parseGasPrice(tc.price)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, c := range p.fee(tc.gas) {
				got += c.GetAmount() + c.GetDenom()
			}
			if got != tc.want {
				t.Errorf("fee = %q, want %q", got, tc.want)
			}
		})
	}
	for _, bad := range []string{"", "uakt", "0.025", "-1uakt", "1.2.3uakt", "1u"} {
		if _, err := parseGasPrice(bad); err == nil {
			t.Errorf("gas price %q was accepted", bad)
		}
	}
}
