package fleetlink

import (
	"strings"
	"testing"
)

func TestSecretsAreTakenOut(t *testing.T) {
	secrets := []string{"K7QM2XWP", "K7QM-2XWP", "river-lemon-castle", ""}
	for _, tc := range []struct{ name, text, want string }{
		{"what support needs stays", `level=INFO msg="lease won" lease=akash1qqq/7/1/1 digest=sha256:0f0f device=k7qm2222`, `level=INFO msg="lease won" lease=akash1qqq/7/1/1 digest=sha256:0f0f device=k7qm2222`},
		{"a claim code in either form", "code K7QM2XWP or k7qm-2xwp.", "code [hidden] or [hidden]."},
		{"words in a sentence", "say River-Lemon-Castle!", "say [hidden]!"},
		{"a claim page's link", "open https://fleet.example/claim#ABCD-EFGH now", "open https://fleet.example/claim#[hidden] now"},
		{"a key over lines", "a\n-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\nb", "a\n[PEM]\nb"},
		{"a certificate in a line of JSON", `{"c":"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"}`, `{"c":"[PEM]\n"}`},
		{"a key that was cut off", "a -----BEGIN EC PRIVATE KEY-----\nMIG", "a [PEM]"},
		{"a voucher", "voucher is croft1.eyJpZCI6IkEifQ.c2ln here", "voucher is [voucher] here"},
		{"a token", "sent eyJhbGciOiJFUzI1NksifQ.eyJpc3MiOiJha2FzaDEifQ.c2ln", "sent [token]"},
		{"a header", "Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer [hidden]"},
		{"a password in a URL", "pull https://me:hunter2@registry.example/a", "pull https://[hidden]@registry.example/a"},
		{"a named secret", `password=hunter2 Token: "a b" api_key='x'`, `password=[hidden] Token: [hidden] api_key=[hidden]`},
		{"one in JSON", `{"secret":"a\"b","next":1}`, `{"secret":[hidden],"next":1}`},
		{"one in JSON in a line of the log", `body="{\"passphrase\":\"hunter2\",\"n\":1}"`, `body="{\"passphrase\":[hidden],\"n\":1}"`},
		{"a longer one there", `body="{\"passphrase\":\"hun\\\"ter2\",\"n\":1}"`, `body="{\"passphrase\":[hidden],\"n\":1}"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := scrub(tc.text, secrets); got != tc.want {
				t.Errorf("%q becomes %q, want %q", tc.text, got, tc.want)
			}
		})
	}
}

func BenchmarkScrub(b *testing.B) {
	line := `time=2026-11-22T02:13:13.123Z level=INFO msg="session with broker is up" broker=fleet.example:8883 epoch=7 lease=akash1qqqqqqqq/7/1/1` + "\n"
	text := strings.Repeat(line, 1<<20/len(line))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		scrub(text, []string{"K7QM2XWP", "K7QM-2XWP", "river-lemon-castle", "croft1.eyJpZCI6IkFCQyJ9.c2lnbmF0dXJl"})
	}
}

func FuzzScrub(f *testing.F) {
	f.Add("code K7QM-2XWP", "k7qm-2xwp")
	f.Add("İK7QM\nk7qm", "K7QM")
	f.Fuzz(func(t *testing.T, text, secret string) {
		if len(secret) < 4 || strings.Trim(secret, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			t.Skip()
		}
		rest := strings.ReplaceAll(lower(scrub(text, []string{secret})), "[hidden]", "\n")
		if strings.Contains(rest, lower(secret)) {
			t.Errorf("%q still has %q", text, secret)
		}
	})
}
