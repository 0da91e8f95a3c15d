package escrow

import (
	"context"
	"slices"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

type msgServer struct {
	keeper *Keeper
}

// NewMsgServer returns the message service of the module.
func NewMsgServer(k *Keeper) escrowv1.MsgServer { return msgServer{keeper: k} }

// AccountDeposit adds coins to the account of a deployment. Anyone may; the
// coins of grants, though, only the account's owner may add, because a refund
// restores the limit of a grant to that owner. Others' grants are passed over.
func (s msgServer) AccountDeposit(ctx context.Context, msg *escrowv1.MsgAccountDeposit) (*escrowv1.MsgAccountDepositResponse, error) {
	if err := ValidateAccountDeposit(msg); err != nil {
		return nil, err
	}
	signer, err := sdk.AccAddressFromBech32(msg.Signer)
	if err != nil {
		return nil, ErrInvalidDepositor.Wrapf("signer: %s", err)
	}
	account, err := s.keeper.GetAccount(ctx, msg.ID)
	if err != nil {
		return nil, err
	}
	if account.State.State == escrowtypesv1.StateClosed {
		return nil, ErrAccountClosed.Wrap(accountKey(msg.ID))
	}
	dep := msg.Deposit
	if msg.Signer != account.State.Owner {
		dep.Sources = slices.DeleteFunc(slices.Clone(dep.Sources), func(s depositv1.Source) bool { return s == depositv1.SourceGrant })
		if len(dep.Sources) == 0 {
			return nil, ErrInvalidDeposit.Wrap("only the account's owner deposits out of grants: use the source balance")
		}
	}
	deposits, err := s.keeper.AuthorizeDeposits(ctx, msg, signer, msg.ID.Scope, dep)
	if err != nil {
		return nil, err
	}
	if err := s.keeper.AccountDeposit(ctx, msg.ID, deposits); err != nil {
		return nil, err
	}
	return &escrowv1.MsgAccountDepositResponse{}, nil
}
