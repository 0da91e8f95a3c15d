package tenant

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/quote"
)

// GroupsChangedError reports an SDL that asks for other resources, prices or
// places than its deployment did: those are fixed for life.
type GroupsChangedError struct {
	Changes []string // one sentence each
}

func (e *GroupsChangedError) Error() string {
	return "the groups changed: " + strings.Join(e.Changes, "; ")
}

// Update puts another manifest in the place of a deployment's: its hash on the
// chain, the manifest to each provider with a lease. What stands in the groups
// (resources, counts, ports open to the world, prices, attributes) cannot
// change: [*GroupsChangedError]. It then waits for the workload as
// [Tenant.Deploy] does, and as there, may be called again after any failure; so
// may Deploy. An unchanged manifest is sent to the providers again. A deployment
// made elsewhere is taken over.
func (t *Tenant) Update(ctx context.Context, id akash.DeploymentID, file *sdl.SDL, cfg DeployConfig) (*Record, error) {
	f, err := t.openOrAdopt(ctx, id, cfg)
	if err != nil {
		return nil, err
	}
	defer f.unlock()
	return f.record, f.update(ctx, file)
}

func (f *flow) update(ctx context.Context, file *sdl.SDL) error {
	if err := f.settle(ctx); err != nil {
		return err
	}
	d, err := f.look(ctx)
	if err != nil {
		return err
	}
	var was []*deploymentv1beta4.GroupSpec
	for _, g := range d.GetGroups() {
		was = append(was, g.GetGroupSpec())
	}
	if changes := groupChanges(was, file.Groups()); len(changes) > 0 {
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("update deployment %s: %w", f.record.ID(), &GroupsChangedError{changes}),
			Remedy: "take the old values, or close the deployment and deploy anew",
		}
	}
	manifest := file.Manifest()
	hash := manifest.Hash()
	if err := f.move(Updating, "updating", func(r *Record) { r.Update = &Revision{Manifest: manifest.JSON(), Hash: hash[:]} }); err != nil {
		return err
	}
	if err := f.putHash(ctx); err != nil || f.record.Stage == Created {
		return err
	}
	return f.run(ctx)
}

// putHash brings the stored revision's hash to the chain, if it is not there.
func (f *flow) putHash(ctx context.Context) error {
	next := f.record.Update
	if next == nil {
		return fmt.Errorf("update deployment %s: the record has no update", f.record.ID())
	}
	d, err := f.look(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(d.GetDeployment().GetHash(), next.Hash) {
		f.say("putting the new hash on the chain")
		if err := f.send(ctx, &deploymentv1beta4.MsgUpdateDeployment{Id: f.record.ID().Wire(), Hash: next.Hash}); err != nil {
			return fmt.Errorf("update deployment %s: %w", f.record.ID(), err)
		}
	}
	leases, err := f.t.activeLeases(ctx, f.record.ID())
	if err != nil {
		return err
	}
	to, step := Leased, "the chain has the new hash"
	if len(leases) == 0 {
		to = Created
	}
	return f.move(to, step, func(r *Record) {
		r.Manifest, r.Hash, r.Update, r.Leases = next.Manifest, next.Hash, nil, leases
	})
}

// Close ends a deployment: its leases end, and what is left of its deposit goes
// back to where it came from. Closing what is closed is no error.
func (t *Tenant) Close(ctx context.Context, id akash.DeploymentID, progress func(Progress)) (*Record, error) {
	f, err := t.openOrAdopt(ctx, id, DeployConfig{Progress: progress})
	if err != nil {
		return nil, err
	}
	defer f.unlock()
	if err := f.settle(ctx); err != nil {
		return f.record, err
	}
	if f.record.Reason == reasonNumber {
		return f.record, f.lost()
	}
	return f.record, f.close(ctx)
}

// openOrAdopt is open, also for deployments that were made elsewhere.
func (t *Tenant) openOrAdopt(ctx context.Context, id akash.DeploymentID, cfg DeployConfig) (*flow, error) {
	cfg = cfg.withDefaults()
	f, err := t.open(id, cfg)
	if croft.KindOf(err) != croft.KindNotFound {
		return f, err
	}
	d, err := t.cfg.Chain.Deployment(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("look at deployment %s: %w", id, err)
	}
	leases, err := t.activeLeases(ctx, id)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	r := &Record{
		Version: recordVersion, Chain: t.cfg.Chain.ChainID(), Owner: id.Owner, DSeq: id.DSeq,
		Stage: Created, Hash: d.GetDeployment().GetHash(), Leases: leases, Begun: now, Changed: now,
	}
	switch {
	case d.GetDeployment().GetState() != deploymentv1.Deployment_active:
		r.Stage = Closed
	case len(leases) > 0:
		r.Stage = Leased
	}
	unlock, err := t.cfg.Store.lock(r.Chain, id)
	if err != nil {
		return nil, err
	}
	if err := t.cfg.Store.save(r); err != nil {
		unlock()
		return nil, err
	}
	return &flow{t: t, cfg: cfg, record: r, unlock: unlock}, nil
}

// Overview is one deployment as the chain has it, and what is remembered of it.
type Overview struct {
	ID         akash.DeploymentID
	Record     *Record // nil if it was made elsewhere
	Deployment *deploymentv1beta4.QueryDeploymentResponse
	Leases     []*marketv1beta5.QueryLeaseResponse // active ones
}

// Rates are what the leases cost for each block together, one for each denom.
func (o Overview) Rates() ([]akash.Price, error) {
	var prices []akash.Price
	for _, l := range o.Leases {
		p, err := akash.PriceOf(l.GetLease().GetPrice())
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", akash.LeaseIDOf(l.GetLease().GetId()), err)
		}
		prices = append(prices, p)
	}
	return quote.SumPrices(prices), nil
}

// Look is one deployment of the owner.
func (t *Tenant) Look(ctx context.Context, id akash.DeploymentID) (Overview, error) {
	d, err := t.cfg.Chain.Deployment(ctx, id)
	if err != nil {
		return Overview{}, err
	}
	return t.overview(ctx, id, d)
}

// List is all deployments of the owner, the oldest first; state is "active",
// "closed" or empty for both.
func (t *Tenant) List(ctx context.Context, state string) ([]Overview, error) {
	var all []Overview
	for d, err := range t.cfg.Chain.Deployments(ctx, &deploymentv1beta4.DeploymentFilters{Owner: string(t.owner), State: state}) {
		if err != nil {
			return nil, fmt.Errorf("list deployments: %w", err)
		}
		o, err := t.overview(ctx, akash.DeploymentIDOf(d.GetDeployment().GetId()), d)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b Overview) int { return cmp.Compare(a.ID.DSeq, b.ID.DSeq) })
	return all, nil
}

func (t *Tenant) overview(ctx context.Context, id akash.DeploymentID, d *deploymentv1beta4.QueryDeploymentResponse) (Overview, error) {
	o := Overview{ID: id, Deployment: d}
	r, err := t.cfg.Store.Load(t.cfg.Chain.ChainID(), id)
	switch {
	case err == nil:
		o.Record = r
	case croft.KindOf(err) != croft.KindNotFound:
		return o, err
	}
	if d.GetDeployment().GetState() != deploymentv1.Deployment_active {
		return o, nil
	}
	for _, state := range []string{"active", "reclaiming"} {
		filters := &marketv1.LeaseFilters{Owner: string(id.Owner), Dseq: id.DSeq, State: state}
		for l, err := range t.cfg.Chain.Leases(ctx, filters) {
			if err != nil {
				return o, fmt.Errorf("list leases of %s: %w", id, err)
			}
			o.Leases = append(o.Leases, l)
		}
	}
	return o, nil
}

// renewBefore is how long before its end a client certificate is replaced.
const renewBefore = 7 * 24 * time.Hour

// Certificate is the account's client certificate, made and published if there
// is none that is good: the other way, besides tokens, to be known to gateways.
// Its key is kept in the store.
func (t *Tenant) Certificate(ctx context.Context) (tls.Certificate, error) {
	path, err := t.cfg.Store.path(t.cfg.Chain.ChainID(), t.owner, "client.pem")
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := loadPair(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return tls.Certificate{}, err
	}
	known := err == nil && pair.Certificate.ValidAt(time.Now().Add(renewBefore))
	state := certv1.State_invalid
	if known {
		if state, err = t.stateOf(ctx, pair.Certificate); err != nil {
			return tls.Certificate{}, err
		}
	}
	if state == certv1.State_valid {
		return pair.TLS()
	}
	if !known || state == certv1.State_revoked {
		if pair, err = credential.NewCertificate(credential.CertificateConfig{Owner: t.owner, NotBefore: time.Now()}); err != nil {
			return tls.Certificate{}, err
		}
		if err := replace(path, slices.Concat(pair.CertPEM, pair.PublicPEM, pair.KeyPEM)); err != nil {
			return tls.Certificate{}, fmt.Errorf("keep client certificate: %w", err)
		}
	}
	_, err = t.cfg.Chain.Send(ctx, t.cfg.Signer, client.Tx{FeeGranter: t.cfg.FeeGranter, Msgs: []proto.Message{
		&certv1.MsgCreateCertificate{Owner: string(t.owner), Cert: pair.CertPEM, Pubkey: pair.PublicPEM},
	}})
	if err != nil && !errors.Is(err, akash.ErrCertificateExists) {
		return tls.Certificate{}, fmt.Errorf("publish client certificate: %w", err)
	}
	return pair.TLS()
}

// stateOf asks the chain about a certificate; State_invalid if it has none such.
func (t *Tenant) stateOf(ctx context.Context, c credential.Certificate) (certv1.State, error) {
	filter := &certv1.CertificateFilter{Owner: string(c.Owner), Serial: c.Serial}
	for found, err := range t.cfg.Chain.Certificates(ctx, filter) {
		if err != nil {
			return certv1.State_invalid, fmt.Errorf("ask the chain for certificate %s: %w", c.Serial, err)
		}
		if found.GetSerial() == c.Serial {
			return found.GetCertificate().GetState(), nil
		}
	}
	return certv1.State_invalid, nil
}

// loadPair reads the three PEM blocks of a certificate: itself, its public key,
// its secret key.
func loadPair(path string) (credential.Pair, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return credential.Pair{}, err
	}
	var blocks [3][]byte
	for i := range blocks {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			return credential.Pair{}, &croft.Error{
				Kind: croft.KindInvalid, Err: fmt.Errorf("read %s: it is not a certificate with its keys", path), Remedy: "remove the file: a new one is made",
			}
		}
		blocks[i] = pem.EncodeToMemory(block)
	}
	pair := credential.Pair{CertPEM: blocks[0], PublicPEM: blocks[1], KeyPEM: blocks[2]}
	if pair.Certificate, err = credential.ParseCertificate(pair.CertPEM, pair.PublicPEM); err != nil {
		return credential.Pair{}, fmt.Errorf("read %s: %w", path, err)
	}
	return pair, nil
}
