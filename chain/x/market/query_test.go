package market

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cosmos/gogoproto/proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1beta5"

	"github.com/cosmos/cosmos-sdk/types/query"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares the JSON that REST and the CLI show with a file.
func (w *world) golden(t *testing.T, name string, answer proto.Message) {
	t.Helper()
	bz, err := w.cdc.MarshalJSON(answer)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(bz, &v); err != nil {
		t.Fatal(err)
	}
	if bz, err = json.MarshalIndent(v, "", "  "); err != nil {
		t.Fatal(err)
	}
	got := strings.NewReplacer(w.tenant, "akash1T", w.provider, "akash1P").Replace(string(bz)) + "\n"
	path := filepath.Join("testdata", name+".golden.json")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

func TestAnswersHaveTheShapeThatClientsRead(t *testing.T) {
	w := newWorld(t)
	w.ctx = w.ctx.WithBlockHeight(43)
	open := w.bid(t, w.deploy(t, 1001, 5_000_000), w.provider, func(m *marketv1beta5.MsgCreateBid) { m.ReclamationWindow = hours(1) })
	w.pass(1)
	id := w.lease(t, open)
	w.pass(171)
	if err := w.withdraw(id); err != nil {
		t.Fatal(err)
	}
	w.bid(t, w.deploy(t, 1002, 5_000_000), w.provider)

	order, err := w.queries.Order(w.ctx, &marketv1beta5.QueryOrderRequest{ID: orderOf(open)})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "order", order)
	bid, err := w.queries.Bid(w.ctx, &marketv1beta5.QueryBidRequest{ID: open})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "bid", bid)
	bids, err := w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{Filters: marketv1beta5.BidFilters{State: "open"}})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "bids", bids)
	lease, err := w.queries.Lease(w.ctx, &marketv1beta5.QueryLeaseRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "lease", lease)
	params, err := w.queries.Params(w.ctx, &marketv1beta5.QueryParamsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "params", params)
}

func TestListOfNothingIsEmpty(t *testing.T) {
	w := newWorld(t)
	orders, err := w.queries.Orders(w.ctx, &marketv1beta5.QueryOrdersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w.golden(t, "orders_none", orders)
	if res, err := w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{}); err != nil || len(res.Bids) != 0 {
		t.Errorf("Bids = %v, %v", res, err)
	}
	if res, err := w.queries.Leases(w.ctx, &marketv1beta5.QueryLeasesRequest{}); err != nil || len(res.Leases) != 0 {
		t.Errorf("Leases = %v, %v", res, err)
	}
}

func TestInfoOfNothingIsNotFound(t *testing.T) {
	w := newWorld(t)
	bid := w.leased(t, 1, 1_000_000)
	other, bseq := bid, bid
	other.DSeq, bseq.BSeq = 9, 1
	_, err := w.queries.Order(w.ctx, &marketv1beta5.QueryOrderRequest{ID: orderOf(marketv1.BidID(other))})
	wantCode(t, err, codes.NotFound)
	for _, id := range []marketv1.LeaseID{other, bseq} {
		_, err = w.queries.Bid(w.ctx, &marketv1beta5.QueryBidRequest{ID: marketv1.BidID(id)})
		wantCode(t, err, codes.NotFound)
		_, err = w.queries.Lease(w.ctx, &marketv1beta5.QueryLeaseRequest{ID: id})
		wantCode(t, err, codes.NotFound)
	}
	_, err = w.queries.Lease(w.ctx, &marketv1beta5.QueryLeaseRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code is %s (%v), want %s", got, err, want)
	}
}

// crowd makes three tenants' worth of bids and leases in all states.
func crowd(t *testing.T) *world {
	w := newWorld(t)
	rival := person("rival")
	w.register(rival)
	for i, tenant := range []string{person("tenant"), person("tenant two"), person("tenant three")} {
		w.tenant = tenant
		for dseq := uint64(1); dseq <= 4; dseq++ {
			order := w.deploy(t, dseq, 1_000_000)
			mine := w.bid(t, order, w.provider)
			w.bid(t, order, rival)
			if (int(dseq)+i)%2 == 0 {
				continue
			}
			id := w.lease(t, mine)
			if dseq > 2 {
				if err := w.closeLease(id); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	w.tenant = person("tenant")
	return w
}

func TestEveryFilterSelectsWhatItSays(t *testing.T) {
	w := crowd(t)
	every, err := w.k.bids.under(w.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	owners := []string{"", w.tenant, person("tenant two"), person("nobody")}
	providers := []string{"", w.provider, person("rival")}
	states := []string{"", "open", "active", "lost", "closed"}
	for _, owner := range owners {
		for _, provider := range providers {
			for _, state := range states {
				for _, dseq := range []uint64{0, 2, 3} {
					for _, oseq := range []uint32{0, 1, 2} {
						f := marketv1beta5.BidFilters{Owner: owner, Provider: provider, State: state, DSeq: dseq, GSeq: oseq, OSeq: oseq}
						want := make(map[string]bool)
						for _, b := range every {
							if (owner == "" || owner == b.ID.Owner) && (provider == "" || provider == b.ID.Provider) &&
								(state == "" || state == b.State.String()) && (dseq == 0 || dseq == b.ID.DSeq) && (oseq == 0 || oseq == b.ID.OSeq && oseq == b.ID.GSeq) {
								want[bidText(b.ID)] = true
							}
						}
						res, err := w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{Filters: f})
						if err != nil {
							t.Fatal(err)
						}
						for _, b := range res.Bids {
							if !want[bidText(b.Bid.ID)] {
								t.Errorf("%+v selects %s, which it should not, or twice", f, bidText(b.Bid.ID))
							}
							delete(want, bidText(b.Bid.ID))
						}
						if len(want) != 0 {
							t.Errorf("%+v leaves out %v", f, want)
						}
					}
				}
			}
		}
	}
	for filters, want := range map[marketv1.LeaseFilters]int{
		{}:                          6,
		{State: "active"}:           3,
		{State: "closed"}:           3,
		{State: "reclaiming"}:       0,
		{Provider: w.provider}:      6,
		{Provider: person("rival")}: 0,
		{Owner: w.tenant}:           2,
		{Owner: w.tenant, DSeq: 1}:  1,
		{BSeq: 1}:                   0,
		{Provider: w.provider, State: "closed", Owner: person("tenant two")}: 1,
	} {
		res, err := w.queries.Leases(w.ctx, &marketv1beta5.QueryLeasesRequest{Filters: filters})
		if err != nil || len(res.Leases) != want {
			t.Errorf("leases by %+v: %d, %v; want %d", filters, len(res.GetLeases()), err, want)
		}
	}
	for filters, want := range map[marketv1beta5.OrderFilters]int{
		{}:                                 15,
		{State: "open"}:                    9,
		{State: "active", Owner: w.tenant}: 1,
		{State: "closed"}:                  3,
		{OSeq: 2}:                          3,
	} {
		res, err := w.queries.Orders(w.ctx, &marketv1beta5.QueryOrdersRequest{Filters: filters})
		if err != nil || len(res.Orders) != want {
			t.Errorf("orders by %+v: %d, %v; want %d", filters, len(res.GetOrders()), err, want)
		}
	}
}

func TestPagesFollowEachOtherWithoutGapOrRepetition(t *testing.T) {
	w := crowd(t)
	for _, f := range []marketv1beta5.BidFilters{
		{},
		{State: "open"},
		{Provider: w.provider},
		{Provider: w.provider, State: "open"},
		{Owner: w.tenant},
		{Owner: w.tenant, DSeq: 2},
		{DSeq: 3},
		{State: "lost", Owner: w.tenant},
	} {
		whole, err := w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{Filters: f, Pagination: &query.PageRequest{CountTotal: true}})
		if err != nil {
			t.Fatal(err)
		}
		if whole.Pagination.Total != uint64(len(whole.Bids)) || whole.Pagination.NextKey != nil {
			t.Errorf("%+v: page is %v of %d bids", f, whole.Pagination, len(whole.Bids))
		}
		for _, reverse := range []bool{false, true} {
			var got []string
			page := &query.PageRequest{Limit: 2, Reverse: reverse}
			for {
				res, err := w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{Filters: f, Pagination: page})
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range res.Bids {
					got = append(got, bidText(b.Bid.ID))
				}
				if page.Key = res.Pagination.NextKey; page.Key == nil {
					break
				}
			}
			if len(got) != len(whole.Bids) {
				t.Errorf("%+v reverse %v: pages hold %d bids, want %d", f, reverse, len(got), len(whole.Bids))
			}
			for i, id := range got {
				at := i
				if reverse {
					at = len(got) - 1 - i
				}
				if want := bidText(whole.Bids[at].Bid.ID); id != want {
					t.Errorf("%+v reverse %v: bid %d is %s, want %s", f, reverse, i, id, want)
				}
			}
		}
	}
}

func TestPagingRules(t *testing.T) {
	w := newWorld(t)
	for dseq := range uint64(pageSize + 5) {
		w.deploy(t, dseq+1, 1_000_000)
	}
	ask := func(f marketv1beta5.OrderFilters, page *query.PageRequest) (*marketv1beta5.QueryOrdersResponse, error) {
		return w.queries.Orders(w.ctx, &marketv1beta5.QueryOrdersRequest{Filters: f, Pagination: page})
	}
	first, err := ask(marketv1beta5.OrderFilters{}, nil)
	if err != nil || len(first.Orders) != 100 || first.Pagination.NextKey == nil {
		t.Fatalf("the default page is %d orders, %v; want 100 and a key", len(first.GetOrders()), err)
	}
	open := marketv1beta5.OrderFilters{State: "open"}
	if res, err := ask(open, &query.PageRequest{Offset: 103}); err != nil || len(res.Orders) != 2 || res.Orders[0].ID.DSeq != 104 {
		t.Errorf("offset 103 with a state: %v, %v; want orders 104 and 105", res, err)
	}
	for name, req := range map[string]struct {
		filters marketv1beta5.OrderFilters
		page    *query.PageRequest
	}{
		"an offset without a state is refused":     {marketv1beta5.OrderFilters{}, &query.PageRequest{Offset: 1}},
		"a key and an offset together are refused": {open, &query.PageRequest{Offset: 1, Key: []byte{1}}},
		"a key of another list is refused":         {open, &query.PageRequest{Key: []byte("elsewhere")}},
		"an unknown state is refused":              {marketv1beta5.OrderFilters{State: "lost"}, nil},
		"the state invalid is refused":             {marketv1beta5.OrderFilters{State: "invalid"}, nil},
		"an owner that is no address is refused":   {marketv1beta5.OrderFilters{Owner: "me"}, nil},
	} {
		_, err := ask(req.filters, req.page)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err = w.queries.Bids(w.ctx, &marketv1beta5.QueryBidsRequest{Filters: marketv1beta5.BidFilters{Provider: "me"}})
	wantCode(t, err, codes.InvalidArgument)
}

func TestAPageIsNeverLargerThanTheModuleAllows(t *testing.T) {
	w := newWorld(t)
	for i := range uint64(maxPage + 1) {
		order := marketv1beta5.Order{ID: marketv1.OrderID{Owner: w.tenant, DSeq: i + 1, GSeq: 1, OSeq: 1}, State: marketv1beta5.OrderOpen, Spec: groupSpec()}
		if err := w.k.orders.put(w.ctx, order); err != nil {
			t.Fatal(err)
		}
	}
	res, err := w.queries.Orders(w.ctx, &marketv1beta5.QueryOrdersRequest{Pagination: &query.PageRequest{Limit: 1 << 40}})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Orders) != maxPage || len(res.Pagination.NextKey) == 0 {
		t.Errorf("page has %d orders and next key %x, want %d and one", len(res.Orders), res.Pagination.NextKey, maxPage)
	}
}

func TestGenesisIsTheSameAfterARoundTrip(t *testing.T) {
	w := crowd(t)
	w.must(t, func(ctx context.Context) error {
		return w.deployment.create(ctx, w.tenant, 50, coin("uact", 0), &deploymentv1.DeploymentReclamation{MinWindow: *hours(2)}, groupSpec())
	})
	exported := AppModule{keeper: w.k}.ExportGenesis(w.ctx, w.cdc)
	if err := (AppModule{}).ValidateGenesis(w.cdc, nil, exported); err != nil {
		t.Fatal(err)
	}
	again := newWorld(t)
	AppModule{keeper: again.k}.InitGenesis(again.ctx, again.cdc, exported)
	if got := (AppModule{keeper: again.k}).ExportGenesis(again.ctx, again.cdc); string(got) != string(exported) {
		t.Errorf("export after import differs:\n%s\nwant\n%s", got, exported)
	}
	for name, err := range map[string]error{
		"orders": validateIndexes(again.ctx, again.k.orders),
		"bids":   validateIndexes(again.ctx, again.k.bids),
		"leases": validateIndexes(again.ctx, again.k.leases),
	} {
		if err != nil {
			t.Errorf("indexes of %s were not rebuilt: %v", name, err)
		}
	}
}

func TestGenesisThatCannotBeIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *marketv1beta5.GenesisState)
	}{
		{"parameters are invalid", func(s *marketv1beta5.GenesisState) { s.Params.OrderMaxBids = 501 }},
		{"an order is there twice", func(s *marketv1beta5.GenesisState) { s.Orders = append(s.Orders, s.Orders[0]) }},
		{"a bid has no order", func(s *marketv1beta5.GenesisState) { s.Orders = nil }},
		{"a bid is there twice", func(s *marketv1beta5.GenesisState) { s.Bids = append(s.Bids, s.Bids[0]) }},
		{"a lease has no bid", func(s *marketv1beta5.GenesisState) { s.Leases[0].ID.Provider = person("nobody") }},
		{"a lease is there twice", func(s *marketv1beta5.GenesisState) { s.Leases = append(s.Leases, s.Leases[0]) }},
		{"an active order has no lease", func(s *marketv1beta5.GenesisState) { s.Leases = nil }},
		{"an open order has an active bid", func(s *marketv1beta5.GenesisState) { s.Orders[0].State = marketv1beta5.OrderOpen }},
		{"a closed order has an active bid", func(s *marketv1beta5.GenesisState) { s.Orders[0].State = marketv1beta5.OrderClosed }},
		{"an active order has an open bid", func(s *marketv1beta5.GenesisState) { s.Bids[0].State = marketv1beta5.BidOpen }},
		{"an order has no state", func(s *marketv1beta5.GenesisState) { s.Orders[0].State = 0 }},
		{"a state is unknown", func(s *marketv1beta5.GenesisState) { s.Bids[0].State = 9 }},
		{"a lease that ended has no reason", func(s *marketv1beta5.GenesisState) {
			s.Orders[0].State, s.Bids[0].State, s.Leases[0].State = marketv1beta5.OrderClosed, marketv1beta5.BidClosed, marketv1.LeaseClosed
			s.Leases[0].ClosedOn = 100
		}},
		{"a lease that runs has an end", func(s *marketv1beta5.GenesisState) { s.Leases[0].ClosedOn = 100 }},
		{"a lease and its bid differ in price", func(s *marketv1beta5.GenesisState) { s.Leases[0].Price = price("1") }},
		{"a bid is above its order's price", func(s *marketv1beta5.GenesisState) { s.Bids[0].Price = price("1000") }},
		{"an order skips a number", func(s *marketv1beta5.GenesisState) {
			next := s.Orders[0]
			next.ID.OSeq = 3
			s.Orders = append(s.Orders, next)
		}},
		{"two orders of a group are live", func(s *marketv1beta5.GenesisState) {
			next := s.Orders[0]
			next.ID.OSeq, next.State = 2, marketv1beta5.OrderOpen
			s.Orders = append(s.Orders, next)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.leased(t, 1, 1_000_000)
			state, err := w.k.ExportGenesis(w.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := ValidateGenesis(state); err != nil {
				t.Fatal(err)
			}
			tc.change(state)
			if err := ValidateGenesis(state); err == nil {
				t.Error("it is accepted")
			}
		})
	}
}
