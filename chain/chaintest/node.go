package chaintest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/app"
)

// Node is a running node with one validator and its accounts.
type Node struct {
	*app.Node
	Config   app.NodeConfig
	Accounts map[string]app.LocalAccount // tenant, provider, fleet, faucet, validator
}

// StartNode starts a local chain with 100 ms blocks on free loopback ports and
// stops it with the test. It returns when the first block is there; a node of a
// set (change gave it a home with a genesis of its own) may have to wait for the
// others first. Change may be nil.
func StartNode(t testing.TB, change func(*app.NodeConfig)) *Node {
	t.Helper()
	cfg := app.NodeConfig{
		Home:      app.Home(t.TempDir()),
		Log:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		RPC:       "127.0.0.1:0",
		GRPC:      "127.0.0.1:0",
		REST:      "127.0.0.1:0",
		BlockTime: 100 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	node, err := app.StartNode(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	t.Cleanup(func() {
		if err := node.Stop(); err != nil && !errors.Is(err, app.ErrStalled) {
			t.Errorf("stop node: %v", err)
		}
	})
	n := &Node{Node: node, Config: cfg}
	if n.Accounts, err = cfg.Home.Accounts(); err != nil {
		t.Fatal(err)
	}
	if node.Local() {
		n.WaitHeight(t, 1)
	}
	return n
}

// WaitHeight waits until the node has that block, at most two minutes.
func (n *Node) WaitHeight(t testing.TB, height int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for n.Height() < height {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("chain stands at %d, waited for %d", n.Height(), height)
		}
	}
}

// FreePort is a loopback address, host:port, that was free a moment ago.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
