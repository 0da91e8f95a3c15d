//go:build integration

package hosting

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// The article's file, unchanged, from its deployment to the last byte on disk.
func TestALeaseFromBidToClose(t *testing.T) {
	w := newWorld(t)
	b := newBox(t, w)
	if err := w.Chain.Make(t.Context(), outside.DeployAudit(b.Status().Bidding.Account)); err != nil {
		t.Fatal(err)
	}
	if err := w.Chain.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.until("the box is registered", func() bool { return b.Status().Bidding.Registered })
	file, err := os.ReadFile(filepath.Join(repository, outside.DeployFile))
	if err != nil {
		t.Fatal(err)
	}
	me, err := w.Tenant(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer me.Leave()
	record, err := me.Run(t.Context(), file, func(p tenant.Progress) { t.Log(p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	lease := record.LeaseIDs()[0]
	page, err := me.Get(t.Context(), record.URIs[0])
	if err != nil || !strings.Contains(page, "hello from the image") {
		t.Errorf("page is %s, %v", page, err)
	}
	if status, err := me.Status(t.Context(), lease); err != nil || !status.Ready() {
		t.Errorf("status is %+v, %v", status, err)
	}
	if got, err := me.Shell(t.Context(), lease, "web", "/bin/app", "say", "hello"); err != nil || got != "hello\n" {
		t.Errorf("shell: %q, %v", got, err)
	}
	if lines, err := me.Logs(t.Context(), lease); err != nil || len(lines) == 0 {
		t.Errorf("logs: %v, %v", lines, err)
	}
	if events, err := me.Events(t.Context(), lease); err != nil || len(events) == 0 {
		t.Errorf("events: %v, %v", events, err)
	}

	b.end()
	b.start()
	b.until("the lease is there after a restart", func() bool { return len(b.Status().Leases) == 1 })
	b.until("it answers after a restart", func() bool {
		page, err := me.Get(t.Context(), record.URIs[0])
		return err == nil && strings.Contains(page, "hello from the image")
	})

	if _, err := me.Close(t.Context(), record.ID(), nil); err != nil {
		t.Fatal(err)
	}
	b.until("the lease is settled", func() bool {
		s := b.Status().Bidding
		return len(s.Items) == 1 && s.Items[0].State == bidding.Settled
	})
}
