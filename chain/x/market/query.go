package market

import (
	"bytes"
	"cmp"
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"cosmossdk.io/collections"
	"cosmossdk.io/errors"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
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
func NewQueryServer(k *Keeper) marketv1beta5.QueryServer {
	return queryServer{k}
}

// Orders lists orders, page by page.
func (s queryServer) Orders(ctx context.Context, req *marketv1beta5.QueryOrdersRequest) (*marketv1beta5.QueryOrdersResponse, error) {
	f := req.Filters
	all := filter{marketv1.BidID{Owner: f.Owner, DSeq: f.DSeq, GSeq: f.GSeq, OSeq: f.OSeq}, marketv1beta5.Order_State_value[f.State]}
	orders, page, err := list(ctx, s.k.orders, all, f.State, req.Pagination, func(o marketv1beta5.Order) bool {
		return all.selects(marketv1.BidID{Owner: o.ID.Owner, DSeq: o.ID.DSeq, GSeq: o.ID.GSeq, OSeq: o.ID.OSeq}, int32(o.State))
	})
	return answer(&marketv1beta5.QueryOrdersResponse{Orders: orders, Pagination: page}, err)
}

// Order answers one order.
func (s queryServer) Order(ctx context.Context, req *marketv1beta5.QueryOrderRequest) (*marketv1beta5.QueryOrderResponse, error) {
	if err := validateOrderID(req.ID); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	order, found, err := s.k.GetOrder(ctx, req.ID)
	if err != nil || !found {
		return nil, orErr(err, status.Errorf(codes.NotFound, "order %s is not found", orderText(req.ID)))
	}
	return &marketv1beta5.QueryOrderResponse{Order: order}, nil
}

// Bids lists bids with the accounts that hold their deposits, page by page.
func (s queryServer) Bids(ctx context.Context, req *marketv1beta5.QueryBidsRequest) (*marketv1beta5.QueryBidsResponse, error) {
	f := req.Filters
	all := filter{marketv1.BidID{Owner: f.Owner, DSeq: f.DSeq, GSeq: f.GSeq, OSeq: f.OSeq, Provider: f.Provider, BSeq: f.BSeq}, marketv1beta5.Bid_State_value[f.State]}
	bids, page, err := list(ctx, s.k.bids, all, f.State, req.Pagination, func(b marketv1beta5.Bid) bool {
		return all.selects(b.ID, int32(b.State))
	})
	if err != nil {
		return nil, err
	}
	res := &marketv1beta5.QueryBidsResponse{Pagination: page}
	for _, bid := range bids {
		one, err := s.withAccount(ctx, bid)
		if err != nil {
			return nil, err
		}
		res.Bids = append(res.Bids, *one)
	}
	return res, nil
}

// Bid answers one bid and the account that holds its deposit.
func (s queryServer) Bid(ctx context.Context, req *marketv1beta5.QueryBidRequest) (*marketv1beta5.QueryBidResponse, error) {
	if err := validateBidParts(req.ID); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	bid, found, err := s.k.GetBid(ctx, req.ID)
	if err != nil || !found {
		return nil, orErr(err, status.Errorf(codes.NotFound, "bid %s is not found", bidText(req.ID)))
	}
	return s.withAccount(ctx, bid)
}

// Leases lists leases with their payments, page by page.
func (s queryServer) Leases(ctx context.Context, req *marketv1beta5.QueryLeasesRequest) (*marketv1beta5.QueryLeasesResponse, error) {
	f := req.Filters
	all := filter{marketv1.BidID{Owner: f.Owner, DSeq: f.DSeq, GSeq: f.GSeq, OSeq: f.OSeq, Provider: f.Provider, BSeq: f.BSeq}, marketv1.Lease_State_value[f.State]}
	leases, page, err := list(ctx, s.k.leases, all, f.State, req.Pagination, func(l marketv1.Lease) bool {
		return all.selects(marketv1.BidID(l.ID), int32(l.State))
	})
	if err != nil {
		return nil, err
	}
	res := &marketv1beta5.QueryLeasesResponse{Pagination: page}
	for _, lease := range leases {
		one, err := s.withPayment(ctx, lease)
		if err != nil {
			return nil, err
		}
		res.Leases = append(res.Leases, *one)
	}
	return res, nil
}

// Lease answers one lease and its payment.
func (s queryServer) Lease(ctx context.Context, req *marketv1beta5.QueryLeaseRequest) (*marketv1beta5.QueryLeaseResponse, error) {
	if err := validateBidParts(marketv1.BidID(req.ID)); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	lease, found, err := s.k.GetLease(ctx, req.ID)
	if err != nil || !found {
		return nil, orErr(err, status.Errorf(codes.NotFound, "lease %s is not found", leaseText(req.ID)))
	}
	return s.withPayment(ctx, lease)
}

// Params answers the parameters in force.
func (s queryServer) Params(ctx context.Context, _ *marketv1beta5.QueryParamsRequest) (*marketv1beta5.QueryParamsResponse, error) {
	params, err := s.k.GetParams(ctx)
	return answer(&marketv1beta5.QueryParamsResponse{Params: params}, err)
}

func (s queryServer) withAccount(ctx context.Context, bid marketv1beta5.Bid) (*marketv1beta5.QueryBidResponse, error) {
	if err := s.k.readOffer(ctx, &bid); err != nil {
		return nil, err
	}
	account, err := s.k.escrow.GetAccount(ctx, bidAccount(bid.ID))
	return answer(&marketv1beta5.QueryBidResponse{Bid: bid, EscrowAccount: account}, errors.Wrapf(err, "read account of bid %s", bidText(bid.ID)))
}

func (s queryServer) withPayment(ctx context.Context, lease marketv1.Lease) (*marketv1beta5.QueryLeaseResponse, error) {
	payment, err := s.k.escrow.GetPayment(ctx, leasePayment(lease.ID))
	return answer(&marketv1beta5.QueryLeaseResponse{Lease: lease, EscrowPayment: payment}, errors.Wrapf(err, "read payment of lease %s", leaseText(lease.ID)))
}

// filter selects records: the parts of an id and the state that are not zero.
type filter struct {
	id    marketv1.BidID
	state int32
}

func (f filter) selects(id marketv1.BidID, state int32) bool {
	return selects(f.id.Owner, id.Owner) && selects(f.id.DSeq, id.DSeq) && selects(f.id.GSeq, id.GSeq) && selects(f.id.OSeq, id.OSeq) &&
		selects(f.id.Provider, id.Provider) && selects(f.id.BSeq, id.BSeq) && selects(f.state, state)
}

// selects says that a filter's field is empty, or what the record has.
func selects[T comparable](want, have T) bool {
	var all T
	return want == all || want == have
}

// span is a range of one order of keys, the shortest that holds all records a
// filter selects.
type span struct {
	index  func(context.Context, collections.Ranger[[]byte]) (keys, error)
	prefix []byte
	lead   int // how many bytes of a key come before the record's own key
}

// keys walks keys in order.
type keys interface {
	Valid() bool
	Next()
	Key() ([]byte, error)
	Close() error
}

// newSpan chooses the order of keys: an owner's deployment, or all of an
// owner's, lie together; then what a provider has, then what has a state.
func newSpan[V any](f filter, r *records[V]) (span, error) {
	own, err := bidKey(f.id)
	if err != nil {
		return span{}, err
	}
	fromIndex := func(i *index[V], lead []byte) span {
		return span{
			index:  func(ctx context.Context, by collections.Ranger[[]byte]) (keys, error) { return i.keys.Iterate(ctx, by) },
			prefix: append(bytes.Clone(lead), own...),
			lead:   len(lead),
		}
	}
	exact := f.id.Owner != "" && f.id.DSeq != 0
	switch {
	case f.id.Provider != "" && !exact && r.Indexes.byProvider != nil:
		lead, err := providerLead(f.id.Provider, f.state)
		if err != nil {
			return span{}, err
		}
		s := fromIndex(r.Indexes.byProvider, lead)
		if f.state == 0 {
			s.prefix = lead // the state lies between the provider and the owner
			s.lead++
		}
		return s, nil
	case f.state != 0 && !exact:
		return fromIndex(r.Indexes.byState, stateLead(f.state)), nil
	default:
		return span{
			index:  func(ctx context.Context, by collections.Ranger[[]byte]) (keys, error) { return r.Iterate(ctx, by) },
			prefix: own,
		}, nil
	}
}

// list reads one page of the records that a filter, whose state is also given
// as it was written, selects. The key of the next page is the place where it
// begins, so that records made in between are neither skipped nor told twice.
func list[V any](ctx context.Context, r *records[V], f filter, state string, page *query.PageRequest, wanted func(V) bool,
) ([]V, *query.PageResponse, error) {
	s, err := newSpan(f, r)
	if err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if page == nil {
		page = &query.PageRequest{}
	}
	limit := min(cmp.Or(page.Limit, pageSize), maxPage)
	switch {
	case state != "" && f.state == 0:
		return nil, nil, status.Errorf(codes.InvalidArgument, "filters.state %q is not a state of these records", state)
	case page.Offset > 0 && len(page.Key) > 0:
		return nil, nil, status.Error(codes.InvalidArgument, "pagination has a key and an offset: give one of them")
	case page.Offset > 0 && f.state == 0:
		return nil, nil, status.Error(codes.InvalidArgument, "pagination.offset needs filters.state: give it, or go on by pagination.key")
	case len(page.Key) > 0 && !bytes.HasPrefix(page.Key, s.prefix):
		return nil, nil, status.Error(codes.InvalidArgument, "pagination.key is not of this list: repeat the filters of the page before")
	}
	it, err := s.index(ctx, s.ranger(page))
	if err != nil {
		return nil, nil, fmt.Errorf("list market records: %w", err)
	}
	defer it.Close()

	var (
		found []V
		res   query.PageResponse
		seen  uint64 // wanted records passed
	)
	for ; it.Valid(); it.Next() {
		key, err := it.Key()
		if err != nil {
			return nil, nil, fmt.Errorf("read key of market record: %w", err)
		}
		v, err := r.Get(ctx, key[s.lead:])
		if err != nil {
			return nil, nil, fmt.Errorf("read market record: %w", err)
		}
		if !wanted(v) {
			continue
		}
		seen++
		switch {
		case seen <= page.Offset:
		case uint64(len(found)) < limit:
			found = append(found, v)
		case res.NextKey == nil:
			res.NextKey = bytes.Clone(key)
		}
		if res.NextKey != nil && (!page.CountTotal || len(page.Key) > 0) {
			break
		}
	}
	if page.CountTotal && len(page.Key) == 0 {
		res.Total = seen
	}
	return found, &res, nil
}

// ranger is the part of a span that a page begins in.
func (s span) ranger(page *query.PageRequest) collections.Ranger[[]byte] {
	by := new(collections.Range[[]byte])
	switch {
	case len(page.Key) == 0 && len(s.prefix) > 0:
		by = by.Prefix(s.prefix)
	case len(page.Key) > 0 && page.Reverse:
		by = by.StartInclusive(s.prefix).EndInclusive(page.Key)
	case len(page.Key) > 0:
		by = by.StartInclusive(page.Key)
		if after := storetypes.PrefixEndBytes(s.prefix); after != nil {
			by = by.EndExclusive(after)
		}
	}
	if page.Reverse {
		by = by.Descending()
	}
	return by
}
