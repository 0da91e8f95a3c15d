package joinfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
)

// certificate is one in PEM that signed itself.
func certificate(t *testing.T, ca bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a fleet"}, IsCA: ca, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().AddDate(20, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func withFleet(t *testing.T) *Network {
	n := sound()
	n.Fleet = &Fleet{URL: "https://fleet.example:8443", Console: "https://fleet.example/", Roots: Roots{certificate(t, true), certificate(t, true)}}
	return n
}

func TestAFleetIsReadAsItWasWritten(t *testing.T) {
	n := withFleet(t)
	raw, err := n.Format()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(raw)
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("read %+v, %v", got, err)
	}
	if page := got.Fleet.ClaimPage(); page != "https://fleet.example/claim" {
		t.Errorf("boxes are claimed at %q", page)
	}
	if page := sound().Fleet.ClaimPage(); page != "" {
		t.Errorf("without a fleet boxes are claimed at %q", page)
	}
}

func TestRootsMayBeOneText(t *testing.T) {
	n := withFleet(t)
	one, err := json.Marshal(string(n.Fleet.Roots.PEM()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse([]byte(`{"fleet": {"url": "https://fleet.example:8443", "roots": ` + string(one) + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Fleet.Roots.PEM(), n.Fleet.Roots.PEM()) {
		t.Error("the roots are others")
	}
	if got.Lets() || !n.Lets() {
		t.Error("a box is let if and only if there is a chain")
	}
}

func TestAFleetThatMakesNoSenseIsRefusedWithItsPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*Network)
		want  string
	}{
		"in clear":               {func(n *Network) { n.Fleet.URL = "http://fleet.example:8443" }, "fleet.url"},
		"a page":                 {func(n *Network) { n.Fleet.URL += "/v1" }, "fleet.url"},
		"with a password":        {func(n *Network) { n.Fleet.URL = "https://me:secret@fleet.example" }, "fleet.url"},
		"without roots":          {func(n *Network) { n.Fleet.Roots = nil }, "fleet.roots is empty"},
		"roots of blanks":        {func(n *Network) { n.Fleet.Roots = Roots{" \n"} }, "fleet.roots is empty"},
		"no PEM":                 {func(n *Network) { n.Fleet.Roots[1] = "MIIB" }, "no certificate in PEM"},
		"a key among the roots":  {func(n *Network) { n.Fleet.Roots[0] = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" }, "no certificate in PEM"},
		"not a root":             {func(n *Network) { n.Fleet.Roots[1] = certificate(t, false) }, `"a fleet" is not the certificate of a root`},
		"console without scheme": {func(n *Network) { n.Fleet.Console = "fleet.example" }, "fleet.console"},
		"console with a query":   {func(n *Network) { n.Fleet.Console += "?a=b" }, "fleet.console"},
		"relays without chain":   {func(n *Network) { n.Chain = Chain{} }, "chain is missing"},
		"half a chain":           {func(n *Network) { n.Chain.ID = "" }, "chain.id is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			n := withFleet(t)
			tc.spoil(n)
			_, err := n.Format()
			if err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("error is %v, want one about %q", err, tc.want)
			}
		})
	}
	if _, err := Parse([]byte(`{"fleet": {"url": "https://a", "roots": 7}}`)); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("roots that are a number: %v", err)
	}
}

func TestVoucherIsOneLine(t *testing.T) {
	for name, tc := range map[string]struct{ raw, want string }{
		"as the factory wrote it":      {"croft1.eyJp_ZC-I.c2ln", "croft1.eyJp_ZC-I.c2ln"},
		"as an editor left it":         {"\ufeff  croft1.eyJpZCI.c2ln \r\n\n", "croft1.eyJpZCI.c2ln"},
		"an empty file":                {" \n", ""},
		"a file of something else":     {"hello", ""},
		"two vouchers":                 {"croft1.a.b\ncroft1.a.b\n", ""},
		"a file that was cut":          {"croft1.a", ""},
		"a file that is far too large": {"croft1.a." + strings.Repeat("b", MaxVoucher), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseVoucher([]byte(tc.raw))
			if got != tc.want {
				t.Errorf("read %q, want %q", got, tc.want)
			}
			if tc.want == "" && (croft.KindOf(err) != croft.KindInvalid || strings.Contains(err.Error(), "croft1.")) {
				t.Errorf("error is %v", err)
			}
		})
	}
}
