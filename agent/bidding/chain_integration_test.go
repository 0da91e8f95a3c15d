//go:build integration

package bidding

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/client"
)

// realWorld is a real node, a tenant's key and a box.
type realWorld struct {
	t       *testing.T
	client  *client.Client
	tenant  *account.Key
	cfg     Config
	work    *fakeWorkload
	box     *Provider
	stop    func()
	journal string
}

func (w *realWorld) start() {
	w.t.Helper()
	j, err := journal.Open(journal.Config{Path: w.journal})
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Journal = j
	w.work = newWorkload()
	w.cfg.Leases = w.work
	p, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.box = p
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Run = %v", err)
		}
		if err := j.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

// wait polls until ok; the chain makes ten blocks a second. Minutes are for a
// machine that does much else.
func (w *realWorld) wait(what string, ok func(Status) bool) Status {
	w.t.Helper()
	for range 3000 {
		if s := w.box.Status(); ok(s) {
			return s
		}
		select {
		case <-w.t.Context().Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	w.t.Fatalf("waited for %s: %+v", what, w.box.Status())
	return Status{}
}

func (w *realWorld) send(msg proto.Message) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	_, err := w.client.Send(ctx, w.tenant, client.Tx{Msgs: []proto.Message{msg}})
	return err
}

// deploy orders something and returns the order.
func (w *realWorld) deploy(dseq uint64) akash.OrderID {
	w.t.Helper()
	id := akash.DeploymentID{Owner: w.tenant.Address(), DSeq: dseq}
	spec := fakeSpec(500, 512, 100_000)
	spec.Resources[0].Resource.Gpu = &resourcesv1beta4.GPU{Units: value(0)}
	spec.Requirements.Attributes = []*attributesv1.Attribute{{Key: "region", Value: "eu-west"}}
	err := w.send(&deploymentv1beta4.MsgCreateDeployment{
		Id: id.Wire(), Hash: make([]byte, 32), Groups: []*deploymentv1beta4.GroupSpec{spec},
		Deposit: &depositv1.Deposit{Amount: &basev1beta1.Coin{Denom: "uact", Amount: "900000000"}, Sources: []depositv1.Source{depositv1.Source_balance}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return akash.OrderID{GroupID: akash.GroupID{DeploymentID: id, GSeq: 1}, OSeq: 1}
}

func itemOf(s Status, id akash.OrderID) Item {
	for _, i := range s.Items {
		if i.Order == id.String() {
			return i
		}
	}
	return Item{}
}

func TestABoxLivesOnARealChain(t *testing.T) {
	node := chaintest.StartNode(t, nil)
	c, err := client.Dial(t.Context(), client.Config{ChainID: node.ChainID(), GRPC: "grpc://" + node.Addrs().GRPC, RPC: "http://" + node.Addrs().RPC, Poll: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	words, err := account.ParseMnemonic(node.Accounts[chaintest.Tenant].Mnemonic)
	if err != nil {
		t.Fatal(err)
	}
	tenantKey, err := words.Key(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	secrets := Folder(dir + "/secrets")
	key, err := OpenKey(secrets)
	if err != nil {
		t.Fatal(err)
	}
	region := "eu-west"
	w := &realWorld{
		t: t, client: c, tenant: tenantKey, journal: dir + "/journal",
		cfg: Config{
			Chain: c, Signer: key, Secrets: secrets, Funding: Faucet{URL: &url.URL{Scheme: "http", Host: node.Addrs().REST, Path: "/faucet"}},
			HostURI: "https://box.example.invalid:8443", Hosts: []string{"box.example.invalid", "127.0.0.1"},
			Attributes: func() []Attribute { return []Attribute{{Key: "region", Value: region}} },
			Capacity:   func() offer.Room { return modelCapacity }, Policy: offer.DefaultPolicy(),
			BlocksPerMonth: 1000, // so that a few blocks bring whole coins
			WithdrawEvery:  2 * time.Second, ReconcileEvery: 3 * time.Second, BidTimeout: time.Hour,
		},
	}
	w.start()

	s := w.wait("registration", func(s Status) bool { return s.Registered })
	if len(s.Problems) > 0 || s.Serial == "" {
		t.Errorf("status after registration: %+v", s)
	}
	certificate, err := w.box.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	valid, err := collect(c.Certificates(t.Context(), &certv1.CertificateFilter{Owner: string(w.box.Account()), State: "valid"}), 10)
	if err != nil || len(valid) != 1 || valid[0].GetSerial() != certificate.Leaf.SerialNumber.String() {
		t.Errorf("valid certificates on the chain: %v, %v", valid, err)
	}
	provider, err := c.Provider(t.Context(), w.box.Account())
	if err != nil || provider.GetHostUri() != w.cfg.HostURI {
		t.Errorf("provider on the chain: %v, %v", provider, err)
	}

	order := w.deploy(1001)
	lease := akash.LeaseID{OrderID: order, Provider: w.box.Account()}
	w.wait("open bid", func(s Status) bool { return itemOf(s, order).State == Open })
	if err := w.send(&marketv1beta5.MsgCreateLease{BidId: lease.Bid().Wire()}); err != nil {
		t.Fatal(err)
	}
	running := func() bool {
		w.work.mu.Lock()
		defer w.work.mu.Unlock()
		return w.work.running[lease]
	}
	w.wait("announcement", func(Status) bool { return running() })
	l, ok := w.box.Lease(lease)
	if !ok || l.Group.GetName() != "home" || len(l.Hash) != 32 || l.State != Leased {
		t.Errorf("lease = %+v, %v", l, ok)
	}
	if err := w.box.ManifestReceived(t.Context(), lease); err != nil {
		t.Error(err)
	}
	w.wait("earnings", func(s Status) bool { return itemOf(s, order).Earned.Amount > 0 && s.Earned["uact"] > 0 })

	// The guard against the race of a taken back bid with its tenant.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	_, err = c.Send(ctx, key, client.Tx{Msgs: []proto.Message{&marketv1beta5.MsgCloseBid{Id: lease.Bid().Wire(), Reason: marketv1.LeaseClosedReason_lease_closed_reason_unspecified}}})
	if !errors.Is(err, &akash.TxError{Codespace: "market", Code: 37}) {
		t.Errorf("closing the bid of a lease with a window: %v, want market 37", err)
	}

	w.stop()
	if l := w.box.Leases(); len(l) != 1 {
		t.Errorf("leases after the end: %v", l)
	}
	region = "eu-north" // the record follows
	w.start()
	if l := w.box.Leases(); len(l) != 1 || !l[0].Manifest {
		t.Errorf("leases at the start: %+v", l)
	}
	w.wait("announcement in the second life", func(Status) bool { return running() })
	w.wait("changed attributes", func(Status) bool {
		p, err := c.Provider(t.Context(), w.box.Account())
		return err == nil && p.GetAttributes()[0].GetValue() == "eu-north"
	})
	other := w.deploy(1002)
	w.wait("why not", func(s Status) bool {
		return slices.ContainsFunc(s.WhyNot, func(r offer.Refusal) bool { return r.Order == other.String() && r.Why == offer.WhyMismatch })
	})
	region = "eu-west"
	if err := w.box.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	w.wait("second bid", func(s Status) bool { return itemOf(s, other).State == Open })
	if err := w.box.Drain(t.Context(), true); err != nil {
		t.Error(err)
	}
	w.wait("withdrawn bid", func(s Status) bool { return itemOf(s, other).State == Withdrawn })

	if err := w.box.Close(t.Context(), lease, marketv1.LeaseClosedReason_lease_closed_reason_decommission, "the owner needs the box"); err != nil {
		t.Error(err)
	}
	w.wait("notice", func(Status) bool { l, _ := w.box.Lease(lease); return !l.Deadline.IsZero() })
	if got, err := c.Lease(t.Context(), lease); err != nil || got.GetLease().GetState() != marketv1.Lease_reclaiming {
		t.Errorf("lease on the chain: %v, %v", got, err)
	}
	if err := w.send(&deploymentv1beta4.MsgCloseDeployment{Id: &deploymentv1.DeploymentID{Owner: string(lease.Owner), Dseq: lease.DSeq}}); err != nil {
		t.Fatal(err)
	}
	s = w.wait("settlement", func(s Status) bool { return itemOf(s, order).State == Settled })
	final, err := c.Lease(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	paid, _ := offer.AmountOf(final.GetEscrowPayment().GetState().GetWithdrawn().GetAmount())
	if s.Leased.CPU != 0 || s.Reserved.CPU != 0 || running() || itemOf(s, order).Earned.Amount != paid || s.Earned["uact"] != paid {
		t.Errorf("at rest: leased %+v, reserved %+v, running %v, earned %v of %d", s.Leased, s.Reserved, running(), s.Earned, paid)
	}
	w.stop()
}
