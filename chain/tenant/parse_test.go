package tenant

import "testing"

func TestProbeURL(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"abc.ingress.example", "http://abc.ingress.example/"},
		{"127.0.0.1:8080", "http://127.0.0.1:8080/"},
		{"https://abc.example", "https://abc.example/"},
		{"file:///etc/passwd", ""},
		{"user@host", ""},
		{"host/path?x", ""},
		{"", ""},
	} {
		got := ""
		if u, err := probeURL(tc.in); err == nil {
			got = u.String()
		}
		if got != tc.want {
			t.Errorf("probeURL(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestStages(t *testing.T) {
	for from, to := range law {
		for _, s := range to {
			if _, ok := law[s]; !ok {
				t.Errorf("%s leads to %s, which is no stage", from, s)
			}
		}
		if _, err := from.Next(Closed); err != nil {
			t.Errorf("%s cannot be closed: %v", from, err)
		}
		if from != Answering && from != Closed && steps[from] == nil {
			t.Errorf("nothing is done in %s", from)
		}
	}
	if _, err := Closed.Next(Created); err == nil || err.Error() != "deployment is closed, cannot become created" {
		t.Errorf("reopening = %v", err)
	}
}
