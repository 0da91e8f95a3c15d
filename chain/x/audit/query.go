package audit

import (
	"cmp"
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"cosmossdk.io/collections"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

// pageSize is how many records a list has when the client names no limit, and
// maxPage how many it has at most: who asks for more gets so many and the next key.
const (
	pageSize = 100
	maxPage  = 1000
)

type queryServer struct {
	k *Keeper
}

// NewQueryServer serves the module's queries.
func NewQueryServer(k *Keeper) auditv1.QueryServer {
	return queryServer{k}
}

// AllProvidersAttributes lists all records, page by page.
func (s queryServer) AllProvidersAttributes(ctx context.Context, req *auditv1.QueryAllProvidersAttributesRequest) (*auditv1.QueryProvidersResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	return s.list(ctx, nil, req.Pagination)
}

// ProviderAttributes lists what is signed about one provider, page by page.
func (s queryServer) ProviderAttributes(ctx context.Context, req *auditv1.QueryProviderAttributesRequest) (*auditv1.QueryProvidersResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	owner, err := parseAddress(req.Owner)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "owner: %v", err)
	}
	return s.list(ctx, owner, req.Pagination)
}

// ProviderAuditorAttributes answers what one auditor signed about one provider.
func (s queryServer) ProviderAuditorAttributes(ctx context.Context, req *auditv1.QueryProviderAuditorRequest) (*auditv1.QueryProvidersResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	owner, auditor, err := parties(req.Owner, req.Auditor)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	record, found, err := s.k.GetProviderByAuditor(ctx, owner, auditor)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, status.Errorf(codes.NotFound, "auditor %s has signed nothing about provider %s", req.Auditor, req.Owner)
	}
	return &auditv1.QueryProvidersResponse{Providers: []auditv1.AuditedProvider{record}}, nil
}

// AuditorAttributes lists what one auditor signed, page by page.
func (s queryServer) AuditorAttributes(ctx context.Context, req *auditv1.QueryAuditorAttributesRequest) (*auditv1.QueryProvidersResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	auditor, err := parseAddress(req.Auditor)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "auditor: %v", err)
	}
	page, err := pageOf(req.Pagination)
	if err != nil {
		return nil, err
	}
	records, next, err := query.CollectionPaginate(ctx, s.k.byAuditor, page,
		func(key pair, _ collections.NoValue) (auditv1.AuditedProvider, error) {
			return s.k.records.Get(ctx, collections.Join(key.K2(), key.K1()))
		},
		query.WithCollectionPaginationPairPrefix[sdk.AccAddress, sdk.AccAddress](auditor))
	if err != nil {
		return nil, fmt.Errorf("list audits by %s: %w", req.Auditor, err)
	}
	return &auditv1.QueryProvidersResponse{Providers: records, Pagination: next}, nil
}

// list reads one page of the records of a provider; nil is all providers.
func (s queryServer) list(ctx context.Context, owner sdk.AccAddress, req *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
	page, err := pageOf(req)
	if err != nil {
		return nil, err
	}
	records, next, err := query.CollectionPaginate(ctx, s.k.records, page,
		func(_ pair, record auditv1.AuditedProvider) (auditv1.AuditedProvider, error) { return record, nil },
		func(o *query.CollectionsPaginateOptions[pair]) {
			if owner != nil {
				prefix := collections.PairPrefix[sdk.AccAddress, sdk.AccAddress](owner)
				o.Prefix = &prefix
			}
		})
	if err != nil {
		return nil, fmt.Errorf("list audits: %w", err)
	}
	return &auditv1.QueryProvidersResponse{Providers: records, Pagination: next}, nil
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
	page.Limit = min(cmp.Or(page.Limit, pageSize), maxPage)
	return &page, nil
}
