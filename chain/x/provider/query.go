package provider

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

// pageSize is how many records a list has when the client names no limit.
const pageSize = 100

type queryServer struct {
	k *Keeper
}

// NewQueryServer serves the module's queries.
func NewQueryServer(k *Keeper) providerv1beta4.QueryServer {
	return queryServer{k}
}

// Providers lists all providers, page by page.
func (s queryServer) Providers(ctx context.Context, req *providerv1beta4.QueryProvidersRequest) (*providerv1beta4.QueryProvidersResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	page, err := pageOf(req.Pagination)
	if err != nil {
		return nil, err
	}
	providers, next, err := query.CollectionPaginate(ctx, s.k.providers, page,
		func(_ sdk.AccAddress, p providerv1beta4.Provider) (providerv1beta4.Provider, error) { return p, nil })
	if err != nil {
		return nil, fmt.Errorf("list providers: %w", err)
	}
	return &providerv1beta4.QueryProvidersResponse{Providers: providers, Pagination: next}, nil
}

// Provider answers one provider.
func (s queryServer) Provider(ctx context.Context, req *providerv1beta4.QueryProviderRequest) (*providerv1beta4.QueryProviderResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	owner, err := parseAddress(req.Owner)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p, found, err := s.k.Get(ctx, owner)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, status.Errorf(codes.NotFound, "provider %s is not found", req.Owner)
	}
	return &providerv1beta4.QueryProviderResponse{Provider: p}, nil
}

func errEmptyRequest() error {
	return status.Error(codes.InvalidArgument, "request is empty")
}

// pageOf copies what the client asked for and adds the page size. A total is
// counted only if the client wants it.
func pageOf(req *query.PageRequest) (*query.PageRequest, error) {
	var page query.PageRequest
	if req != nil {
		page = *req
	}
	if page.Offset > 0 && len(page.Key) > 0 {
		return nil, status.Error(codes.InvalidArgument, "pagination has a key and an offset: give one of them")
	}
	if page.Limit == 0 {
		page.Limit = pageSize
	}
	return &page, nil
}
