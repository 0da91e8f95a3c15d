package escrow_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cosmos/gogoproto/jsonpb"
	"github.com/cosmos/gogoproto/proto"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowv1"
	"github.com/croft-cloud/croft/chain/x/escrow"

	"github.com/cosmos/cosmos-sdk/types/query"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares the JSON that clients are shown.
func golden(t *testing.T, name string, msg proto.Message) {
	t.Helper()
	text, err := (&jsonpb.Marshaler{OrigName: true, EmitDefaults: true}).MarshalToString(msg)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(text), "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, diff)
	}
}

func TestQueriesShowTheObservedJSON(t *testing.T) {
	c := newChain(t)
	c.fund(who("tenant"), "5000000uact")
	c.fund(who("p"), "500000uakt")
	c.at(18)
	id := c.open("tenant", 1001, "5000000uact")
	c.at(43)
	bid := escrowidv1.Account{Scope: escrowidv1.ScopeBid, XID: fmt.Sprintf("%s/1001/1/1/%s", who("tenant"), who("p"))}
	deposits, err := c.take("p", bid.Scope, deposit("500000uakt"))
	c.must(err)
	c.must(c.keeper.AccountCreate(c.ctx, bid, who("p"), deposits))
	c.at(44)
	p := c.lease(id, 1, "p", "50uact")
	c.at(215)
	c.must(c.keeper.PaymentWithdraw(c.ctx, p))

	accounts, err := c.query.Accounts(c.ctx, &escrowv1.QueryAccountsRequest{})
	c.must(err)
	golden(t, "accounts.json", accounts)
	payments, err := c.query.Payments(c.ctx, &escrowv1.QueryPaymentsRequest{State: "open", XID: "deployment/" + id.XID})
	c.must(err)
	golden(t, "payments.json", payments)
}

func TestQueries(t *testing.T) {
	c := newChain(t)
	c.fund(who("tenant"), "100000uact")
	c.fund(who("other"), "1000uact")
	for i := range 205 {
		id := c.open("tenant", i+1, "10uact")
		c.lease(id, 1, "p", "1uact")
	}
	c.open("other", 1, "10uact")
	c.at(3)
	c.must(c.keeper.AccountClose(c.ctx, deployment("tenant", 7)))
	c.at(50)
	_, err := c.keeper.AccountSettle(c.ctx, deployment("tenant", 8))
	c.must(err)

	t.Run("a page has 100 records and the key of the next one", func(t *testing.T) {
		seen := map[string]bool{}
		var sizes []string
		page := &query.PageRequest{}
		for {
			resp, err := c.query.Accounts(c.ctx, &escrowv1.QueryAccountsRequest{State: "open", Pagination: page})
			c.must(err)
			for _, a := range resp.Accounts {
				seen[a.ID.XID] = true
				equal(t, "state", a.State.State, escrowtypesv1.StateOpen)
			}
			sizes = append(sizes, fmt.Sprint(len(resp.Accounts)))
			if len(resp.Pagination.NextKey) == 0 {
				break
			}
			page = &query.PageRequest{Key: resp.Pagination.NextKey}
		}
		equal(t, "pages", strings.Join(sizes, " "), "100 100 4")
		equal(t, "accounts", len(seen), 204)
	})
	for _, tc := range []struct {
		name, state, xid string
		page             *query.PageRequest
		want             int
	}{
		{"the state selects", "closed", "", nil, 1},
		{"an overdrawn account is listed as such", "overdrawn", "", nil, 1},
		{"the xid is a prefix of scope and xid", "open", "deployment/" + who("other").String(), nil, 1},
		{"the xid of one account selects it and those that begin like it", "open", "deployment/" + who("tenant").String() + "/20", nil, 7},
		{"a state and an xid together select", "closed", "deployment/" + who("tenant").String() + "/7", nil, 1},
		{"a list of nothing is empty", "open", "bid/", nil, 0},
		{"an offset skips within a state", "open", "", &query.PageRequest{Offset: 200, Limit: 50}, 4},
		{"a limit is kept", "", "", &query.PageRequest{Limit: 3}, 3},
		{"a huge limit is cut to what there is", "", "", &query.PageRequest{Limit: 1 << 62}, 206},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, err := c.query.Accounts(c.ctx, &escrowv1.QueryAccountsRequest{State: tc.state, XID: tc.xid, Pagination: tc.page})
			c.must(err)
			equal(t, "accounts", len(resp.Accounts), tc.want)
		})
	}
	for _, tc := range []struct {
		name, state, xid string
		page             *query.PageRequest
	}{
		{"an xid without a state is refused", "", "deployment/", nil},
		{"an unknown state is refused", "active", "", nil},
		{"the state invalid is refused", "invalid", "", nil},
		{"an offset without a state is refused", "", "", &query.PageRequest{Offset: 1}},
		{"an offset and a key are refused", "open", "", &query.PageRequest{Offset: 1, Key: []byte("x")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.query.Accounts(c.ctx, &escrowv1.QueryAccountsRequest{State: tc.state, XID: tc.xid, Pagination: tc.page})
			equal(t, "code of accounts", status.Code(err), codes.InvalidArgument)
			_, err = c.query.Payments(c.ctx, &escrowv1.QueryPaymentsRequest{State: tc.state, XID: tc.xid, Pagination: tc.page})
			equal(t, "code of payments", status.Code(err), codes.InvalidArgument)
		})
	}
	t.Run("payments are listed by the account's id", func(t *testing.T) {
		resp, err := c.query.Payments(c.ctx, &escrowv1.QueryPaymentsRequest{State: "overdrawn", XID: "deployment/" + deployment("tenant", 8).XID + "/"})
		c.must(err)
		equal(t, "payments", len(resp.Payments), 1)
	})
	t.Run("an exported state is imported as it was", func(t *testing.T) {
		state, err := c.keeper.ExportGenesis(c.ctx)
		c.must(err)
		d := newChain(t)
		held := c.bank.GetAllBalances(c.ctx, authtypes.NewModuleAddress(escrow.ModuleName))
		d.fund(who("whale"), held.String())
		d.must(d.bank.SendCoinsFromAccountToModule(d.ctx, who("whale"), escrow.ModuleName, held))
		d.must(escrow.ValidateGenesis(state))
		d.must(d.keeper.InitGenesis(d.ctx, state))
		d.holds()
		again, err := d.keeper.ExportGenesis(d.ctx)
		d.must(err)
		was, err := state.Marshal()
		d.must(err)
		is, err := again.Marshal()
		d.must(err)
		if !bytes.Equal(was, is) {
			t.Error("exported states differ")
		}
	})
	t.Run("a genesis whose coins the bank does not hold is refused", func(t *testing.T) {
		state, err := c.keeper.ExportGenesis(c.ctx)
		c.must(err)
		d := newChain(t)
		d.refuse(d.keeper.InitGenesis(d.ctx, state), escrow.ErrInvalidSettlement)
	})
	t.Run("grants of the genesis are found", func(t *testing.T) {
		d := newChain(t)
		d.grants = d.authz // nobody observes
		d.fund(who("granter"), "10uact")
		d.grant("granter", "tenant", "10uact", escrowv1.DepositScopeDeployment)
		d.must(d.keeper.InitGenesis(d.ctx, escrow.DefaultGenesis()))
		_, err := d.take("tenant", escrowidv1.ScopeDeployment, deposit("10uact", depositv1.SourceGrant))
		d.must(err)
	})
}
