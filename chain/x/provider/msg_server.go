package provider

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"cosmossdk.io/errors"
)

type msgServer struct {
	k *Keeper
}

// NewMsgServer serves the module's messages.
func NewMsgServer(k *Keeper) providerv1beta4.MsgServer {
	return msgServer{k}
}

// CreateProvider makes the signer a provider.
func (s msgServer) CreateProvider(ctx context.Context, msg *providerv1beta4.MsgCreateProvider) (*providerv1beta4.MsgCreateProviderResponse, error) {
	if err := ValidateCreateProvider(msg); err != nil {
		return nil, err
	}
	owner, err := parseOwner(msg.Owner)
	if err != nil {
		return nil, err
	}
	switch _, found, err := s.k.Get(ctx, owner); {
	case err != nil:
		return nil, err
	case found:
		return nil, errors.Wrap(ErrProviderExists, msg.Owner)
	}
	if err := s.k.set(ctx, owner, providerv1beta4.Provider(*msg)); err != nil {
		return nil, err
	}
	if err := emit(ctx, &providerv1beta4.EventProviderCreated{Owner: msg.Owner}); err != nil {
		return nil, err
	}
	return &providerv1beta4.MsgCreateProviderResponse{}, nil
}

// UpdateProvider replaces all that the signer's provider says of itself.
func (s msgServer) UpdateProvider(ctx context.Context, msg *providerv1beta4.MsgUpdateProvider) (*providerv1beta4.MsgUpdateProviderResponse, error) {
	if err := ValidateUpdateProvider(msg); err != nil {
		return nil, err
	}
	owner, err := parseOwner(msg.Owner)
	if err != nil {
		return nil, err
	}
	switch _, found, err := s.k.Get(ctx, owner); {
	case err != nil:
		return nil, err
	case !found:
		return nil, errors.Wrap(ErrProviderNotFound, msg.Owner)
	}
	if err := s.k.set(ctx, owner, providerv1beta4.Provider(*msg)); err != nil {
		return nil, err
	}
	if err := emit(ctx, &providerv1beta4.EventProviderUpdated{Owner: msg.Owner}); err != nil {
		return nil, err
	}
	return &providerv1beta4.MsgUpdateProviderResponse{}, nil
}

// DeleteProvider always fails: the contract has the message, and no chain does
// what it says.
func (s msgServer) DeleteProvider(ctx context.Context, msg *providerv1beta4.MsgDeleteProvider) (*providerv1beta4.MsgDeleteProviderResponse, error) {
	if err := ValidateDeleteProvider(msg); err != nil {
		return nil, err
	}
	owner, err := parseOwner(msg.Owner)
	if err != nil {
		return nil, err
	}
	switch _, found, err := s.k.Get(ctx, owner); {
	case err != nil:
		return nil, err
	case !found:
		return nil, errors.Wrap(ErrProviderNotFound, msg.Owner)
	}
	return nil, errors.Wrap(ErrInternal, "a provider is never deleted: stop bidding, and close its bids")
}
