package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Network is where a chain is reached.
type Network struct {
	ChainID string `json:"chain_id,omitempty"` // empty: that of the node
	Node    string `json:"node"`               // CometBFT JSON-RPC
	GRPC    string `json:"grpc,omitempty"`     // empty: port 9090 of Node's host
	REST    string `json:"rest,omitempty"`     // for the faucet of a local chain; empty: none known

	// RelayHTTP is where a relay on this machine takes plain HTTP for names below
	// localhost: host:port. Empty: at port 80.
	RelayHTTP string `json:"relay_http,omitempty"`
}

// localNetwork is the chain that `croft-chaind start` runs on this machine.
const localNetwork = "croft-local"

// builtin are the networks that need no settings.
var builtin = map[string]Network{
	localNetwork: {ChainID: "croft-local", Node: "http://127.0.0.1:26657", GRPC: "127.0.0.1:9090", REST: "http://127.0.0.1:1317"},
}

// settings is the content of settings.json in the home folder.
type settings struct {
	Network  string             `json:"network,omitempty"`  // the one in use
	Networks map[string]Network `json:"networks,omitempty"` // beside the built-in ones
}

func (o *Options) settings() (settings, error) {
	var s settings
	dir, err := o.Dir()
	if err != nil {
		return s, err
	}
	path := filepath.Join(dir, "settings.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read settings: %w", err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read settings %s: %w", path, err), Remedy: "correct or delete the file"}
	}
	return s, nil
}

func (o *Options) keep(s settings) error {
	dir, err := o.Dir()
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := atomicfile.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, "settings.json"), append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// Target is the network that flags, environment and settings mean, the first
// of them that says something, and its name.
func (o *Options) Target() (string, Network, error) {
	s, err := o.settings()
	if err != nil {
		return "", Network{}, err
	}
	name := o.network
	if name == "" && s.Network != "" {
		name = s.Network
	}
	if name == "" {
		name = localNetwork
	}
	n, ok := s.Networks[name]
	if !ok {
		n, ok = builtin[name]
	}
	if !ok {
		return "", n, &croft.Error{
			Kind: croft.KindNotFound, Err: fmt.Errorf("network %q is not known", name),
			Remedy: "`croft tenant network ls` lists them; add one with `croft tenant network use " + name + " --node URL --chain-id ID`",
		}
	}
	if o.over.Node != "" && o.over.Node != n.Node {
		n = Network{Node: o.over.Node} // another machine: nothing else is known of it
		name = o.over.Node
	}
	if o.over.GRPC != "" {
		n.GRPC = o.over.GRPC
	}
	if o.over.ChainID != "" {
		n.ChainID = o.over.ChainID
	}
	if n.GRPC == "" {
		u, err := url.Parse(n.Node)
		if err != nil || u.Hostname() == "" {
			return "", n, Usage(fmt.Errorf("node address %q is no URL", n.Node), "write it like http://127.0.0.1:26657")
		}
		n.GRPC = net.JoinHostPort(u.Hostname(), "9090")
	}
	return name, n, nil
}

// Dial connects to the network that is meant. The caller closes the client.
func (o *Options) Dial(cmd *cobra.Command, change ...func(*client.Config)) (*client.Client, error) {
	name, n, err := o.Target()
	if err != nil {
		return nil, err
	}
	cfg := client.Config{ChainID: n.ChainID, GRPC: n.GRPC, RPC: n.Node}
	for _, c := range change {
		c(&cfg)
	}
	if err := refused(cmd.Context(), n.Node); err != nil {
		return nil, Unreachable(name, n, err)
	}
	c, err := client.Dial(cmd.Context(), cfg)
	if err != nil {
		return nil, Unreachable(name, n, err)
	}
	return c, nil
}

// Networks are all that are known, by name, and the name of the one that is
// meant.
func (o *Options) Networks() (all map[string]Network, current string, err error) {
	s, err := o.settings()
	if err != nil {
		return nil, "", err
	}
	if current, _, err = o.Target(); err != nil {
		return nil, "", err
	}
	all = maps.Clone(builtin)
	maps.Copy(all, s.Networks)
	return all, current, nil
}

// UseNetwork makes later commands talk to the network of that name. If --node
// was given, the network is written down, or changed, first.
func (o *Options) UseNetwork(name, rest, relayHTTP string) error {
	s, err := o.settings()
	if err != nil {
		return err
	}
	if o.over.Node != "" {
		n := o.over
		n.REST, n.RelayHTTP = rest, relayHTTP
		s.Networks = maps.Clone(s.Networks)
		if s.Networks == nil {
			s.Networks = make(map[string]Network)
		}
		s.Networks[name] = n
	} else if _, _, err := (&Options{home: o.home, network: name}).Target(); err != nil {
		return err
	}
	s.Network = name
	return o.keep(s)
}
