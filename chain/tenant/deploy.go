package tenant

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// PlanConfig says how a deployment is to be made.
type PlanConfig struct {
	// Name is what the tenant calls it; kept in the record only.
	Name string
	// DSeq is the number of the deployment; default: the latest height, or the
	// next number after it that the owner has not used.
	DSeq uint64
	// Deposit is what goes into escrow, in the denom of the prices; default
	// 5000000 of it.
	Deposit *basev1beta1.Coin
	// Sources are where the deposit is drawn from, in this order; default:
	// grants, then the balance.
	Sources []depositv1.Source
	// Another plans a new deployment even if there is one of the same file.
	Another bool
}

// defaultDeposit is 5 ACT or AKT.
const defaultDeposit = "5000000"

// Plan fixes what [Tenant.Deploy] will do, and stores it; nothing is sent. If
// there is a deployment of the same file (same manifest, same groups) already,
// that one is returned, however far it came: planning and deploying again is how
// a command that was cut short is repeated.
func (t *Tenant) Plan(ctx context.Context, file *sdl.SDL, cfg PlanConfig) (*Record, error) {
	manifest := file.Manifest()
	hash := manifest.Hash()
	msg := &deploymentv1beta4.MsgCreateDeployment{
		Id:     &deploymentv1.DeploymentID{Owner: string(t.owner), Dseq: cfg.DSeq},
		Groups: file.Groups(), Hash: hash[:],
		Deposit: &depositv1.Deposit{Amount: cfg.Deposit, Sources: cfg.Sources},
	}
	if window := file.Reclamation(); window > 0 {
		msg.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: durationpb.New(window)}
	}
	if msg.Deposit.Amount == nil {
		msg.Deposit.Amount = &basev1beta1.Coin{Denom: priceDenom(msg.Groups), Amount: defaultDeposit}
	}
	if len(msg.Deposit.Sources) == 0 {
		msg.Deposit.Sources = []depositv1.Source{depositv1.Source_grant, depositv1.Source_balance}
	}
	chain := t.cfg.Chain.ChainID()
	known, err := t.cfg.Store.List(chain, t.owner)
	if err != nil {
		return nil, err
	}
	if !cfg.Another {
		for _, r := range known {
			if !same(r, msg) || cfg.DSeq != 0 && cfg.DSeq != r.DSeq {
				continue
			}
			lives, err := t.lives(ctx, r)
			if err != nil {
				return nil, fmt.Errorf("plan deployment: %w", err)
			}
			if lives {
				return t.replan(r, msg)
			}
		}
	}
	if cfg.DSeq == 0 {
		if msg.Id.Dseq, err = t.freeNumber(ctx, known); err != nil {
			return nil, fmt.Errorf("plan deployment: %w", err)
		}
	}
	create, err := encode(msg)
	if err != nil {
		return nil, fmt.Errorf("plan deployment: %w", err)
	}
	now := time.Now().UTC()
	r := &Record{
		Version: recordVersion, Chain: chain, Owner: t.owner, DSeq: msg.Id.Dseq, Stage: Planned, Name: cfg.Name,
		Manifest: manifest.JSON(), Hash: hash[:], Create: create, Begun: now, Changed: now,
	}
	unlock, err := t.cfg.Store.lock(chain, r.ID())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := t.cfg.Store.Load(chain, r.ID()); croft.KindOf(err) != croft.KindNotFound {
		return nil, errors.Join(err, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("plan deployment: number %d is used", r.DSeq), Remedy: "choose another, or none",
		})
	}
	return r, t.cfg.Store.save(r)
}

func priceDenom(groups []*deploymentv1beta4.GroupSpec) string {
	for _, g := range groups {
		for _, u := range g.GetResources() {
			return u.GetPrice().GetDenom()
		}
	}
	return ""
}

// freeNumber is the latest height, or the first number after it that the owner
// has not used.
func (t *Tenant) freeNumber(ctx context.Context, known []*Record) (uint64, error) {
	status, err := t.cfg.Chain.Status(ctx)
	if err != nil {
		return 0, err
	}
	for dseq := uint64(max(status.Height, 1)); ; dseq++ {
		if slices.ContainsFunc(known, func(r *Record) bool { return r.DSeq == dseq }) {
			continue
		}
		_, err := t.cfg.Chain.Deployment(ctx, t.ID(dseq))
		if croft.KindOf(err) == croft.KindNotFound {
			return dseq, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// lives reports whether what a record tells of is not over, as it may be without
// the record.
func (t *Tenant) lives(ctx context.Context, r *Record) (bool, error) {
	if r.Stage == Planned {
		return true, nil
	}
	d, err := t.cfg.Chain.Deployment(ctx, r.ID())
	if croft.KindOf(err) == croft.KindNotFound {
		return false, nil
	}
	return d.GetDeployment().GetState() == deploymentv1.Deployment_active, err
}

// same reports whether r is a deployment of what msg asks for.
func same(r *Record, msg *deploymentv1beta4.MsgCreateDeployment) bool {
	if r.Stage == Closing || r.Stage == Closed || r.Stage == Updating || r.Reason == reasonNumber {
		return false
	}
	var was deploymentv1beta4.MsgCreateDeployment
	if !bytes.Equal(r.Hash, msg.Hash) || len(r.Create) == 0 || proto.Unmarshal(r.Create, &was) != nil {
		return false
	}
	return slices.EqualFunc(was.Groups, msg.Groups, func(a, b *deploymentv1beta4.GroupSpec) bool { return proto.Equal(a, b) })
}

// replan takes over what may still change of a deployment that was planned, and
// not sent: its deposit.
func (t *Tenant) replan(r *Record, msg *deploymentv1beta4.MsgCreateDeployment) (*Record, error) {
	unlock, err := t.cfg.Store.lock(r.Chain, r.ID())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r, err = t.cfg.Store.Load(r.Chain, r.ID()); err != nil {
		return nil, err
	}
	if r.Stage != Planned || r.Pending != nil {
		return r, nil
	}
	msg.Id.Dseq = r.DSeq
	if r.Create, err = encode(msg); err != nil {
		return nil, fmt.Errorf("plan deployment: %w", err)
	}
	return r, t.cfg.Store.save(r)
}

func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// DeployConfig says how [Tenant.Deploy] decides and how long it waits.
type DeployConfig struct {
	// Choose picks the bids; default Cheapest(Want{}).
	Choose Choose
	// BidTimeout is how long to wait for acceptable bids; default 2 min.
	BidTimeout time.Duration
	// ManifestTimeout is how long a provider may take to see its lease and accept
	// the manifest; default 2 min. (Providers give a lease up after 5 min.)
	ManifestTimeout time.Duration
	// AnswerTimeout is how long the workload may take until it answers: images
	// must be fetched; default 10 min.
	AnswerTimeout time.Duration
	// CloseOnFailure closes the deployment, which returns what is left of its
	// deposit, when no acceptable bid came, a lease was lost, the manifest was
	// refused, or nothing answered in time. It does not when ctx ended, or the
	// chain or a provider could not be reached: there, calling again goes on.
	CloseOnFailure bool
	// Detach returns as soon as the providers have the manifest.
	Detach bool
	// Progress, if set, is told of every step, from the goroutine of the caller.
	Progress func(Progress)
}

func (c DeployConfig) withDefaults() DeployConfig {
	if c.Choose == nil {
		c.Choose = Cheapest(Want{})
	}
	c.BidTimeout = cmp.Or(c.BidTimeout, 2*time.Minute)
	c.ManifestTimeout = cmp.Or(c.ManifestTimeout, 2*time.Minute)
	c.AnswerTimeout = cmp.Or(c.AnswerTimeout, 10*time.Minute)
	return c
}

// Progress is one step of a deployment, or of waiting for one.
type Progress struct {
	Record Record                      // as it was stored; the callee may keep it, but not change what it refers to
	Step   string                      // a short sentence for people
	Offers []Offer                     // open bids, while waiting for them
	Leases []gatewayclient.LeaseStatus // in the order of Record.Leases, while waiting for the workload; empty entries are not known yet
	Retry  error                       // why the last attempt did not work, while it is repeated
}

// Failures of a deployment. The errors of [Tenant.Deploy] wrap them in a
// [croft.Error] that says what to do.
var (
	// ErrNoBids reports that no acceptable bid came in time.
	ErrNoBids = errors.New("no acceptable bid came in time")
	// ErrLeaseLost reports a lease that ended without the tenant.
	ErrLeaseLost = errors.New("lease was lost")
	// ErrNotAnswering reports a workload that was started and does not answer.
	ErrNotAnswering = errors.New("workload does not answer in time")
	// ErrClosed reports a deployment that is over.
	ErrClosed = errors.New("deployment is closed")
	// ErrNoManifest reports a deployment whose manifest is not remembered here.
	ErrNoManifest = errors.New("manifest is not remembered here")
)

// Deploy takes a deployment from whatever stage it is in to [Answering]. It may
// be called again after any failure, and goes on. The record it returns is the
// stored one, also beside an error.
func (t *Tenant) Deploy(ctx context.Context, id akash.DeploymentID, cfg DeployConfig) (*Record, error) {
	f, err := t.open(id, cfg.withDefaults())
	if err != nil {
		return nil, err
	}
	defer f.unlock()
	if err = f.run(ctx); err != nil && cfg.CloseOnFailure && failure(err) && f.record.Stage != Closed {
		f.say("closing, to get the deposit back")
		if closeErr := f.close(ctx); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}
	return f.record, err
}

// failure reports what repeating does not cure: what CloseOnFailure is about.
func failure(err error) bool {
	for _, kind := range []error{ErrNoBids, ErrLeaseLost, ErrNotAnswering, gatewayclient.ErrManifestRefused} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// flow is one call's work on one deployment, whose lock it holds.
type flow struct {
	t      *Tenant
	cfg    DeployConfig
	record *Record
	unlock func()
}

// open locks and loads a deployment. The caller unlocks the flow.
func (t *Tenant) open(id akash.DeploymentID, cfg DeployConfig) (*flow, error) {
	if id.Owner != t.owner {
		return nil, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("deployment %s is not of account %s", id, t.owner), Remedy: "use the key of its owner",
		}
	}
	unlock, err := t.cfg.Store.lock(t.cfg.Chain.ChainID(), id)
	if err != nil {
		return nil, err
	}
	r, err := t.cfg.Store.Load(t.cfg.Chain.ChainID(), id)
	if err != nil {
		unlock()
		return nil, err
	}
	return &flow{t: t, cfg: cfg, record: r, unlock: unlock}, nil
}

// steps has what is done in each stage. Each step moves to another stage or
// fails.
var steps = map[Stage]func(*flow, context.Context) error{
	Planned:  (*flow).create,
	Created:  (*flow).awaitBids,
	Chosen:   (*flow).lease,
	Leased:   (*flow).sendManifests,
	Sent:     (*flow).awaitAnswer,
	Updating: (*flow).putHash,
	Failed:   (*flow).restart,
	Closing:  (*flow).finishClosing,
}

// run does step after step until the workload answers, or something fails.
func (f *flow) run(ctx context.Context) error {
	if err := f.settle(ctx); err != nil {
		return err
	}
	if f.record.Stage == Answering { // when it was last looked at
		for _, l := range f.record.Leases {
			if _, err := f.leaseGone(ctx, l); err != nil {
				return err
			}
			if f.record.Stage == Failed {
				return f.lost()
			}
		}
	}
	for {
		switch stage := f.record.Stage; {
		case stage == Answering || stage == Sent && f.cfg.Detach:
			return nil
		case stage == Closed:
			return f.closed()
		}
		if err := steps[f.record.Stage](f, ctx); err != nil {
			return err
		}
		if f.record.Stage == Failed {
			return f.lost()
		}
	}
}

// settle finds out what became of a transaction that an earlier call signed, so
// that nothing is sent beside it.
func (f *flow) settle(ctx context.Context) error {
	if f.record.Pending == nil {
		return nil
	}
	f.say("asking what became of transaction " + f.record.Pending.Hash.String())
	_, err := f.t.cfg.Chain.Resume(ctx, *f.record.Pending)
	verdict, refused := errors.AsType[*akash.TxError](err)
	switch {
	case err == nil:
		if f.record.Stage == Planned {
			return f.move(Created, "deployment is on the chain", nil)
		}
	case refused && f.record.Stage == Planned && errors.Is(verdict, akash.ErrDeploymentExists):
		return f.move(Failed, "number is used", func(r *Record) { r.Reason = reasonNumber })
	case refused, errors.Is(err, client.ErrDead):
	default:
		return err
	}
	f.record.Pending = nil // its effects, if any, are on the chain, where each step looks first
	return f.save()
}

// send signs, stores and sends, and forgets what was signed only when it was
// decided.
func (f *flow) send(ctx context.Context, msgs ...proto.Message) error {
	_, err := f.t.cfg.Chain.Send(ctx, f.t.cfg.Signer, client.Tx{
		Msgs: msgs, FeeGranter: f.t.cfg.FeeGranter,
		OnSigned: func(_ context.Context, signed client.Signed) error {
			f.record.Pending = &signed
			return f.save()
		},
	})
	if _, open := errors.AsType[*client.UnconfirmedError](err); open {
		return &croft.Error{Kind: croft.KindOther, Err: err, Remedy: "repeat the command: it goes on where it was"}
	}
	f.record.Pending = nil
	if err != nil {
		return errors.Join(err, f.save())
	}
	return nil // the caller stores what it means
}

func (f *flow) save() error {
	f.record.Changed = time.Now().UTC()
	return f.t.cfg.Store.save(f.record)
}

// move stores a new stage together with what else change does, and tells.
func (f *flow) move(to Stage, step string, change func(*Record)) error {
	next, err := f.record.Stage.Next(to)
	if err != nil {
		return fmt.Errorf("deployment %s: %w", f.record.ID(), err)
	}
	f.record.Stage, f.record.Pending = next, nil
	if change != nil {
		change(f.record)
	}
	if err := f.save(); err != nil {
		return err
	}
	f.say(step)
	return nil
}

func (f *flow) say(step string) { f.tell(Progress{Step: step}) }

func (f *flow) tell(p Progress) {
	if f.cfg.Progress == nil {
		return
	}
	p.Record = *f.record
	p.Record.Leases, p.Record.Chosen = slices.Clone(f.record.Leases), slices.Clone(f.record.Chosen)
	f.cfg.Progress(p)
}

func (f *flow) closed() error {
	err := fmt.Errorf("deployment %s: %w", f.record.ID(), ErrClosed)
	if f.record.Reason != "" {
		err = fmt.Errorf("%w: %s", err, f.record.Reason)
	}
	return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "deploy anew"}
}

func (f *flow) lost() error {
	if f.record.Reason == reasonNumber {
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("deployment %s: %s", f.record.ID(), f.record.Reason),
			Remedy: "forget it and deploy under another number: nothing was paid",
		}
	}
	return &croft.Error{
		Kind: croft.KindRefused, Err: fmt.Errorf("deployment %s: %w: %s", f.record.ID(), ErrLeaseLost, f.record.Reason),
		Remedy: "deploy it again to ask for new bids, or close it to get the deposit back",
	}
}

// reasonNumber is why a deployment was never made.
const reasonNumber = "another deployment of the account has its number"

// create puts the deployment on the chain.
func (f *flow) create(ctx context.Context) error {
	var msg deploymentv1beta4.MsgCreateDeployment
	if err := proto.Unmarshal(f.record.Create, &msg); err != nil {
		return fmt.Errorf("create deployment %s: stored request: %w", f.record.ID(), err)
	}
	f.say("creating deployment " + f.record.ID().String())
	err := f.send(ctx, &msg)
	if errors.Is(err, akash.ErrDeploymentExists) {
		return f.move(Failed, "number is used", func(r *Record) { r.Reason = reasonNumber })
	}
	if err != nil {
		return fmt.Errorf("create deployment %s: %w", f.record.ID(), err)
	}
	return f.move(Created, "deployment is on the chain", nil)
}

// look asks the chain about the deployment; one that is over moves to Closed.
func (f *flow) look(ctx context.Context) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	d, err := f.t.cfg.Chain.Deployment(ctx, f.record.ID())
	if err != nil {
		return nil, fmt.Errorf("look at deployment %s: %w", f.record.ID(), err)
	}
	if d.GetDeployment().GetState() == deploymentv1.Deployment_active {
		return d, nil
	}
	reason := "it was closed"
	for _, g := range d.GetGroups() {
		if g.GetState() == deploymentv1beta4.Group_insufficient_funds {
			reason = "its escrow account ran dry"
		}
	}
	if err := f.move(Closed, "deployment is closed", func(r *Record) { r.Reason = cmp.Or(r.Reason, reason) }); err != nil {
		return nil, err
	}
	return nil, f.closed()
}

// activeLeases are those of the deployment that run, by gseq.
func (t *Tenant) activeLeases(ctx context.Context, id akash.DeploymentID) ([]LeaseRecord, error) {
	var leases []LeaseRecord
	for _, state := range []string{"active", "reclaiming"} {
		filters := &marketv1.LeaseFilters{Owner: string(id.Owner), Dseq: id.DSeq, State: state}
		for l, err := range t.cfg.Chain.Leases(ctx, filters) {
			if err != nil {
				return nil, fmt.Errorf("list leases of %s: %w", id, err)
			}
			lease, err := leaseRecord(l.GetLease())
			if err != nil {
				return nil, err
			}
			leases = append(leases, lease)
		}
	}
	slices.SortFunc(leases, func(a, b LeaseRecord) int { return cmp.Compare(a.GSeq, b.GSeq) })
	return leases, nil
}

func leaseRecord(l *marketv1.Lease) (LeaseRecord, error) {
	price, err := akash.PriceOf(l.GetPrice())
	id := akash.LeaseIDOf(l.GetId())
	if err != nil {
		return LeaseRecord{}, fmt.Errorf("lease %s: %w", id, err)
	}
	return LeaseRecord{GSeq: id.GSeq, OSeq: id.OSeq, Provider: id.Provider, Denom: price.Denom, Amount: price.Amount.String()}, nil
}

// lacking are the groups that can have a lease and have none.
func lacking(d *deploymentv1beta4.QueryDeploymentResponse, leases []LeaseRecord) []uint32 {
	var groups []uint32
	for _, g := range d.GetGroups() {
		gseq := g.GetId().GetGseq()
		leased := slices.ContainsFunc(leases, func(l LeaseRecord) bool { return l.GSeq == gseq })
		if g.GetState() == deploymentv1beta4.Group_open && !leased {
			groups = append(groups, gseq)
		}
	}
	slices.Sort(groups)
	return groups
}

// awaitBids waits until every group has a bid that is chosen.
func (f *flow) awaitBids(ctx context.Context) error {
	begin := time.Now()
	var first time.Time // when the first offer was seen
	var shown []Offer
	providers := map[account.Address]*providerv1beta4.Provider{}
	f.say("waiting for bids")
	for {
		d, err := f.look(ctx)
		if err != nil {
			return err
		}
		leases, err := f.t.activeLeases(ctx, f.record.ID())
		if err != nil {
			return err
		}
		groups := lacking(d, leases)
		if len(groups) == 0 {
			return f.leased(leases)
		}
		offers, err := f.offers(ctx, d, groups, providers)
		if err != nil {
			return err
		}
		if len(offers) > 0 && first.IsZero() {
			first = time.Now()
		}
		if !slices.EqualFunc(offers, shown, func(a, b Offer) bool { return a.ID == b.ID && a.Price.String() == b.Price.String() }) {
			shown = offers
			f.tell(Progress{Step: plural(len(offers), "open bid"), Offers: slices.Clone(offers)})
		}
		choice := Choice{Offers: slices.Clone(offers), Groups: groups}
		if !first.IsZero() {
			choice.Waited = time.Since(first)
		}
		picks, err := f.cfg.Choose(ctx, choice)
		if err != nil {
			return fmt.Errorf("choose bids of %s: %w", f.record.ID(), err)
		}
		if chosen := picksOf(choice, picks); len(chosen) == len(groups) {
			return f.move(Chosen, "bids are chosen", func(r *Record) { r.Chosen = chosen })
		}
		if time.Since(begin) >= f.cfg.BidTimeout {
			return f.noBids(offers)
		}
		if err := pause(ctx, min(f.t.cfg.Poll, f.cfg.BidTimeout-time.Since(begin))); err != nil {
			return err
		}
	}
}

func (f *flow) noBids(offers []Offer) error {
	err := fmt.Errorf("deployment %s: %w", f.record.ID(), ErrNoBids)
	remedy := "deploy it again to wait longer, close it to get the deposit back, or offer a higher price; a dry run tells which providers fit"
	if len(offers) > 0 {
		err = fmt.Errorf("%w (%s)", err, plural(len(offers), "bid")+" did not suit")
		remedy = "deploy it again with other wishes, or close it to get the deposit back"
	}
	return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: remedy}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// picksOf keeps of the picks those that are on offer, one for each group.
func picksOf(c Choice, picks []akash.BidID) []Pick {
	var chosen []Pick
	for _, gseq := range c.Groups {
		for _, o := range c.Of(gseq) {
			if slices.Contains(picks, o.ID) {
				chosen = append(chosen, Pick{
					GSeq: gseq, OSeq: o.ID.OSeq, Provider: o.ID.Provider, Denom: o.Price.Denom, Amount: o.Price.Amount.String(),
				})
				break
			}
		}
	}
	return chosen
}

// offers lists the open bids on orders of these groups.
func (f *flow) offers(ctx context.Context, d *deploymentv1beta4.QueryDeploymentResponse, groups []uint32, providers map[account.Address]*providerv1beta4.Provider) ([]Offer, error) {
	var offers []Offer
	filters := &marketv1beta5.BidFilters{Owner: string(f.record.Owner), Dseq: f.record.DSeq, State: "open"}
	for b, err := range f.t.cfg.Chain.Bids(ctx, filters) {
		if err != nil {
			return nil, fmt.Errorf("list bids of %s: %w", f.record.ID(), err)
		}
		bid := b.GetBid()
		o := Offer{ID: akash.BidIDOf(bid.GetId()), Since: bid.GetCreatedAt()}
		if !slices.Contains(groups, o.ID.GSeq) {
			continue
		}
		if o.Price, err = akash.PriceOf(bid.GetPrice()); err != nil {
			return nil, fmt.Errorf("bid %s: %w", o.ID, err)
		}
		for _, g := range d.GetGroups() {
			if g.GetId().GetGseq() == o.ID.GSeq {
				o.Group = g.GetGroupSpec().GetName()
			}
		}
		if _, asked := providers[o.ID.Provider]; !asked {
			p, err := f.t.cfg.Chain.Provider(ctx, o.ID.Provider)
			if err != nil && croft.KindOf(err) != croft.KindNotFound {
				return nil, err
			}
			providers[o.ID.Provider] = p
		}
		o.Provider = providers[o.ID.Provider]
		offers = append(offers, o)
	}
	sortOffers(offers)
	return offers, nil
}

// lease accepts the chosen bids, all in one transaction.
func (f *flow) lease(ctx context.Context) error {
	d, err := f.look(ctx)
	if err != nil {
		return err
	}
	leases, err := f.t.activeLeases(ctx, f.record.ID())
	if err != nil {
		return err
	}
	groups := lacking(d, leases)
	if len(groups) == 0 {
		return f.leased(leases)
	}
	var msgs []proto.Message
	for _, p := range f.record.Chosen {
		if slices.Contains(groups, p.GSeq) {
			id := LeaseRecord{GSeq: p.GSeq, OSeq: p.OSeq, Provider: p.Provider}.ID(f.record.ID())
			msgs = append(msgs, &marketv1beta5.MsgCreateLease{BidId: id.Bid().Wire()})
		}
	}
	if len(msgs) < len(groups) {
		return f.move(Created, "a group has no bid yet", func(r *Record) { r.Chosen = nil })
	}
	f.say("accepting " + plural(len(msgs), "bid"))
	err = f.send(ctx, msgs...)
	for _, gone := range []error{akash.ErrBidNotOpen, akash.ErrBidNotFound, akash.ErrOrderNotOpen, akash.ErrOrderNotFound} {
		if errors.Is(err, gone) {
			return f.move(Created, "a chosen bid is gone", func(r *Record) { r.Chosen = nil })
		}
	}
	if err != nil {
		return fmt.Errorf("lease %s: %w", f.record.ID(), err)
	}
	if leases, err = f.t.activeLeases(ctx, f.record.ID()); err != nil {
		return err
	}
	if len(lacking(d, leases)) > 0 {
		return &croft.Error{
			Kind: croft.KindOther, Err: fmt.Errorf("lease %s: the node does not show the leases yet", f.record.ID()), Remedy: "repeat the command: it goes on where it was",
		}
	}
	return f.leased(leases)
}

// leased stores the leases that there are.
func (f *flow) leased(leases []LeaseRecord) error {
	if len(leases) == 0 { // no group is open, none has a lease
		if f.record.Stage == Created {
			return f.move(Failed, "no group is open", func(r *Record) {
				r.Reason = "no group of it is open"
			})
		}
		return f.move(Created, "no lease", nil)
	}
	for i := range leases {
		for _, was := range f.record.Leases {
			if was.GSeq == leases[i].GSeq && was.OSeq == leases[i].OSeq && was.Provider == leases[i].Provider {
				leases[i].Sent = was.Sent
			}
		}
	}
	return f.move(Leased, plural(len(leases), "lease")+" stands", func(r *Record) { r.Leases, r.Chosen = leases, nil })
}

// sendManifests gives the manifest to each provider that lacks it.
func (f *flow) sendManifests(ctx context.Context) error {
	if len(f.record.Manifest) == 0 {
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("deployment %s: %w", f.record.ID(), ErrNoManifest),
			Remedy: "update the deployment with its SDL file, or send the manifest from where it was made",
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.cfg.ManifestTimeout, errLate)
	defer cancel()
	for i := range f.record.Leases {
		l := f.record.Leases[i]
		if l.Sent {
			continue
		}
		f.say("sending the manifest to " + string(l.Provider))
		if err := f.sendManifest(ctx, l); err != nil {
			return err
		}
		if f.record.Stage == Failed {
			return nil
		}
		f.record.Leases[i].Sent = true
		if err := f.save(); err != nil {
			return err
		}
	}
	return f.move(Sent, "providers have the manifest", nil)
}

var errLate = errors.New("time is over")

// sendManifest repeats until the provider takes it, refuses it, or has lost its
// lease.
func (f *flow) sendManifest(ctx context.Context, l LeaseRecord) error {
	id := l.ID(f.record.ID())
	var last error // that tells more than the end of the time
	for {
		err := f.tryManifest(ctx, id)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if gone, lookErr := f.leaseGone(ctx, l); gone || lookErr != nil {
			return lookErr
		}
		if !gatewayclient.Temporary(err) {
			return err
		}
		f.tell(Progress{Step: "provider " + string(l.Provider) + " does not take the manifest yet", Retry: err})
		if pauseErr := pause(ctx, f.t.cfg.Poll); pauseErr != nil {
			if errors.Is(context.Cause(ctx), errLate) {
				return fmt.Errorf("within %s: %w", f.cfg.ManifestTimeout, last)
			}
			return pauseErr
		}
	}
}

func (f *flow) tryManifest(ctx context.Context, id akash.LeaseID) error {
	g, err := f.t.Gateway(ctx, id.Provider)
	if err != nil {
		return err
	}
	defer g.Close()
	return g.SendManifest(ctx, id.DSeq, f.record.Manifest)
}

// leaseGone looks whether a lease still stands, and stores the loss if not.
func (f *flow) leaseGone(ctx context.Context, l LeaseRecord) (bool, error) {
	if err := ctx.Err(); err != nil && !errors.Is(context.Cause(ctx), errLate) {
		return false, err
	}
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := f.look(look); err != nil {
		return false, err
	}
	leases, err := f.t.activeLeases(look, f.record.ID())
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(leases, func(is LeaseRecord) bool {
		return is.GSeq == l.GSeq && is.OSeq == l.OSeq && is.Provider == l.Provider
	}) {
		return false, nil
	}
	reason := "ended"
	filters := &marketv1.LeaseFilters{Owner: string(f.record.Owner), Dseq: f.record.DSeq, Gseq: l.GSeq, Oseq: l.OSeq, Provider: string(l.Provider)}
	for was, err := range f.t.cfg.Chain.Leases(look, filters) {
		if err != nil {
			return false, err
		}
		reason = closedReason(was.GetLease().GetReason())
	}
	return true, f.move(Failed, "lease with "+string(l.Provider)+" is lost", func(r *Record) {
		r.Reason = fmt.Sprintf("lease with %s %s", l.Provider, reason)
	})
}

// closedReason says in words why a lease ended.
func closedReason(r marketv1.LeaseClosedReason) string {
	switch r {
	case marketv1.LeaseClosedReason_lease_closed_owner:
		return "was closed by its tenant"
	case marketv1.LeaseClosedReason_lease_closed_reason_unstable:
		return "was closed by the provider: the workload was unstable"
	case marketv1.LeaseClosedReason_lease_closed_reason_decommission:
		return "was closed by the provider: it takes its resources back"
	case marketv1.LeaseClosedReason_lease_closed_reason_unspecified:
		return "was closed by the provider"
	case marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout:
		return "was closed by the provider: no manifest came in time"
	case marketv1.LeaseClosedReason_lease_closed_reason_insufficient_funds:
		return "ended: the escrow account ran dry"
	default:
		return "ended"
	}
}

// restart asks for bids anew after a lease was lost.
func (f *flow) restart(ctx context.Context) error {
	d, err := f.look(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(d.GetDeployment().GetHash(), f.record.Hash) {
		return &croft.Error{
			Kind:   croft.KindRefused,
			Err:    fmt.Errorf("deployment %s: the chain has another manifest hash (%s)", f.record.ID(), hex.EncodeToString(d.GetDeployment().GetHash())),
			Remedy: "choose another number, or update the deployment",
		}
	}
	var msgs []proto.Message
	for _, g := range d.GetGroups() {
		if g.GetState() == deploymentv1beta4.Group_paused {
			msgs = append(msgs, &deploymentv1beta4.MsgStartGroup{Id: g.GetId()})
		}
	}
	if len(msgs) > 0 {
		f.say("starting " + plural(len(msgs), "paused group"))
		if err := f.send(ctx, msgs...); err != nil {
			return fmt.Errorf("restart deployment %s: %w", f.record.ID(), err)
		}
	}
	return f.move(Created, "asking for bids again", func(r *Record) { r.Reason, r.Leases, r.Chosen = "", nil, nil })
}

// close moves to Closing and on to Closed.
func (f *flow) close(ctx context.Context) error {
	if f.record.Stage == Closed {
		return nil
	}
	if err := f.move(Closing, "closing", nil); err != nil {
		return err
	}
	return f.finishClosing(ctx)
}

func (f *flow) finishClosing(ctx context.Context) error {
	err := f.send(ctx, &deploymentv1beta4.MsgCloseDeployment{Id: f.record.ID().Wire()})
	if errors.Is(err, akash.ErrDeploymentClosed) || errors.Is(err, akash.ErrDeploymentNotFound) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("close deployment %s: %w", f.record.ID(), err)
	}
	return f.move(Closed, "deployment is closed, what is left of the deposit is back", nil)
}
