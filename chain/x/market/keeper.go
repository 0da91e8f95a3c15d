package market

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cosmos/gogoproto/proto"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/collections"
	collcodec "cosmossdk.io/collections/codec"
	corestore "cosmossdk.io/core/store"
	errorsmod "cosmossdk.io/errors"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

// What lies where in the module's store.
var (
	paramsPrefix           = collections.NewPrefix(0)
	ordersPrefix           = collections.NewPrefix(1)
	ordersByStatePrefix    = collections.NewPrefix(2)
	bidsPrefix             = collections.NewPrefix(3)
	bidsByStatePrefix      = collections.NewPrefix(4)
	bidsByProviderPrefix   = collections.NewPrefix(5)
	leasesPrefix           = collections.NewPrefix(6)
	leasesByStatePrefix    = collections.NewPrefix(7)
	leasesByProviderPrefix = collections.NewPrefix(8)
	offersPrefix           = collections.NewPrefix(9)
)

// Keeper is the one door to the module's state. Its methods run inside a
// transaction: when one returns an error, the caller drops what it wrote.
type Keeper struct {
	authority  string
	escrow     EscrowKeeper
	deployment DeploymentKeeper
	provider   ProviderKeeper
	audit      AuditKeeper

	params collections.Item[marketv1beta5.Params]
	orders *records[marketv1beta5.Order]
	bids   *records[marketv1beta5.Bid]
	leases *records[marketv1.Lease]
	offers collections.Map[[]byte, marketv1beta5.ResourceOffer] // by the bid's key and the entry's number
}

// NewKeeper makes the keeper over its store. Only authority (governance) may
// change the parameters.
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService, authority string,
	escrow EscrowKeeper, deployment DeploymentKeeper, provider ProviderKeeper, audit AuditKeeper,
) (*Keeper, error) {
	if authority == "" {
		return nil, errors.New("market authority is missing")
	}
	if escrow == nil || deployment == nil || provider == nil || audit == nil {
		return nil, errors.New("market needs the keepers of escrow, deployment, provider and audit")
	}
	schema := collections.NewSchemaBuilder(store)
	k := &Keeper{
		authority:  authority,
		escrow:     escrow,
		deployment: deployment,
		provider:   provider,
		audit:      audit,
		params:     collections.NewItem(schema, paramsPrefix, "params", codec.CollValue[marketv1beta5.Params](cdc)),
		offers:     collections.NewMap(schema, offersPrefix, "offers", collections.BytesKey, codec.CollValue[marketv1beta5.ResourceOffer](cdc)),
	}
	k.orders = newRecords(schema, ordersPrefix, "orders", codec.CollValue[marketv1beta5.Order](cdc),
		func(o marketv1beta5.Order) ([]byte, error) { return orderKey(o.ID) },
		newIndex(schema, ordersByStatePrefix, "orders_by_state", func(o marketv1beta5.Order) ([]byte, error) { return stateLead(o.State), nil }),
		nil)
	k.bids = newRecords(schema, bidsPrefix, "bids", codec.CollValue[marketv1beta5.Bid](cdc),
		func(b marketv1beta5.Bid) ([]byte, error) { return bidKey(b.ID) },
		newIndex(schema, bidsByStatePrefix, "bids_by_state", func(b marketv1beta5.Bid) ([]byte, error) { return stateLead(b.State), nil }),
		newIndex(schema, bidsByProviderPrefix, "bids_by_provider", func(b marketv1beta5.Bid) ([]byte, error) {
			return providerLead(b.ID.Provider, b.State)
		}))
	k.leases = newRecords(schema, leasesPrefix, "leases", codec.CollValue[marketv1.Lease](cdc),
		func(l marketv1.Lease) ([]byte, error) { return bidKey(marketv1.BidID(l.ID)) },
		newIndex(schema, leasesByStatePrefix, "leases_by_state", func(l marketv1.Lease) ([]byte, error) { return stateLead(l.State), nil }),
		newIndex(schema, leasesByProviderPrefix, "leases_by_provider", func(l marketv1.Lease) ([]byte, error) {
			return providerLead(l.ID.Provider, l.State)
		}))
	if _, err := schema.Build(); err != nil {
		return nil, fmt.Errorf("build market schema: %w", err)
	}
	return k, nil
}

// GetParams returns the parameters in force.
func (k *Keeper) GetParams(ctx context.Context) (marketv1beta5.Params, error) {
	params, err := k.params.Get(ctx)
	return params, errorsmod.Wrap(err, "read market parameters")
}

// SetParams replaces the parameters, if they are valid.
func (k *Keeper) SetParams(ctx context.Context, params marketv1beta5.Params) error {
	if err := ValidateParams(params); err != nil {
		return err
	}
	return k.params.Set(ctx, params)
}

// GetOrder returns an order, and whether there is one.
func (k *Keeper) GetOrder(ctx context.Context, id marketv1.OrderID) (marketv1beta5.Order, bool, error) {
	key, err := orderKey(id)
	return k.orders.find(ctx, key, err)
}

// GetBid returns a bid without its offer (see addBid), and whether there is one.
func (k *Keeper) GetBid(ctx context.Context, id marketv1.BidID) (marketv1beta5.Bid, bool, error) {
	if id.BSeq != 0 {
		return marketv1beta5.Bid{}, false, nil
	}
	key, err := bidKey(id)
	return k.bids.find(ctx, key, err)
}

// GetLease returns a lease, and whether there is one.
func (k *Keeper) GetLease(ctx context.Context, id marketv1.LeaseID) (marketv1.Lease, bool, error) {
	if id.BSeq != 0 {
		return marketv1.Lease{}, false, nil
	}
	key, err := bidKey(marketv1.BidID(id))
	return k.leases.find(ctx, key, err)
}

// CreateOrder opens the next order of a group, whose orders before are all
// closed. It emits EventOrderCreated.
func (k *Keeper) CreateOrder(ctx context.Context, group deploymentv1.GroupID, spec deploymentv1beta4.GroupSpec,
	reclamation *deploymentv1.DeploymentReclamation,
) error {
	if _, err := orderPrice(spec); err != nil {
		return err
	}
	id := marketv1.OrderID{Owner: group.Owner, DSeq: group.DSeq, GSeq: group.GSeq, OSeq: 1}
	switch before, found, err := k.lastOrder(ctx, group); {
	case err != nil:
		return err
	case found && orderLaw.live(before.State):
		return errorsmod.Wrapf(ErrOrderExists, "order %s is %s: close it first", orderText(before.ID), before.State)
	case found:
		id.OSeq = before.ID.OSeq + 1
	}
	if err := validateOrderID(id); err != nil {
		return err
	}
	order := marketv1beta5.Order{
		ID:          id,
		State:       marketv1beta5.OrderOpen,
		Spec:        spec,
		CreatedAt:   sdk.UnwrapSDKContext(ctx).BlockHeight(),
		Reclamation: reclamation,
	}
	if err := k.orders.put(ctx, order); err != nil {
		return err
	}
	return emit(ctx, &marketv1.EventOrderCreated{ID: id})
}

// OnGroupClosed closes the group's order, the bids on it and its lease, because
// the group came into the given state: closed and paused are its tenant's will,
// insufficient_funds means that the deployment's account has run dry and escrow
// has dealt with the payment. A group whose orders are closed is left alone, so
// the call may be repeated, and may come from within a settlement that another
// message of this module asked for.
func (k *Keeper) OnGroupClosed(ctx context.Context, group deploymentv1.GroupID, state deploymentv1beta4.Group_State) error {
	happened, reason := end, marketv1.LeaseClosedOwner
	switch state {
	case deploymentv1beta4.GroupClosed, deploymentv1beta4.GroupPaused:
	case deploymentv1beta4.GroupInsufficientFunds:
		happened, reason = dry, marketv1.LeaseClosedReasonInsufficientFunds
	default:
		return errorsmod.Wrapf(ErrInternal, "group %s/%d/%d is %s: nothing to close", group.Owner, group.DSeq, group.GSeq, state)
	}
	order, found, err := k.lastOrder(ctx, group)
	if err != nil || !found || !orderLaw.live(order.State) {
		return err
	}
	bids, err := k.bidsOf(ctx, order.ID)
	if err != nil {
		return err
	}
	var lease *marketv1.Lease
	for _, bid := range bids {
		if bid.State != marketv1beta5.BidActive {
			continue
		}
		l, err := k.existingLease(ctx, marketv1.LeaseID(bid.ID))
		if err != nil {
			return err
		}
		lease = &l
	}
	if lease != nil && happened == end {
		if gone, err := k.settle(ctx, *lease); err != nil || gone {
			return err // gone: the settlement closed the group's order before us
		}
	}

	if err := k.closeOrder(ctx, order); err != nil {
		return err
	}
	for _, bid := range bids {
		if !bidLaw.live(bid.State) {
			continue
		}
		if err := k.closeBid(ctx, bid); err != nil {
			return err
		}
	}
	if lease == nil {
		return nil
	}
	return k.closeLease(ctx, *lease, happened, reason)
}

// settle draws what is due from the account that pays a live lease, so that
// closing the payment afterwards cannot find it dry. It answers whether the
// account had run dry: then the lease, its bid and its order are closed
// already, and what the caller knows of them is old.
func (k *Keeper) settle(ctx context.Context, lease marketv1.Lease) (gone bool, err error) {
	payment, err := k.escrow.GetPayment(ctx, leasePayment(lease.ID))
	if err != nil {
		return false, errorsmod.Wrapf(err, "read payment of lease %s", leaseText(lease.ID))
	}
	if payment.State.State != escrowtypesv1.StateOpen {
		return false, nil // settled and closed together with its account
	}
	if _, err := k.escrow.AccountSettle(ctx, deploymentAccount(lease.ID)); err != nil {
		return false, errorsmod.Wrapf(err, "settle account of lease %s", leaseText(lease.ID))
	}
	now, _, err := k.GetLease(ctx, lease.ID)
	return !leaseLaw.live(now.State), err
}

// closeOrder closes an order and tells so.
func (k *Keeper) closeOrder(ctx context.Context, order marketv1beta5.Order) error {
	if err := k.moveOrder(ctx, order, end); err != nil {
		return err
	}
	return emit(ctx, &marketv1.EventOrderClosed{ID: order.ID})
}

func (k *Keeper) moveOrder(ctx context.Context, order marketv1beta5.Order, happened event) (err error) {
	if order.State, err = orderLaw.next(order.State, happened); err != nil {
		return err
	}
	return k.orders.put(ctx, order)
}

func (k *Keeper) moveBid(ctx context.Context, bid marketv1beta5.Bid, happened event) (err error) {
	if bid.State, err = bidLaw.next(bid.State, happened); err != nil {
		return err
	}
	return k.bids.put(ctx, bid)
}

// closeBid closes an open or active bid, returns its deposit and tells so.
func (k *Keeper) closeBid(ctx context.Context, bid marketv1beta5.Bid) error {
	if err := k.endBid(ctx, bid, end); err != nil {
		return err
	}
	return emit(ctx, &marketv1.EventBidClosed{ID: bid.ID})
}

// endBid brings a bid to its last state and returns its deposit.
func (k *Keeper) endBid(ctx context.Context, bid marketv1beta5.Bid, happened event) error {
	if err := k.moveBid(ctx, bid, happened); err != nil {
		return err
	}
	return errorsmod.Wrapf(k.escrow.AccountClose(ctx, bidAccount(bid.ID)), "return deposit of bid %s", bidText(bid.ID))
}

// closeLease ends a lease that was settled at this height, closes its payment
// if that is still open, and tells why.
func (k *Keeper) closeLease(ctx context.Context, lease marketv1.Lease, happened event, reason marketv1.LeaseClosedReason) (err error) {
	if lease.State, err = leaseLaw.next(lease.State, happened); err != nil {
		return err
	}
	lease.ClosedOn = sdk.UnwrapSDKContext(ctx).BlockHeight()
	lease.Reason = reason
	if err := k.leases.put(ctx, lease); err != nil {
		return err
	}
	payment, err := k.escrow.GetPayment(ctx, leasePayment(lease.ID))
	if err != nil {
		return errorsmod.Wrapf(err, "read payment of lease %s", leaseText(lease.ID))
	}
	if happened != dry && payment.State.State == escrowtypesv1.StateOpen {
		if err := k.escrow.PaymentClose(ctx, payment.ID); err != nil {
			return errorsmod.Wrapf(err, "close payment of lease %s", leaseText(lease.ID))
		}
	}
	return emit(ctx, &marketv1.EventLeaseClosed{ID: lease.ID, Reason: reason})
}

// lastOrder is the newest order of a group, the only one that may be live.
func (k *Keeper) lastOrder(ctx context.Context, group deploymentv1.GroupID) (marketv1beta5.Order, bool, error) {
	var none marketv1beta5.Order
	prefix, err := groupKey(group)
	if err != nil {
		return none, false, err
	}
	it, err := k.orders.Iterate(ctx, new(collections.Range[[]byte]).Prefix(prefix).Descending())
	if err != nil {
		return none, false, errorsmod.Wrap(err, "find last order of group")
	}
	defer it.Close()
	if !it.Valid() {
		return none, false, nil
	}
	order, err := it.Value()
	return order, err == nil, errorsmod.Wrap(err, "read last order of group")
}

// addBid stores a new bid, and its offer apart from it: an offer never changes,
// and a bid whose state does is small, so that closing it costs little.
func (k *Keeper) addBid(ctx context.Context, bid marketv1beta5.Bid) error {
	key, err := bidKey(bid.ID)
	if err != nil {
		return err
	}
	for i, offer := range bid.ResourcesOffer {
		if err := k.offers.Set(ctx, binary.BigEndian.AppendUint32(bytes.Clone(key), uint32(i)), offer); err != nil {
			return errorsmod.Wrap(err, "store offer of bid")
		}
	}
	bid.ResourcesOffer = nil
	return k.bids.put(ctx, bid)
}

// readOffer completes a bid with its offer, for people to read.
func (k *Keeper) readOffer(ctx context.Context, bid *marketv1beta5.Bid) error {
	key, err := bidKey(bid.ID)
	if err != nil {
		return err
	}
	bid.ResourcesOffer, err = under(ctx, k.offers.Iterate, key)
	return err
}

// bidsOf lists all bids on an order, without their offers.
func (k *Keeper) bidsOf(ctx context.Context, id marketv1.OrderID) ([]marketv1beta5.Bid, error) {
	prefix, err := orderKey(id)
	if err != nil {
		return nil, err
	}
	return k.bids.under(ctx, prefix)
}

// emit adds a typed event to the transaction's.
func emit(ctx context.Context, e proto.Message) error {
	return errorsmod.Wrapf(sdk.UnwrapSDKContext(ctx).EventManager().EmitTypedEvent(e), "emit %s", proto.MessageName(e))
}

// records is a table under its ids, with the indexes that make lists cheap.
type records[V any] struct {
	*collections.IndexedMap[[]byte, V, indexes[V]]
	key func(V) ([]byte, error)
}

// indexes of a table. An order has no provider, so its byProvider is nil.
type indexes[V any] struct {
	byState    *index[V]
	byProvider *index[V]
}

// IndexesList tells collections what to keep up to date.
func (i indexes[V]) IndexesList() []collections.Index[[]byte, V] {
	list := []collections.Index[[]byte, V]{i.byState}
	if i.byProvider != nil {
		list = append(list, i.byProvider)
	}
	return list
}

func newRecords[V any](schema *collections.SchemaBuilder, prefix collections.Prefix, name string,
	value collcodec.ValueCodec[V], key func(V) ([]byte, error), byState, byProvider *index[V],
) *records[V] {
	return &records[V]{collections.NewIndexedMap(schema, prefix, name, collections.BytesKey, value, indexes[V]{byState, byProvider}), key}
}

// put stores records under their ids.
func (r *records[V]) put(ctx context.Context, values ...V) error {
	for _, v := range values {
		key, err := r.key(v)
		if err != nil {
			return err
		}
		if err := r.Set(ctx, key, v); err != nil {
			return errorsmod.Wrap(err, "store market record")
		}
	}
	return nil
}

// find is Get with absence told apart from errors, the key's own included.
func (r *records[V]) find(ctx context.Context, key []byte, err error) (v V, found bool, _ error) {
	if err != nil {
		return v, false, err
	}
	v, err = r.Get(ctx, key)
	if errors.Is(err, collections.ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, errorsmod.Wrap(err, "read market record")
}

// under lists the records whose keys begin with prefix.
func (r *records[V]) under(ctx context.Context, prefix []byte) ([]V, error) {
	return under(ctx, r.Iterate, prefix)
}

func under[V any](ctx context.Context, iterate func(context.Context, collections.Ranger[[]byte]) (collections.Iterator[[]byte, V], error), prefix []byte) ([]V, error) {
	it, err := iterate(ctx, new(collections.Range[[]byte]).Prefix(prefix))
	if err != nil {
		return nil, errorsmod.Wrap(err, "list market records")
	}
	values, err := it.Values()
	return values, errorsmod.Wrap(err, "read market records")
}

// index is a set of keys: what the index sorts by (its lead), then the key of
// the record, so that an index with a prefix of both is one range.
type index[V any] struct {
	keys collections.KeySet[[]byte]
	lead func(V) ([]byte, error)
}

func newIndex[V any](schema *collections.SchemaBuilder, prefix collections.Prefix, name string, lead func(V) ([]byte, error)) *index[V] {
	return &index[V]{
		keys: collections.NewKeySet(schema, prefix, name, collections.BytesKey, collections.WithKeySetSecondaryIndex()),
		lead: lead,
	}
}

// Reference notes a record that is new or changed, which is its state: the
// only part that changes is in every lead.
func (i *index[V]) Reference(ctx context.Context, pk []byte, value V, old func() (V, error)) error {
	if err := i.Unreference(ctx, pk, old); err != nil && !errors.Is(err, collections.ErrNotFound) {
		return err
	}
	lead, err := i.lead(value)
	if err != nil {
		return err
	}
	return i.keys.Set(ctx, append(lead, pk...))
}

// Unreference forgets a record.
func (i *index[V]) Unreference(ctx context.Context, pk []byte, old func() (V, error)) error {
	before, err := old()
	if err != nil {
		return err
	}
	lead, err := i.lead(before)
	if err != nil {
		return err
	}
	return i.keys.Remove(ctx, append(lead, pk...))
}

// stateLead is one byte: states are numbered from 0 to 4.
func stateLead[S ~int32](state S) []byte {
	return []byte{byte(state)}
}

// providerLead is the provider's address, then the state if there is one.
func providerLead[S ~int32](provider string, state S) ([]byte, error) {
	lead, err := appendAddress(nil, provider)
	if err != nil || state == 0 {
		return lead, err
	}
	return append(lead, byte(state)), nil
}
