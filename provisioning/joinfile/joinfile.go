// Package joinfile reads and writes network.json: what a box must be told about
// the network it joins and cannot find out by itself.
//
//	network, err := joinfile.Parse(raw)
//
// The file lies on the EFI partition, as [Path], beside the boot files: whoever
// flashes a stick can put it there from any computer, and an operator's image
// carries it from the factory. It holds no secret. The verified root is the same
// with every file, and none.
//
// It is the same for all boxes of a network. What is one box's alone, the voucher
// that the factory made for it, lies beside it as [VoucherPath] ([ParseVoucher]).
//
// A box without the file joins no network: it boots, shows its page and lets
// nothing. One whose file names a fleet and no chain is looked after, and lets
// nothing either.
//
// The least that it says, and what an operator may add:
//
//	{
//	  "chain": {"id": "croft-local", "rpc": "https://node.example:26657", "grpc": "grpcs://node.example:9090"},
//	  "relays": [{"name": "relay.example", "pins": ["3f…"]}]
//	}
//
//	{
//	  "chain": {…, "fee_granter": "akash1…"},
//	  "acme": {"email": "certs@example.com", "terms_agreed": true},
//	  "prices": {"cpu": 1600000, "memory": 800000, "storage": {"beta2": 30000}, "power": {"kwh": 320000, "watts": 35}},
//	  "fleet": {
//	    "url": "https://fleet.example:8443", "console": "https://fleet.example",
//	    "roots": ["-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n"]
//	  }
//	}
package joinfile

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/croft-cloud/croft"
)

// Path is where the file lies on the EFI partition, with slashes.
const Path = "croft/network.json"

// HostRecord before a tenant's own host makes the DNS name whose TXT record says
// which device relays may lead the host to, where an alias (CNAME) of the
// device's own name cannot: _croft.example.com.
const HostRecord = "_croft."

// MaxSize is the most bytes a file has.
const MaxSize = 64 << 10

// Network is the content of a file. Without a chain it has a fleet, and nothing
// else that a provider needs.
type Network struct {
	Chain  Chain   `json:"chain,omitzero"`
	Relays []Relay `json:"relays,omitempty"` // all are used at once, and lead to the same domain; at least one with a chain

	Domain string `json:"domain,omitempty"` // hosts of a box end in DEVICE.DOMAIN; default: the first relay's name
	Port   int    `json:"port,omitempty"`   // where tenants reach relays by TLS; default 443

	// Attributes go into the provider's record on the chain, beside those that
	// the box finds in itself: region, organization.
	Attributes map[string]string `json:"attributes,omitempty"`

	// Mirrors say where OCI images of a registry are asked for first: docker.io
	// → https://mirror.example. They may be in the owner's network, where
	// tenants themselves cannot reach.
	Mirrors map[string][]string `json:"mirrors,omitempty"`

	// ACME is an authority for the certificates of tenants' hosts; default: boxes
	// sign them themselves, and browsers warn of them.
	ACME *ACME `json:"acme,omitempty"`

	Prices Prices `json:"prices,omitzero"` // what boxes ask for

	Fleet *Fleet `json:"fleet,omitempty"` // who looks after the boxes; default: nobody
}

// Fleet is the service that looks after boxes.
type Fleet struct {
	URL     string `json:"url"`               // its device port: https://host:port
	Roots   Roots  `json:"roots"`             // certificates, PEM: a box believes in a fleet of these alone
	Console string `json:"console,omitempty"` // where people claim boxes: https://host; default: boxes name no page
}

// ClaimPage is where a claim code is typed; empty if the file does not say.
func (f *Fleet) ClaimPage() string {
	if f == nil || f.Console == "" {
		return ""
	}
	return strings.TrimSuffix(f.Console, "/") + "/claim"
}

// Roots are the fleet's root certificates as PEM texts; a file may also have them
// as one text.
type Roots []string

// UnmarshalJSON reads one text or a list of them.
func (r *Roots) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*r = Roots{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return errors.New("fleet.roots: want certificates in PEM, as a text or a list of texts")
	}
	*r = list
	return nil
}

// PEM is all of them as one text, for enroll.ParseRoots.
func (r Roots) PEM() []byte { return []byte(strings.Join(r, "\n")) }

// check wants what signs itself: a box that pins another certificate is lost when
// that one is over.
func (r Roots) check() error {
	rest, n := bytes.TrimSpace(r.PEM()), 0
	for ; len(rest) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return invalid("fleet.roots has something that is no certificate in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return invalid("fleet.roots: certificate %d: %w", n+1, err)
		case !cert.IsCA || cert.CheckSignatureFrom(cert) != nil:
			return invalid("fleet.roots: %.64q is not the certificate of a root", cert.Subject.CommonName)
		}
		rest = bytes.TrimSpace(rest)
	}
	if n == 0 {
		return invalid("fleet.roots is empty: boxes could not tell the fleet from others")
	}
	return nil
}

// ACME is an authority that gives certificates by RFC 8555. Boxes ask it for each
// host that users come by, so its limits must bear that.
type ACME struct {
	Directory   string `json:"directory,omitempty"` // URL; default Let's Encrypt
	Email       string `json:"email,omitempty"`     // for its warnings; default none
	TermsAgreed bool   `json:"terms_agreed"`        // must be true: the operator agrees to its terms
}

// Prices are in millionths of a dollar for a month of 730.5 hours. What is left
// out has the default: agent/offer's. Bytes that a lease moves have no price: an
// order on an Akash chain names none, and a lease pays the same for each block.
type Prices struct {
	CPU      *int64           `json:"cpu,omitempty"`      // a core
	Memory   *int64           `json:"memory,omitempty"`   // a GiB
	Storage  map[string]int64 `json:"storage,omitempty"`  // a GiB, by class: ephemeral, beta1, beta2, beta3, default, ram
	Endpoint *int64           `json:"endpoint,omitempty"` // a host name or port
	GPU      map[string]int64 `json:"gpu,omitempty"`      // one, by "vendor/model"; a model without a price is not let
	Power    Power            `json:"power,omitzero"`
}

// Power is what a box's electricity costs. No lease pays less than its part.
type Power struct {
	KWh   *int64           `json:"kwh,omitempty"`   // millionths of a dollar for a kilowatt-hour; default 250 000
	Watts *int64           `json:"watts,omitempty"` // of a whole box at full load, GPUs apart; default 10, and 5 for each processor
	GPU   map[string]int64 `json:"gpu,omitempty"`   // watts of one at full load, by "vendor/model"; default 0
}

// Chain says where the chain is.
type Chain struct {
	ID       string `json:"id"`
	RPC      string `json:"rpc"`                 // a node's JSON-RPC: http or https
	GRPC     string `json:"grpc"`                // its gRPC: grpc or grpcs
	GasPrice string `json:"gas_price,omitempty"` // default 0.025uakt
	Faucet   string `json:"faucet,omitempty"`    // gives new accounts their first coins; only on test networks

	// FeeGranter is the address of an account that has granted the boxes' accounts
	// their fees (MsgGrantAllowance). Deposits of bids, which come back, are still
	// the box's own.
	FeeGranter string `json:"fee_granter,omitempty"`

	// Worth says what a million of a denom is worth, in millionths of a dollar.
	// Boxes ask for their prices in these denoms; default: uact alone, a dollar.
	Worth map[string]int64 `json:"worth,omitempty"`
}

// Relay is one relay.
type Relay struct {
	Name    string   `json:"name"`              // its host name, which its certificate is for
	Address string   `json:"address,omitempty"` // host:port to dial; default NAME:443
	Pins    []string `json:"pins,omitempty"`    // SHA-256 of its public key, hexadecimal; default: the system's roots decide
}

// Lets reports whether boxes are let on a chain.
func (n *Network) Lets() bool { return n.Chain.ID != "" }

// RelayDomain is the domain below which boxes that are let have their names.
func (n *Network) RelayDomain() string { return cmp.Or(n.Domain, n.Relays[0].Name) }

// RelayPort is the port at which tenants reach relays by TLS.
func (n *Network) RelayPort() int { return cmp.Or(n.Port, 443) }

// Parse reads and checks a file. Its errors are of kind croft.KindInvalid and
// say what to change.
func Parse(raw []byte) (*Network, error) {
	if len(raw) > MaxSize {
		return nil, invalid("it has %d bytes, more than %d", len(raw), MaxSize)
	}
	var n Network
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		return nil, invalid("%w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, invalid("something follows its last brace")
	}
	return &n, n.Check()
}

// Format is the file of a network, which must be sound.
func (n *Network) Format() ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(n, "", "  ")
	return append(raw, '\n'), err
}

// Check finds what makes no sense.
func (n *Network) Check() error {
	if err := n.Fleet.check(); err != nil {
		return err
	}
	if n.Fleet != nil && n.Chain.ID+n.Chain.RPC+n.Chain.GRPC == "" {
		if len(n.Relays) > 0 || n.Domain != "" || n.ACME != nil {
			return invalid("chain is missing: without one, relays, domain and acme are of no use")
		}
		return nil
	}
	if n.Chain.ID == "" {
		return invalid("chain.id is missing")
	}
	for _, a := range []struct {
		what, address string
		schemes       []string
		optional      bool
	}{
		{"chain.rpc", n.Chain.RPC, []string{"http", "https"}, false},
		{"chain.grpc", n.Chain.GRPC, []string{"grpc", "grpcs"}, false},
		{"chain.faucet", n.Chain.Faucet, []string{"http", "https"}, true},
	} {
		if a.optional && a.address == "" {
			continue
		}
		if err := checkURL(a.what, a.address, a.schemes); err != nil {
			return err
		}
	}
	for _, denom := range slices.Sorted(maps.Keys(n.Chain.Worth)) {
		if n.Chain.Worth[denom] <= 0 {
			return invalid("chain.worth: %s is worth %d: want a positive number", denom, n.Chain.Worth[denom])
		}
	}
	if len(n.Relays) == 0 {
		return invalid("relays is empty: tenants could not reach the box")
	}
	if n.Port < 0 || n.Port > 65535 {
		return invalid("port is %d: want 1 to 65535", n.Port)
	}
	for i, r := range n.Relays {
		if err := r.check(); err != nil {
			return invalid("relays[%d]: %w", i, err)
		}
	}
	if at := n.Chain.FeeGranter; at != "" && !address.MatchString(at) {
		return invalid("chain.fee_granter is %q: want an account's address", at)
	}
	if err := n.ACME.check(); err != nil {
		return err
	}
	if err := n.Prices.check(); err != nil {
		return err
	}
	for _, host := range slices.Sorted(maps.Keys(n.Mirrors)) {
		if host == "" || strings.ContainsAny(host, "/\\ ") || host == "." || host == ".." {
			return invalid("mirrors: %q is no registry's host name", host)
		}
		for _, mirror := range n.Mirrors[host] {
			if err := checkURL("mirrors: "+host, mirror, []string{"http", "https"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *Fleet) check() error {
	if f == nil {
		return nil
	}
	if err := checkURL("fleet.url", f.URL, []string{"https"}); err != nil {
		return err
	}
	if u, err := url.Parse(f.URL); err != nil || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return invalid("fleet.url is %q: want https://host:port and nothing behind it", f.URL)
	}
	if err := f.Roots.check(); err != nil {
		return err
	}
	if f.Console == "" {
		return nil
	}
	if err := checkURL("fleet.console", f.Console, []string{"https", "http"}); err != nil {
		return err
	}
	if strings.ContainsAny(f.Console, "?#") {
		return invalid("fleet.console is %q: want https://host and nothing behind it", f.Console)
	}
	return nil
}

// address is the form of an account's address; who uses it checks its checksum.
var address = regexp.MustCompile(`^[a-z]{1,83}1[02-9ac-hj-np-z]{38,90}$`)

func (a *ACME) check() error {
	switch {
	case a == nil:
		return nil
	case !a.TermsAgreed:
		return invalid("acme.terms_agreed is not true: the authority gives nothing to who does not agree to its terms")
	case a.Email != "":
		if at, err := mail.ParseAddress(a.Email); err != nil || at.Address != a.Email {
			return invalid("acme.email is %q: want name@host", a.Email)
		}
	}
	if a.Directory == "" {
		return nil
	}
	return checkURL("acme.directory", a.Directory, []string{"https"})
}

// most is the largest price or wattage: a billion dollars, a gigawatt.
const most = 1_000_000_000_000_000

func (p Prices) check() error {
	for what, n := range map[string]*int64{
		"prices.cpu": p.CPU, "prices.memory": p.Memory, "prices.endpoint": p.Endpoint, "prices.power.kwh": p.Power.KWh, "prices.power.watts": p.Power.Watts,
	} {
		if n != nil && (*n < 0 || *n > most) {
			return invalid("%s is %d: want 0 to %d", what, *n, most)
		}
	}
	for what, list := range map[string]map[string]int64{"prices.storage": p.Storage, "prices.gpu": p.GPU, "prices.power.gpu": p.Power.GPU} {
		for name, n := range list {
			if name == "" || n < 0 || n > most {
				return invalid("%s: %q is %d: want a name and 0 to %d", what, name, n, most)
			}
		}
	}
	return nil
}

func (r Relay) check() error {
	if r.Name == "" {
		return fmt.Errorf("name is missing")
	}
	if r.Address != "" {
		if _, _, err := net.SplitHostPort(r.Address); err != nil {
			return fmt.Errorf("address: %w", err)
		}
	}
	for _, pin := range r.Pins {
		if raw, err := hex.DecodeString(pin); err != nil || len(raw) != 32 {
			return fmt.Errorf("pin %q is not 64 hexadecimal digits", pin)
		}
	}
	return nil
}

func checkURL(what, address string, schemes []string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return invalid("%s is %q: want %s://host:port", what, address, strings.Join(schemes, ":// or "))
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &croft.Error{
		Kind:   croft.KindInvalid,
		Err:    fmt.Errorf("read the box's network file: "+format, args...),
		Remedy: "correct " + Path + " on the box's EFI partition; `go doc ./provisioning/joinfile` has an example",
	}
}
