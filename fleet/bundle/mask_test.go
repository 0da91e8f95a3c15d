package bundle_test

import (
	"archive/zip"
	"bytes"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/provisioning/claim"
)

const pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIHUSH\nHUSH==\n-----END EC PRIVATE KEY-----"

func TestMasks(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"nothing to hide":          {"2026-11-22T01:44:51Z box cpu 1234-5678 K7QM ok\n", "2026-11-22T01:44:51Z box cpu 1234-5678 K7QM ok\n"},
		"a private key":            {"a\n" + pem + "\nb", "a\n[masked: private key]\nb"},
		"two private keys":         {pem + pem, "[masked: private key][masked: private key]"},
		"a private key in JSON":    {`{"k":"` + strings.ReplaceAll(pem, "\n", `\n`) + `"}`, `{"k":"[masked: private key]"}`},
		"a private key cut off":    {"a " + pem[:50], "a [masked: private key]"},
		"a certificate stays":      {"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"},
		"a token":                  {"got eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln now", "got [masked: token] now"},
		"a token without a sig":    {"eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", "[masked: token]"},
		"a header":                 {"authorization: Bearer hush\r\nHost: x", "authorization: [masked: authorization]\r\nHost: x"},
		"a header in JSON":         {`{"Authorization":"Basic aHVzaA==","a":1}`, `{"Authorization":[masked: authorization],"a":1}`},
		"a proxy's header":         {"Proxy-Authorization = x", "Proxy-Authorization = [masked: authorization]"},
		"a cookie":                 {"Set-Cookie: session=hush; Path=/", "Set-Cookie: [masked: cookie]"},
		"a bearer token":           {"sent Bearer abcdefghijklmnop.qr!", "sent Bearer [masked: token]!"},
		"a password in a URL":      {"open s3://KEY:hush@host/x and http://host:80/a@b", "open s3://[masked: password]@host/x and http://host:80/a@b"},
		"an e-mail address":        {"to <ada.l+x@mail.example.org>,", "to <[masked: e-mail address]>,"},
		"no e-mail address":        {"mod@v1.2.3 a@b @x.yz root@box", "mod@v1.2.3 a@b @x.yz root@box"},
		"a claim code":             {"code K7QM-2XWP, again K7QM-2XWP K7QM-2XWP", "code [masked: claim code], again [masked: claim code] [masked: claim code]"},
		"a claim code in a URL":    {"https://x.example/claim#K7QM2XWP.", "https://x.example/claim#[masked: claim code]."},
		"a claim code named so":    {`claim_code="k7qm2xwp" Claim code: 1234-5678`, `claim_code="[masked: claim code]" Claim code: [masked: claim code]`},
		"a UUID stays":             {"550E8400-E29B-41D4-A716-446655440000", "550E8400-E29B-41D4-A716-446655440000"},
		"words stay":               {"xK7QM-2XWP K7QM-2XWPx K7QM-2XW", "xK7QM-2XWP K7QM-2XWPx K7QM-2XW"},
		"one inside another":       {"Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJz.x for a@b.org", "Authorization: [masked: authorization]"},
		"one over the other's end": {"x://u:ada@mail.example.org", "x://[masked: password]"},
		"letters of more bytes":    {"İİİ AUTHORIZATION: ßẞ\nİ a@b.org", "İİİ AUTHORIZATION: [masked: authorization]\nİ [masked: e-mail address]"},
		"nothing":                  {"", ""},
		"anchors at the ends":      {"-", "-"},
	} {
		t.Run(name, func(t *testing.T) {
			got := bundle.Masked(tc.text)
			if got != tc.want {
				t.Errorf("masked %q, want %q", got, tc.want)
			}
		})
	}
}

func TestEveryClaimCodeIsMasked(t *testing.T) {
	seed := byte(1)
	random := readerFunc(func(p []byte) (int, error) {
		for i := range p {
			seed = seed*37 + 11
			p[i] = seed
		}
		return len(p), nil
	})
	for range 100 {
		code := must(claim.New(random))(t)
		for _, text := range []string{"shown " + code.Shown(), code.URL("https://x.example/c"), "claim code " + string([]byte(code))} {
			if got := bundle.Masked(text); !strings.Contains(got, "[masked: claim code]") {
				t.Errorf("%q became %q", text, got)
			}
		}
	}
}

func TestRewrite(t *testing.T) {
	raw := pack(t, map[string]string{
		"a.log": "ada@example.org and bob@example.org\n" + pem, "clean.log": "all is well", "core": "\x00\x01 ada@example.org \x00",
		"picture": "\x00\x01", "mail/ada@example.org": "hello", "empty/": "",
	})
	var out bytes.Buffer
	masked, err := bundle.Rewrite(t.Context(), &out, must(zip.NewReader(bytes.NewReader(raw), int64(len(raw))))(t))
	check(t, err)
	got := unpack(t, out.Bytes())
	for name, want := range map[string]string{
		"a.log": "[masked: e-mail address] and [masked: e-mail address]\n[masked: private key]", "clean.log": "all is well",
		"picture": "\x00\x01", "masked-name-5": "hello", "empty/": "",
		"MASKED.txt": "The fleet hid these things when it gave out this bundle. The box should not have\nput them into it: please tell those who make the box.\n\n" +
			"a.log: e-mail address, 2×\na.log: private key, 1×\ncore: e-mail address, 1× (not a text: left out as a whole)\nmasked-name-5: e-mail address, 1×\n",
	} {
		if content, ok := got[name]; !ok || content != want {
			t.Errorf("%s is %q, %v; want %q", name, content, ok, want)
		}
		delete(got, name)
	}
	if len(got) != 0 || len(masked) != 4 {
		t.Errorf("more was read out: %v; masked is %+v", got, masked)
	}
	if bytes.Contains(out.Bytes(), []byte("HUSH")) || bytes.Contains(out.Bytes(), []byte("ada@")) {
		t.Error("a secret is in the bytes")
	}
}

func FuzzMask(f *testing.F) {
	f.Add("x " + pem + " K7QM-2XWP ada@example.org\nauthorization: x")
	f.Add("-----BEGIN PRIVATE KEY-----")
	f.Fuzz(func(t *testing.T, text string) {
		once := bundle.Masked(text)
		if bytes.Contains([]byte(once), []byte("-----BEGIN PRIVATE KEY-----")) {
			t.Errorf("%q still has a key: %q", text, once)
		}
	})
}

// BenchmarkMask is what makes staff wait when they open a bundle of logs.
func BenchmarkMask(b *testing.B) {
	line := "2026-11-22T01:44:51.123Z INFO agent/uplink: session began broker=mqtt-1.fleet.example:8883 epoch=12 token-age=3h user@host\n"
	text := strings.Repeat(line, (8<<20)/len(line))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		bundle.Masked(text)
	}
}
