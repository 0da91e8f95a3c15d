package deployment

import (
	"bytes"
	"context"
	"slices"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

type msgServer struct {
	k *Keeper
}

// NewMsgServer serves the module's messages.
func NewMsgServer(k *Keeper) deploymentv1beta4.MsgServer {
	return msgServer{k}
}

// CreateDeployment takes the deposit, opens the groups and an order for each.
func (s msgServer) CreateDeployment(ctx context.Context, msg *deploymentv1beta4.MsgCreateDeployment) (*deploymentv1beta4.MsgCreateDeploymentResponse, error) {
	if err := ValidateCreateDeployment(msg); err != nil {
		return nil, err
	}
	if err := s.k.allowed(ctx, msg); err != nil {
		return nil, err
	}
	switch _, found, err := s.k.GetDeployment(ctx, msg.ID); {
	case err != nil:
		return nil, err
	case found:
		return nil, errors.Wrap(ErrDeploymentExists, deploymentText(msg.ID))
	}
	key, err := deploymentKeyOf(msg.ID)
	if err != nil {
		return nil, err
	}
	owner := key.K1()
	deposits, err := s.k.escrow.AuthorizeDeposits(ctx, msg, owner, escrowidv1.ScopeDeployment, msg.Deposit)
	if err != nil {
		return nil, errors.Wrapf(err, "take deposit of deployment %s", deploymentText(msg.ID))
	}
	if err := s.k.escrow.AccountCreate(ctx, account(msg.ID), owner, deposits); err != nil {
		return nil, errors.Wrapf(err, "open account of deployment %s", deploymentText(msg.ID))
	}

	height := sdk.UnwrapSDKContext(ctx).BlockHeight()
	err = s.k.setDeployment(ctx, deploymentv1.DeploymentInvalid, deploymentv1.Deployment{
		ID:          msg.ID,
		State:       deploymentv1.DeploymentActive,
		Hash:        msg.Hash,
		CreatedAt:   height,
		Reclamation: msg.Reclamation,
	})
	if err != nil {
		return nil, err
	}
	if err := emit(ctx, &deploymentv1.EventDeploymentCreated{ID: msg.ID, Hash: msg.Hash}); err != nil {
		return nil, err
	}
	for i, spec := range msg.Groups {
		id := deploymentv1.GroupID{Owner: msg.ID.Owner, DSeq: msg.ID.DSeq, GSeq: uint32(i) + 1}
		err := s.k.setGroup(ctx, deploymentv1beta4.Group{ID: id, State: deploymentv1beta4.GroupOpen, GroupSpec: spec, CreatedAt: height})
		if err != nil {
			return nil, err
		}
		if err := s.k.market.CreateOrder(ctx, id, spec, msg.Reclamation); err != nil {
			return nil, errors.Wrapf(err, "open order of group %s", groupText(id))
		}
	}
	return &deploymentv1beta4.MsgCreateDeploymentResponse{}, nil
}

// allowed checks a message against the denominations and parameters of the chain.
func (k *Keeper) allowed(ctx context.Context, msg *deploymentv1beta4.MsgCreateDeployment) error {
	denom := msg.Deposit.Amount.Denom // and that of all prices
	params, err := k.GetParams(ctx)
	if err != nil {
		return err
	}
	listed := slices.IndexFunc(params.MinDeposits, func(c sdk.Coin) bool { return c.Denom == denom })
	if listed < 0 {
		return errors.Wrapf(ErrInvalidPrice, "prices are in %s: use a denomination that the parameter min_deposits names", denom)
	}
	if least := params.MinDeposits[listed]; msg.Deposit.Amount.Amount.LT(least.Amount) {
		return errors.Wrapf(ErrInvalidDeposit, "amount is %s: deposit at least %s", msg.Deposit.Amount, least)
	}
	if msg.Reclamation == nil {
		return nil
	}
	bounds, err := k.market.GetParams(ctx)
	if err != nil {
		return err
	}
	if w := msg.Reclamation.MinWindow; w < bounds.MinReclamationWindow || w > bounds.MaxReclamationWindow {
		return errors.Wrapf(ErrInvalidReclamation, "min_window is %s: choose %s to %s", w, bounds.MinReclamationWindow, bounds.MaxReclamationWindow)
	}
	return nil
}

// UpdateDeployment replaces the hash: the tenant has a new manifest.
func (s msgServer) UpdateDeployment(ctx context.Context, msg *deploymentv1beta4.MsgUpdateDeployment) (*deploymentv1beta4.MsgUpdateDeploymentResponse, error) {
	if err := ValidateUpdateDeployment(msg); err != nil {
		return nil, err
	}
	d, err := s.k.needDeployment(ctx, msg.ID)
	if err != nil {
		return nil, err
	}
	if !deploymentLaw.live(d.State) {
		return nil, errors.Wrap(ErrDeploymentClosed, deploymentText(msg.ID))
	}
	if bytes.Equal(d.Hash, msg.Hash) {
		return nil, errors.Wrapf(ErrInvalidHash, "deployment %s has it already: nothing to update", deploymentText(msg.ID))
	}
	d.Hash = msg.Hash
	if err := s.k.setDeployment(ctx, d.State, d); err != nil {
		return nil, err
	}
	if err := emit(ctx, &deploymentv1.EventDeploymentUpdated{ID: d.ID, Hash: d.Hash}); err != nil {
		return nil, err
	}
	return &deploymentv1beta4.MsgUpdateDeploymentResponse{}, nil
}

// CloseDeployment closes the deployment and all it has, and returns what is left
// in its account. If the account turns out dry, it is closed for that reason.
func (s msgServer) CloseDeployment(ctx context.Context, msg *deploymentv1beta4.MsgCloseDeployment) (*deploymentv1beta4.MsgCloseDeploymentResponse, error) {
	if err := ValidateCloseDeployment(msg); err != nil {
		return nil, err
	}
	d, err := s.k.needDeployment(ctx, msg.ID)
	if err != nil {
		return nil, err
	}
	if _, err := nextDeployment(d, end); err != nil {
		return nil, err
	}
	switch gone, err := s.k.settle(ctx, d.ID); {
	case err != nil:
		return nil, err
	case gone:
		return &deploymentv1beta4.MsgCloseDeploymentResponse{}, nil
	}
	if err := s.k.closeDeployment(ctx, d, end); err != nil {
		return nil, err
	}
	if err := s.k.escrow.AccountClose(ctx, account(d.ID)); err != nil {
		return nil, errors.Wrapf(err, "close account of deployment %s", deploymentText(d.ID))
	}
	return &deploymentv1beta4.MsgCloseDeploymentResponse{}, nil
}

// CloseGroup closes a group and what the market has of it, for ever. The
// deployment stays active, even without an open group.
func (s msgServer) CloseGroup(ctx context.Context, msg *deploymentv1beta4.MsgCloseGroup) (*deploymentv1beta4.MsgCloseGroupResponse, error) {
	if err := ValidateCloseGroup(msg); err != nil {
		return nil, err
	}
	if err := s.k.shut(ctx, msg.ID, end); err != nil {
		return nil, err
	}
	return &deploymentv1beta4.MsgCloseGroupResponse{}, nil
}

// PauseGroup closes what the market has of a group, until it is started.
func (s msgServer) PauseGroup(ctx context.Context, msg *deploymentv1beta4.MsgPauseGroup) (*deploymentv1beta4.MsgPauseGroupResponse, error) {
	if err := ValidatePauseGroup(msg); err != nil {
		return nil, err
	}
	if err := s.k.shut(ctx, msg.ID, pause); err != nil {
		return nil, err
	}
	return &deploymentv1beta4.MsgPauseGroupResponse{}, nil
}

// shut closes or pauses a group at its tenant's will. If the account turns out
// dry, the whole deployment is closed instead: to fail would undo that.
func (k *Keeper) shut(ctx context.Context, id deploymentv1.GroupID, e event) error {
	group, err := k.needGroup(ctx, id)
	if err != nil {
		return err
	}
	if _, err := nextGroup(group, e); err != nil {
		return err
	}
	if gone, err := k.settle(ctx, deploymentOf(id)); err != nil || gone {
		return err
	}
	return k.shutGroup(ctx, group, e)
}

// StartGroup opens a paused group, and its next order.
func (s msgServer) StartGroup(ctx context.Context, msg *deploymentv1beta4.MsgStartGroup) (*deploymentv1beta4.MsgStartGroupResponse, error) {
	if err := ValidateStartGroup(msg); err != nil {
		return nil, err
	}
	group, err := s.k.needGroup(ctx, msg.ID)
	if err != nil {
		return nil, err
	}
	if _, err := nextGroup(group, start); err != nil {
		return nil, err
	}
	d, err := s.k.needDeployment(ctx, deploymentOf(msg.ID))
	if err != nil {
		return nil, err
	}
	switch gone, err := s.k.settle(ctx, d.ID); {
	case err != nil:
		return nil, err
	case gone: // the failed transaction undoes the closing, so that there is still time
		return nil, errors.Wrapf(ErrDeploymentClosed, "account of deployment %s cannot pay its leases: deposit first", deploymentText(d.ID))
	}
	if group, err = s.k.moveGroup(ctx, group, start); err != nil {
		return nil, err
	}
	if err := s.k.market.CreateOrder(ctx, group.ID, group.GroupSpec, d.Reclamation); err != nil {
		return nil, errors.Wrapf(err, "open order of group %s", groupText(group.ID))
	}
	return &deploymentv1beta4.MsgStartGroupResponse{}, nil
}

// UpdateParams replaces the parameters, at governance's will.
func (s msgServer) UpdateParams(ctx context.Context, msg *deploymentv1beta4.MsgUpdateParams) (*deploymentv1beta4.MsgUpdateParamsResponse, error) {
	if err := ValidateUpdateParams(msg); err != nil {
		return nil, err
	}
	if msg.Authority != s.k.authority {
		return nil, errors.Wrapf(sdkerrors.ErrUnauthorized, "signer is %s: the parameters are changed by a proposal of governance (%s)", msg.Authority, s.k.authority)
	}
	if err := s.k.SetParams(ctx, msg.Params); err != nil {
		return nil, err
	}
	return &deploymentv1beta4.MsgUpdateParamsResponse{}, nil
}
