//go:build integration

package app_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

// A set of two validators needs both: when one goes, the other's consensus
// waits for it, and its watchdog ends it.
func TestNodeEndsWhenTheChainStandsStill(t *testing.T) {
	homes := []app.Home{app.Home(t.TempDir()), app.Home(t.TempDir())}
	p2p := []string{chaintest.FreePort(t), chaintest.FreePort(t)}
	genesis := app.Genesis{ChainID: chaintest.ChainID}
	var peers []string
	for i, home := range homes {
		validator, id, err := home.InitValidator(string(rune('a'+i)), 1_000_000)
		if err != nil {
			t.Fatal(err)
		}
		genesis.Validators = append(genesis.Validators, validator)
		peers = append(peers, id+"@"+p2p[i])
	}
	doc, err := genesis.Doc()
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*chaintest.Node
	for i, home := range homes {
		if err := home.SetGenesis(doc); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, chaintest.StartNode(t, func(c *app.NodeConfig) {
			c.Home, c.P2P, c.PeersOnly = home, p2p[i], true
			c.Peers = peers[:i]             // one of the two calls the other
			c.StallAfter = 10 * time.Second // CometBFT takes up to 3 s before it calls a peer
			c.Log = slog.New(slog.DiscardHandler)
		}))
	}
	nodes[0].WaitHeight(t, 2)
	if err := nodes[1].Stop(); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Wait(); !errors.Is(err, app.ErrStalled) {
		t.Errorf("the node ended with %v, want %v", err, app.ErrStalled)
	}
}
