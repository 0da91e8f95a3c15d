//go:build integration

package hosting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// TestTenants shows, in one world and on one box, what tenants get for what they
// send: the features of a manifest, and the answers to what is wrong with one.
func TestTenants(t *testing.T) {
	s := newStage(t)
	t.Run("bad input", s.badInput)
	t.Run("workloads", s.workloads)
	t.Run("the TypeScript client", s.typeScript)
	s.empty(t)
}

// stage is a box in its world, with two tenants.
type stage struct {
	*box
	w         *outside.World
	me, other *outside.Tenant
	dseq      uint64
}

// program is the image of the tenants' program under another name, for manifests.
const program = "croft/app:1"

func newStage(t *testing.T) *stage {
	s := &stage{w: newWorld(t), dseq: 1000}
	if _, err := s.w.Registry.Put(outside.Image{Name: program, Program: s.w.Web()}); err != nil {
		t.Fatal(err)
	}
	s.box = newBox(t, s.w)
	if err := errors.Join(s.w.Chain.Make(t.Context()), s.w.Chain.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct {
		who  **outside.Tenant
		name string
	}{{&s.me, outside.TenantAccount}, {&s.other, outside.FleetAccount}} {
		who, err := s.w.TenantOf(t.Context(), at.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(who.Leave)
		*at.who = who
	}
	s.until("the box takes leases", func() bool {
		status := s.Status()
		return status.Bidding.Registered && status.Bidding.Unready == ""
	})
	return s
}

// wait is until, in a subtest.
func (s *stage) wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			status := s.Status()
			t.Fatalf("not in a minute: %s; %d leases, why not %v, trouble %+v", what, len(status.Leases), status.Bidding.WhyNot, status.Trouble)
		}
	}
}

// file reads an SDL file of this test.
func file(t *testing.T, text string) *sdl.SDL {
	t.Helper()
	parsed, err := sdl.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// simple is an SDL file of services that have the same resources; each is the
// text below the service's name.
func simple(services map[string]string) string {
	var definitions, deployment strings.Builder
	var names []string
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&definitions, "  %s:\n%s", name, services[name])
		fmt.Fprintf(&deployment, "  %s: {home: {profile: small, count: 1}}\n", name)
	}
	return "version: \"2.0\"\nservices:\n" + definitions.String() +
		"profiles:\n  compute:\n    small: {resources: {cpu: {units: 0.05}, memory: {size: 128Mi}, storage: {size: 64Mi}}}\n" +
		"  placement:\n    home:\n      pricing: {small: {denom: uakt, amount: 100000}}\n" +
		"deployment:\n" + deployment.String()
}

// tell sends a transaction and waits until it is in a block.
func (s *stage) tell(t *testing.T, who *outside.Tenant, msgs ...proto.Message) {
	t.Helper()
	if _, err := who.Chain.Send(t.Context(), who.Key, client.Tx{Msgs: msgs}); err != nil {
		t.Fatal(err)
	}
}

// lease makes a deployment of what an SDL file asks for, under the hash of a
// manifest, and leases it to the box.
func (s *stage) lease(t *testing.T, who *outside.Tenant, f *sdl.SDL, manifest sdl.Manifest) akash.LeaseID {
	t.Helper()
	s.dseq++
	hash, id := manifest.Hash(), who.ID(s.dseq)
	s.tell(t, who, &deploymentv1beta4.MsgCreateDeployment{
		Id: &deploymentv1.DeploymentID{Owner: string(id.Owner), Dseq: id.DSeq}, Groups: f.Groups(), Hash: hash[:],
		Deposit: &depositv1.Deposit{Amount: &basev1beta1.Coin{Denom: "uakt", Amount: "5000000"}, Sources: []depositv1.Source{depositv1.Source_balance}},
	})
	var won akash.LeaseID
	s.wait(t, "the box makes an offer", func() bool {
		for b, err := range who.Chain.Bids(t.Context(), &marketv1beta5.BidFilters{Owner: string(id.Owner), Dseq: id.DSeq, State: "open"}) {
			if err != nil {
				t.Fatal(err)
			}
			won = akash.BidIDOf(b.GetBid().GetId()).Lease()
			return true
		}
		return false
	})
	s.wait(t, "the offer is taken", func() bool {
		_, err := who.Chain.Send(t.Context(), who.Key, client.Tx{Msgs: []proto.Message{&marketv1beta5.MsgCreateLease{BidId: won.Bid().Wire()}}})
		if err != nil && !errors.Is(err, akash.ErrBidNotFound) { // for a moment, a node tells of what it does not act upon yet
			t.Fatal(err)
		}
		return err == nil
	})
	s.wait(t, "the box knows of its lease", func() bool {
		return slices.ContainsFunc(s.Status().Leases, func(l bidding.Lease) bool { return l.ID == won })
	})
	return won
}

// put sends the gateway a manifest.
func (s *stage) put(t *testing.T, who *outside.Tenant, id akash.LeaseID, manifest []byte) error {
	t.Helper()
	return who.With(t.Context(), id, func(g *gatewayclient.Gateway) error {
		return g.SendManifest(t.Context(), id.DSeq, manifest)
	})
}

// accepted sends a manifest that must be taken.
func (s *stage) accepted(t *testing.T, who *outside.Tenant, id akash.LeaseID, manifest sdl.Manifest) {
	t.Helper()
	if err := s.put(t, who, id, manifest.JSON()); err != nil {
		t.Fatal(err)
	}
}

// deploy leases and runs what an SDL file describes, and waits until it answers.
func (s *stage) deploy(t *testing.T, who *outside.Tenant, f *sdl.SDL) akash.LeaseID {
	t.Helper()
	id := s.lease(t, who, f, f.Manifest())
	s.accepted(t, who, id, f.Manifest())
	s.ready(t, who, id)
	return id
}

func (s *stage) ready(t *testing.T, who *outside.Tenant, id akash.LeaseID) {
	t.Helper()
	s.wait(t, "every service answers", func() bool {
		status, err := who.Status(t.Context(), id)
		return err == nil && status.Ready()
	})
}

// over closes a deployment and waits until nothing of it is left on the box.
func (s *stage) over(t *testing.T, who *outside.Tenant, id akash.LeaseID) {
	t.Helper()
	s.close(t, who, id)
	s.wait(t, "nothing is left of a closed lease", func() bool { return len(s.left(t, id)) == 0 })
}

func (s *stage) close(t *testing.T, who *outside.Tenant, id akash.LeaseID) {
	t.Helper()
	s.tell(t, who, &deploymentv1beta4.MsgCloseDeployment{Id: &deploymentv1.DeploymentID{Owner: string(id.Owner), Dseq: id.DSeq}})
}

// left is what there is of a lease on the box, of all that a manifest brings.
func (s *stage) left(t *testing.T, id akash.LeaseID) []string {
	t.Helper()
	p, why := s.open()
	if p == nil {
		t.Fatalf("the parts are closed: %s", why)
	}
	key := lease.KeyOf(id)
	var found []string
	containers, err := p.sandbox.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for c := range containers {
		if c.Lease == key {
			found = append(found, "container "+c.Pod())
		}
	}
	for _, r := range p.network.Replicas() {
		if r.Lease == key {
			found = append(found, "link of "+r.Pod())
		}
	}
	disks, err := p.disks.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(disks, key) {
		found = append(found, "disk")
	}
	if slices.Contains(p.workloads.Held(), id) {
		found = append(found, "manifest")
	}
	return found
}

// empty says that nothing of any lease is on the box, OCI images included.
func (s *stage) empty(t *testing.T) {
	t.Helper()
	s.wait(t, "no layer of an OCI image is left", func() bool {
		blobs, snapshots := s.layers(t)
		return blobs == 0 && snapshots == 0
	})
	p, _ := s.open()
	containers, err := p.sandbox.List(t.Context())
	disks, errDisks := p.disks.List(t.Context())
	if err := errors.Join(err, errDisks); err != nil || len(containers)+len(disks)+len(p.network.Replicas())+len(p.workloads.Held()) > 0 {
		t.Errorf("left: containers %v, disks %v, links %v, workloads %v, %v", containers, disks, p.network.Replicas(), p.workloads.Held(), err)
	}
}

// layers counts what containerd keeps of OCI images: files as they were fetched,
// partly too, and unpacked ones.
func (s *stage) layers(t *testing.T) (blobs, snapshots int) {
	t.Helper()
	for _, kind := range []struct {
		folder string
		count  *int
	}{
		{"io.containerd.content.v1.content/blobs/sha256", &blobs},
		{"io.containerd.content.v1.content/ingest", &blobs},
		{"io.containerd.snapshotter.v1.overlayfs/snapshots", &snapshots},
	} {
		entries, err := os.ReadDir(filepath.Join(s.dir, "perm", "containerd", kind.folder))
		if err != nil {
			t.Fatal(err)
		}
		*kind.count += len(entries)
	}
	return blobs, snapshots
}

// told waits for an event of a lease, whose note begins with some words.
func (s *stage) told(t *testing.T, who *outside.Tenant, id akash.LeaseID, reason, words string) {
	t.Helper()
	var events []gatewayclient.Event
	defer func() {
		if t.Failed() {
			t.Logf("events are %+v", events)
		}
	}()
	s.wait(t, fmt.Sprintf("event %s: %s", reason, words), func() bool {
		var err error
		if events, err = who.Events(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events, func(e gatewayclient.Event) bool { return e.Reason == reason && strings.HasPrefix(e.Note, words) })
	})
}

// refused says whether an answer of the gateway is this refusal.
func refused(t *testing.T, err error, status int, sentence string) {
	t.Helper()
	refusal, ok := errors.AsType[*gatewayclient.GatewayError](err)
	if !ok || refusal.Status != status || refusal.Message != sentence {
		t.Errorf("answer is %v\nwant %d %s", err, status, sentence)
	}
}

// beside runs do beside a test and waits for its end.
func beside(t *testing.T, do func(context.Context)) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}
