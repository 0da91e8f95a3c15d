//go:build integration

package hosting

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/npmpeer"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// typeScript shows a lease with the client that Akash's own tenants use, which
// knows nothing of relays.
func (s *stage) typeScript(t *testing.T) {
	mnemonic, err := s.w.Chain.Mnemonic(outside.TenantAccount)
	if err != nil {
		t.Fatal(err)
	}
	description := filepath.Join(t.TempDir(), "deploy.yaml")
	text := simple(map[string]string{"web": "    env: [COLOUR=violet]\n" + page(program)})
	if err := os.WriteFile(description, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.dseq++
	deal := npmpeer.Lease(t, npmpeer.LeaseConfig{
		RPC: s.w.Chain.RPC(), GRPC: strings.Replace(s.w.Chain.GRPC(), "grpc:", "http:", 1), TLS: s.w.Relay.TLS(), HTTP: s.w.Relay.HTTP(),
		Tenant: mnemonic, SDL: description, DSeq: s.dseq,
	})
	if deal.Provider != string(s.Status().Bidding.Account) || deal.Manifest != 200 || deal.BeyondTheToken != 401 {
		t.Errorf("deal is %+v", deal)
	}
	if web := deal.Services["web"]; web.Available != 1 || web.Total != 1 || len(web.URIs) != 1 {
		t.Errorf("services are %+v", deal.Services)
	}
	if !strings.Contains(deal.Page, "COLOUR=violet") {
		t.Errorf("the page is %s", deal.Page)
	}
	s.until("nothing is left of the deployment", func() bool { return len(s.Status().Leases) == 0 })
}
