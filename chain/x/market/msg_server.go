package market

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"cosmossdk.io/collections"
	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

type msgServer struct {
	k *Keeper
}

// NewMsgServer serves the module's messages. That the signer is the provider or
// owner named in the id is checked before, by the signer paths of the chain.
func NewMsgServer(k *Keeper) marketv1beta5.MsgServer {
	return msgServer{k}
}

// CreateBid offers to run an order. The checks come in the order of the
// contract, so that clients see the same error for the same mistake.
func (s msgServer) CreateBid(ctx context.Context, msg *marketv1beta5.MsgCreateBid) (*marketv1beta5.MsgCreateBidResponse, error) {
	k := s.k
	if err := ValidateCreateBid(msg); err != nil {
		return nil, err
	}
	params, err := k.GetParams(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkDeposit(msg.Deposit.Amount, params); err != nil {
		return nil, err
	}
	if err := k.checkRoom(ctx, orderOf(msg.ID), params); err != nil {
		return nil, err
	}
	if err := validateBSeq(msg.ID); err != nil {
		return nil, err
	}
	order, err := k.openOrder(ctx, orderOf(msg.ID))
	if err != nil {
		return nil, err
	}
	if err := checkPrice(msg.Price, order); err != nil {
		return nil, err
	}
	if err := checkOffer(msg.ResourcesOffer, order.Spec); err != nil {
		return nil, err
	}
	bidder, err := parseAddress(msg.ID.Provider)
	if err != nil {
		return nil, err
	}
	provider, found, err := k.provider.Get(ctx, bidder)
	switch {
	case err != nil:
		return nil, errors.Wrapf(err, "read provider %s", bidder)
	case !found:
		return nil, errors.Wrap(ErrUnknownProvider, msg.ID.Provider)
	}
	if msg.ID.Provider == msg.ID.Owner {
		return nil, ErrSameAccount
	}
	if err := k.checkProvider(ctx, bidder, provider, order.Spec); err != nil {
		return nil, err
	}
	window, err := checkWindow(msg.ReclamationWindow, order, params)
	if err != nil {
		return nil, err
	}
	if _, found, err := k.GetBid(ctx, msg.ID); err != nil || found {
		return nil, orErr(err, ErrBidExists)
	}

	deposits, err := k.escrow.AuthorizeDeposits(ctx, msg, bidder, escrowidv1.ScopeBid, msg.Deposit)
	if err != nil {
		return nil, err
	}
	if len(deposits) > maxDepositors {
		return nil, errors.Wrapf(ErrInvalidDeposit, "it would be drawn from %d accounts: draw it from at most %d", len(deposits), maxDepositors)
	}
	if err := k.escrow.AccountCreate(ctx, bidAccount(msg.ID), bidder, deposits); err != nil {
		return nil, err
	}
	err = k.addBid(ctx, marketv1beta5.Bid{
		ID:                msg.ID,
		State:             marketv1beta5.BidOpen,
		Price:             msg.Price,
		CreatedAt:         sdk.UnwrapSDKContext(ctx).BlockHeight(),
		ResourcesOffer:    msg.ResourcesOffer,
		ReclamationWindow: window,
	})
	if err != nil {
		return nil, err
	}
	return answer(&marketv1beta5.MsgCreateBidResponse{}, emit(ctx, &marketv1.EventBidCreated{ID: msg.ID, Price: msg.Price}))
}

// CloseBid takes an open bid back, or ends the lease that the bid became.
func (s msgServer) CloseBid(ctx context.Context, msg *marketv1beta5.MsgCloseBid) (*marketv1beta5.MsgCloseBidResponse, error) {
	if err := ValidateCloseBid(msg); err != nil {
		return nil, err
	}
	bid, found, err := s.k.GetBid(ctx, msg.ID)
	if err != nil || !found {
		return nil, orErr(err, errors.Wrap(ErrUnknownBid, bidText(msg.ID)))
	}
	switch bid.State {
	case marketv1beta5.BidOpen:
		err = s.k.closeBid(ctx, bid)
	case marketv1beta5.BidActive:
		err = s.k.leave(ctx, bid, msg.Reason)
	case marketv1beta5.BidInvalid, marketv1beta5.BidLost, marketv1beta5.BidClosed:
		err = errors.Wrapf(ErrBidNotActive, "bid %s is %s", bidText(bid.ID), bid.State)
	}
	return answer(&marketv1beta5.MsgCloseBidResponse{}, err)
}

// leave ends a lease at its provider's will: the group is paused, its tenant
// starts it again if it wants another provider.
func (k *Keeper) leave(ctx context.Context, bid marketv1beta5.Bid, reason marketv1.LeaseClosedReason) error {
	lease, err := k.existingLease(ctx, marketv1.LeaseID(bid.ID))
	if err != nil {
		return err
	}
	if r := lease.Reclamation; r != nil {
		if lease.State != marketv1.LeaseReclaiming {
			return errors.Wrapf(ErrReclaimNotStarted, "lease %s has a window of %s", leaseText(lease.ID), r.Window)
		}
		if now := sdk.UnwrapSDKContext(ctx).BlockTime().Unix(); now < r.Deadline {
			return errors.Wrapf(ErrWindowNotElapsed, "lease %s may be closed in %d s", leaseText(lease.ID), r.Deadline-now)
		}
	}
	if gone, err := k.settle(ctx, lease); err != nil || gone {
		return err
	}
	order, err := k.existingOrder(ctx, orderOf(bid.ID))
	if err != nil {
		return err
	}
	if err := k.deployment.OnBidClosed(ctx, groupOf(order.ID)); err != nil {
		return errors.Wrapf(err, "pause group of bid %s", bidText(bid.ID))
	}
	return k.endMatch(ctx, order, bid, lease, reason)
}

// endMatch closes a lease, its bid and its order, in this order of events.
func (k *Keeper) endMatch(ctx context.Context, order marketv1beta5.Order, bid marketv1beta5.Bid, lease marketv1.Lease,
	reason marketv1.LeaseClosedReason,
) error {
	if err := k.closeLease(ctx, lease, end, reason); err != nil {
		return err
	}
	if err := k.closeBid(ctx, bid); err != nil {
		return err
	}
	return k.closeOrder(ctx, order)
}

// WithdrawLease pays a provider what its lease has earned. It may find the
// deployment's account dry and so end the lease.
func (s msgServer) WithdrawLease(ctx context.Context, msg *marketv1beta5.MsgWithdrawLease) (*marketv1beta5.MsgWithdrawLeaseResponse, error) {
	if err := ValidateWithdrawLease(msg); err != nil {
		return nil, err
	}
	if _, err := s.k.existingLease(ctx, msg.ID); err != nil {
		return nil, err
	}
	err := s.k.escrow.PaymentWithdraw(ctx, leasePayment(msg.ID))
	return answer(&marketv1beta5.MsgWithdrawLeaseResponse{}, errors.Wrapf(err, "withdraw earnings of lease %s", leaseText(msg.ID)))
}

// CreateLease accepts a bid; the other open bids on the order lose, and get
// their deposits back. An account that turns out dry is an error, not the end
// of the deployment: nothing is leased that could not be paid for.
func (s msgServer) CreateLease(ctx context.Context, msg *marketv1beta5.MsgCreateLease) (*marketv1beta5.MsgCreateLeaseResponse, error) {
	k := s.k
	if err := ValidateCreateLease(msg); err != nil {
		return nil, err
	}
	id := marketv1.LeaseID(msg.BidID)
	order, bid, err := k.openMatch(ctx, msg.BidID)
	if err != nil {
		return nil, err
	}
	account, err := k.escrow.GetAccount(ctx, deploymentAccount(id))
	if err != nil {
		return nil, errors.Wrapf(err, "read account of deployment %s/%d", id.Owner, id.DSeq)
	}
	if account.State.State != escrowtypesv1.StateOpen {
		return nil, errors.Wrapf(ErrGroupNotOpen, "account of deployment %s/%d is %s", id.Owner, id.DSeq, account.State.State)
	}
	overdrawn, err := k.escrow.AccountSettle(ctx, account.ID)
	if err != nil {
		return nil, errors.Wrapf(err, "settle account of deployment %s/%d", id.Owner, id.DSeq)
	}
	if overdrawn {
		return nil, errors.Wrapf(ErrGroupNotOpen, "account of deployment %s/%d cannot pay the leases it has", id.Owner, id.DSeq)
	}

	if err := k.moveOrder(ctx, order, accept); err != nil {
		return nil, err
	}
	if err := k.moveBid(ctx, bid, accept); err != nil {
		return nil, err
	}
	lease := marketv1.Lease{
		ID:        id,
		State:     marketv1.LeaseActive,
		Price:     bid.Price,
		CreatedAt: sdk.UnwrapSDKContext(ctx).BlockHeight(),
	}
	if bid.ReclamationWindow != nil {
		lease.Reclamation = &marketv1.Reclamation{Window: *bid.ReclamationWindow}
	}
	if err := k.leases.put(ctx, lease); err != nil {
		return nil, err
	}
	provider, err := parseAddress(id.Provider)
	if err != nil {
		return nil, err
	}
	if err := k.escrow.PaymentCreate(ctx, leasePayment(id), provider, bid.Price); err != nil {
		return nil, errors.Wrapf(err, "open payment of lease %s", leaseText(id))
	}
	if err := emit(ctx, &marketv1.EventLeaseCreated{ID: id, Price: lease.Price}); err != nil {
		return nil, err
	}

	bids, err := k.bidsOf(ctx, order.ID)
	if err != nil {
		return nil, err
	}
	for _, other := range bids {
		if other.State != marketv1beta5.BidOpen {
			continue
		}
		if err := k.endBid(ctx, other, lose); err != nil {
			return nil, err
		}
	}
	return &marketv1beta5.MsgCreateLeaseResponse{}, nil
}

// openMatch finds a bid and its order, both open, of a group that is open.
func (k *Keeper) openMatch(ctx context.Context, id marketv1.BidID) (order marketv1beta5.Order, bid marketv1beta5.Bid, err error) {
	if order, err = k.openOrder(ctx, orderOf(id)); err != nil {
		return order, bid, err
	}
	bid, found, err := k.GetBid(ctx, id)
	switch {
	case err != nil:
		return order, bid, err
	case !found:
		return order, bid, errors.Wrap(ErrBidNotFound, bidText(id))
	case bid.State != marketv1beta5.BidOpen:
		return order, bid, errors.Wrapf(ErrBidNotOpen, "bid %s is %s", bidText(id), bid.State)
	}
	group, found, err := k.deployment.GetGroup(ctx, groupOf(order.ID))
	switch {
	case err != nil:
		err = errors.Wrapf(err, "read group of order %s", orderText(order.ID))
	case !found:
		err = errors.Wrapf(ErrGroupNotFound, "%s/%d/%d", id.Owner, id.DSeq, id.GSeq)
	case group.State != deploymentv1beta4.GroupOpen:
		err = errors.Wrapf(ErrGroupNotOpen, "group %s/%d/%d is %s", id.Owner, id.DSeq, id.GSeq, group.State)
	}
	return order, bid, err
}

func (k *Keeper) openOrder(ctx context.Context, id marketv1.OrderID) (marketv1beta5.Order, error) {
	order, err := k.existingOrder(ctx, id)
	if err == nil && order.State != marketv1beta5.OrderOpen {
		err = errors.Wrapf(ErrOrderNotOpen, "order %s is %s", orderText(id), order.State)
	}
	return order, err
}

func (k *Keeper) existingOrder(ctx context.Context, id marketv1.OrderID) (marketv1beta5.Order, error) {
	order, found, err := k.GetOrder(ctx, id)
	if err == nil && !found {
		err = errors.Wrap(ErrOrderNotFound, orderText(id))
	}
	return order, err
}

func (k *Keeper) existingLease(ctx context.Context, id marketv1.LeaseID) (marketv1.Lease, error) {
	lease, found, err := k.GetLease(ctx, id)
	if err == nil && !found {
		err = errors.Wrap(ErrUnknownLease, leaseText(id))
	}
	return lease, err
}

// CloseLease ends a lease at its tenant's will, at any time. The group stays
// open and its next order opens at once.
func (s msgServer) CloseLease(ctx context.Context, msg *marketv1beta5.MsgCloseLease) (*marketv1beta5.MsgCloseLeaseResponse, error) {
	k := s.k
	if err := ValidateCloseLease(msg); err != nil {
		return nil, err
	}
	lease, err := k.existingLease(ctx, msg.ID)
	switch {
	case err != nil:
		return nil, err
	case !leaseLaw.live(lease.State):
		return nil, errors.Wrapf(ErrLeaseNotActive, "lease %s is %s", leaseText(lease.ID), lease.State)
	}
	switch gone, err := k.settle(ctx, lease); {
	case err != nil:
		return nil, err
	case gone: // the settlement ended it, for lack of funds
		return &marketv1beta5.MsgCloseLeaseResponse{}, nil
	}
	bid, found, err := k.GetBid(ctx, marketv1.BidID(lease.ID))
	if err != nil || !found {
		return nil, orErr(err, errors.Wrapf(ErrInternal, "lease %s has no bid", leaseText(lease.ID)))
	}
	order, err := k.existingOrder(ctx, orderOf(bid.ID))
	if err != nil {
		return nil, err
	}
	if err := k.endMatch(ctx, order, bid, lease, marketv1.LeaseClosedOwner); err != nil {
		return nil, err
	}
	group, err := k.deployment.OnLeaseClosed(ctx, groupOf(order.ID))
	if err != nil {
		return nil, errors.Wrapf(err, "tell group of lease %s", leaseText(lease.ID))
	}
	if group.State == deploymentv1beta4.GroupOpen {
		err = k.CreateOrder(ctx, group.ID, group.GroupSpec, order.Reclamation)
	}
	return answer(&marketv1beta5.MsgCloseLeaseResponse{}, err)
}

// LeaseStartReclaim gives notice: from the deadline on, by block time, the
// provider may close its bid. Until then all goes on and is paid as before.
func (s msgServer) LeaseStartReclaim(ctx context.Context, msg *marketv1beta5.MsgLeaseStartReclaim) (*marketv1beta5.MsgLeaseStartReclaimResponse, error) {
	if err := ValidateLeaseStartReclaim(msg); err != nil {
		return nil, err
	}
	lease, err := s.k.existingLease(ctx, msg.ID)
	switch {
	case err != nil:
		return nil, err
	case lease.State == marketv1.LeaseReclaiming:
		return nil, errors.Wrap(ErrAlreadyReclaiming, leaseText(lease.ID))
	case lease.State != marketv1.LeaseActive:
		return nil, errors.Wrapf(ErrLeaseNotActive, "lease %s is %s", leaseText(lease.ID), lease.State)
	case lease.Reclamation == nil:
		return nil, errors.Wrap(ErrNotReclaimable, leaseText(lease.ID))
	}
	now := sdk.UnwrapSDKContext(ctx).BlockTime()
	lease.Reclamation.StartedAt = now.Unix()
	lease.Reclamation.Deadline = now.Add(lease.Reclamation.Window).Unix()
	lease.Reclamation.Reason = msg.Reason
	if lease.State, err = leaseLaw.next(lease.State, reclaim); err != nil {
		return nil, err
	}
	if err := s.k.leases.put(ctx, lease); err != nil {
		return nil, err
	}
	return answer(&marketv1beta5.MsgLeaseStartReclaimResponse{}, emit(ctx, &marketv1.EventLeaseReclaimStarted{ID: lease.ID, Reason: msg.Reason, Deadline: lease.Reclamation.Deadline}))
}

// UpdateParams replaces the parameters, for the authority alone. Bids that
// exist keep the deposit and the window they were made with.
func (s msgServer) UpdateParams(ctx context.Context, msg *marketv1beta5.MsgUpdateParams) (*marketv1beta5.MsgUpdateParamsResponse, error) {
	if err := ValidateUpdateParams(msg); err != nil {
		return nil, err
	}
	if msg.Authority != s.k.authority {
		return nil, errors.Wrapf(sdkerrors.ErrUnauthorized, "authority is %s: market parameters are changed by %s", msg.Authority, s.k.authority)
	}
	return answer(&marketv1beta5.MsgUpdateParamsResponse{}, s.k.SetParams(ctx, msg.Params))
}

// checkRoom wants fewer bids on the order than it may take. Bids that were
// closed count, for they are walked too when the order closes.
func (k *Keeper) checkRoom(ctx context.Context, id marketv1.OrderID, params marketv1beta5.Params) error {
	prefix, err := orderKey(id)
	if err != nil {
		return err
	}
	it, err := k.bids.Iterate(ctx, new(collections.Range[[]byte]).Prefix(prefix))
	if err != nil {
		return errors.Wrap(err, "count bids")
	}
	defer it.Close()
	room := min(params.OrderMaxBids, MaxOrderBids)
	for ; room > 0 && it.Valid(); it.Next() { // keys only: bids are not decoded
		room--
	}
	if room == 0 {
		return errors.Wrapf(ErrInvalidBid, "order %s takes no more bids: wait for the next one", orderText(id))
	}
	return nil
}

// checkProvider wants a provider whose attributes meet the order's
// requirements, are signed by the auditors it names, and claim the hardware.
func (k *Keeper) checkProvider(ctx context.Context, owner sdk.AccAddress, provider providerv1beta4.Provider, spec deploymentv1beta4.GroupSpec) error {
	m := matcher{gas: sdk.UnwrapSDKContext(ctx).GasMeter()}
	wanted := spec.Requirements.Attributes
	if !m.covers(provider.Attributes, "", wanted) {
		return errors.Wrapf(ErrAttributeMismatch, "provider %s lacks one of %v", owner, wanted)
	}
	signed := func(auditor string) (bool, error) {
		address, err := sdk.AccAddressFromBech32(auditor)
		if err != nil {
			return false, nil //nolint:nilerr // what is no address has signed nothing; the tenant typed it
		}
		audited, found, err := k.audit.GetProviderByAuditor(ctx, owner, address)
		if err != nil {
			return false, errors.Wrapf(err, "read what %s signed about %s", auditor, owner)
		}
		return found && m.covers(audited.Attributes, "", wanted), nil
	}
	by := spec.Requirements.SignedBy
	for _, auditor := range by.AllOf {
		if ok, err := signed(auditor); err != nil || !ok {
			return orErr(err, errors.Wrapf(ErrAttributeMismatch, "auditor %s has not signed all of %v for provider %s", auditor, wanted, owner))
		}
	}
	met := len(by.AnyOf) == 0
	for i := 0; i < len(by.AnyOf) && !met; i++ {
		var err error
		if met, err = signed(by.AnyOf[i]); err != nil {
			return err
		}
	}
	if !met {
		return errors.Wrapf(ErrAttributeMismatch, "none of the auditors %v has signed all of %v for provider %s", by.AnyOf, wanted, owner)
	}
	return m.capable(provider.Attributes, spec)
}

// answer is the response, or the error if there is one.
func answer[R any](response *R, err error) (*R, error) {
	if err != nil {
		return nil, err
	}
	return response, nil
}

// orErr is err, or otherwise if there was none.
func orErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}
