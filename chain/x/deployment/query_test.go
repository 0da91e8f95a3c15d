package deployment

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cosmos/gogoproto/proto"
	gateway "github.com/grpc-ecosystem/grpc-gateway/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares JSON with a file of testdata, where addresses are shortened.
func golden(t *testing.T, name string, got []byte, short map[string]string) {
	t.Helper()
	for long, word := range short {
		got = bytes.ReplaceAll(got, []byte(long), []byte(word))
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, got, "", "  "); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	indented.WriteByte('\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, indented.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(indented.Bytes(), want) {
		t.Errorf("%s\n got  %s\n want %s", name, indented.Bytes(), want)
	}
}

// The contract's observed answer, 197 blocks after creation, 171 of them leased.
func TestAnAnswerHasTheObservedShape(t *testing.T) {
	w := newWorld(t)
	hash, err := hex.DecodeString("7bfa8fd4bd34b51538a0fcf1d44bcd7948d73325e2f4d755f3ed4a7ca3f48e0f")
	succeeds(t, err)
	msg := w.createMsg(1001)
	msg.Hash = hash
	succeeds(t, w.create(msg))
	w.pass(26)
	w.must(t, func(ctx context.Context) error { return w.market.lease(ctx, w.group(1001, 1), 50) })
	w.pass(171)
	w.must(t, func(ctx context.Context) error {
		_, err := w.escrow.AccountSettle(ctx, account(w.id(1001)))
		return err
	})

	res, err := w.queries.Deployment(w.ctx, &deploymentv1beta4.QueryDeploymentRequest{ID: w.id(1001)})
	succeeds(t, err)
	bz, err := w.cdc.MarshalJSON(res)
	succeeds(t, err)
	golden(t, "deployment.json", bz, map[string]string{w.tenant: "akash1T"})

	group, err := w.queries.Group(w.ctx, &deploymentv1beta4.QueryGroupRequest{ID: w.group(1001, 1)})
	succeeds(t, err)
	bz, err = w.cdc.MarshalJSON(group)
	succeeds(t, err)
	golden(t, "group.json", bz, map[string]string{w.tenant: "akash1T"})
}

func TestNothingIsAnEmptyListOrNotFound(t *testing.T) {
	w := newWorld(t)
	res, err := w.queries.Deployments(w.ctx, &deploymentv1beta4.QueryDeploymentsRequest{})
	succeeds(t, err)
	bz, err := w.cdc.MarshalJSON(res)
	succeeds(t, err)
	if got, want := string(bz), `{"deployments":[],"pagination":{"next_key":null,"total":"0"}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	_, err = w.queries.Deployment(w.ctx, &deploymentv1beta4.QueryDeploymentRequest{ID: w.id(1)})
	if status.Code(err) != codes.NotFound {
		t.Errorf("deployment: %v", err)
	}
	_, err = w.queries.Group(w.ctx, &deploymentv1beta4.QueryGroupRequest{ID: w.group(1, 1)})
	if status.Code(err) != codes.NotFound {
		t.Errorf("group: %v", err)
	}
	_, err = w.queries.Deployment(w.ctx, &deploymentv1beta4.QueryDeploymentRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("no id: %v", err)
	}
	_, err = w.queries.Group(w.ctx, nil)
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("no request: %v", err)
	}
}

// many is a world with deployments 1 to 3 of a first tenant, 2 closed, and 1 to
// 130 of a second.
func many(t *testing.T) (w *world, first, second string) {
	w = newWorld(t)
	first = w.tenant
	for dseq := range uint64(3) {
		succeeds(t, w.create(w.createMsg(dseq+1)))
	}
	succeeds(t, w.close(2))
	second = person("zweiter")
	w.tenant = second
	w.escrow.fund(second, "uact", 1_000_000_000)
	for dseq := range uint64(130) {
		succeeds(t, w.create(w.createMsg(dseq+1)))
	}
	return w, first, second
}

// list says which deployments an answer has: f for the first tenant's, s for
// the second's.
func list(res *deploymentv1beta4.QueryDeploymentsResponse, first string) string {
	var words []string
	for _, d := range res.Deployments {
		word := "s"
		if d.Deployment.ID.Owner == first {
			word = "f"
		}
		words = append(words, fmt.Sprint(word, d.Deployment.ID.DSeq))
	}
	return strings.Join(words, " ")
}

func TestFilters(t *testing.T) {
	w, first, second := many(t)
	for _, tc := range []struct {
		name   string
		filter deploymentv1beta4.DeploymentFilters
		want   string
	}{
		{"an owner selects its own", deploymentv1beta4.DeploymentFilters{Owner: first}, "f1 f2 f3"},
		{"an owner and a dseq select one", deploymentv1beta4.DeploymentFilters{Owner: first, DSeq: 3}, "f3"},
		{"a dseq selects those of all owners", deploymentv1beta4.DeploymentFilters{DSeq: 2}, "f2 s2"},
		{"a state selects those in it", deploymentv1beta4.DeploymentFilters{State: "closed"}, "f2"},
		{"a state and an owner select both", deploymentv1beta4.DeploymentFilters{Owner: first, State: "active"}, "f1 f3"},
		{"a state and a dseq select both", deploymentv1beta4.DeploymentFilters{DSeq: 2, State: "active"}, "s2"},
		{"all filters select one", deploymentv1beta4.DeploymentFilters{Owner: second, DSeq: 7, State: "active"}, "s7"},
		{"all filters may select none", deploymentv1beta4.DeploymentFilters{Owner: second, DSeq: 7, State: "closed"}, ""},
		{"an unknown owner has none", deploymentv1beta4.DeploymentFilters{Owner: person("nobody")}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := w.queries.Deployments(w.ctx, &deploymentv1beta4.QueryDeploymentsRequest{Filters: tc.filter})
			succeeds(t, err)
			if got := list(res, first); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	for _, filter := range []deploymentv1beta4.DeploymentFilters{{State: "open"}, {State: "invalid"}, {State: "ACTIVE"}, {Owner: "akash1x"}} {
		_, err := w.queries.Deployments(w.ctx, &deploymentv1beta4.QueryDeploymentsRequest{Filters: filter})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", filter, err)
		}
	}
}

func TestPages(t *testing.T) {
	w, first, second := many(t)
	ask := func(f deploymentv1beta4.DeploymentFilters, p *query.PageRequest) (*deploymentv1beta4.QueryDeploymentsResponse, error) {
		return w.queries.Deployments(w.ctx, &deploymentv1beta4.QueryDeploymentsRequest{Filters: f, Pagination: p})
	}
	t.Run("a page has 100 records if nothing else is asked for", func(t *testing.T) {
		res, err := ask(deploymentv1beta4.DeploymentFilters{}, nil)
		succeeds(t, err)
		if len(res.Deployments) != 100 || len(res.Pagination.NextKey) == 0 {
			t.Errorf("%d records, next %x", len(res.Deployments), res.Pagination.NextKey)
		}
	})
	for name, f := range map[string]deploymentv1beta4.DeploymentFilters{
		"of all": {}, "of an owner": {Owner: second}, "in a state": {State: "active"}, "of an owner in a state": {Owner: second, State: "active"},
	} {
		for _, reverse := range []bool{false, true} {
			t.Run(fmt.Sprintf("keys lead through the whole list %s, reverse %v", name, reverse), func(t *testing.T) {
				all, err := ask(f, &query.PageRequest{Limit: 1000, Reverse: reverse})
				succeeds(t, err)
				var got []string
				page := &query.PageRequest{Limit: 7, Reverse: reverse}
				for {
					res, err := ask(f, page)
					succeeds(t, err)
					got = append(got, list(res, first))
					if page.Key = res.Pagination.NextKey; len(page.Key) == 0 {
						break
					}
				}
				if joined, want := strings.Join(got, " "), list(all, first); joined != want {
					t.Errorf("got %q, want %q", joined, want)
				}
			})
		}
	}
	t.Run("an offset needs a state", func(t *testing.T) {
		_, err := ask(deploymentv1beta4.DeploymentFilters{}, &query.PageRequest{Offset: 1})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
		res, err := ask(deploymentv1beta4.DeploymentFilters{State: "active"}, &query.PageRequest{Offset: 1, Limit: 2, CountTotal: true})
		succeeds(t, err)
		if got := list(res, first); got != "f3 s1" || res.Pagination.Total != 132 {
			t.Errorf("got %q of %d", got, res.Pagination.Total)
		}
	})
	t.Run("a key and an offset are refused together", func(t *testing.T) {
		_, err := ask(deploymentv1beta4.DeploymentFilters{State: "active"}, &query.PageRequest{Offset: 1, Key: []byte{1}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a key that no page had never leaves the list", func(t *testing.T) {
		for _, key := range [][]byte{{0}, {255}, slices.Repeat([]byte{255}, 64), []byte("nonsense")} {
			for _, reverse := range []bool{false, true} {
				res, err := ask(deploymentv1beta4.DeploymentFilters{Owner: first}, &query.PageRequest{Key: key, Reverse: reverse})
				if err == nil && strings.Contains(list(res, first), "s") {
					t.Errorf("key %x: %s", key, list(res, first))
				}
			}
		}
	})
}

// restMarshaler writes answers as the chain's REST server does.
type restMarshaler struct {
	gateway.JSONBuiltin
	cdc codec.Codec
}

func (m *restMarshaler) Marshal(v any) ([]byte, error) {
	if msg, ok := v.(proto.Message); ok {
		return m.cdc.MarshalJSON(msg)
	}
	return m.JSONBuiltin.Marshal(v)
}

// The REST paths and their filters, as clients write them.
func TestREST(t *testing.T) {
	w, first, _ := many(t)
	mux := gateway.NewServeMux(gateway.WithMarshalerOption(gateway.MIMEWildcard, &restMarshaler{cdc: w.cdc}))
	if err := deploymentv1beta4.RegisterQueryHandlerServer(t.Context(), mux, w.queries); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, path, want string }{
		{"a list is filtered by owner and dseq", "/akash/deployment/v1beta4/deployments/list?filters.owner=" + first + "&filters.dseq=3", `"dseq":"3"`},
		{"a list is filtered by state", "/akash/deployment/v1beta4/deployments/list?filters.state=closed", `"state":"closed"`},
		{"a list is paged", "/akash/deployment/v1beta4/deployments/list?pagination.limit=1", `"next_key":"`},
		{"an id names a deployment", "/akash/deployment/v1beta4/deployments/info?id.owner=" + first + "&id.dseq=2", `"hash":"BwcH`},
		{"an id names a group", "/akash/deployment/v1beta4/groups/info?id.owner=" + first + "&id.dseq=2&id.gseq=1", `"gseq":1`},
		{"parameters are told", "/akash/deployment/v1beta4/params", `"min_deposits":[`},
		{"nothing is 404", "/akash/deployment/v1beta4/deployments/info?id.owner=" + first + "&id.dseq=9", "404"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := httptest.NewRequestWithContext(context.WithValue(t.Context(), sdk.SdkContextKey, w.ctx), http.MethodGet, tc.path, nil)
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, req)
			if got := fmt.Sprint(rec.Code, rec.Body.String()); !strings.Contains(got, tc.want) {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestAPageHasALimit(t *testing.T) {
	for _, tc := range []struct {
		name      string
		ask, want uint64
	}{
		{"none is a page of the usual size", 0, pageSize},
		{"what is asked for is given", 7, 7},
		{"more than the module allows is cut", 1 << 40, maxPage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			page, err := pageOf(&query.PageRequest{Limit: tc.ask}, false)
			if err != nil {
				t.Fatal(err)
			}
			if page.Limit != tc.want {
				t.Errorf("limit is %d, want %d", page.Limit, tc.want)
			}
		})
	}
}
