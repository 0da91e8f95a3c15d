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
// A box without the file joins no network: it boots, shows its page and lets
// nothing.
//
//	{
//	  "chain": {"id": "croft-local", "rpc": "https://node.example:26657", "grpc": "grpcs://node.example:9090"},
//	  "relays": [{"name": "relay.example", "pins": ["3f…"]}]
//	}
package joinfile

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/croft-cloud/croft"
)

// Path is where the file lies on the EFI partition, with slashes.
const Path = "croft/network.json"

// MaxSize is the most bytes a file has.
const MaxSize = 64 << 10

// Network is the content of a file.
type Network struct {
	Chain  Chain   `json:"chain"`
	Relays []Relay `json:"relays"` // all are used at once, and lead to the same domain; at least one

	Domain string `json:"domain,omitempty"` // hosts of a box end in DEVICE.DOMAIN; default: the first relay's name
	Port   int    `json:"port,omitempty"`   // where tenants reach relays by TLS; default 443

	// Attributes go into the provider's record on the chain, beside those that
	// the box finds in itself: region, organization.
	Attributes map[string]string `json:"attributes,omitempty"`

	// Mirrors say where OCI images of a registry are asked for first: docker.io
	// → https://mirror.example. They may be in the owner's network, where
	// tenants themselves cannot reach.
	Mirrors map[string][]string `json:"mirrors,omitempty"`
}

// Chain says where the chain is.
type Chain struct {
	ID       string `json:"id"`
	RPC      string `json:"rpc"`                 // a node's JSON-RPC: http or https
	GRPC     string `json:"grpc"`                // its gRPC: grpc or grpcs
	GasPrice string `json:"gas_price,omitempty"` // default 0.025uakt
	Faucet   string `json:"faucet,omitempty"`    // gives new accounts their first coins; only on test networks

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

// RelayDomain is the domain below which boxes have their names.
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
