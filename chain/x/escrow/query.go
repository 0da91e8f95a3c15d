package escrow

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cosmossdk.io/collections"

	"github.com/cosmos/cosmos-sdk/types/query"
)

// maxPage is how many records one answer holds. Who asks for more gets so many
// and the key of the next page.
const maxPage = 1000

type queryServer struct {
	keeper *Keeper
}

// NewQueryServer returns the query service of the module.
func NewQueryServer(k *Keeper) escrowv1.QueryServer { return queryServer{keeper: k} }

// Accounts lists accounts as they were last settled, by the order of their keys.
func (s queryServer) Accounts(ctx context.Context, req *escrowv1.QueryAccountsRequest) (*escrowv1.QueryAccountsResponse, error) {
	if req == nil {
		return nil, status.Error(codes.InvalidArgument, "request is empty")
	}
	found, page, err := list(ctx, s.keeper.accounts, s.keeper.accountsByState, req.State, req.XID, req.Pagination)
	if err != nil {
		return nil, err
	}
	return &escrowv1.QueryAccountsResponse{Accounts: found, Pagination: page}, nil
}

// Payments lists payments as they were last settled, by the order of their keys.
func (s queryServer) Payments(ctx context.Context, req *escrowv1.QueryPaymentsRequest) (*escrowv1.QueryPaymentsResponse, error) {
	if req == nil {
		return nil, status.Error(codes.InvalidArgument, "request is empty")
	}
	found, page, err := list(ctx, s.keeper.payments, s.keeper.paymentsByState, req.State, req.XID, req.Pagination)
	if err != nil {
		return nil, err
	}
	return &escrowv1.QueryPaymentsResponse{Payments: found, Pagination: page}, nil
}

// list pages through all records, or through those in a state whose keys begin
// with xid.
func list[T any](
	ctx context.Context, records collections.Map[string, T], byState collections.KeySet[stateKey], state, xid string, page *query.PageRequest,
) ([]T, *query.PageResponse, error) {
	var ask query.PageRequest
	if page != nil {
		ask = *page
	}
	ask.Limit = min(ask.Limit, maxPage)
	if ask.Offset > 0 && len(ask.Key) > 0 {
		return nil, nil, status.Error(codes.InvalidArgument, "pagination has both an offset and a key: give one of them")
	}
	if state == "" {
		if xid != "" {
			return nil, nil, status.Error(codes.InvalidArgument, "xid needs a state: open, closed or overdrawn")
		}
		if ask.Offset > 0 {
			return nil, nil, status.Error(codes.InvalidArgument, "offset needs a state: open, closed or overdrawn")
		}
		return paged(query.CollectionPaginate(ctx, records, &ask, func(_ string, record T) (T, error) { return record, nil }))
	}
	value, ok := escrowtypesv1.State_value[state]
	if !ok || value == int32(escrowtypesv1.StateInvalid) {
		return nil, nil, status.Errorf(codes.InvalidArgument, "state %q is unknown: open, closed or overdrawn", shorten(state))
	}
	prefix := collections.Join(value, xid)
	return paged(query.CollectionPaginate(ctx, byState, &ask,
		func(key stateKey, _ collections.NoValue) (T, error) { return records.Get(ctx, key.K2()) },
		func(o *query.CollectionsPaginateOptions[stateKey]) { o.Prefix = &prefix }))
}

func paged[T any](found []T, page *query.PageResponse, err error) ([]T, *query.PageResponse, error) {
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "list escrow records: %s", err)
	}
	return found, page, nil
}
