//go:build integration

package chaintest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/npmpeer"
)

// The client that Akash's tenants use leads a deployment through its whole life
// on our chain, over JSON-RPC, gRPC and REST.
func TestTheTypeScriptClientLeadsADeploymentThroughItsLife(t *testing.T) {
	t.Parallel()
	node := chaintest.StartNode(t, nil)
	file, err := filepath.Abs("../sdl/testdata/valid/smallest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := os.ReadFile("../sdl/testdata/valid/smallest.hash")
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"rpc": "http://" + node.Addrs().RPC, "grpc": "http://" + node.Addrs().GRPC, "rest": "http://" + node.Addrs().REST,
		"tenant": node.Accounts[chaintest.Tenant].Mnemonic, "provider": node.Accounts[chaintest.Provider].Mnemonic,
		"sdl": file, "dseq": 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(npmpeer.Run(t, "life.mjs", string(config)), &got); err != nil {
		t.Fatal(err)
	}
	ours := strings.TrimSpace(string(hash))
	want := map[string]any{
		"orders": 1.0, "bids": 1.0, "leases": 1.0, "hash": ours, "restHash": ours,
		"state": 1.0, "restState": 1.0, "closed": 2.0, "account": 2.0, "amino": 0.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
